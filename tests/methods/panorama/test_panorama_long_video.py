"""Long panorama videos: the plan of the windows, the turn between them, joins, and going on after a stop."""

import json
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny_video import tiny_video_parts

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import perspective_from_panorama
from visiongraft.methods.panorama.camera import CameraEstimates
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.long_video import (
    LongVideo,
    Window,
    _weights,
    default_overlap,
    lift_long_video,
    plan_windows,
    seam_report,
    track_yaw,
)
from visiongraft.methods.panorama.video_pipeline import PanoramaVideoPipeline
from visiongraft.training.identity import weights_digest

HEIGHT, SIZE, FRAMES, OVERLAP = 16, 16, 13, 5
GRAFT = GraftConfig.video(base="tiny", height=HEIGHT, condition_size=SIZE, num_frames=FRAMES, min_pad=8, pad_multiple=8)
QUICK = {"num_inference_steps": 1, "guidance_scale": 1.0, "max_sequence_length": 4, "progress": False}


@pytest.fixture(scope="module")
def pipeline() -> PanoramaVideoPipeline:
    made = PanoramaVideoPipeline(**tiny_video_parts(1), scheduler=FlowMatchEulerDiscreteScheduler(), graft=GRAFT)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.rand(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def straight(frames: torch.Tensor, panoramas: torch.Tensor) -> float:
    return 0.0


class Painted(PanoramaVideoPipeline):
    """A pipeline whose panorama is a fixed sphere, turned so that the camera's first direction is in its middle."""

    vae_scale_factor_temporal, token_stride, interrupt, graft = 4, 8, False, GRAFT
    __setattr__ = object.__setattr__

    def __init__(self, turns: list[int]) -> None:
        self.sphere = torch.rand(3, HEIGHT, 2 * HEIGHT, generator=torch.Generator().manual_seed(3)).mul(255).round() / 255
        self.turns, self.calls = turns, []

    def encode_panorama(self, panorama: torch.Tensor) -> torch.Tensor:
        assert panorama.shape[1] % 4 == 1
        self.encoded = panorama
        return torch.zeros(1, 4, (panorama.shape[1] - 1) // 4 + 1, HEIGHT // 4, HEIGHT // 2)

    def __call__(self, clip, prompt, *, generator, output_type, known_latents=None, known_mask=None):
        first = round(float(clip[0, 0, 0, 0]) * 100)  # frames carry their number
        self.calls.append((first, known_mask))
        frames = self.sphere.roll(-self.turns[first], -1).expand(len(clip), -1, -1, -1)
        return type("Output", (), {"frames": frames[None]})


@given(windows=st.integers(2, 20), overlap=st.integers(0, 19), factor=st.sampled_from([4, 8]), total=st.integers(1, 900))
def test_windows_cover_every_frame_with_equal_lengths_and_overlaps(windows, overlap, factor, total):
    num_frames, overlap = windows * factor + 1, min(overlap, windows - 1) * factor + 1
    if total < num_frames and total % factor != 1:
        with pytest.raises(ValueError, match=rf"must have {factor}k\+1 frames; got {total}"):
            plan_windows(total, num_frames, overlap, factor)
        return
    plan = plan_windows(total, num_frames, overlap, factor)
    assert plan[0].start == 0 and plan[-1].stop == total
    assert plan[0] == Window(start=0, stop=min(num_frames, total))
    for before, after in pairwise(plan):
        assert before.start < after.start and after.stop - after.start == num_frames
        assert after.shared == before.stop - after.start >= overlap == after.fade
        assert after.known % factor == 1 and 0 <= after.shared - after.known < factor and after.known >= overlap
    assert all(after.shared == overlap for after in plan[1:-1])


def test_the_papers_windows_overlap_by_five_latent_frames():
    assert plan_windows(145) == (Window(start=0, stop=81), Window(start=64, stop=145, shared=17, known=17, fade=17))
    assert plan_windows(148)[-1] == Window(start=67, stop=148, shared=78, known=77, fade=17)
    assert default_overlap(81) == 17 and default_overlap(9) == 5 and default_overlap(5) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((200, 80), r"num_frames must be 4k\+1 \(e\.g\. 81\); got 80"),
        ((200, 81, 16), r"overlap must be 4k\+1 \(e\.g\. 17\); got 16"),
        ((200, 81, 81), "overlap must be shorter than a window of 81 frames; got 81"),
        ((60, 81), r"must have 4k\+1 frames; got 60\. Leave out the last 3"),
        ((0, 81), r"must have 4k\+1 frames; got 0"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)


@pytest.mark.parametrize("total", [21, 24, 37])
def test_windows_that_agree_join_into_the_same_video_however_the_camera_turns(total):
    # the sphere stands still, the camera turns by 3 columns a frame: all windows show the same once turned back
    turns = [3 * frame for frame in range(total)]
    painted = Painted(turns)
    numbered = (torch.arange(total) / 100).reshape(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
    estimator = lambda frames, panoramas: 360 * 3 * (len(frames) - 1) / (2 * HEIGHT)
    video = lift_long_video(painted, numbered, overlap=OVERLAP, estimate_yaw=estimator, progress=False)
    expected = (painted.sphere * 255).round().byte().expand(total, -1, -1, -1)
    assert torch.equal(video.pixels, expected)
    assert torch.equal(video.frames(1, 3), expected[1:3].float() / 255)
    for window, yaw in zip(video.windows, video.yaw_deg, strict=True):
        assert (yaw - 3 * window.start * 360 / (2 * HEIGHT)) % 360 == pytest.approx(0, abs=1e-6)
    # what the last window was given are the frames before it, turned as it will be
    last = video.windows[-1]
    given = (painted.sphere.roll(-turns[last.start], -1)).expand(1, last.known, -1, -1, -1)
    torch.testing.assert_close(painted.encoded, given, atol=1e-6, rtol=0)
    mask = painted.calls[-1][1]
    assert mask.shape == (1, 1, 4, 1, 1) and mask.sum() == (last.known - 1) // 4 + 1
    assert painted.calls[0][1] is None


def test_without_the_turn_the_same_windows_do_not_join():
    turns = [3 * frame for frame in range(24)]
    numbered = (torch.arange(24) / 100).reshape(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
    painted = Painted(turns)
    video = lift_long_video(painted, numbered, overlap=OVERLAP, estimate_yaw=straight, progress=False)
    assert not torch.equal(video.pixels[-1], video.pixels[0])


def test_the_estimator_sees_the_window_before_with_its_middle_and_frames():
    seen = []

    def estimator(frames, panoramas):
        seen.append((frames, panoramas))
        return 0.0 if len(seen) > 1 else 45.0

    numbered = (torch.arange(29) / 100).reshape(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()
    painted = Painted([0] * 29)
    video = lift_long_video(painted, numbered, overlap=OVERLAP, estimate_yaw=estimator, progress=False)
    assert [window.start for window in video.windows] == [0, 8, 16]
    for (frames, panoramas), start in zip(seen, (0, 8), strict=True):
        assert torch.equal(frames, numbered[start : start + 9]) and panoramas.shape == (9, 3, HEIGHT, 2 * HEIGHT)
    # the second window came out of the pipeline with the sphere in its middle, and is given to the estimator so
    torch.testing.assert_close(seen[1][1][-1], painted.sphere, atol=1e-6, rtol=0)
    assert video.yaw_deg == (0.0, 45.0, 45.0)


def test_known_frames_are_kept_and_others_are_new(pipeline, clip):
    short = lift_long_video(pipeline, clip[:FRAMES], "", estimate_yaw=straight, **QUICK)
    assert short.windows == (Window(start=0, stop=FRAMES),)
    video = lift_long_video(pipeline, clip, overlap=OVERLAP, estimate_yaw=straight, **QUICK)
    assert video.pixels.shape == (24, 3, HEIGHT, 2 * HEIGHT) and video.pixels.dtype == torch.uint8
    first_faded = video.windows[1].start + video.windows[1].shared - OVERLAP
    assert torch.equal(video.pixels[:first_faded], short.pixels[:first_faded])
    again = pipeline.decode(pipeline.encode_panorama(short.frames(8, 13)[None]), "pt")[0]
    shared = lift_long_video(pipeline, clip[:21], overlap=OVERLAP, estimate_yaw=straight, **QUICK)
    weights = torch.arange(1, 6).reshape(-1, 1, 1, 1) / 6
    expected = short.frames(8, 13).lerp(again, weights)
    assert (shared.frames(8, 13) - expected).abs().max() < 1.6 / 255


def test_a_stopped_run_goes_on_to_the_same_video(pipeline, clip, tmp_path):
    options = {"overlap": OVERLAP, "estimate_yaw": lambda frames, panoramas: 22.5, "seed": 5, **QUICK}
    whole = lift_long_video(pipeline, iter(clip), "a street", **options)
    calls = []

    def stop(pipe, step, timestep, tensors):
        calls.append(step)
        pipe._interrupt = len(calls) == 2
        return tensors

    with pytest.raises(InterruptedError, match="finished windows are kept"):
        lift_long_video(pipeline, clip, "a street", folder=tmp_path, callback_on_step_end=stop, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "window_0000.safetensors"]
    resumed = lift_long_video(pipeline, clip, "a street", folder=tmp_path, **options)
    assert torch.equal(resumed.pixels, whole.pixels) and resumed.yaw_deg == whole.yaw_deg
    count = len(resumed.windows)
    assert len([*tmp_path.glob("*.safetensors")]) == count

    def fail(*args, **kwargs):
        raise AssertionError("nothing is left to do")

    finished = lift_long_video(pipeline, clip, "a street", folder=tmp_path, **options | {"estimate_yaw": fail})
    assert torch.equal(finished.pixels, whole.pixels)
    assert not torch.equal(lift_long_video(pipeline, clip, "a street", **options | {"seed": 6}).pixels, whole.pixels)


def test_windows_of_another_run_are_refused_with_a_sentence(pipeline, clip, tmp_path):
    options = {"overlap": OVERLAP, "estimate_yaw": straight, "folder": tmp_path, **QUICK}
    lift_long_video(pipeline, clip[:FRAMES], **options)
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0
    with pytest.raises(ValueError, match=r"holds windows of another run \(prompt, seed, video differ\)"):
        lift_long_video(pipeline, 1 - clip[:FRAMES], "a", seed=1, **options)
    with pytest.raises(ValueError, match="does not take fit, generator"):
        lift_long_video(pipeline, clip, fit="keep", generator=torch.Generator(), **options)


def same_models(pipeline: PanoramaVideoPipeline) -> PanoramaVideoPipeline:
    """A pipeline of its own with the same weights."""
    parts = {name: deepcopy(part) for name, part in pipeline.components.items() if name != "transformer_2"}
    made = PanoramaVideoPipeline(**parts, graft=pipeline.graft)
    made.set_progress_bar_config(disable=True)
    return made


def test_windows_of_other_weights_dtypes_or_lora_are_refused_and_of_the_same_offloaded_ones_taken(pipeline, clip, tmp_path):
    options = {"estimate_yaw": straight, "folder": tmp_path, **QUICK}
    first = lift_long_video(pipeline, clip[:FRAMES], **options)
    for name in ("transformer", "vae"):
        other = same_models(pipeline)
        with torch.no_grad():
            [*getattr(other, name).parameters()][-1].add_(0.01)
        with pytest.raises(ValueError, match=rf"holds windows of another run \({name} differ\)"):
            lift_long_video(other, clip[:FRAMES], **options)
    half = same_models(pipeline).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"\(transformer, vae differ\)"):
        lift_long_video(half, clip[:FRAMES], **options)
    offloaded = same_models(pipeline)
    for part in (offloaded.text_encoder, offloaded.transformer, offloaded.vae):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert any(values.is_meta for values in offloaded.transformer.state_dict().values())
    assert torch.equal(lift_long_video(offloaded, clip[:FRAMES], **options).pixels, first.pixels)


def test_windows_of_a_lora_at_another_strength_are_refused(pipeline, clip, tmp_path):
    tuned = same_models(pipeline)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tuned.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    options = {"estimate_yaw": straight, "folder": tmp_path, **QUICK}
    lift_long_video(tuned, clip[:FRAMES], **options)
    tuned.set_adapters("style", 0.5)
    with pytest.raises(ValueError, match=r"\(lora differ\)"):
        lift_long_video(tuned, clip[:FRAMES], **options)
    tuned.set_adapters("style", 1.0)
    lift_long_video(tuned, clip[:FRAMES], **options)
    with pytest.raises(ValueError, match=r"\(lora, transformer differ\)"):
        lift_long_video(pipeline, clip[:FRAMES], **options)


def test_weights_that_are_nowhere_are_compared_by_shape_with_a_sentence():
    with pytest.warns(UserWarning, match=r"2 weights of the Linear are on the meta device and are compared by shape and dtype only"):
        digests = [weights_digest(_weights(torch.nn.Linear(2, width, device="meta"))) for width in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_seam_report_is_one_for_steady_change_and_finds_a_jump():
    windows = plan_windows(29, 13, 5)
    steady = torch.arange(29.0).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 8) / 100
    for report, window in zip(seam_report(steady, windows), windows[:-1], strict=True):
        assert (
            report.frame == window.stop
            and report.mean_ratio == pytest.approx(1, rel=1e-4)
            and report.peak_ratio == pytest.approx(1, rel=1e-4)
        )
    jump = steady.clone()
    jump[13:] += 0.05
    first, second = seam_report([*jump], windows)
    assert first.peak_ratio == pytest.approx(6, rel=1e-3) and first.mean_ratio == pytest.approx(1 + 5 / 6, rel=1e-3)
    assert second.peak_ratio == pytest.approx(1, rel=1e-3)
    assert seam_report(steady[:13], windows[:1]) == []
    with pytest.raises(ValueError, match="cover 29 frames; got 28"):
        seam_report(steady[:-1], windows)


def test_track_yaw_follows_a_turning_camera_far_from_the_middle():
    coarse = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    panorama = torch.nn.functional.interpolate(torch.cat([coarse, coarse[..., :1]], -1), (64, 136), mode="bicubic").clamp(0, 1)[..., :128]
    yaws = torch.linspace(0, 40, 5).deg2rad()
    rotations = rotation_from_angles(yaws, torch.full((5,), 0.1), torch.zeros(5))
    panoramas = panorama.expand(5, -1, -1, -1)
    frames = perspective_from_panorama(panoramas, torch.full((5,), 1.3), rotations, (48, 48))
    assert track_yaw(frames, panoramas, every=2) == pytest.approx(40, abs=0.5)


def test_a_frame_that_is_not_found_again_is_warned_of(monkeypatch):
    lost = {name: torch.zeros(3) for name in ("hfov_deg", "yaw_deg", "pitch_deg", "roll_deg", "psnr", "ncc")}
    track = CameraEstimates(**lost, reliable=torch.tensor([True, True, False]))
    monkeypatch.setattr("visiongraft.methods.panorama.long_video.estimate_track", lambda frames, panoramas: track)
    with pytest.warns(UserWarning, match=r"is not found in the panorama \(correlation 0\.00\)"):
        track_yaw(torch.zeros(9, 3, 4, 4), torch.zeros(9, 3, 4, 8))


def test_long_video_type_is_exported_with_unit_range_frames():
    video = LongVideo(pixels=torch.full((2, 3, 4, 8), 255, dtype=torch.uint8), windows=(), yaw_deg=())
    assert video.frames().max() == 1 and video.frames(1).shape[0] == 1
