"""The command line from files to files: every mode on a real video and a real textured GLB, with tiny random weights."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

sys.path.insert(0, str(Path(__file__).parent))
import tiny_generators
from tiny_files import write_inputs

from visiongraft.cli import main
from visiongraft.media.animated_glb import read_animated_glb, write_animated_glb
from visiongraft.media.glb import read_glb, view_bytes
from visiongraft.media.images import read_image, save_image
from visiongraft.media.mesh_sequences import read_animation, write_obj_sequence
from visiongraft.media.meshes import read_mesh
from visiongraft.media.video import probe_video
from visiongraft.methods.action_mesh import animate_files, animation_outputs, clip_makers, contact_sheets
from visiongraft.methods.action_mesh.commands import VERBS

pytestmark = [
    pytest.mark.filterwarnings("ignore:The clip has"),
    pytest.mark.filterwarnings("ignore:.*coordinates are at the sides"),
    pytest.mark.filterwarnings("ignore:The object touches"),
]
QUICK = ("--steps", 1, "--shape_steps", 1, "--resolution", 12)


def run(*words) -> int:
    return main(["action_mesh", *map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("action_mesh"))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(contact_sheets, "TILE", 40)
    monkeypatch.setattr(animation_outputs, "_SHORTEST_TURN", 1.0)


@pytest.fixture(scope="module")
def generators(tmp_path_factory):
    """Folders of tiny random Diffusers pipelines."""
    folder = tmp_path_factory.mktemp("generators")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny_generators.wan(from_image=True).save_pretrained(folder / "i2v")
        tiny_generators.wan(from_image=False).save_pretrained(folder / "t2v")
        tiny_generators.stable_diffusion().save_pretrained(folder / "t2i")
    return folder


@pytest.fixture
def made_clips(monkeypatch):
    """Wan's text cleaner, and a matting that takes what random weights draw for an object."""
    from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

    for module in (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    module = SimpleNamespace(middle=lambda: lambda pixels: -torch.linspace(-1, 1, 1024).square().expand(1, 1, 1024, 1024))
    monkeypatch.setitem(sys.modules, "my_matting", module)
    return ("--matting", "rmbg", "--matting_model", "my_matting:middle", "--generator_dtype", "float32", "--generator_steps", 1)


def animate(place, *words) -> int:
    return run("animate", *words, "--weights", place / "weights", *QUICK)


def test_verbs_are_the_issues():
    assert list(VERBS) == ["animate", "image-to-3d", "evaluate", "train", "study", "view"]


def test_a_video_becomes_every_format_of_one_animation(place, tmp_path, capsys):
    out = tmp_path / "walk.glb"
    words = ("--formats", "[glb, obj, npz, turntable, html]", "--play_fps", 4, "--max_frames", 4)
    assert animate(place, place / "clip.mp4", "-o", out, *words) == 0
    printed = capsys.readouterr().out.split()
    names = ("walk.glb", "walk-obj", "walk.npz", "walk.mp4", "walk.html", "walk.png")
    assert printed == [str(tmp_path / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    found = read_animated_glb(out)
    assert found.times.tolist() == [0, 0.25, 0.5, 0.75] and len(found.vertices) == 4
    assert float((found.vertices[1:] - found.vertices[:1]).abs().max()) > 0.01
    scene = trimesh.load_scene(out, process=False)
    shape = next(iter(scene.geometry.values()))
    assert np.array_equal(shape.faces, found.faces.numpy()) and np.abs(shape.vertices - found.vertices[0].numpy()).max() < 1e-6
    for other in (tmp_path / "walk.npz", tmp_path / "walk-obj"):
        read = read_animation(other, fps=4)
        assert torch.equal(read.faces, found.faces) and float((read.vertices - found.vertices).abs().max()) < 1e-5
        assert torch.equal(read.times, found.times)
    video = probe_video(tmp_path / "walk.mp4")
    assert video.num_frames == 4 and float(video.fps) == 4
    assert "http://" not in (tmp_path / "walk.html").read_text().replace("http://www.w3.org", "")
    # frames above, two views below; the first frame has the square at the left
    sheet = read_image(tmp_path / "walk.png")
    assert sheet.shape[-1] > 4 * 40 and sheet.shape[-2] > 3 * 40
    rows = [sheet[:, top : top + 40].amin(0) < 0.9 for top in (18, 62, 106)]
    assert all(float(row[:, :44].float().mean()) > 0.02 for row in rows)


def test_the_seed_decides_and_a_rerun_replaces(place, tmp_path):
    words = (place / "clip.mp4", "-o", tmp_path / "a.glb", "--formats", "[glb, obj]", "--max_frames", 3)
    assert animate(place, *words) == 0
    first = (tmp_path / "a.glb").read_bytes()
    assert animate(place, *words) == 0 and (tmp_path / "a.glb").read_bytes() == first
    assert animate(place, *words[:-1], 2, "--seed", 1) == 0 and (tmp_path / "a.glb").read_bytes() != first
    assert sorted(path.name for path in (tmp_path / "a-obj").iterdir()) == ["frame_0000.obj", "frame_0001.obj"]


def test_a_textured_mesh_keeps_its_pictures_and_faces(place, tmp_path, capsys):
    assert animate(place, place / "clip.mp4", "--mesh", place / "ball.glb", "--fit_scale", 0.8, "-o", tmp_path, "--window", 4) == 0
    told = capsys.readouterr()
    assert "6 frames are made in 2 windows of at most 4." in told.err and told.out.split()[0] == str(tmp_path / "clip-animated.glb")
    found, given = read_animated_glb(tmp_path / "clip-animated.glb"), read_mesh(place / "ball.glb")
    assert len(found.vertices) == 6 and torch.equal(found.faces, given.faces)
    assert torch.allclose(found.vertices[0], given.vertices, atol=1e-4)  # the anchor is the mesh itself
    before, after = read_glb(place / "ball.glb"), read_glb(tmp_path / "clip-animated.glb")
    assert view_bytes(after, after.gltf["images"][0]["bufferView"]) == view_bytes(before, before.gltf["images"][0]["bufferView"])
    assert after.gltf["materials"] == before.gltf["materials"]


def test_pictures_with_alpha_other_anchors_and_times_between(place, tmp_path):
    words = ("--matting", "alpha", "--stride", 2, "--anchor", 1, "--subsampling_level", 2, "--low_memory", "true", "--preset", "fast")
    assert animate(place, place / "cutouts", "-o", tmp_path / "a.npz", *words) == 0
    found = read_animation(tmp_path / "a.npz")
    assert torch.allclose(found.times * 8, torch.tensor([0, 0.5, 1, 1.5, 2])) and len(found.vertices) == 5
    shape = tmp_path / "b.glb"
    assert animate(place, place / "cutouts", "-o", shape, "--anchor", "null", "--max_frames", 3) == 0
    assert len(read_animated_glb(shape).vertices) == 3


def test_masks_say_what_the_object_is(place, tmp_path):
    for number in range(6):
        mask = torch.zeros(3, 32, 32)
        mask[:, 4:28, 4:28] = 1
        save_image(mask, tmp_path / "masks" / f"{number}.png")
    assert animate(place, place / "clip.mp4", "--masks", tmp_path / "masks", "-o", tmp_path / "a.glb") == 0
    # the crop is the mask's, so that the tiles' middles are the clip's
    assert len(read_animated_glb(tmp_path / "a.glb").vertices) == 6


def test_motion_transfer_says_how_the_mesh_was_turned(place, tmp_path, capsys):
    turned = read_mesh(place / "ball.glb").vertices[:, [2, 1, 0]]
    write_animated_glb(tmp_path / "side.glb", turned[None], read_mesh(place / "ball.glb").faces.flip(-1))
    words = ("--mesh", tmp_path / "side.glb", "--mode", "motion-transfer", "--max_frames", 3)
    assert animate(place, place / "clip.mp4", *words, "-o", tmp_path / "a.glb", "--mesh_yaw", 90) == 0
    assert "turned by 90 degrees about Y" in capsys.readouterr().err
    found = read_animated_glb(tmp_path / "a.glb")
    assert torch.allclose(found.vertices[0], turned, atol=1e-4) and len(found.vertices) == 3
    assert animate(place, place / "clip.mp4", *words, "-o", tmp_path / "b.glb") == 0
    assert re.search(r"turned by (0|90|180|270) degrees", capsys.readouterr().err)  # what the search found, none too


def test_a_known_animation_goes_on_and_stays(place, tmp_path):
    ball = read_mesh(place / "ball.glb")
    swing = ball.vertices + torch.linspace(0, 0.4, 3)[:, None, None] * torch.tensor([0.0, 1, 0])
    write_animated_glb(tmp_path / "known.glb", swing, ball.faces, template=place / "ball.glb")
    write_obj_sequence(tmp_path / "known", swing, ball.faces)
    for source in ("known.glb", "known"):
        out = tmp_path / f"{source}-more.glb"
        words = ("--mesh_sequence", tmp_path / source, "--window", 4, "--fit_scale", 0.8)
        assert animate(place, place / "clip.mp4", *words, "-o", out) == 0
        found = read_animated_glb(out)
        assert len(found.vertices) == 6 and torch.allclose(found.vertices[:3], swing, atol=1e-4) and torch.equal(found.faces, ball.faces)
        assert bool(read_glb(out).gltf.get("images")) == (source == "known.glb")
    assert animate(place, place / "clip.mp4", "--mode", "extrapolate", "--window", 4, "-o", tmp_path / "whole.glb") == 0


def test_a_mesh_moves_as_a_text_says(place, generators, made_clips, tmp_path):
    words = ("--text", "it flaps its wings", "--video_generator", generators / "i2v", "--generator_size", 64, *made_clips)
    assert animate(place, place / "ball.glb", *words, "-o", tmp_path / "a.glb", "--generator_frames", 3) == 0
    found = read_animated_glb(tmp_path / "a.glb")
    assert len(found.vertices) == 3 and torch.allclose(found.vertices[0], read_mesh(place / "ball.glb").vertices, atol=1e-4)
    assert read_glb(tmp_path / "a.glb").gltf["images"]


def test_a_picture_moves_as_a_text_says(place, generators, made_clips, tmp_path):
    words = ("--text", "it flaps its wings", "--video_generator", generators / "i2v", "--generator_size", 32, *made_clips)
    assert animate(place, place / "picture.png", *words, "-o", tmp_path / "a.glb") == 0
    assert len(read_animated_glb(tmp_path / "a.glb").vertices) == 4  # the window of the weights


def test_a_text_becomes_an_animation_by_either_way(place, generators, made_clips, tmp_path, capsys):
    shared = ("a dragon flaps its wings", "--mode", "text", "--generator_size", 32, "--generator_frames", 3, *made_clips)
    ways = {
        "a": ("--image_generator", generators / "t2i", "--video_generator", generators / "i2v", "--text", "its wings"),
        "b": ("--text_video_generator", generators / "t2v"),
    }
    for name, way in ways.items():
        assert animate(place, *shared, *way, "-o", tmp_path / f"{name}.glb") == 0, capsys.readouterr().err
        assert len(read_animated_glb(tmp_path / f"{name}.glb").vertices) == 3


def test_a_click_reaches_sam2(place, tmp_path, monkeypatch):
    asked = []

    class Clicked:
        def __init__(self, model, click, frame):
            asked.extend([model, click, frame])

        def __call__(self, frames):
            return (frames[:, 0] < 0.5).float()

    monkeypatch.setattr(clip_makers, "load_sam2_video", lambda name: torch.nn.Linear(1, 1) if name == "my/sam2" else None)
    monkeypatch.setattr(clip_makers, "Sam2Matting", Clicked)
    words = ("--matting", "sam2", "--matting_model", "my/sam2", "--click", "[6, 7]", "--click_frame", 2, "--max_frames", 3)
    assert animate(place, place / "clip.mp4", *words, "-o", tmp_path / "a.glb") == 0
    assert isinstance(asked[0], torch.nn.Linear) and asked[1:] == [(6.0, 7.0), 2]


def test_a_picture_becomes_a_mesh(place, tmp_path, capsys):
    for suffix in (".glb", ".ply", ".obj"):
        words = ("--weights", place / "weights", "--steps", 1, "--resolution", 12, "--faces", 100, "--num_tokens", 8)
        assert run("image-to-3d", place / "picture.png", "-o", tmp_path / f"a{suffix}", *words) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / f"a{suffix}"), str(tmp_path / "a.png")]
    meshes = [read_mesh(tmp_path / f"a{suffix}", warn=False) for suffix in (".glb", ".ply", ".obj")]
    assert 4 <= len(meshes[0].faces) <= 110
    assert all(torch.allclose(meshes[0].vertices, other.vertices, atol=1e-5) for other in meshes[1:])
    assert read_image(tmp_path / "a.png").shape[-1] > 6 * 40
    words = ("--base", place / "weights", *words[2:])  # in place of the small weights
    assert run("image-to-3d", place / "picture.png", "-o", tmp_path / "b.glb", *words) == 0
    assert f"Made with {place / 'weights'}." in capsys.readouterr().err


def test_view_makes_a_page_a_turntable_and_pictures(place, tmp_path, capsys):
    ball = read_mesh(place / "ball.glb")
    moving = ball.vertices + torch.linspace(0, 1, 3)[:, None, None]
    write_animated_glb(tmp_path / "a.glb", moving, ball.faces, fps=6)
    assert run("view", tmp_path / "a.glb") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.html")
    words = ("--formats", "[html, turntable, png]", "--size", 64, "--title", "My ball")
    assert run("view", tmp_path / "a.glb", "-o", tmp_path / "b.mp4", *words) == 0
    assert "My ball" in (tmp_path / "b.html").read_text() and (tmp_path / "b.png").is_file()
    video = probe_video(tmp_path / "b.mp4")
    assert float(video.fps) == 6 and (video.width, video.height) == (64, 64) and video.num_frames == 6
    trimesh.creation.box().export(tmp_path / "box.stl")
    assert run("view", tmp_path / "box.stl", "-o", tmp_path / "c.png") == 0


def test_evaluate_scores_what_animate_wrote(place, tmp_path, capsys):
    assert animate(place, place / "clip.mp4", "--max_frames", 3, "-o", tmp_path / "predictions" / "one" / "a.npz") == 0
    vertices = read_animation(tmp_path / "predictions" / "one" / "a.npz").vertices
    (tmp_path / "truth" / "one").mkdir(parents=True)
    np.save(tmp_path / "truth" / "one" / "surfaces.npy", torch.cat([vertices, torch.ones_like(vertices)], -1).numpy())
    words = ("evaluate", tmp_path / "truth", tmp_path / "predictions", "--variant", "light", "--output", tmp_path / "scores.csv")
    assert run(*words) == 0
    assert "1 of 1 samples evaluated (light)" in capsys.readouterr().out
    rows = (tmp_path / "scores.csv").read_bytes()
    assert run(*words) == 0 and (tmp_path / "scores.csv").read_bytes() == rows
    assert run("evaluate", tmp_path / "truth", tmp_path / "nothing", "--output", tmp_path / "scores.csv") == 2


def test_what_train_writes_is_what_animate_reads(place, tmp_path):
    words = ("--size", "tiny", "--steps", 1, "--batch_size", 2, "--held_out", 0, "--surface_points", 32, "--logger", "none")
    trained = tmp_path / "run"
    assert run("train", "procedural", "--stage", "vae", "--output", trained, "--query_points", 16, *words) == 0
    shared = ("--vae", place / "weights", "--output")
    assert run("train", "procedural", "--stage", "base", *shared, tmp_path / "base", *words) == 0
    assert run("train", "procedural", *shared, tmp_path / "own", "--init", tmp_path / "base", *words) == 0
    (tmp_path / "own" / "denoiser").rename(tmp_path / "denoiser")
    for part in ("vae", "dit", "autoencoder"):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        (tmp_path / "mixed" / part).symlink_to(place / "weights" / part)
    (tmp_path / "denoiser").rename(tmp_path / "mixed" / "denoiser")
    assert run("animate", place / "clip.mp4", "--weights", tmp_path / "mixed", *QUICK, "--max_frames", 2, "-o", tmp_path / "a.glb") == 0


def test_a_stop_leaves_nothing(place, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(animate_files.modes, "animate_video", stopped)
    assert animate(place, place / "clip.mp4", "-o", tmp_path / "out" / "a.glb") == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_hard_meshes_are_worked_with_under_a_warning(place, tmp_path):
    trimesh.util.concatenate([trimesh.creation.box(), trimesh.creation.box().apply_translation([2, 0, 0])]).export(tmp_path / "two.glb")
    open_box = trimesh.creation.box()
    open_box.update_faces(np.arange(12) > 1)
    open_box.export(tmp_path / "open.glb")
    for name, message in (("two.glb", "parts that are not connected"), ("open.glb", "not watertight")):
        with pytest.warns(UserWarning, match=message):
            assert animate(place, place / "clip.mp4", "--mesh", tmp_path / name, "--max_frames", 2, "-o", tmp_path / "a.glb") == 0
