"""The diffusion purifier as a wrapper: what the U-Net is asked, padding, checkpointing, the noise it reports."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.diffusion_purifier import SIGMA_RANGE, DiffusionPurifier, alpha_bar, matched_timestep

TINY = {
    "sample_size": 32,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "attention_levels": (2,),
    "attention_head_dim": 16,
}


def _purifier(**options) -> DiffusionPurifier:
    torch.manual_seed(0)
    return DiffusionPurifier(**{**TINY, **options}).eval()


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def _oracle(purifier: DiffusionPurifier, monkeypatch, clean: torch.Tensor) -> list[torch.Tensor]:
    """Makes the U-Net perfect: its noise estimate leads back to ``clean``. Returns the steps it was asked for."""
    asked = []

    def forward(scaled, steps):
        asked.append(steps)
        share = alpha_bar()[steps.round().long()].float().view(-1, 1, 1, 1)
        noise = (scaled - share.sqrt() * (2 * clean - 1)) / (1 - share).sqrt()
        return SimpleNamespace(sample=torch.cat([noise, torch.full_like(noise, 9.0)], dim=1))  # a variance that must not be read

    monkeypatch.setattr(purifier.unet, "forward", forward)
    return asked


def test_steps_are_those_of_denoised_smoothing():
    table = {0.05: (27, 26.41), 0.1: (58, 57.38), 0.125: (73, 72.61), 0.25: (145, 144.15), 0.5: (259, 258.09), 1.0: (396, 395.95)}
    for sigma, (first, exact) in table.items():
        assert matched_timestep(sigma, "ceil")[0] == first
        assert matched_timestep(sigma, "nearest")[0] == round(exact)
        step, share = matched_timestep(sigma, "fractional")
        assert step == pytest.approx(exact, abs=5e-3) and ((1 - share) / share) ** 0.5 == pytest.approx(2 * sigma)
    share = matched_timestep(0.25, "ceil")[1]
    assert ((1 - share) / share) ** 0.5 == pytest.approx(0.50316, abs=5e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.125, 0.25, 1.0])
def test_ceil_takes_the_first_step_with_enough_noise_and_nearest_the_closest(sigma: float):
    ratios = ((1 - alpha_bar()) / alpha_bar()).sqrt()
    step, share = matched_timestep(sigma, "ceil")
    assert ratios[int(step)] >= 2 * sigma > ratios[int(step) - 1]
    assert share == alpha_bar()[int(step)]
    assert matched_timestep(sigma, "nearest")[0] == (ratios - 2 * sigma).abs().argmin()


def test_fractional_steps_pass_through_the_whole_ones():
    ratios = ((1 - alpha_bar()) / alpha_bar()).sqrt()
    for step in (1, 100, 900):
        fraction, share = matched_timestep(float(ratios[step]) / 2, "fractional")
        assert fraction == pytest.approx(step, abs=1e-6)
        assert share == pytest.approx(float(alpha_bar()[step]), rel=1e-9)


@pytest.mark.parametrize("sigma", [*SIGMA_RANGE, float(torch.tensor(SIGMA_RANGE[0])), float(torch.tensor(SIGMA_RANGE[1]))])
@pytest.mark.parametrize("mode", ["ceil", "nearest", "fractional"])
def test_ends_of_the_range_are_in_it_also_in_single_precision(sigma: float, mode):
    step, share = matched_timestep(sigma, mode)
    assert 0 <= step <= 999 and 0 < share < 1


@pytest.mark.parametrize("sigma", [0.0, 0.0049, 80.0, float("nan")])
def test_levels_outside_the_range_are_refused_in_a_batch_too(sigma: float):
    with pytest.raises(ValueError, match=r"noise levels sigma from 0.0050 to 78.7; got"):
        _purifier()(_images(2, 3, 32, 32), torch.tensor([0.25, sigma]))


@pytest.mark.parametrize("mode", ["ceil", "nearest"])
def test_a_perfect_network_returns_the_image_and_the_noise_of_the_pixels(monkeypatch, mode):
    purifier, clean = _purifier(t_mode=mode), _images(2, 3, 32, 32)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.05, 0.25])
    asked = _oracle(purifier, monkeypatch, clean)
    purified, estimate = purifier(clean + sigma.view(-1, 1, 1, 1) * noise, sigma, return_noise=True)
    torch.testing.assert_close(purified, clean, atol=1e-4, rtol=1e-4)
    # both terms of the loss have the same optimum, although the matched step is not exactly at sigma
    torch.testing.assert_close(estimate, noise, atol=1e-4, rtol=1e-4)
    assert asked[0].tolist() == [matched_timestep(float(level), mode)[0] for level in sigma]


def test_no_noise_is_added():
    purifier, noisy, sigma = _purifier(), _images(1, 3, 32, 32), torch.tensor([0.25])
    assert torch.equal(purifier(noisy, sigma), purifier(noisy, sigma))


def test_levels_of_a_batch_are_matched_one_by_one():
    purifier, noisy, sigma = _purifier(), _images(3, 3, 32, 32), torch.tensor([0.5, 0.05, 0.5])
    alone = torch.cat([purifier(noisy[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(purifier(noisy, sigma), alone, atol=1e-4, rtol=1e-4)


def test_padding_is_by_reflection_and_cropped_back():
    purifier, noisy, sigma = _purifier(), _images(1, 3, 30, 21), torch.tensor([0.3])
    padded = F.pad(noisy, (0, 3, 0, 2), mode="reflect")
    torch.testing.assert_close(purifier(noisy, sigma), purifier(padded, sigma)[..., :30, :21])


def test_336_becomes_352_for_the_released_depth():
    seen = []
    with torch.device("meta"):
        purifier = DiffusionPurifier()
        purifier.unet.forward = lambda scaled, steps: seen.append(scaled.shape) or SimpleNamespace(sample=scaled.repeat(1, 2, 1, 1))
        images = torch.zeros(1, 3, 336, 336)
    assert purifier(images, torch.tensor([0.25])).shape == images.shape
    assert seen == [(1, 3, 352, 352)]


def test_sizes_that_cannot_be_padded_are_refused():
    with pytest.raises(ValueError, match=r"divisible by 4; got 30x32\. Resize, or set pad=True"):
        _purifier(pad=False)(_images(1, 3, 30, 32), torch.tensor([0.3]))
    with pytest.raises(ValueError, match="divisible by 4; 2x8 pixels are too few"):
        _purifier()(_images(1, 3, 2, 8), torch.tensor([0.3]))
    assert _purifier(pad=False)(_images(1, 3, 32, 36), torch.tensor([0.3])).shape == (1, 3, 32, 36)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="expects 3 channels; got 1"):
        _purifier()(_images(1, 1, 32, 32), torch.tensor([0.3]))


def test_checkpointing_recomputes_and_leaves_the_gradient_unchanged():
    purifier, sigma, gradients, runs = _purifier(), torch.tensor([0.3]), [], []
    purifier.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: runs.append(None))
    counts = []
    for switch in (purifier.disable_gradient_checkpointing, purifier.enable_gradient_checkpointing):
        switch()
        runs.clear()
        noisy = _images(1, 3, 32, 32).requires_grad_()
        (purifier(noisy, sigma) * _images(1, 3, 32, 32)).sum().backward()
        gradients.append(noisy.grad)
        counts.append(len(runs))
    assert counts == [1, 2]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_default_configuration_is_the_imagenet_256_model():
    with torch.device("meta"):
        purifier = DiffusionPurifier()
    assert sum(p.numel() for p in purifier.parameters()) == 552_814_086
    attention = [key for key in purifier.state_dict() if key.endswith("to_q.weight")]
    # to_q, to_k, to_v and their biases are two tensors in the authors' file
    assert len(purifier.state_dict()) - 4 * len(attention) == 566
    assert purifier.unet.config.attention_head_dim == 64 and purifier.unet.config.out_channels == 6


def test_saving_and_loading_keeps_function_and_mode(tmp_path):
    purifier, noisy, sigma = _purifier(t_mode="fractional"), _images(1, 3, 32, 32), torch.tensor([0.3])
    purifier.save_pretrained(tmp_path)
    loaded = DiffusionPurifier.from_pretrained(tmp_path).eval()
    assert loaded.config.t_mode == "fractional" and loaded.config.pad is True
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), purifier.parameters(), strict=True))
    # loaded weights lie elsewhere in memory, where kernels may add in another order
    torch.testing.assert_close(loaded(noisy, sigma), purifier(noisy, sigma), atol=1e-5, rtol=1e-5)
