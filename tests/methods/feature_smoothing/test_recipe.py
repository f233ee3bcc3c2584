"""Losses with their signs, what is frozen and what learns, noise levels, the folder of crops, and a short training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.media.images import save_image
from visiongraft.methods.feature_smoothing.diffusion_purifier import SIGMA_RANGE, DiffusionPurifier
from visiongraft.methods.feature_smoothing.encoders import Encoder
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.recipe import (
    ImageFolder,
    MapperRecipe,
    PurifierRecipe,
    add_noise,
    diffusion_loss,
    feature_loss,
    statistics_loss,
)
from visiongraft.methods.feature_smoothing.released import load
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier
from visiongraft.training import TrainerConfig, train

SIZE = 16


class Tower(nn.Module):
    """Sixteen tokens of width 8, nonlinear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, images):
        return torch.tanh(3 * self.patches(images - 0.5)).flatten(2).transpose(1, 2)


class Stripes(Dataset):
    """Smooth images: one sine wave each."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        ramp = torch.linspace(0, 3, SIZE)
        wave = 0.5 + 0.4 * torch.sin(ramp[:, None] * (1 + index % 4) + ramp[None] * (index % 3) + index)
        return wave.expand(3, -1, -1).clone()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(Tower().eval(), image_size=SIZE)


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.stack([Stripes()[i] for i in range(4)])


def _purifier() -> UNetPurifier:
    torch.manual_seed(1)
    return UNetPurifier(widths=(8, 16), blocks_per_level=1)


def _diffusion_purifier() -> DiffusionPurifier:
    torch.manual_seed(1)
    return DiffusionPurifier(SIZE, block_out_channels=(32, 32), layers_per_block=1, attention_levels=(), attention_head_dim=16)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_feature_loss_is_one_minus_cosine_and_falls_as_features_agree(encoder):
    clean = torch.randn(3, 16, 8, generator=_generator())
    for modes in (("flat",), ("pooled",), ("flat", "pooled"), ("per_token",)):
        assert abs(float(feature_loss(clean, clean, encoder, modes))) < 1e-6
        assert float(feature_loss(clean, 5 * clean, encoder, modes)) == pytest.approx(0, abs=1e-6)
        assert float(feature_loss(clean, -clean, encoder, modes)) == pytest.approx(2, abs=1e-6)


def test_feature_loss_averages_the_token_reductions(encoder):
    clean, other = (torch.randn(3, 16, 8, generator=_generator(seed)) for seed in (0, 1))
    flat = 1 - F.cosine_similarity(clean, other, dim=-1).mean()
    pooled = 1 - F.cosine_similarity(clean.mean(1), other.mean(1), dim=-1).mean()
    torch.testing.assert_close(feature_loss(clean, other, encoder, ("flat", "pooled")), (flat + pooled) / 2)


def test_statistics_loss_has_its_closed_form():
    clean = torch.randn(4, 16, 8, generator=_generator())
    shift = torch.linspace(-1, 1, 8)
    torch.testing.assert_close(statistics_loss(clean, clean + shift), shift.square().sum())
    mean, std = clean.flatten(0, 1).mean(0), clean.flatten(0, 1).std(0)
    torch.testing.assert_close(statistics_loss(clean, 3 * clean), ((2 * mean) ** 2 + (2 * std) ** 2).sum())
    assert float(statistics_loss(clean, clean.flip(0, 1))) == pytest.approx(0, abs=1e-10)


def test_statistics_of_one_token_are_refused():
    with pytest.raises(ValueError, match="at least two tokens in a batch; got one"):
        statistics_loss(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))


def test_diffusion_loss_is_the_mean_squared_error_of_the_noise():
    noise = torch.randn(2, 3, 4, 4, generator=_generator())
    assert float(diffusion_loss(noise + 0.5, noise)) == pytest.approx(0.25)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_gaussian_of_a_level_drawn_for_each_image():
    images = torch.rand(256, 3, 16, 16, generator=_generator())
    noisy, sigma, noise = add_noise(images, (0.1, 0.5), _generator(1))
    torch.testing.assert_close(noisy, images + sigma.view(-1, 1, 1, 1) * noise)
    assert sigma.min() >= 0.1 and sigma.max() <= 0.5
    assert float(sigma.mean()) == pytest.approx(0.3, abs=0.02) and float(sigma.std()) == pytest.approx(0.4 / 12**0.5, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01) and float(noise.mean()) == pytest.approx(0, abs=0.01)
    torch.testing.assert_close((noisy - images).flatten(1).std(1), sigma, rtol=0.15, atol=0)


def test_noise_depends_on_the_generator_only():
    images = torch.zeros(4, 3, 8, 8)
    first = add_noise(images, (0.1, 0.5), _generator(3))
    torch.manual_seed(99)
    again, other = add_noise(images, (0.1, 0.5), _generator(3)), add_noise(images, (0.1, 0.5), _generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


# --- the purifier's recipe --------------------------------------------------------------------------------------------


def test_purifier_losses_are_the_weighted_terms(encoder, batch):
    purifier = _purifier()
    recipe = PurifierRecipe(encoder, purifier, Stripes())
    terms = recipe.losses(recipe.modules, batch, _generator(5), "main")
    noisy, sigma, _ = add_noise(batch, (0.05, 0.5), _generator(5))
    purified = purifier(noisy, sigma)
    assert set(terms) == {"feature", "pixel"}
    torch.testing.assert_close(terms["pixel"], (purified - batch).square().mean())
    expected = 0.025 * feature_loss(encoder(batch), encoder(purified), encoder, ("flat", "pooled"))
    torch.testing.assert_close(terms["feature"], expected)


def test_diffusion_purifier_also_learns_the_noise(encoder, batch):
    purifier = _diffusion_purifier()
    recipe = PurifierRecipe(encoder, purifier, Stripes(), sigma_range=(0.25, 0.25))
    terms = recipe.losses(recipe.modules, batch, _generator(5), "main")
    noisy, sigma, noise = add_noise(batch, (0.25, 0.25), _generator(5))
    assert set(terms) == {"diffusion", "feature", "pixel"}
    torch.testing.assert_close(terms["diffusion"], (purifier(noisy, sigma, return_noise=True)[1] - noise).square().mean())


def test_gradient_passes_through_the_frozen_encoder_to_the_purifier(encoder, batch):
    purifier = _purifier()
    recipe = PurifierRecipe(encoder, purifier, Stripes())
    recipe.losses(recipe.modules, batch, _generator(), "main")["feature"].backward()
    assert purifier.conv_out.weight.grad is not None and purifier.conv_out.weight.grad.abs().max() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training and not any(module.training for module in encoder.modules())


def test_losses_do_not_depend_on_global_randomness(encoder, batch):
    recipe = PurifierRecipe(encoder, _purifier(), Stripes())
    torch.manual_seed(0)
    first = recipe.losses(recipe.modules, batch, _generator(2), "main")
    torch.manual_seed(1)
    again = recipe.losses(recipe.modules, batch, _generator(2), "main")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_preview_shows_clean_noisy_and_purified_rows(encoder):
    recipe = PurifierRecipe(encoder, _purifier(), Stripes())
    picture = recipe.preview(recipe.modules)["clean-noisy-purified"]
    assert picture.shape == (3, 3 * SIZE, 8 * SIZE) and picture.min() >= 0 and picture.max() <= 1
    clean, noisy, purified = picture.split(SIZE, dim=1)
    torch.testing.assert_close(clean[..., :SIZE], Stripes()[0])
    assert (noisy - clean).square().mean() > (purified - clean).square().mean()


@pytest.mark.parametrize("sigma_range", [(0.0, 0.5), (0.5, 0.1), (-0.1, 0.2), (float("nan"), 0.5)])
def test_noise_levels_must_be_positive_and_increasing(encoder, sigma_range):
    with pytest.raises(ValueError, match="sigma_range must be positive and increasing; got"):
        PurifierRecipe(encoder, _purifier(), Stripes(), sigma_range=sigma_range)


def test_levels_that_the_diffusion_schedule_lacks_are_refused_before_training(encoder):
    with pytest.raises(ValueError, match=r"covers noise levels from 0.005 to 78.7; got \(0.001, 0.5\)"):
        PurifierRecipe(encoder, _diffusion_purifier(), Stripes(), sigma_range=(0.001, 0.5))


# --- the mapper's recipe ----------------------------------------------------------------------------------------------


def test_mapper_losses_are_the_weighted_terms_per_width(encoder, batch):
    purifier, mapper = _purifier(), SmoothnessMapper(8)
    for index, parameter in enumerate(mapper.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=_generator(index))
    recipe = MapperRecipe(encoder, purifier, mapper, Stripes(), sigma_max=0.4)
    terms = recipe.losses(recipe.modules, batch, _generator(5), "main")
    noisy, sigma, _ = add_noise(batch, (0.0, 0.4), _generator(5))
    clean, tokens = encoder(batch), encoder(purifier(noisy, sigma).clamp(0, 1))
    mapped = tokens + mapper(tokens, sigma)
    torch.testing.assert_close(terms["feature"], feature_loss(clean, mapped, encoder, ("flat", "pooled")))
    torch.testing.assert_close(terms["statistics"], 0.1 * statistics_loss(clean, mapped) / 8)
    torch.testing.assert_close(terms["identity"], 0.1 * mapper(clean, torch.zeros(4)).square().sum(-1).mean() / 8)


def test_a_new_mapper_has_no_identity_loss_and_only_it_learns(encoder, batch):
    purifier, mapper = _purifier(), SmoothnessMapper(8)
    recipe = MapperRecipe(encoder, purifier, mapper, Stripes())
    terms = recipe.losses(recipe.modules, batch, _generator(), "main")
    assert terms["identity"].item() == 0 and terms["feature"].item() > 1e-4
    sum(terms.values()).backward()
    assert mapper.proj_out.weight.grad.abs().max() > 0
    frozen = [*purifier.parameters(), *encoder.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert not purifier.training and set(recipe.modules) == {"mapper"}


def test_a_gated_mapper_has_no_identity_loss_whatever_its_weights(encoder, batch):
    gated, free = SmoothnessMapper(8, gate=True), SmoothnessMapper(8)
    for mapper in (gated, free):
        for parameter in mapper.parameters():
            nn.init.normal_(parameter, std=0.3, generator=_generator(1))
    losses = [MapperRecipe(encoder, None, m, Stripes()).losses({"mapper": m}, batch, _generator(), "main") for m in (gated, free)]
    assert losses[0]["identity"].item() == 0 and losses[1]["identity"].item() > 1e-3


def test_without_a_purifier_the_encoder_sees_the_noisy_image(encoder, batch):
    recipe = MapperRecipe(encoder, None, SmoothnessMapper(8), Stripes())
    terms = recipe.losses(recipe.modules, batch, _generator(5), "main")
    noisy, _, _ = add_noise(batch, (0.0, 0.5), _generator(5))
    torch.testing.assert_close(terms["feature"], feature_loss(encoder(batch), encoder(noisy), encoder, ("flat", "pooled")))


def test_levels_below_the_diffusion_schedule_do_not_stop_the_mapper(encoder, batch):
    recipe = MapperRecipe(encoder, _diffusion_purifier(), SmoothnessMapper(8), Stripes(), sigma_max=SIGMA_RANGE[0])
    terms = recipe.losses(recipe.modules, batch, _generator(), "main")
    assert all(term.isfinite() for term in terms.values())


def test_largest_level_must_be_positive(encoder):
    for sigma_max in (0.0, float("nan")):
        with pytest.raises(ValueError, match="sigma_max must be positive; got"):
            MapperRecipe(encoder, None, SmoothnessMapper(8), Stripes(), sigma_max=sigma_max)


# --- training ---------------------------------------------------------------------------------------------------------


def test_both_stages_train_and_raise_the_similarity_of_noisy_features(encoder, tmp_path):
    images = torch.stack([Stripes()[i] for i in range(32)])
    noisy, sigma, _ = add_noise(images, (0.3, 0.3), _generator(7))
    with torch.no_grad():
        clean = encoder(images)
        bare = float(feature_loss(clean, encoder(noisy), encoder, ("flat",)))

    common = {"batch_size": 16, "logger": "none", "progress": False, "preview_every": None}
    recipe = PurifierRecipe(encoder, _purifier(), Stripes(), sigma_range=(0.3, 0.3), learning_rate=5e-3, warmup_steps=5)
    train(recipe, TrainerConfig(output=tmp_path / "one", steps=60, **common))
    purifier = load(tmp_path / "one" / "purifier", component="purifier")
    with torch.no_grad():
        tokens = encoder(purifier(noisy, sigma).clamp(0, 1))
        wiener = float(feature_loss(clean, encoder(_purifier()(noisy, sigma)), encoder, ("flat",)))
    purified = float(feature_loss(clean, tokens, encoder, ("flat",)))
    assert purified < 0.8 * min(bare, wiener)

    torch.manual_seed(2)
    recipe = MapperRecipe(encoder, purifier, SmoothnessMapper(8), Stripes(), learning_rate=5e-3, warmup_steps=5)
    train(recipe, TrainerConfig(output=tmp_path / "two", steps=60, **common))
    mapper = load(tmp_path / "two" / "mapper", component="mapper")
    with torch.no_grad():
        mapped = float(feature_loss(clean, tokens + mapper(tokens, sigma), encoder, ("flat",)))
        moved = float(mapper(clean, torch.zeros(32)).square().mean() / clean.square().mean())
    assert mapped < 0.9 * purified and moved < 0.05


# --- the folder of images ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two images whose red channel is the column and whose green channel is the row, from 0 to 1."""
    for index, (height, width) in enumerate([(40, 60), (30, 30)]):
        columns = torch.linspace(0, 1, width).expand(height, -1)
        rows = torch.linspace(0, 1, height)[:, None].expand(-1, width)
        save_image(torch.stack([columns, rows, torch.full_like(rows, 0.5 * index)]), tmp_path / f"{index}.png")
    return tmp_path


def test_crops_are_a_pure_function_of_seed_and_index(folder):
    first, again, other = ImageFolder(folder, 16, seed=3), ImageFolder(folder, 16, seed=3), ImageFolder(folder, 16, seed=4)
    torch.manual_seed(5)
    backwards = {index: again[index] for index in reversed(range(len(again)))}
    assert all(torch.equal(first[index], backwards[index]) for index in range(len(first)))
    assert any(not torch.equal(first[index], other[index]) for index in range(8))
    assert len({first[index].sum().item() for index in range(0, 16, 2)}) > 6  # crops of one image differ


def test_crops_hold_80_to_100_percent_of_the_shorter_side_and_half_are_mirrored(folder):
    data, mirrored = ImageFolder(folder, 16, crops_per_image=100), 0
    for index in range(len(data)):
        crop = data[index]
        assert crop.shape == (3, 16, 16) and crop.min() >= 0 and crop.max() <= 1
        red, green = crop[0].mean(0), crop[1].mean(1)
        assert green[-1] > green[0]  # never upside down
        share = float(green[-1] - green[0]) * 16 / 15
        assert 0.75 < share < 1.08
        mirrored += int(red[0] > red[-1])
    assert 70 < mirrored < 130


def test_every_image_is_visited(folder):
    data = ImageFolder(folder, 8, crops_per_image=3)
    assert len(data) == 6
    assert [round(float(data[index][2].mean()), 1) for index in range(6)] == [0.0, 0.5] * 3
    for outside in (6, -1):
        with pytest.raises(IndexError):
            data[outside]


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no image or folder"):
        ImageFolder(tmp_path / "nothing", 8)
    with pytest.raises(FileNotFoundError, match="has no images"):
        ImageFolder(tmp_path, 8)
