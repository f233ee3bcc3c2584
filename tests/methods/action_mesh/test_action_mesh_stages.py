from types import SimpleNamespace

import pytest
import torch

from visiongraft.methods.action_mesh.guidance import PairGuidance
from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.sampler import Cancelled, stage_one_sigmas
from visiongraft.methods.action_mesh.stage_one import generate_latents
from visiongraft.methods.action_mesh.stage_two import deform_mesh
from visiongraft.methods.action_mesh.windows import plan_windows

ONE = PairGuidance(((1, 1),), ())
SHORT = {"window": 4, "slide": 3, "num_steps": 2, "guidance": ONE}


class ToFrameNumber:
    """A denoiser whose data are one point for each frame: latents equal to the frame's number. It remembers what it was given."""

    config = SimpleNamespace(in_channels=2)

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, latents, context, framestep, timestep, mask):
        self.calls.append(SimpleNamespace(latents=latents.clone(), framestep=framestep, mask=mask, context=context))
        return (framestep[..., None, None] - latents) / (timestep / 1000)[:, None, None, None]


def clip(frames: int, batch: int = 1) -> torch.Tensor:
    """Context that holds the frame's number."""
    return torch.arange(float(frames))[None, :, None, None].repeat(batch, 1, 1, 1)


@pytest.mark.parametrize(("anchor", "total"), [(0, 4), (0, 10), (9, 10), (4, 10), (6, 10), (1, 3), (0, 2)])
def test_every_frame_gets_its_own_latent_from_its_own_picture(anchor, total):
    denoise = ToFrameNumber()
    bank = generate_latents(denoise, clip(total), TimeBank({anchor: torch.full((1, 3, 2), float(anchor))}), anchor=anchor, **SHORT)
    assert bank.times == list(range(total))
    slack = 5 * float(stage_one_sigmas(2)[-1])  # the path ends before time 0
    for frame in range(total):
        assert float((bank[frame] - frame).abs().max()) < slack + 0.01 * frame
    for call in denoise.calls:
        assert torch.equal(call.context[0, :, 0, 0], call.framestep[0])


def test_latents_of_earlier_windows_are_sources_of_later_ones():
    denoise = ToFrameNumber()
    start = torch.full((1, 3, 2), 0.0)
    bank = generate_latents(denoise, clip(9), TimeBank({0: start}), **SHORT)
    windows = plan_windows(0, 9, 4, 3)
    assert windows == [[0, 1, 2, 3], [3, 4, 5, 6], [5, 6, 7, 8]]
    calls = denoise.calls[::2]
    assert [call.framestep[0].tolist() for call in calls] == windows
    assert [call.mask[0].tolist() for call in calls] == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert torch.equal(calls[2].latents[:, :2], bank.stack([5, 6], dim=1))
    assert torch.equal(bank[0], start)


def test_noise_of_a_window_is_that_of_its_own_seed():
    known = TimeBank({0: torch.zeros(1, 3, 2)})
    first, second = ToFrameNumber(), ToFrameNumber()
    generate_latents(first, clip(7), known, seed=10, **SHORT)
    generate_latents(second, clip(7), known, seed=11, **SHORT)
    assert torch.equal(first.calls[2].latents[:, 1:], second.calls[0].latents[:, 1:])
    assert len(known) == 1


def test_a_batch_is_several_clips():
    def mixes_frames(latents, context, framestep, timestep, mask):
        return latents.mean((1, 2, 3), keepdim=True) - latents + context + mask[..., None, None]

    mixes_frames.config = SimpleNamespace(in_channels=2)
    context = torch.randn(2, 6, 1, 1, generator=torch.Generator().manual_seed(0))
    other = context + torch.tensor([0.0, 1.0])[:, None, None, None]
    known = TimeBank({2: torch.ones(2, 3, 2)})
    bank, changed = (generate_latents(mixes_frames, one, known, anchor=2, **SHORT) for one in (context, other))
    for frame in (0, 1, 3, 4, 5):
        assert torch.equal(bank[frame][0], changed[frame][0]) and not torch.equal(bank[frame][1], changed[frame][1])


def test_known_frames_of_a_shorter_clip_are_kept_and_only_the_rest_is_made():
    denoise = ToFrameNumber()
    known = TimeBank({k: torch.full((1, 3, 2), 100.0 + k) for k in range(4)})
    bank = generate_latents(denoise, clip(7), known, **SHORT)
    assert [float(bank[k].mean()) for k in range(4)] == [100, 101, 102, 103]
    assert len(denoise.calls) == 2 and denoise.calls[0].framestep[0].tolist() == [3, 4, 5, 6]


def test_without_an_anchor_all_frames_are_generated_and_the_user_is_warned():
    denoise = ToFrameNumber()
    with pytest.warns(UserWarning, match="released weights were not trained for"):
        bank = generate_latents(denoise, clip(5), TimeBank(), anchor=None, num_tokens=3, **SHORT)
    assert bank.times == list(range(5))
    assert denoise.calls[0].mask.sum() == 0 and denoise.calls[-1].mask.sum() == 3


def test_progress_and_cancel_of_stage_one():
    told = []
    known = TimeBank({0: torch.zeros(1, 3, 2)})
    generate_latents(ToFrameNumber(), clip(7), known, callback=lambda *p: told.append(p), **SHORT)
    assert told == [(1, 2, 0, 2), (2, 2, 0, 2), (1, 2, 1, 2), (2, 2, 1, 2)]
    with pytest.raises(Cancelled, match="stage I"):
        generate_latents(ToFrameNumber(), clip(7), known, cancel=lambda: True, **SHORT)


def test_bad_input_of_stage_one():
    denoise, known = ToFrameNumber(), TimeBank({0: torch.zeros(1, 3, 2)})
    with pytest.raises(ValueError, match="need at least 2 frames, got 1"):
        generate_latents(denoise, clip(1), known)
    with pytest.raises(IndexError, match="0 to 4; got 9"):
        generate_latents(denoise, clip(5), known, anchor=9)
    with pytest.raises(ValueError, match="The anchor, frame 1, has no latents"):
        generate_latents(denoise, clip(5), known, anchor=1)
    with pytest.raises(ValueError, match="have 5 channels, and the denoiser takes 2"):
        generate_latents(denoise, clip(5), TimeBank({0: torch.zeros(1, 3, 5)}))
    with pytest.raises(ValueError, match=r"for 1 clips; got \(2, 3, 2\)"):
        generate_latents(denoise, clip(5), TimeBank({0: torch.zeros(2, 3, 2)}))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="num_tokens and channels must be given"):
        generate_latents(denoise, clip(5), TimeBank(), anchor=None)


TETRAHEDRON = (
    torch.tensor([[0.5, 0.5, 0.5], [0.5, -0.5, -0.5], [-0.5, 0.5, -0.5], [-0.5, -0.5, 0.5]]),
    torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]),
)


class Shift:
    """A decoder for latents that hold how far the shape has moved along x: positions move by the difference of two times' values."""

    def __init__(self) -> None:
        self.contexts, self.queries = [], []

    def decode_context(self, latents, framestep, source, target):
        self.contexts.append(SimpleNamespace(framestep=framestep, source=source, target=target))
        values = latents.mean((2, 3))
        order = framestep.argsort(1)
        framestep, values = framestep.gather(1, order), values.gather(1, order)
        at = [self._between(values, framestep, time) for time in (source, target)]
        return at[1] - at[0]

    @staticmethod
    def _between(values, framestep, time):
        offset = time - framestep[:, 0]
        low = offset.floor().long().clamp(max=framestep.shape[1] - 2)
        share = offset - low
        pick = lambda index: values.gather(1, index[:, None])[:, 0]
        return (1 - share) * pick(low) + share * pick(low + 1)

    def query(self, context, points, normals, chunk=50_000):
        self.queries.append(SimpleNamespace(points=points, normals=normals, chunk=chunk))
        return points + context[:, None, None] * torch.tensor([1.0, 0, 0])


def moved(total: int) -> TimeBank:
    return TimeBank({k: torch.full((3, 2), 0.004 * k**1.5) for k in range(total)})


@pytest.mark.parametrize(("anchor", "total"), [(0, 4), (0, 10), (9, 10), (4, 10), (6, 10), (7, 8), (0, 2), (11, 16)])
@pytest.mark.parametrize("at_once", [1, 3])
def test_every_frame_is_reached_from_any_anchor(anchor, total, at_once):
    vertices, faces = TETRAHEDRON
    bank = deform_mesh(Shift(), moved(total), vertices, faces, plan_windows(anchor, total, 4, 3), targets_at_once=at_once)
    assert bank.times == list(range(total))
    assert torch.equal(bank[anchor], vertices)
    for frame in range(total):
        expected = 0.004 * (frame**1.5 - anchor**1.5)
        assert torch.allclose(bank[frame] - vertices, torch.tensor([expected, 0, 0]).expand(4, 3), atol=1e-5)


def test_sources_are_the_windows_first_frames_with_their_own_vertices_and_normals():
    vertices, faces = TETRAHEDRON
    autoencoder = Shift()
    bank = deform_mesh(autoencoder, moved(7), vertices, faces, [[3, 2, 1, 0], [3, 4, 5, 6]])
    assert [float(one.source) for one in autoencoder.contexts] == [3, 3, 3, 3, 3, 3]
    assert [float(one.target) for one in autoencoder.contexts] == [0, 1, 2, 4, 5, 6]
    assert all(torch.equal(one.points[0], bank[3]) for one in autoencoder.queries)
    assert torch.allclose(autoencoder.queries[0].normals[0], vertices / vertices.norm(dim=-1, keepdim=True), atol=1e-6)


def test_times_between_frames_and_known_times():
    vertices, faces = TETRAHEDRON
    windows = plan_windows(0, 7, 4, 3)
    fine = deform_mesh(Shift(), moved(7), vertices, faces, windows, subsampling_level=2)
    assert fine.times == [k / 2 for k in range(13)]
    coarse = deform_mesh(Shift(), moved(7), vertices, faces, windows)
    assert all(torch.allclose(fine[k], coarse[k], atol=1e-6) for k in range(7))
    autoencoder = Shift()
    again = deform_mesh(autoencoder, moved(7), vertices, faces, windows, known=coarse, subsampling_level=2)
    assert len(autoencoder.contexts) == 6 and again.times == fine.times and len(coarse) == 7
    assert torch.allclose(again.stack(), fine.stack(), atol=1e-6)


def test_progress_chunk_and_cancel_of_stage_two():
    vertices, faces = TETRAHEDRON
    told, autoencoder = [], Shift()
    windows = plan_windows(0, 7, 4, 3)
    deform_mesh(autoencoder, moved(7), vertices, faces, windows, targets_at_once=2, query_chunk=3, callback=lambda *p: told.append(p))
    assert told == [(2, 3, 0, 2), (3, 3, 0, 2), (2, 3, 1, 2), (3, 3, 1, 2)]
    assert {one.chunk for one in autoencoder.queries} == {3}
    with pytest.raises(Cancelled, match="before target 1 of 3 of stage II"):
        deform_mesh(autoencoder, moved(7), vertices, faces, windows, cancel=lambda: True)


def test_motion_that_the_box_clips_is_told():
    vertices, faces = TETRAHEDRON
    with pytest.warns(UserWarning, match=r"sides of the models. box.*fit_scale"):
        deform_mesh(Shift(), TimeBank({0: torch.zeros(3, 2), 1: torch.full((3, 2), 0.6)}), vertices, faces, [[0, 1]])


def test_bad_input_of_stage_two():
    vertices, faces = TETRAHEDRON
    with pytest.raises(ValueError, match="There are no windows"):
        deform_mesh(Shift(), moved(3), vertices, faces, [])
    with pytest.raises(ValueError, match="at least two distinct timesteps"):
        deform_mesh(Shift(), moved(3), vertices, faces, [[0, 0]])
    with pytest.raises(KeyError, match="time 3; there are 0, 1, 2"):
        deform_mesh(Shift(), moved(3), vertices, faces, [[0, 1, 2, 3]])
    with pytest.raises(KeyError, match="time 2"):
        deform_mesh(Shift(), moved(4), vertices, faces, [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="at least 1; got 0 and 1"):
        deform_mesh(Shift(), moved(3), vertices, faces, [[0, 1]], query_chunk=0)
