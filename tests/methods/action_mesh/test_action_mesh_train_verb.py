"""``train`` from options to folders: all four stages in a row on tiny models, from made-up clips and from files."""

import json
import re
import shutil

import jaxtyping
import pytest
import torch

from visiongraft.methods.action_mesh.animation_files import write_animations
from visiongraft.methods.action_mesh.config import create
from visiongraft.methods.action_mesh.data import ProceduralAnimations
from visiongraft.methods.action_mesh.train_options import OFFICIAL, SMALL, TrainOptions
from visiongraft.methods.action_mesh.trained_parts import load_part
from visiongraft.methods.action_mesh.training_run import data_sets, make_recipe, train_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five clips of four frames in files."""
    place = tmp_path_factory.mktemp("clips")
    write_animations(ProceduralAnimations(clip_frames=4, num_points=64, length=5), place, 5)
    return place


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "vae"
    create("vae", "tiny").save_pretrained(place)
    return str(place)


def options(stage: str, data="procedural", **changes) -> TrainOptions:
    quick = {"size": "tiny", "steps": 2, "batch_size": 2, "held_out": 2, "surface_points": 32, "query_points": 16, "logger": "none"}
    return TrainOptions(data=str(data), stage=stage, **{**quick, **changes})


def rows(output) -> list[dict]:
    return [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]


def test_the_four_stages_follow_each_other(tmp_path, capsys):
    runs = {stage: tmp_path / stage for stage in ("vae", "base", "denoiser", "autoencoder")}
    before: dict = {}
    for stage, output in runs.items():
        given = {} if stage == "vae" else {"vae": str(runs["vae"])}
        if stage == "denoiser":
            given["init"] = str(runs["base"])
        assert train_files(options(stage, output=output, **given)) == 0
        assert capsys.readouterr().out.strip() == str(output / stage)
        part = "dit" if stage == "base" else stage
        before[part] = load_part(output, part)
    # the denoiser has the base's tensors, two small steps further
    base, denoiser = (list(before[part].state_dict().values()) for part in ("dit", "denoiser"))
    assert max(float((one - other).abs().max()) for one, other in zip(base, denoiser, strict=True)) < 0.1
    assert before["autoencoder"].config.in_extra_channels == 3


def test_files_are_trained_on_and_the_same_ones_held_out_when_files_are_added(folder, tmp_path):
    chosen = options("denoiser", folder, vae="x")
    training, apart = data_sets(chosen, chosen.settings())
    held = {apart.dataset.files[index // chosen.draws].name for index in apart.indices}
    used = {training.dataset.files[index // chosen.draws].name for index in training.indices}
    assert len(held) == 2 and len(used) == 3 and not held & used and len(training) == 3 * chosen.draws
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    shutil.copy(folder / sorted(used)[0], more / "zz.npz")
    _, again = data_sets(options("denoiser", more, vae="x", held_out=3), chosen.settings())
    assert held <= {again.dataset.files[index // chosen.draws].name for index in again.indices} | {"zz.npz"}


def test_a_run_on_files_is_validated_and_continued(folder, vae, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = {"vae": vae, "checkpoint_every": 1, "learning_rate": 1e-3, "warmup": 0, "ema_decay": 0.9}
    train_files(options("autoencoder", folder, output=whole, **given))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000002")  # as if it had been killed in the second step
    shutil.rmtree(cut / "autoencoder")
    train_files(options("autoencoder", folder, output=cut, **given))
    one, other = (load_part(run, "autoencoder").state_dict() for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_options_change_the_stage(vae):
    recipe = make_recipe(*with_settings(options("autoencoder", vae=vae, normals=False, pair_in_queries=True, prediction_mode="residual")))
    config = recipe.modules["autoencoder"].config
    assert (config.in_extra_channels, config.pair_in_queries, config.prediction_mode) == (0, True, "residual")
    with pytest.warns(UserWarning, match="starts from random weights; give a trained base as --init"):
        recipe = make_recipe(*with_settings(options("denoiser", vae=vae, rope=False, sources=(0, 0), gradient_checkpointing=True)))
    assert not recipe.modules["denoiser"].config.rope and recipe.modules["denoiser"].gradient_checkpointing
    assert recipe.settings.sources == (0, 0)


def with_settings(chosen: TrainOptions):
    return chosen, chosen.settings()


def test_first_weights_are_the_seeds(vae):
    first, second, other = (
        make_recipe(*with_settings(options("base", vae=vae, seed=seed))).modules["base"].state_dict()["proj_in.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_official_settings_are_the_papers():
    for stage in ("denoiser", "autoencoder"):
        chosen = OFFICIAL[stage]
        assert (chosen.steps, chosen.batch_size, chosen.learning_rate, chosen.weight_decay) == (170_000, 96, 1e-4, 1e-2)
        assert (chosen.mixed_precision, chosen.frames, chosen.tokens, chosen.surface_points) == ("bf16", 16, 1024, 16_384)
    assert (OFFICIAL["denoiser"].sources, OFFICIAL["denoiser"].shift, OFFICIAL["denoiser"].context_dropout) == ((1, 3), 3.0, 0.1)
    assert OFFICIAL["denoiser"].ema_decay == 0.9999 and OFFICIAL["denoiser"].betas == (0.9, 0.99) and OFFICIAL["denoiser"].warmup == 1000
    assert OFFICIAL["autoencoder"].latent_noise == 0


def test_small_settings_are_the_briefs():
    assert [(SMALL[stage].steps, SMALL[stage].batch_size, SMALL[stage].learning_rate) for stage in SMALL] == [
        (900, 32, 3e-3),
        (1200, 64, 2e-3),
        (1000, 16, 1e-3),
        (1500, 32, 2.5e-3),
    ]
    assert options("vae", size="small", query_points=None).settings().query_points == 96
    assert options("denoiser", vae="x", ema_decay=0.0).settings().ema_decay is None
    assert options("base", vae="x", frames=5).settings().frames == 1 and options("base", vae="x", frames=5).clip_frames == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "decoder"}, "stage must be one of vae, base, denoiser, autoencoder; got 'decoder'."),
        ({"stage": "vae", "size": "huge"}, "size must be one of tiny, small, released; got 'huge'."),
        ({"stage": "denoiser"}, "The denoiser stage learns on latents and needs a trained VAE: --vae"),
        ({"stage": "vae", "clips": 0}, "clips and draws must be at least 1"),
        ({"stage": "vae", "rope": False}, "rope belong to the denoiser stage; this one is vae. Leave them out."),
        ({"stage": "base", "vae": "x", "prediction_mode": "residual"}, "prediction_mode belong to the autoencoder stage"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which would refuse some of them first
    with pytest.raises(ValueError, match=re.escape(message)):
        options(**changes)


def test_data_that_cannot_be_trained_on_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        make_recipe(*with_settings(options("vae", tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="has 5 animations, of which 5 are to be held out; add files, or hold out fewer"):
        make_recipe(*with_settings(options("vae", folder, held_out=5)))


def test_models_of_the_wrong_kind_are_refused(vae, tmp_path):
    dit = tmp_path / "run" / "base"
    create("dit", "tiny").save_pretrained(dit)
    with pytest.raises(ValueError, match="holds a dit, but a vae is needed here; give the folder of one"):
        load_part(dit, "vae")
    with pytest.raises(FileNotFoundError, match=r"holds no vae: there is no config\.json of one in it, nor in its folder vae"):
        load_part(tmp_path / "run", "vae")
    assert type(load_part(tmp_path / "run", "denoiser", "dit")).__name__ == "TripoSGDiT"
    config = json.loads((dit / "config.json").read_text())
    (dit / "config.json").write_text(json.dumps(config | {"num_layers": 1}))
    with pytest.raises(ValueError, match=r"base: The tensors do not fit TripoSG's transformer of this configuration: unexpected blocks"):
        load_part(dit, "dit")
    (dit / "config.json").write_text(json.dumps(config | {"width": 48}))
    with pytest.raises(ValueError, match=r"has shape .* instead of"):
        load_part(dit, "dit")
    (dit / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_part(dit, "dit")


def test_a_denoiser_of_other_rotation_is_refused(vae, tmp_path):
    create("denoiser", "tiny").save_pretrained(tmp_path / "denoiser")
    with pytest.raises(ValueError, match="has rope=True, and rope=False is asked for; start from the base"):
        make_recipe(*with_settings(options("denoiser", vae=vae, init=str(tmp_path / "denoiser"), rope=False)))
