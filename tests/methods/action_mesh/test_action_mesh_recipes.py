"""What the recipes ask of the models: recorders stand in for them, so that every argument can be looked at."""

import re
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from visiongraft.methods.action_mesh import denoiser_recipe as denoiser_recipe_module
from visiongraft.methods.action_mesh.autoencoder_recipe import AutoencoderRecipe
from visiongraft.methods.action_mesh.denoiser_recipe import DenoiserRecipe
from visiongraft.methods.action_mesh.dit_recipe import BaseRecipe
from visiongraft.methods.action_mesh.recipe_parts import held_out_groups
from visiongraft.methods.action_mesh.train_options import SMALL
from visiongraft.methods.action_mesh.training_inputs import FrozenEncoders, PictureEncoder
from visiongraft.methods.action_mesh.vae_recipe import VAERecipe

BATCH, FRAMES, POINTS, TOKENS = 3, 4, 40, 2


class Posterior(NamedTuple):
    mean: Tensor
    logvar: Tensor

    def sample(self, generator=None):
        return self.mean

    def mode(self):
        return self.mean


class PointVAE(nn.Module):
    """The latent of a token is its query point, so that what was encoded can be read off; the field is a plane's height."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def encode(self, surface, num_tokens, generator=None, indices=None):
        mean = surface[..., :3].gather(1, indices[..., None].expand(-1, -1, 3))
        return Posterior(mean, torch.zeros_like(mean))

    def decode_context(self, latents):
        return latents

    def query(self, context, points, chunk=50_000):
        return self.slope * points[..., 0]


class Recorder(nn.Module):
    """Remembers its arguments and answers zeros that depend on a parameter."""

    def __init__(self, answers):
        super().__init__()
        self.scale, self.answers, self.seen = nn.Parameter(torch.zeros(())), answers, None

    def forward(self, *arguments):
        self.seen = arguments
        return self.scale * self.answers(*arguments)


class MotionRecorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(())), None

    def forward(self, latents, framestep, source, target, points, normals):
        self.seen, self.points, self.normals = (latents, framestep, source, target), points, normals
        return self.scale * points


class Clips(Dataset):
    def __init__(self, items=()):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(frames: int = FRAMES) -> dict[str, Tensor]:
    surface = torch.randn(BATCH, frames, POINTS, 6, generator=seeded())
    return {"points": surface, "context": torch.randn(BATCH, frames, 5, 7, generator=seeded(1))}


def settings(stage: str, **changes):
    return replace(SMALL[stage], **{"tokens": TOKENS, "query_points": 8, **changes})


def denoiser_recipe(**changes) -> DenoiserRecipe:
    return DenoiserRecipe(Recorder(lambda x, *rest: x), Clips(), FrozenEncoders(PointVAE(), TOKENS), settings("denoiser", **changes))


def run(recipe, batch, seed: int = 3) -> dict[str, Tensor]:
    return recipe.losses(recipe.modules, batch, seeded(seed), "main")


def test_latents_of_a_clip_are_the_same_points_in_every_frame():
    surface = batch_of()["points"]
    latents = FrozenEncoders(PointVAE(), TOKENS).latents(surface, seeded())
    for clip in range(BATCH):
        for token in range(TOKENS):
            index = (surface[clip, 0, :, :3] == latents[clip, 0, token]).all(1).nonzero().item()
            assert torch.equal(latents[clip, :, token], surface[clip, :, index, :3])
    apart = FrozenEncoders(PointVAE(), TOKENS, grouped=False).latents(surface, seeded())
    assert not all(
        torch.equal(apart[0, :, 0], surface[0, :, index, :3]) for index in (surface[0, 0, :, :3] == apart[0, 0, 0]).all(1).nonzero()
    )


def test_latents_need_no_gradient_and_the_vae_is_frozen():
    encoders = FrozenEncoders(PointVAE().train(), TOKENS, points_at_once=1)
    assert not encoders.vae.training and not encoders.vae.slope.requires_grad
    assert encoders.latents(batch_of()["points"], seeded()).shape == (BATCH, FRAMES, TOKENS, 3)


def test_denoiser_sees_clean_sources_noisy_targets_and_one_time_a_clip():
    recipe, batch = denoiser_recipe(), batch_of()
    run(recipe, batch)
    noisy, context, framestep, timestep, mask = recipe.modules["denoiser"].seen
    latents = recipe.encoders.latents(batch["points"], seeded(3))  # the first draw of the step
    assert timestep.shape == (BATCH,) and float(timestep.min()) > 0 and float(timestep.max()) < 1000
    assert torch.equal(framestep, torch.arange(4.0).expand(BATCH, FRAMES))
    assert set(mask.unique().tolist()) == {0.0, 1.0} and mask.sum(1).min() >= 1 and mask.sum(1).max() <= 3
    same = (noisy == latents).all(-1).all(-1)
    assert torch.equal(same, mask.bool())
    # what is left on targets after taking the latents' share away is sigma times noise of unit variance
    sigma = (timestep / 1000)[:, None, None, None]
    noise = ((noisy - (1 - sigma) * latents) / sigma)[mask == 0]
    assert 0.6 < float(noise.std()) < 1.4
    dropped = (context == 0).all(-1).all(-1).all(-1)
    assert torch.equal(context[~dropped], batch["context"][~dropped])


def test_denoiser_loss_is_of_targets_only():
    recipe, batch = denoiser_recipe(context_dropout=0.0), batch_of()
    latents = recipe.encoders.latents(batch["points"], seeded(3))
    loss = run(recipe, batch)["flow"]
    noisy, _, _, timestep, mask = recipe.modules["denoiser"].seen
    sigma = (timestep / 1000)[:, None, None, None]
    noise = (noisy - (1 - sigma) * latents) / sigma
    error = (latents - noise).square().mean((2, 3))  # the recorder says zero
    expected = ((error * (1 - mask)).sum(1) / (1 - mask).sum(1)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_dropout_zeroes_whole_contexts_and_whole_masks():
    recipe, batch = denoiser_recipe(context_dropout=1.0, mask_dropout=1.0), batch_of()
    run(recipe, batch)
    _, context, _, _, mask = recipe.modules["denoiser"].seen
    assert float(context.abs().max()) == 0 and float(mask.max()) == 0


def test_training_without_masked_generation_has_no_sources_and_validates_without():
    recipe, batch = denoiser_recipe(sources=(0, 0)), batch_of()
    run(recipe, batch)
    assert float(recipe.modules["denoiser"].seen[4].max()) == 0
    items = [{name: values[index] for name, values in batch.items()} for index in range(BATCH)]
    for sources, known in (((0, 0), 0), ((1, 3), 1)):
        recipe = denoiser_recipe(sources=sources)
        recipe.held_out = Clips(items)
        assert recipe.validate(recipe.modules) == recipe.validate(recipe.modules)
        assert recipe.modules["denoiser"].seen[4].sum(1).tolist() == [known] * BATCH


def test_validation_in_groups_of_clips_is_that_of_all_together(monkeypatch):
    batch = batch_of()
    recipe = denoiser_recipe()
    recipe.modules["denoiser"].scale.data.fill_(1.0)
    recipe.held_out = Clips([{name: values[index] for name, values in batch.items()} for index in range(BATCH)])
    whole = recipe.validate(recipe.modules)["flow"]
    two = lambda latents: held_out_groups(latents, 2 * FRAMES * TOKENS + 1)
    assert [len(range(BATCH)[some]) for some in two(torch.zeros(BATCH, FRAMES, TOKENS, 3))] == [2] * (BATCH // 2) + [1] * (BATCH % 2)
    monkeypatch.setattr(denoiser_recipe_module, "held_out_groups", two)
    assert recipe.validate(recipe.modules)["flow"] == pytest.approx(whole, rel=1e-5)
    assert len(recipe.modules["denoiser"].seen[0]) <= 2
    assert held_out_groups(torch.zeros(3, 16, 65_536, 1)) == [slice(0, 1), slice(1, 2), slice(2, 3)]  # one at least


def test_frame_numbers_of_the_data_are_used():
    recipe, batch = denoiser_recipe(), batch_of()
    batch["framestep"] = torch.tensor([[0, 2.5, 5, 9]]).expand(BATCH, FRAMES)
    run(recipe, batch)
    assert torch.equal(recipe.modules["denoiser"].seen[2], batch["framestep"])


def test_shift_moves_times_towards_noise():
    low, high = ([] for _ in range(2))
    for shift, times in ((1.0, low), (3.0, high)):
        recipe = denoiser_recipe(shift=shift)
        run(recipe, batch_of())
        times.append(recipe.modules["denoiser"].seen[3] / 1000)
    torch.testing.assert_close(high[0], 3 * low[0] / (1 + 2 * low[0]))


def test_base_learns_every_frame_by_itself_with_its_own_picture_and_time():
    dit = Recorder(lambda x, *rest: x)
    recipe = BaseRecipe(dit, Clips(), FrozenEncoders(PointVAE(), TOKENS), settings("base", context_dropout=0.0))
    batch = batch_of(2)
    run(recipe, batch)
    latents, timestep, context = dit.seen
    assert latents.shape == (2 * BATCH, TOKENS, 3) and timestep.unique().numel() == 2 * BATCH
    assert torch.equal(context, batch["context"].flatten(0, 1))
    recipe.held_out = Clips([{name: values[index] for name, values in batch.items()} for index in range(BATCH)])
    assert 0.5 < recipe.validate(recipe.modules)["flow"] < 6  # about the variance of data and noise together


def test_stage_two_asks_where_points_of_the_source_frame_are_in_the_target_frame():
    motion = MotionRecorder()
    recipe = AutoencoderRecipe(motion, Clips(), FrozenEncoders(PointVAE(), TOKENS), settings("autoencoder"))
    batch = {"points": batch_of()["points"], "framestep": torch.tensor([[3.0, 4, 6, 9]]).expand(BATCH, FRAMES)}
    loss = run(recipe, batch)["position"]
    latents, framestep, source, target = motion.seen
    assert latents.shape == (BATCH, FRAMES, TOKENS, 3) and torch.equal(framestep, batch["framestep"])
    error = 0.0
    for clip in range(BATCH):
        start, end = (int((framestep[clip] == when[clip]).nonzero()) for when in (source, target))
        surface = batch["points"][clip]
        asked = torch.cat([motion.points[clip], motion.normals[clip]], -1)
        index = [(surface[start] == row).all(1).nonzero().item() for row in asked]
        assert len(set(index)) == 8
        error += float((surface[end, index, :3] - motion.points[clip]).square().mean()) / BATCH
    assert loss.item() == pytest.approx(error, rel=1e-5)


def test_stage_two_latent_noise_is_off_by_default_and_scales():
    batch = {"points": batch_of()["points"]}
    seen = []
    for noise in (0.0, 0.5):
        recipe = AutoencoderRecipe(
            MotionRecorder(), Clips(), FrozenEncoders(PointVAE(), TOKENS), settings("autoencoder", latent_noise=noise)
        )
        run(recipe, batch)
        seen.append(recipe.modules["autoencoder"].seen[0])
    clean = FrozenEncoders(PointVAE(), TOKENS).latents(batch["points"], seeded(3))
    assert torch.equal(seen[0], clean)
    assert 0.3 < float((seen[1] - clean).std()) < 0.7


def test_stage_two_validates_against_saying_that_nothing_moves():
    recipe = AutoencoderRecipe(MotionRecorder(), Clips(), FrozenEncoders(PointVAE(), TOKENS), settings("autoencoder"))
    recipe.held_out = Clips([{"points": clip} for clip in batch_of()["points"]])
    figures = recipe.validate(recipe.modules)
    assert figures["rmse"] == figures["rmse_still"] > 0  # the recorder says just that
    # positions at two different frames are independent normals, at the same frame equal: at most sqrt(3 * 2)
    assert figures["rmse"] < 6**0.5 + 0.3


def test_vae_losses_are_named_weighted_and_have_a_gradient():
    queries = torch.randn(BATCH, FRAMES, 9, 3, generator=seeded(2))
    batch = {"points": batch_of()["points"], "queries": queries, "sdf": -queries[..., 0]}
    recipe = VAERecipe(PointVAE(), Clips(), settings("vae", l1_weight=0.5, kl_weight=0.25))
    losses = run(recipe, batch)
    field, wanted = (0.25 * queries[..., 0]).tanh(), (queries[..., 0] / 0.1).clamp(-1, 1)
    torch.testing.assert_close(losses["sdf_l1"], 0.5 * (field - wanted).abs().mean())
    torch.testing.assert_close(losses["sdf_l2"], (field - wanted).square().mean())
    losses["sdf_l2"].backward()
    assert float(recipe.modules["vae"].vae.slope.grad) < 0  # a steeper field fits better
    assert set(run(VAERecipe(PointVAE(), Clips(), settings("vae")), batch)) == {"sdf_l2", "kl"}
    recipe.held_out = Clips([{name: values[index] for name, values in batch.items()} for index in range(BATCH)])
    assert recipe.validate(recipe.modules)["occupancy"] == 1.0


def test_pictures_are_encoded_where_no_tokens_are_given():
    encoders = FrozenEncoders(PointVAE(), TOKENS, lambda pictures: pictures.flatten(2).mT)
    frames = torch.rand(BATCH, FRAMES, 3, 2, 2, generator=seeded())
    tokens = encoders.context({"frames": frames}, torch.tensor([True, False, True]))
    assert torch.equal(tokens[0], frames[0].flatten(2).mT) and float(tokens[1].abs().max()) == 0


def test_a_sample_without_pictures_is_refused():
    encoders = FrozenEncoders(PointVAE(), TOKENS)
    with pytest.raises(ValueError, match="it has only points"):
        encoders.context({"points": torch.zeros(1)})
    with pytest.raises(ValueError, match="it has frames, and there is no picture encoder"):
        encoders.context({"frames": torch.zeros(1, 1, 3, 2, 2)})
    with pytest.raises(ValueError, match="num_tokens must be at least 1; got 0"):
        FrozenEncoders(PointVAE(), 0)


def test_all_frames_as_sources_is_refused():
    with pytest.raises(ValueError, match=re.escape("all frames are sources, nothing to generate")):
        run(denoiser_recipe(sources=(4, 4)), batch_of())


def test_transparent_pictures_are_put_on_white_before_they_are_encoded():
    from transformers import Dinov2Config, Dinov2Model

    from visiongraft.methods.action_mesh.image_features import ImagePreparation

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    encoder = PictureEncoder(Dinov2Model(config), ImagePreparation(shortest_edge=32, crop=28))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    rgba = torch.rand(2, 4, 40, 40, generator=seeded())
    rgba[:, 3] = (rgba[:, 3] > 0.5).float()
    white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    assert torch.equal(encoder(rgba), encoder(white)) and encoder(rgba).shape == (2, 5, 16)
