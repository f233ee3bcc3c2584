"""The verbs on files: photos, videos and panoramas, from the command line to what they write. Weights are random, of the real classes."""

import json
import math
import weakref

import av
import numpy as np
import pytest
import torch
from PIL import Image

from visiongraft.cli import main
from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_rays, perspective_from_panorama, rotate_panorama
from visiongraft.media.gpano import read_panorama_metadata, save_panorama
from visiongraft.media.images import read_image, save_image
from visiongraft.media.spherical import read_spherical
from visiongraft.media.video import iter_video, probe_video, read_video
from visiongraft.media.video_writing import write_video
from visiongraft.methods.panorama import panorama_files, small
from visiongraft.methods.panorama.camera import CameraEstimates
from visiongraft.methods.panorama.canonicalisation import canonicalise, up_from_pitch_roll
from visiongraft.methods.panorama.commands import VERBS
from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
from visiongraft.methods.panorama.lift import of_whole_photo
from visiongraft.methods.panorama.released import save_graft
from visiongraft.worlds.generation import make_scene
from visiongraft.worlds.rendering import render_panorama
from visiongraft.worlds.waves import wave_worlds

CAPTIONS = ["a street at noon with a red car"]
CAMERA = {"hfov_deg": 50.0, "yaw_deg": 0.0, "pitch_deg": 3.0, "roll_deg": -2.0, "psnr": 30.0, "ncc": 0.9}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_graft(folder / "image", small.image_pipeline(small.small_vae(0), small.small_transformer(0), CAPTIONS), complete=True)
    video = small.video_pipeline(small.small_video_vae(0), small.small_video_transformer(0), CAPTIONS, small.video_graft(num_frames=5))
    save_graft(folder / "video", video, complete=True)
    return folder


@pytest.fixture(scope="module")
def panorama():
    scene = make_scene("street", 3)
    return render_panorama(scene, scene.viewpoint, 64, samples=1, shadows=False).color


@pytest.fixture
def photo(tmp_path):
    picture = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return save_image(picture, tmp_path / "photo.png")


@pytest.fixture
def clip(tmp_path):
    frames = torch.rand(8, 3, 6, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return write_video(frames, tmp_path / "clip.mp4", 16)


def run(*words):
    return main(["panorama", *map(str, words)])


# --- lift ----------------------------------------------------------------------------------------------------------------


def test_lifting_a_photo_writes_a_tagged_panorama_and_a_viewer(photo, weights, tmp_path, capsys):
    output = tmp_path / "out" / "pano.jpg"
    assert run("lift", photo, "-o", output, "--weights", weights / "image", "--steps", 2) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(output), str(output.with_suffix(".html"))]
    assert "field of view" in said.err and str(weights / "image") in said.err
    assert read_image(output).shape == (3, 64, 128)
    metadata = read_panorama_metadata(output)
    assert metadata is not None and (metadata.full_width, metadata.full_height) == (128, 64)
    page = output.with_suffix(".html").read_text()
    assert "data:image/jpeg;base64," in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_seed_gives_the_same_panorama_and_another_one_another(photo, weights, tmp_path):
    outputs = [tmp_path / f"{name}.png" for name in "abc"]
    for output, seed in zip(outputs, (5, 5, 6), strict=True):
        options = ("--weights", weights / "image", "--steps", 2, "--seed", seed, "--viewer", "false", "--camera", "false")
        assert run("lift", photo, "-o", output, *options) == 0
    first, second, third = (read_image(output) for output in outputs)
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert not outputs[0].with_suffix(".html").exists()


def test_guidance_and_height_reach_the_pipeline(photo, weights, tmp_path):
    common = ("--weights", weights / "image", "--steps", 2, "--viewer", "false", "--camera", "false")
    plain, guided, high = (tmp_path / f"{name}.png" for name in ("plain", "guided", "high"))
    assert run("lift", photo, "-o", plain, *common) == 0
    assert run("lift", photo, "-o", guided, *common, "--guidance_scale", 4, "--cfg", "text", "--prompt", "a street") == 0
    assert run("lift", photo, "-o", high, *common, "--height", 96) == 0
    assert not torch.equal(read_image(plain), read_image(guided))
    assert read_image(high).shape == (3, 96, 192)


def test_lifting_a_video_writes_a_spherical_video(clip, weights, tmp_path, capsys):
    output = tmp_path / "pano.mp4"
    assert run("lift", clip, "-o", output, "--weights", weights / "video", "--steps", 2, "--guidance_scale", 1) == 0
    info = probe_video(output)
    assert (info.num_frames, info.height, info.width) == (5, 64, 128)
    assert read_spherical(output) is not None
    assert "first 5 of 8 frames" in capsys.readouterr().err
    assert "data:video/mp4;base64," in output.with_suffix(".html").read_text()


def test_a_longer_video_is_lifted_whole(clip, weights, tmp_path, capsys):
    output = tmp_path / "long.mp4"
    words = ("lift", clip, "-o", output, "--weights", weights / "video", "--steps", 1, "--guidance_scale", 1, "--long", "true")
    with pytest.warns(UserWarning, match="not found in the panorama"):  # random weights
        assert run(*words, "--viewer", "false") == 0
    assert probe_video(output).num_frames == 8
    assert "Windows join at frame" in capsys.readouterr().err
    assert not (tmp_path / ".long-windows").exists()  # kept only as long as a stopped run could go on from it


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("lift", "missing.jpg"), "There is no photo or video missing.jpg"),
        (("lift", "photo.png", "-o", "photo.png"), "would overwrite the input"),
        (("lift", "photo.png", "-o", "pano.gif"), "gif"),
        (("lift", "photo.png", "-o", "pano.png", "--height", "50"), "panorama size must be (H, 2H)"),
        (("lift", "photo.png", "-o", "pano.png", "--steps", "0"), "at least 1"),
        (("lift", "photo.png", "-o", "pano.png", "--steps", "many"), "steps"),
        (("lift", "clip.mp4", "-o", "pano.jpg"), "written as .mp4"),
        (("lift", "clip.mp4", "-o", "pano.mp4", "--frames", "4"), "4k+1"),
        (("lift", "clip.mp4", "-o", "pano.mp4", "--frames", "81"), "81 are needed"),
        (("lift", "clip.mp4", "-o", "pano.mp4", "--fps", "0"), "fps must be positive"),
        (("lift", "clip.mp4", "-o", "pano.mp4", "--composite", "true"), "leave it out for videos"),
        (("lift", "clip.mp4", "-o", "pano.mp4", "--long", "true", "--fit", "keep"), "leave fit out"),
        (("lift", "text.mp4", "-o", "pano.mp4"), "text.mp4"),
        (("lift", "clear.png", "-o", "pano.png"), "image has transparency: pass alpha='white' or 'black'"),
        (("lift", "photo.png", "-o", "pano.png", "--lora", "missing"), "missing"),
        (("lift", "photo.png", "-o", "pano.png", "--cfg", "text"), "needs a --guidance_scale"),
        (("lift", "photo.png", "-o", "pano.png", "--condition_scale", "2"), "--cfg two only"),
        (("lift", "photo.png", "-o", "pano.png", "--long", "true"), "are for videos"),
        (("lift", "clip.mp4", "-o", "pano.mov"), "Browsers do not show .mov"),
    ],
)
def test_what_cannot_be_lifted_gets_one_sentence_and_leaves_nothing(words, sentence, photo, clip, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("this is no video")
    Image.fromarray(np.full((8, 8, 4), 100, np.uint8), "RGBA").save(tmp_path / "clear.png")
    before = sorted(p.name for p in tmp_path.iterdir())
    kind = "video" if "mp4" in words[1] else "image"
    assert run(*words, "--weights", weights / kind) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said[-1] and "Traceback" not in "".join(said)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_transparent_photos_are_laid_on_the_colour_asked_for(weights, tmp_path):
    Image.fromarray(np.full((64, 64, 4), 100, np.uint8), "RGBA").save(tmp_path / "clear.png")
    common = ("--weights", weights / "image", "--steps", 1, "--viewer", "false", "--camera", "false")
    for alpha in ("white", "black"):
        assert run("lift", tmp_path / "clear.png", "-o", tmp_path / f"{alpha}.png", "--alpha", alpha, *common) == 0
    assert not torch.equal(read_image(tmp_path / "white.png"), read_image(tmp_path / "black.png"))


# --- camera --------------------------------------------------------------------------------------------------------------


def test_the_camera_of_a_crop_is_found_in_its_panorama_and_kept(tmp_path, capsys):
    world = wave_worlds(1, torch.Generator().manual_seed(2))
    sphere = world.color(panorama_rays(128, 256)[None])
    angles = torch.tensor([20.0, 12.0, -5.0]).deg2rad()
    crop = perspective_from_panorama(sphere, torch.tensor([70.0]).deg2rad(), rotation_from_angles(*angles)[None], (96, 96))
    save_panorama(sphere[0], tmp_path / "pano.png")
    save_image(crop[0], tmp_path / "crop.png")
    words = ("camera", tmp_path / "crop.png", "--panorama", tmp_path / "pano.png", "--yaw_deg", 30, "--output", tmp_path / "cameras.jsonl")
    assert run(*words) == 0
    assert "field of view" in capsys.readouterr().out
    row = json.loads((tmp_path / "cameras.jsonl").read_text())
    found = [row[name] for name in ("hfov_deg", "yaw_deg", "pitch_deg", "roll_deg")]
    assert found == pytest.approx([70.0, 20.0, 12.0, -5.0], abs=0.5) and row["reliable"] is True
    assert run(*words) == 0  # what is done is not done again
    assert capsys.readouterr().out == "" and len((tmp_path / "cameras.jsonl").read_text().splitlines()) == 1
    assert run(*words, "--seed", 1) == 2
    assert "of another run" in capsys.readouterr().err


def test_the_field_of_view_is_that_of_the_whole_photo_not_of_its_middle_square():
    camera = CameraEstimates(**{name: torch.tensor([v]) for name, v in CAMERA.items()}, reliable=torch.tensor([True]))
    whole = of_whole_photo(camera, torch.zeros(3, 100, 150), torch.zeros(3, 100, 100))
    assert float(whole.hfov_deg) == pytest.approx(2 * math.degrees(math.atan(1.5 * math.tan(math.radians(25)))), abs=1e-3)
    upright = of_whole_photo(camera, torch.zeros(3, 150, 100), torch.zeros(3, 100, 100))
    assert float(upright.hfov_deg) == pytest.approx(50.0, abs=1e-3) and float(whole.pitch_deg) == 3.0


def test_a_composite_shows_the_photos_own_pixels(weights, tmp_path, monkeypatch):
    sphere = wave_worlds(1, torch.Generator().manual_seed(3)).color(panorama_rays(64, 128)[None])
    angles = torch.tensor([0.0, 8.0, 0.0]).deg2rad()
    crop = perspective_from_panorama(sphere, torch.tensor([60.0]).deg2rad(), rotation_from_angles(*angles)[None], (64, 64))[0]
    save_image(crop, tmp_path / "crop.png")
    monkeypatch.setattr(PanoramaImagePipeline, "decode", lambda self, latents, output_type: 0.8 * sphere + 0.1)  # paler than the photo
    common = ("--weights", weights / "image", "--steps", 1, "--viewer", "false")
    for name, flag in (("plain", "false"), ("pasted", "true")):
        assert run("lift", tmp_path / "crop.png", "-o", tmp_path / f"{name}.png", "--composite", flag, *common) == 0
    plain, pasted = (read_image(tmp_path / f"{name}.png") for name in ("plain", "pasted"))
    middle = (slice(None), slice(24, 34), slice(58, 70))
    errors = [float((made[middle] - sphere[0][middle]).abs().mean()) for made in (pasted, plain)]
    assert errors[0] < errors[1] / 2
    assert torch.equal(pasted[:, :, :20], plain[:, :, :20])


def test_the_camera_through_generated_panoramas_says_when_it_is_unreliable(photo, weights, capsys):
    assert run("camera", photo, "--weights", weights / "image", "--samples", 2, "--steps", 1) == 0
    assert "unreliable" in capsys.readouterr().out  # random weights do not repeat the photo
    assert run("camera", photo, "--samples", 0) == 2
    assert "samples must be at least 1" in capsys.readouterr().err


# --- panoramas as files -----------------------------------------------------------------------------------------------------


def test_seam_check_tells_a_seam_from_none_and_writes_both(panorama, tmp_path, capsys):
    folder = tmp_path / "panoramas"
    ramp = panorama + torch.linspace(-0.3, 0.3, panorama.shape[-1])
    save_panorama(panorama, folder / "1_whole.png")
    save_panorama(ramp.clamp(0, 1), folder / "2_broken.png")
    assert run("seam-check", folder, "--output", tmp_path / "seams") == 0
    whole, broken = capsys.readouterr().out.splitlines()
    assert "No seam" in whole and "do not match" in broken
    rows = [json.loads(line) for line in (tmp_path / "seams" / "seams.jsonl").read_text().splitlines()]
    assert rows[0]["ratio"] < 1.6 < 3 < rows[1]["ratio"]
    assert {p.name for p in (tmp_path / "seams").glob("*.png")} == {"1_whole_seam.png", "2_broken_seam.png"}


def test_seam_check_names_a_file_that_is_no_panorama(tmp_path, capsys):
    save_image(torch.rand(3, 8, 17), tmp_path / "wide.png")
    assert run("seam-check", tmp_path / "wide.png") == 2
    said = capsys.readouterr().err
    assert "wide.png" in said and "ERP must have W = 2H; got 8x17" in said and "repeat" in said


def test_seam_pictures_of_two_files_of_one_stem_are_told_apart(panorama, tmp_path):
    folder = tmp_path / "panoramas"
    for name in ("a.png", "a.jpg", "b.png"):
        save_panorama(panorama, folder / name)
    assert run("seam-check", folder, "--output", tmp_path / "seams") == 0
    assert {p.name for p in (tmp_path / "seams").glob("*.png")} == {"a_png_seam.png", "a_jpg_seam.png", "b_seam.png"}


@pytest.mark.parametrize("verb", ["seam-check", "crops"])
def test_transparent_panoramas_are_refused(verb, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 16, 4), np.uint8)).save(tmp_path / "clear.png")
    assert run(verb, tmp_path / "clear.png", "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "clear.png" in said and "transparent" in said


def test_crops_of_an_image_and_of_every_second_frame_of_a_video(panorama, tmp_path, capsys):
    save_panorama(panorama, tmp_path / "pano.png")
    assert run("crops", tmp_path / "pano.png", "--output", tmp_path / "still", "--views", 4, "--size", 16) == 0
    assert "4 views" in capsys.readouterr().out
    front = read_image(tmp_path / "still" / "images" / "view_0" / "frame_00000.png")
    hfov, level = torch.tensor([np.pi / 2], dtype=torch.float32), torch.eye(3)[None]
    expected = perspective_from_panorama(read_image(tmp_path / "pano.png")[None], hfov, level, (16, 16))[0]
    assert (front - expected).abs().max() < 1 / 255
    frames = torch.stack([panorama.roll(4 * k, -1) for k in range(4)])
    write_video(frames, tmp_path / "pano.mp4", 16)
    assert run("crops", tmp_path / "pano.mp4", "--output", tmp_path / "moving", "--layout", "cube", "--size", 16, "--every", 2) == 0
    assert "12 views" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "moving" / "transforms.json").read_text())["frames"]) == 12
    assert (tmp_path / "moving" / "sparse" / "0" / "images.txt").is_file()


def test_canonicalise_brings_a_turning_video_to_rest(tmp_path, capsys):
    sphere = wave_worlds(1, torch.Generator().manual_seed(4)).color(panorama_rays(64, 128)[None])
    turns = rotation_from_angles(*(torch.linspace(0, 0.2, 4) * scale for scale in (1.0, 0.4, 0.2)))
    write_video(rotate_panorama(sphere.expand(4, -1, -1, -1), turns).clamp(0, 1), tmp_path / "walk.mp4", 16, crf=1)
    assert run("canonicalise", tmp_path / "walk.mp4", "-o", tmp_path / "level.mp4") == 0
    before, after = (read_video(tmp_path / name) for name in ("walk.mp4", "level.mp4"))
    change = lambda frames: float((frames[1:] - frames[:1]).abs().mean())
    assert change(after) < change(before) / 4
    assert read_spherical(tmp_path / "level.mp4") is not None
    assert run("canonicalise", tmp_path / "walk.mp4", "-o", tmp_path / "walk.mp4") == 2
    assert "would overwrite" in capsys.readouterr().err


def test_canonicalise_levels_a_video_at_rest_by_the_tilt_it_is_told(tmp_path):
    sphere = wave_worlds(1, torch.Generator().manual_seed(4)).color(panorama_rays(32, 64)[None])
    write_video(sphere.expand(3, -1, -1, -1), tmp_path / "rest.mp4", 16, crf=1)
    words = ("--stabilise", "false", "--pitch_deg", 20, "-o", tmp_path / "level.mp4")
    assert run("canonicalise", tmp_path / "rest.mp4", *words) == 0
    before, after = (read_video(tmp_path / name) for name in ("rest.mp4", "level.mp4"))
    expected = canonicalise(before, torch.eye(3).expand(3, 3, 3), up_from_pitch_roll(20.0, 0.0))
    assert after.shape == before.shape and (after - expected).abs().mean() < 0.02 < (after - before).abs().mean()


def test_canonicalise_holds_few_frames_at_once(tmp_path, monkeypatch):
    write_video(torch.rand(12, 3, 16, 32, generator=torch.Generator().manual_seed(0)), tmp_path / "long.mp4", 16)
    alive, most = weakref.WeakSet(), 0

    def watched(path):
        nonlocal most
        for frame in iter_video(path):
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(panorama_files, "iter_video", watched)
    assert run("canonicalise", tmp_path / "long.mp4", "-o", tmp_path / "level.mp4") == 0
    assert probe_video(tmp_path / "level.mp4").num_frames == 12 and 0 < most <= 3


def test_canonicalise_names_a_video_that_is_no_panorama(tmp_path, capsys):
    write_video(torch.zeros(2, 3, 16, 16), tmp_path / "square.mp4", 16)
    assert run("canonicalise", tmp_path / "square.mp4") == 2
    said = capsys.readouterr().err
    assert "square.mp4: " in said and "W = 2H" in said


def test_canonicalise_says_that_it_leaves_sound_out(tmp_path, capsys):
    with av.open(str(tmp_path / "loud.mp4"), "w") as container:
        picture, sound = container.add_stream("libx264", rate=16), container.add_stream("aac", rate=16_000)
        picture.width, picture.height, picture.pix_fmt = 32, 16, "yuv420p"
        for _ in range(2):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), 99, np.uint8), format="rgb24")))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16_000
        container.mux([*sound.encode(samples), *sound.encode(None), *picture.encode(None)])
    assert run("canonicalise", tmp_path / "loud.mp4", "-o", tmp_path / "level.mp4") == 0
    assert "loud.mp4: its sound is left out of" in capsys.readouterr().err
    assert not probe_video(tmp_path / "level.mp4").has_audio
    assert run("canonicalise", tmp_path / "level.mp4", "-o", tmp_path / "again.mp4") == 0
    assert "sound" not in capsys.readouterr().err


def test_training_through_the_command_line_gives_weights_that_lift(photo, weights, tmp_path, capsys):
    folder = tmp_path / "panoramas"
    spheres = wave_worlds(3, torch.Generator().manual_seed(1)).color(panorama_rays(64, 128).expand(3, -1, -1, -1))
    for k in range(3):
        save_panorama(spheres[k], folder / f"{k}.png")
    (folder / "0.txt").write_text("a street at noon")
    words = ("--base", weights / "image", "--rank", 2, "--steps", 2, "--batch_size", 2, "--accumulate", 1, "--draws", 1)
    plain = ("--mixed_precision", "no", "--gradient_checkpointing", "false", "--logger", "none", "--preview_steps", 1)
    assert run("train", folder, "--output", tmp_path / "run", *words, *plain) == 0
    graft = tmp_path / "run" / "graft"
    assert (graft / "pytorch_lora_weights.safetensors").is_file() and (graft / "graft_config.json").is_file()
    options = ("--steps", 1, "--viewer", "false", "--camera", "false")
    assert run("lift", photo, "-o", tmp_path / "pano.png", "--weights", graft, *options) == 0
    assert read_image(tmp_path / "pano.png").shape == (3, 64, 128)


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_every_verb_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["panorama", verb, "--help"])
    assert stopped.value.code == 0
    assert f"visiongraft panorama {verb}" in capsys.readouterr().out
