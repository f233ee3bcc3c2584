"""Pipelines from folders: what is found where, what suits which weights, and what does not fit together."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_files import write_inputs

from visiongraft.cli import main
from visiongraft.methods.action_mesh.config import create
from visiongraft.methods.action_mesh.load_pipeline import load_pipeline, load_shape_pipeline
from visiongraft.methods.action_mesh.small import SMALL_PRESETS, preset_for
from visiongraft.methods.action_mesh.toy_video import toy_context

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


def test_the_bundled_weights_animate_a_clip_and_say_what_they_are(tmp_path, place, capsys):
    assert run("animate", place / "clip.mp4", "-o", tmp_path / "a.glb", "--max_frames", 2, *QUICK) == 0
    assert "16 x 16 silhouettes" in capsys.readouterr().err
    assert (tmp_path / "a.glb").is_file()


def test_pipelines_find_their_parts(place, tmp_path):
    pipeline = load_pipeline(place / "weights", dtype=torch.bfloat16, low_memory=True)
    assert pipeline.image_encoder is toy_context and pipeline.low_memory and pipeline.dit.dtype == torch.bfloat16
    assert preset_for(pipeline.denoiser) == SMALL_PRESETS["default"]
    assert preset_for(pipeline.denoiser, "fast", steps=3, guidance=None).steps == 3
    with pytest.raises(ValueError, match="preset must be one of default, fast"):
        preset_for(pipeline.denoiser, "slow")
    # the grafts alone, with the base elsewhere: ActionMesh's way to publish
    grafts, base = tmp_path / "grafts", tmp_path / "base"
    for folder, parts in ((grafts, ("denoiser", "autoencoder")), (base, ("vae", "dit"))):
        folder.mkdir()
        for part in parts:
            (folder / part).symlink_to(place / "weights" / part)
    joined = load_pipeline(grafts, base=base)
    assert torch.equal(joined.dit.proj_in.weight, load_shape_pipeline(base).transformer.proj_in.weight)
    with pytest.raises(FileNotFoundError, match="VAST-AI/TripoSG"):
        load_pipeline(grafts)
    # every part in the output of the run that trained it
    for run_, part in (("vae", "vae"), ("base", "dit"), ("denoiser", "denoiser"), ("autoencoder", "autoencoder")):
        (tmp_path / "runs" / run_).mkdir(parents=True)
        (tmp_path / "runs" / run_ / run_).symlink_to(place / "weights" / part)
    trained = load_pipeline(tmp_path / "runs")
    assert torch.equal(trained.dit.proj_in.weight, joined.dit.proj_in.weight) and trained.image_encoder is toy_context
    # without stage 0 only given meshes move
    (tmp_path / "given").mkdir()
    for part in ("vae", "denoiser", "autoencoder"):
        (tmp_path / "given" / part).symlink_to(place / "weights" / part)
    assert load_pipeline(tmp_path / "given").dit is None


def test_released_layouts_make_one_pipeline(place, tmp_path, capsys):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    grafts, base = tmp_path / "ActionMesh", tmp_path / "TripoSG"
    for folder, parts in ((grafts, {"denoiser": "denoiser", "autoencoder": "autoencoder"}), (base, {"transformer": "dit", "vae": "vae"})):
        folder.mkdir()
        for name, part in parts.items():
            (folder / name).symlink_to(place / "weights" / part)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(base / "image_encoder_dinov2")
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(base / "feature_extractor_dinov2")
    (base / "scheduler").mkdir()
    (base / "scheduler" / "scheduler_config.json").write_text('{"num_train_timesteps": 1000, "shift": 1, "use_dynamic_shifting": false}')
    (base / "model_index.json").write_text('{"_class_name": "TripoSGPipeline"}')
    pipeline = load_pipeline(grafts, base=base)
    assert isinstance(pipeline.image_encoder, Dinov2Model) and pipeline.feature_extractor is not None
    assert load_pipeline(grafts, base=base, image_encoder="toy").image_encoder is toy_context
    words = ("--base", base, "--weights", grafts, *QUICK, "--max_frames", 2)
    assert run("animate", place / "clip.mp4", *words, "-o", tmp_path / "a.glb") == 0
    assert run("image-to-3d", place / "picture.png", "--weights", base, "--steps", 1, "--resolution", 12, "-o", tmp_path / "b.glb") == 0
    with pytest.raises(ValueError, match="is TripoSG's folder, the base: give it as base"):
        load_pipeline(base)


def test_stage_0_of_a_local_actionmesh_is_the_bases(place, tmp_path, capsys, monkeypatch):
    grafts, base = tmp_path / "ActionMesh", tmp_path / "base"
    for folder, parts in ((grafts, ("denoiser", "autoencoder")), (base, ("vae", "dit"))):
        folder.mkdir()
        for part in parts:
            (folder / part).symlink_to(place / "weights" / part)
    words = ("image-to-3d", place / "picture.png", "--weights", grafts, "--steps", 1, "--resolution", 12)
    assert run(*words, "-o", tmp_path / "none.glb") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{grafts} has no VAE and no stage 0; give a folder that has them as --base. (There is no VAST-AI/TripoSG" in told
    assert run(*words, "--base", base, "-o", tmp_path / "given.glb") == 0
    monkeypatch.setattr("visiongraft.methods.action_mesh.load_pipeline.TRIPOSG", str(base))
    assert run(*words, "-o", tmp_path / "default.glb") == 0
    assert f"Made with {base}." in capsys.readouterr().err
    assert (tmp_path / "default.glb").read_bytes() == (tmp_path / "given.glb").read_bytes()


def test_parts_of_different_trainings_are_refused(place, tmp_path):
    create("vae", "tiny", latent_channels=6).save_pretrained(tmp_path / "vae")
    for part in ("dit", "denoiser", "autoencoder"):
        (tmp_path / part).symlink_to(place / "weights" / part)
    with pytest.raises(ValueError, match=r"latents of several widths \(vae 6, dit 4, denoiser 4, autoencoder 4\)"):
        load_pipeline(tmp_path)
    create("dit", "tiny", cross_attention_dim=16).save_pretrained(tmp_path / "other" / "dit")
    for part in ("vae", "denoiser", "autoencoder"):
        (tmp_path / "other" / part).symlink_to(place / "weights" / part)
    with pytest.raises(ValueError, match=r"pictures of several widths \(dit 16, denoiser 24\)"):
        load_pipeline(tmp_path / "other")
