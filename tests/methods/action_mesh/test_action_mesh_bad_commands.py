"""What the command line refuses: one sentence, exit status 2, and nothing half-written."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_files import write_bad_inputs, write_inputs

from visiongraft.cli import main
from visiongraft.media.images import save_image

pytestmark = [
    pytest.mark.filterwarnings("ignore:The clip has"),
    pytest.mark.filterwarnings("ignore:The object touches"),
    pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated"),
]
QUICK = ("--steps", 1, "--shape_steps", 1, "--resolution", 12)


def run(*words) -> int:
    return main(["action_mesh", *map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("action_mesh"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory, place):
    return write_bad_inputs(tmp_path_factory.mktemp("bad"), place)


CLIP, BALL, PICTURE = "{place}/clip.mp4", "{place}/ball.glb", "{place}/picture.png"
VIDEO = ("--video_generator", "Wan")


def everything(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{bad}/nothing.mp4",), "There is no"),
        (("{bad}/one.mp4",), "need at least 2 frames, got 1"),
        (("{bad}/sizes",), "frame 1 has 48x48 pixels and frame 0 has 32x32"),
        (("{bad}/empty",), "frame 2: no foreground (0 % of pixels); give masks."),
        ((CLIP, "--anchor", "6"), "The anchor must be a frame of the clip, 0 to 5; got 6."),
        ((CLIP, "--mesh", "{bad}/plain.obj"), "no faces"),
        ((CLIP, "--mesh", "{bad}/points.ply"), "is a point cloud"),
        ((CLIP, "--mesh", "{bad}/nan.obj"), "not finite"),
        ((CLIP, "--mesh", "{bad}/flat.obj"), "has no extent"),
        ((CLIP, "--mesh", "{bad}/broken.glb"), "broken.glb"),
        ((CLIP, "--mesh", "{bad}/absent.glb"), "There is no mesh file"),
        ((CLIP, "--mesh", BALL, "--faces", "100"), "A given mesh keeps its topology"),
        ((CLIP, "--mesh_sequence", "{bad}/changing"), "an animation has one topology"),
        ((CLIP, "--mesh_sequence", "{bad}/long"), "has 6 meshes and the clip 6 frames"),
        ((CLIP, "--mesh_sequence", "{bad}/growing"), "leaves the models' box"),
        ((CLIP, "--mesh_sequence", "{bad}/growing", "--mode", "video"), "it is for --mode extrapolate"),
        ((BALL, "--text", "it flies"), "give --video_generator with the folder or hub id of a Diffusers pipeline, such as Wan-AI/"),
        ((PICTURE, "--text", "it flies"), "Mode image-text needs a model that makes a video"),
        (("a dragon", "--mode", "text"), "give --image_generator with the folder or hub id"),
        (("a dragon", "--mode", "text", "--image_generator", "x"), "give --video_generator"),
        (("a dragon", "--mode", "text", "--text_video_generator", "x", *VIDEO), "takes the place of --image_generator"),
        ((PICTURE,), "alone does not move; need at least 2 frames, got 1: say with --text"),
        ((BALL, *VIDEO), "alone does not move: say with --text"),
        ((BALL, "--text", "it flies", *VIDEO, "--mesh_yaw", "auto"), "no turn to search for"),
        ((BALL, "--text", "it flies", *VIDEO, "--stride", "2"), "--stride choose from one that is read"),
        ((BALL, "--text", "it flies", *VIDEO), "The video generator Wan cannot be loaded"),
        ((CLIP, "--text", "it flies"), "takes its motion from the clip"),
        ((CLIP, "--mode", "mesh"), "give --mesh with its file"),
        ((CLIP, "--mode", "image-text", "--text", "x"), "Mode image-text starts from one picture"),
        ((PICTURE, "--mode", "video"), "need at least 2 frames, got 1"),
        ((CLIP, "--fit_scale", "0.5"), "--mesh_yaw and --fit_scale turn and scale a given mesh"),
        ((CLIP, "--mesh", BALL, "--fit_scale", "2"), "--fit_scale must be above 0 and at most 1; got 2."),
        ((CLIP, "--mesh", BALL, "--anchor", "null"), "needs the frame that shows it"),
        ((CLIP, "--matting", "rmbg"), "give --matting_model package.module:function"),
        ((CLIP, "--matting", "rmbg", "--matting_model", "nowhere:load"), "cannot be loaded (ModuleNotFoundError"),
        ((CLIP, "--matting", "sam2"), "give --click"),
        ((CLIP, "--click", "[1, 2]"), "--click and --click_frame are for --matting sam2"),
        ((CLIP, "--matting", "alpha"), "no valid alpha"),
        ((CLIP, "--window", "1"), "--window must be at least 2; got 1."),
        ((CLIP, "--slide", "9"), "slide must be at least 1 and less than the window of 4 frames; got 9."),
        ((CLIP, "--corr_noise", "2"), "--corr_noise must be from 0 to 1; got 2."),
        ((CLIP, "--device", "quantum"), "There is no device 'quantum' here"),
        ((CLIP, "--output", "{out}/a.fbx"), "Animations are written as .glb, .npz, .mp4, .html, or into a folder; got a.fbx."),
        ((CLIP, "--output", "{out}/a.glb", "--formats", "[npz]"), "is not of the formats npz"),
        ((CLIP, "--output", "{bad}/taken.glb", "--formats", "[glb, obj]"), "holds other files than an OBJ sequence"),
        ((BALL, "--text", "x", *VIDEO, "--output", BALL), "would overwrite the input"),
        ((CLIP, "--weights", "{bad}/absent"), "There is no"),
        ((CLIP, "--weights", "{bad}/swapped"), "holds a denoiser, but an autoencoder is needed here"),
        ((CLIP, "--weights", "{bad}/partial"), "holds no autoencoder"),
        ((CLIP, "--formats", "[fbx]"), "'turntable'"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(words, message, place, bad, tmp_path, capsys):
    out = tmp_path / "out"
    filled = [word.format(place=place, bad=bad, out=out) for word in words]
    more = [] if "--output" in words else ["--output", str(out / "a.glb")]
    more += [] if "--weights" in words else ["--weights", str(place / "weights")]
    before = everything(place, bad)
    assert run("animate", *filled, *more, *QUICK) == 2
    told = capsys.readouterr()
    sentence = told.err.strip().splitlines()[-1]
    assert sentence.startswith("visiongraft: ") and message in sentence and "--debug" not in sentence and not told.out
    assert everything(place, bad) == before and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("image-to-3d", "{}/absent.png"), "There is no picture"),
        (("image-to-3d", PICTURE, "-o", "{}/a.fbx"), "Meshes are written as .glb, .obj, .ply; got a.fbx."),
        (("image-to-3d", PICTURE, "-o", "{}/a.glb", "--steps", "0"), "--steps must be at least 1; got 0."),
        (("image-to-3d", "{}/white.png", "-o", "{}/a.glb"), "frame 0: no foreground"),
        (("view", "{}/absent.glb"), "There is no animation"),
        (("view", BALL, "-o", "{}/a.gif"), "The output is one of .html, .mp4, .png; got a.gif."),
        (("view", "{}/white.png", "-o", "{}/a.html"), "a mesh file is one of"),
        (("view", BALL, "-o", "{}/a.html", "--yaw_deg", "900"), "yaw_deg must be in"),
        (("view", BALL, "-o", "{}/a.html", "--fps", "-1"), "--fps positive"),
        (("train", "procedural"), "needs a trained VAE"),
    ],
)
def test_other_verbs_refuse_in_one_sentence(words, message, place, tmp_path, capsys):
    save_image(torch.ones(3, 32, 32), tmp_path / "white.png")
    filled = [word.replace("{place}", str(place)).replace("{}", str(tmp_path)) for word in words]
    weights = ["--weights", str(place / "weights")] if words[0] == "image-to-3d" else []
    assert run(*filled, *weights) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["white.png"]
