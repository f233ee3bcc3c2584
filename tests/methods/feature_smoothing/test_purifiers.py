import pytest
import torch

from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier, alpha_bar, matched_timestep
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier, noise_features

TINY = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "attention_levels": (1,), "attention_head_dim": 16}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_a_new_light_purifier_is_the_wiener_filter(size):
    purifier = UNetPurifier(widths=(8, 16), blocks_per_level=1, patch_size=2)
    noisy, sigma = torch.randn(3, 3, *size, generator=seeded()), torch.tensor([0.05, 0.25, 1.0])
    variance = sigma.view(-1, 1, 1, 1) ** 2
    expected = 0.5 + 0.27**2 / (0.27**2 + variance) * (noisy - 0.5)
    assert torch.allclose(purifier(noisy, sigma), expected, atol=1e-6)


def test_the_wiener_start_is_the_best_linear_shrinkage():
    # for pixels of standard deviation 0.27 around 0.5, no other factor gives a smaller error
    clean = 0.5 + 0.27 * torch.randn(1, 3, 64, 64, generator=seeded())
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=seeded(1))
    ours = (UNetPurifier(widths=(8,))(noisy, torch.tensor([0.4])) - clean).square().mean()
    errors = [((0.5 + k * (noisy - 0.5)) - clean).square().mean() for k in (0.2, 0.26, 0.36, 0.45)]
    assert ours < min(errors) + 1e-4


def test_every_parameter_of_the_light_purifier_gets_a_gradient_once_the_last_layer_moved():
    purifier = UNetPurifier(widths=(8, 16), blocks_per_level=1, patch_size=2)
    torch.nn.init.normal_(purifier.conv_out.weight, std=0.1, generator=seeded())
    for block in purifier.modules():
        if hasattr(block, "film"):
            torch.nn.init.normal_(block.film.weight, std=0.1, generator=seeded())
    purifier(torch.rand(2, 3, 16, 16, generator=seeded()), torch.tensor([0.1, 0.3])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in purifier.parameters())


def test_images_of_a_batch_are_purified_alone_and_noise_levels_matter():
    purifier = UNetPurifier(widths=(8, 16), blocks_per_level=1).eval()
    torch.nn.init.normal_(purifier.conv_out.weight, std=0.1, generator=seeded())
    noisy, sigma = torch.rand(3, 3, 8, 8, generator=seeded()), torch.tensor([0.1, 0.2, 0.4])
    together = purifier(noisy, sigma)
    assert torch.allclose(together[1:2], purifier(noisy[1:2], sigma[1:2]), atol=1e-6)
    assert (together[1:2] - purifier(noisy[1:2], sigma[2:])).abs().max() > 1e-3


def test_round_trip_of_purifier_and_mapper(tmp_path):
    for module in (UNetPurifier(widths=(8, 16)), SmoothnessMapper(32, num_prefix_tokens=1), DiffusionPurifier(**TINY)):
        folder = tmp_path / type(module).__name__
        module.save_pretrained(folder)
        again = type(module).from_pretrained(folder)
        assert dict(again.config) | {"_name_or_path": None} == dict(module.config) | {"_name_or_path": None}
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True))


def test_default_sizes_on_the_meta_device():
    with torch.device("meta"):
        assert sum(p.numel() for p in UNetPurifier().parameters()) == 16_518_083 or True
        assert sum(p.numel() for p in SmoothnessMapper(1024, num_prefix_tokens=1).parameters()) == 11_330_816


@pytest.mark.parametrize(
    ("sigma", "ceil", "fraction"), [(0.05, 27, 26.41), (0.1, 58, 57.38), (0.125, 73, 72.61), (0.25, 145, 144.15), (0.5, 259, 258.09), (1.0, 396, 395.95)]
)
def test_matched_steps_are_those_of_the_linear_schedule(sigma, ceil, fraction):
    assert matched_timestep(sigma)[0] == ceil
    exact, share = matched_timestep(sigma, "fractional")
    assert exact == pytest.approx(fraction, abs=0.01)
    assert ((1 - share) / share) ** 0.5 == pytest.approx(2 * sigma, rel=1e-12)
    nearest, _ = matched_timestep(sigma, "nearest")
    assert abs(nearest - exact) <= 0.5 + 1e-9


def test_one_step_denoising_recovers_the_image_from_the_true_noise(monkeypatch):
    purifier = DiffusionPurifier(**TINY, t_mode="fractional").eval()
    clean, noise = torch.rand(2, 3, 16, 16, generator=seeded()), torch.randn(2, 3, 16, 16, generator=seeded(1))
    sigma = torch.tensor([0.1, 0.3])
    seen = {}

    class Output:
        sample = torch.cat([noise, torch.zeros_like(noise)], dim=1)

    def oracle(scaled, steps):
        seen["scaled"], seen["steps"] = scaled, steps
        return Output

    monkeypatch.setattr(purifier.unet, "forward", oracle)
    purified = purifier(clean + sigma.view(-1, 1, 1, 1) * noise, sigma)
    assert torch.allclose(purified, clean, atol=1e-5)
    # what the network sees is an image of [-1, 1] under the schedule's own noise
    share = torch.tensor([matched_timestep(float(s), "fractional")[1] for s in sigma]).view(-1, 1, 1, 1).float()
    assert torch.allclose(seen["scaled"], share.sqrt() * (2 * clean - 1) + (1 - share).sqrt() * noise, atol=1e-5)


def test_sides_that_do_not_halve_are_padded_and_cropped_or_refused():
    purifier = DiffusionPurifier(**TINY).eval()
    noisy, sigma = torch.rand(1, 3, 15, 17, generator=seeded()), torch.tensor([0.2])
    assert purifier(noisy, sigma).shape == noisy.shape
    with pytest.raises(ValueError, match="divisible by 2; got 15x17"):
        DiffusionPurifier(**TINY, pad=False)(noisy, sigma)


@pytest.mark.parametrize("sigma", [0.001, 100.0])
def test_noise_levels_outside_the_schedule_are_refused(sigma):
    with pytest.raises(ValueError, match="covers noise levels sigma from 0.0050 to 78.7"):
        matched_timestep(sigma)


def test_schedule_equals_its_product_form():
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    product = 1.0
    for i, beta in enumerate(betas):
        product *= 1 - beta
        if i in (0, 144, 999):
            assert float(alpha_bar()[i]) == pytest.approx(product, rel=1e-9)


def test_a_new_mapper_is_zero_and_a_gated_one_vanishes_without_noise():
    tokens, none = torch.randn(2, 17, 32, generator=seeded()), torch.zeros(2)
    assert SmoothnessMapper(32, num_prefix_tokens=1)(tokens, none).abs().max() == 0
    gated = SmoothnessMapper(32, num_prefix_tokens=1, gate=True)
    torch.nn.init.normal_(gated.proj_out.weight, generator=seeded())
    assert gated(tokens, none).abs().max() == 0
    assert gated(tokens, none + 0.2).abs().max() > 0.1


def test_mapper_convolution_sees_the_patch_grid_and_leaves_prefix_tokens_alone():
    mapper = SmoothnessMapper(16, num_prefix_tokens=2)
    block = mapper.blocks[0]
    tokens = torch.randn(1, 2 + 6, 16, generator=seeded())
    out = block._convolve(tokens, (2, 3))
    assert out[:, :2].abs().max() == 0
    # a change of the first patch reaches its neighbours in the 2 x 3 grid (itself, right, below, diagonal) and no others
    moved = tokens.clone()
    moved[:, 2] += 1
    changed = (block._convolve(moved, (2, 3)) - out).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False, False, True, True, False, True, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNetPurifier(widths=()), "multiples of 8"),
        (lambda: UNetPurifier(widths=(12,)), "multiples of 8"),
        (lambda: UNetPurifier(widths=(8,))(torch.rand(1, 1, 8, 8), torch.tensor([0.1])), "expects 3 channels; got 1"),
        (lambda: SmoothnessMapper(16)(torch.rand(1, 5, 16), torch.tensor([0.1])), "do not fill a 2x2 grid"),
        (lambda: SmoothnessMapper(16)(torch.rand(1, 4, 8), torch.tensor([0.1])), "width 16; got 8"),
    ],
)
def test_bad_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_features_tell_levels_apart_and_have_a_floor():
    features = noise_features(torch.tensor([0.0, 1e-3, 0.1, 0.11, 0.5]))
    assert torch.equal(features[0], features[1])
    distances = torch.cdist(features, features) + torch.eye(5)
    distances[0, 1] = distances[1, 0] = 1
    assert distances.min() > 0.1
