"""The light purifier: preconditioning, conditioning on the noise level, sizes, round trip."""

import pytest
import torch
from torch import nn

from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier, check_levels, noise_features, reflect_pad


def _purifier(**options) -> UNetPurifier:
    torch.manual_seed(0)
    return UNetPurifier(**{"widths": (8, 16), "blocks_per_level": 1, **options}).eval()


def _trained(**options) -> UNetPurifier:
    """As after training: no weight is left at its zero start."""
    purifier = _purifier(**options)
    for parameter in purifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    return purifier


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_new_purifier_is_the_best_linear_shrinkage_towards_grey():
    noisy, sigma = _images(3, 3, 8, 8), torch.tensor([0.05, 0.25, 1.0])
    gain = (0.27**2 / (0.27**2 + sigma**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(_purifier()(noisy, sigma), 0.5 + gain * (noisy - 0.5))


def test_new_purifier_has_the_smallest_error_of_all_shrinkages():
    generator = torch.Generator().manual_seed(2)
    clean = 0.5 + 0.27 * torch.randn((8, 3, 32, 32), generator=generator)
    noisy = clean + 0.25 * torch.randn(clean.shape, generator=generator)
    error = (_purifier()(noisy, torch.full((8,), 0.25)) - clean).square().mean()
    others = [(0.5 + gain * (noisy - 0.5) - clean).square().mean() for gain in torch.linspace(0, 1, 21)]
    assert error <= min(others) + 1e-4


def test_as_the_noise_vanishes_a_trained_purifier_returns_the_image():
    images = _images(2, 3, 8, 8)
    torch.testing.assert_close(_trained()(images, torch.full((2,), 1e-7)), images)


def test_output_follows_the_preconditioning_around_the_network():
    purifier, noisy, sigma, s = _trained(data_std=0.3).double(), _images(1, 3, 8, 8).double(), torch.tensor([0.4]).double(), 0.3
    total = (s**2 + sigma**2).sqrt()
    network = purifier._network((noisy - 0.5) / total, sigma)
    expected = 0.5 + s**2 / total**2 * (noisy - 0.5) + sigma * s / total * network
    torch.testing.assert_close(purifier(noisy, sigma), expected, rtol=1e-12, atol=1e-12)
    single = purifier.float()(noisy.float(), sigma.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_noise_level_conditions_the_network():
    purifier, inside = _trained(), _images(1, 3, 8, 8)
    at_low, at_high = (purifier._network(inside, torch.tensor([level])) for level in (0.1, 0.5))
    assert (at_low - at_high).abs().max() > 1e-2


def test_each_image_is_purified_alone_at_its_own_level():
    purifier, noisy, sigma = _trained(), _images(3, 3, 8, 8), torch.tensor([0.1, 0.3, 0.9])
    alone = torch.cat([purifier(noisy[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(purifier(noisy, sigma), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_sides_that_do_not_halve_are_padded_by_reflection_and_cropped(patch_size: int):
    purifier, noisy, sigma = _trained(patch_size=patch_size), _images(1, 3, 7, 9), torch.tensor([0.3])
    padded = nn.functional.pad(noisy, (0, -9 % (2 * patch_size), 0, -7 % (2 * patch_size)), mode="reflect")
    torch.testing.assert_close(purifier(noisy, sigma), purifier(padded, sigma)[..., :7, :9])


def test_padding_leaves_sides_that_fit_as_they_are():
    images = _images(1, 3, 8, 16)
    assert reflect_pad(images, 8) is images


def test_images_too_small_to_pad_are_refused():
    with pytest.raises(ValueError, match=r"divisible by 8; 4x4 pixels are too few .* more than 4 pixels"):
        _purifier(widths=(8, 8, 8, 8))(_images(1, 3, 4, 4), torch.tensor([0.25]))


def test_gradient_with_respect_to_the_image_is_the_derivative():
    purifier = _trained().double()
    noisy, sigma = _images(1, 3, 4, 4).double().requires_grad_(), torch.tensor([0.3]).double()
    assert torch.autograd.gradcheck(lambda x: purifier(x, sigma), noisy, fast_mode=True)


def test_saving_and_loading_returns_the_same_function(tmp_path):
    purifier, noisy, sigma = _trained(patch_size=2), _images(2, 3, 8, 8), torch.tensor([0.1, 0.4])
    purifier.save_pretrained(tmp_path)
    loaded = UNetPurifier.from_pretrained(tmp_path).eval()
    assert list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.bin"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), purifier.parameters(), strict=True))
    torch.testing.assert_close(loaded(noisy, sigma), purifier(noisy, sigma), atol=1e-5, rtol=1e-5)


def test_noise_features_tell_levels_apart_and_end_at_the_floor():
    features = noise_features(torch.tensor([0.0, 1e-3, 0.05, 0.051, 1.0]))
    assert torch.equal(features[0], features[1])
    distances = torch.cdist(features[1:], features[1:])
    assert (distances + 10 * torch.eye(4)).min() > 0.01


def test_default_size_has_four_levels_and_16_5_million_parameters():
    with torch.device("meta"):
        purifier = UNetPurifier()
    assert sum(p.numel() for p in purifier.parameters()) == 16_518_083
    assert [len(blocks) for blocks in purifier.down] == [len(blocks) for blocks in purifier.up] == [2] * 4


def test_half_precision_weights_keep_the_skip_path_exact():
    purifier, noisy, sigma = _purifier(), _images(2, 3, 8, 8), torch.tensor([0.1, 0.4])
    exact = purifier(noisy, sigma)
    rough = purifier.to(torch.bfloat16)(noisy, sigma)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact)  # a new network adds nothing, whatever its precision


def test_channels_last_images_give_the_same_result():
    purifier, noisy, sigma = _trained(patch_size=2), _images(2, 3, 8, 8), torch.tensor([0.1, 0.4])
    expected = purifier(noisy, sigma)
    swapped = purifier.to(memory_format=torch.channels_last)(noisy.contiguous(memory_format=torch.channels_last), sigma)
    torch.testing.assert_close(swapped, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("widths", [(), (12,), (0, 8)])
def test_widths_that_groups_cannot_divide_are_refused(widths: tuple[int, ...]):
    with pytest.raises(ValueError, match="widths must be positive multiples of 8"):
        UNetPurifier(widths=widths)


@pytest.mark.parametrize(
    ("option", "value"), [("blocks_per_level", 0), ("patch_size", 0), ("patch_size", -2), ("in_channels", 0), ("data_std", -0.1)]
)
def test_sizes_that_are_not_positive_are_refused(option: str, value: float):
    with pytest.raises(ValueError, match=f"{option} must be positive; got {value}"):
        UNetPurifier(**{option: value})


@pytest.mark.parametrize("level", [0.0, -0.25, float("nan"), float("inf")])
def test_levels_that_are_not_positive_are_refused_in_a_batch_too(level: float):
    with pytest.raises(ValueError, match=r"sigma must be finite and positive, in pixel units of \[0, 1\]; got (0|-0.25|nan|inf)\."):
        _purifier()(_images(2, 3, 8, 8), torch.tensor([0.25, level]))


@pytest.mark.parametrize("levels", [torch.tensor([0.25]), torch.tensor(0.25), torch.full((2, 1), 0.25)])
def test_levels_are_one_an_image_and_never_spread_over_them(levels: torch.Tensor):
    with pytest.raises(ValueError, match=r"one noise level an image, of shape \(2,\); got shape"):
        check_levels(levels, 2)


@pytest.mark.parametrize("make", [_purifier, lambda: SmoothnessMapper(8), lambda: DiffusionPurifier(16, (32, 32), 1, (), 16)])
def test_every_part_checks_its_levels(make, monkeypatch):
    module, seen = make(), []
    monkeypatch.setattr(f"{type(module).__module__}.check_levels", lambda sigma, images, **_: seen.append((sigma.tolist(), images)))
    module(_images(2, 4, 8) if isinstance(module, SmoothnessMapper) else _images(2, 3, 16, 16), torch.tensor([0.25, 0.5]))
    assert seen == [([0.25, 0.5], 2)]


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="expects 3 channels; got 1"):
        _purifier()(_images(1, 1, 8, 8), torch.tensor([0.1]))
