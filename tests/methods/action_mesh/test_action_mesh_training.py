"""The four recipes on real tiny models: they learn one clip by heart, and a run that is cut goes on exactly."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from visiongraft.methods.action_mesh.autoencoder_recipe import AutoencoderRecipe
from visiongraft.methods.action_mesh.config import create
from visiongraft.methods.action_mesh.denoiser_recipe import DenoiserRecipe
from visiongraft.methods.action_mesh.dit_recipe import BaseRecipe
from visiongraft.methods.action_mesh.temporal_autoencoder import temporalize
from visiongraft.methods.action_mesh.temporal_denoiser import inflate
from visiongraft.methods.action_mesh.train_options import SMALL
from visiongraft.methods.action_mesh.training_inputs import FrozenEncoders
from visiongraft.methods.action_mesh.vae_recipe import VAERecipe
from visiongraft.training import TrainerConfig, train

FRAMES, POINTS, TOKENS = 3, 64, 4


class Cut(BaseException):
    """Ends a run within the process."""


class Spheres(Dataset):
    """A ball that moves along x and grows: distances and tracked points in closed form."""

    def __init__(self, clips: int = 1, stage: str = "clip"):
        self.clips, self.stage = clips, stage

    def __len__(self):
        return self.clips

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        normals = torch.nn.functional.normalize(torch.randn(POINTS, 3, generator=generator), dim=1)
        time = torch.linspace(0, 1, FRAMES)[:, None, None]
        center, radius = torch.tensor([0.6, 0.0, 0.0]) * (time - 0.5), 0.3 + 0.2 * time
        surface = torch.cat([center + radius * normals, normals.expand(FRAMES, -1, -1)], -1)
        if self.stage == "clip":
            pictures = torch.full((FRAMES, 2, 24), 0.1) * time
            return {"points": surface, "context": pictures}
        queries = torch.rand(FRAMES, 48, 3, generator=generator) * 1.4 - 0.7
        sdf = (queries - center).norm(dim=-1) - radius[..., 0]
        return {"points": surface[1:2], "queries": queries[1:2], "sdf": sdf[1:2]}


def model(component: str, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(component, "tiny", **options)


def certain(vae):
    """The VAE with a posterior of no width, so that a denoiser can know its latents."""
    half = len(vae.quant.bias) // 2
    with torch.no_grad():
        vae.quant.weight[half:], vae.quant.bias[half:] = 0, -30
    return vae


def settings(stage: str, **changes):
    return replace(SMALL[stage], **{"tokens": TOKENS, "query_points": 32, "warmup": 5, "context_dropout": 0.0, **changes})


def make(stage: str, **changes):
    """A recipe of a stage on one clip."""
    if stage == "vae":
        return VAERecipe(model("vae"), Spheres(stage="field"), settings(stage, **changes))
    encoders = FrozenEncoders(certain(model("vae")), TOKENS)
    if stage == "base":
        return BaseRecipe(model("dit"), Spheres(), encoders, settings(stage, **changes))
    if stage == "denoiser":
        return DenoiserRecipe(inflate(model("dit")), Spheres(), encoders, settings(stage, **changes))
    generator = torch.Generator().manual_seed(0)
    return AutoencoderRecipe(temporalize(model("vae"), generator), Spheres(), encoders, settings(stage, **changes))


def config(output, **changes) -> TrainerConfig:
    quick = {"output": output, "steps": 6, "batch_size": 2, "checkpoint_every": 2, "log_every": 1, "logger": "none", "ema_decay": 0.9}
    return TrainerConfig(**{**quick, "progress": False, **changes})


@pytest.mark.parametrize(
    ("stage", "loss", "steps", "factor"),
    [("vae", "sdf_l2", 80, 0.15), ("base", "flow", 40, 0.6), ("denoiser", "flow", 40, 0.6), ("autoencoder", "position", 80, 0.25)],
)
def test_a_stage_learns_one_clip_by_heart(stage, loss, steps, factor, tmp_path):
    train(make(stage, learning_rate=5e-3), config(tmp_path, steps=steps, batch_size=8, checkpoint_every=1000, ema_decay=None))
    values = [json.loads(line)[loss] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert sum(values[-8:]) / 8 < factor * values[0]


@pytest.mark.parametrize("stage", ["vae", "base", "denoiser", "autoencoder"])
def test_a_run_that_is_cut_goes_on_bit_for_bit(stage, tmp_path):
    whole, cut = config(tmp_path / "whole"), config(tmp_path / "cut")
    train(make(stage), whole)
    recipe, calls = make(stage), 0
    original = recipe.losses

    def losses(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Cut
        return original(*arguments)

    recipe.losses = losses
    with pytest.raises(Cut):
        train(recipe, cut)
    train(make(stage), cut)
    assert (cut.output / "losses.jsonl").read_text() == (whole.output / "losses.jsonl").read_text()
    file = f"{stage}/diffusion_pytorch_model.safetensors"
    one, other = load_file(whole.output / file), load_file(cut.output / file)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
