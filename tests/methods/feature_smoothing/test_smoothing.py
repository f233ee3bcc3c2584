import math

import pytest
import torch
from torch import nn

from visiongraft.methods.feature_smoothing.smoothing import (
    SmoothedEncoder,
    SmoothingConfig,
    average_tokens,
    draw_noise,
    reduce_tokens,
    unit,
)


class Rotating(nn.Module):
    """(cos k m, sin k m) of the mean pixel m scaled by sqrt(d): the smoothed feature has a closed form."""

    def __init__(self, k=1.0):
        super().__init__()
        self.k = k

    def forward(self, images):
        # sum / sqrt(d) of isotropic noise is again N(0, sigma^2)
        angle = self.k * images.flatten(1).sum(1) / math.sqrt(images[0].numel())
        return torch.stack([angle.cos(), angle.sin()], dim=1)


class Tokens(nn.Module):
    def __init__(self, tokens=4, dim=8):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(3 * 8 * 8 // tokens, dim)
        self.tokens = tokens

    def forward(self, images):
        return self.project(images.reshape(len(images), self.tokens, -1)).tanh() * 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=seeded(1))


def test_noise_is_gaussian_with_the_given_deviation_and_independent_across_copies(images):
    noise = draw_noise(images, 0.3, 400, seeded()) - images.repeat_interleave(400, 0)
    assert noise.std().item() == pytest.approx(0.3, rel=0.01)
    assert abs(noise.mean().item()) < 0.005
    flat = noise.flatten(1)
    correlation = (flat[:-1] * flat[1:]).mean() / 0.09
    assert abs(correlation.item()) < 0.02


def test_noise_is_never_clipped(images):
    assert draw_noise(images, 0.5, 10, seeded()).min() < -0.2


def test_smoothed_feature_of_a_rotating_encoder_equals_its_closed_form(images):
    sigma, k = 0.4, 1.5
    smoothed = SmoothedEncoder(Rotating(k), SmoothingConfig(sigma=sigma, chunk_size=1000))
    mean = smoothed.mean_feature(images, 20_000, seeded())[:, 0]
    expected = smoothed.reference(images)[:, 0] * math.exp(-((k * sigma) ** 2) / 2)
    assert torch.allclose(mean, expected, atol=0.02)


def test_chunks_do_not_change_the_result(images):
    results = [SmoothedEncoder(Tokens(), SmoothingConfig(chunk_size=size)).mean_feature(images[:1], 12, seeded(3)) for size in (1, 5, 64)]
    assert torch.allclose(results[0], results[1], atol=1e-6)
    assert torch.allclose(results[0], results[2], atol=1e-6)


def test_noise_is_fresh_on_every_call(images):
    smoothed = SmoothedEncoder(Tokens(), SmoothingConfig())
    assert not torch.equal(smoothed(images), smoothed(images))
    assert torch.equal(smoothed(images, seeded()), smoothed(images, seeded()))


def test_flat_reduction_has_unit_norm_and_its_dot_product_is_the_mean_token_cosine():
    a, b = torch.randn(2, 3, 5, 7, generator=seeded())
    flat = (reduce_tokens(a, "flat") * reduce_tokens(b, "flat")).sum(-1)[:, 0]
    cosines = torch.cosine_similarity(a, b, dim=-1).mean(1)
    assert torch.allclose(flat, cosines, atol=1e-6)
    assert torch.allclose(reduce_tokens(a, "flat").norm(dim=-1), torch.ones(3, 1))


def test_per_token_and_pooled_reductions():
    tokens = torch.randn(3, 5, 7, generator=seeded())
    assert torch.allclose(reduce_tokens(tokens, "per_token").norm(dim=-1), torch.ones(3, 5))
    assert torch.allclose(reduce_tokens(tokens, "pooled")[:, 0], nn.functional.normalize(tokens.mean(1), dim=-1))
    picked = reduce_tokens(tokens, "pooled", lambda t: 3 * t[:, 0])
    assert torch.allclose(picked[:, 0], nn.functional.normalize(tokens[:, 0], dim=-1))


def test_a_zero_feature_stays_zero_and_a_tiny_one_becomes_unit():
    assert torch.equal(unit(torch.zeros(1, 4)), torch.zeros(1, 4))
    assert unit(torch.full((1, 4), 1e-20)).norm().item() == pytest.approx(1, rel=1e-5)


def test_restored_norm_is_the_mean_norm_and_leaves_directions_alone(images):
    smoothed = SmoothedEncoder(Tokens(), SmoothingConfig(n0=16))
    chunks = [torch.cat(list(smoothed.token_samples(images, 16, seeded())), dim=1)]
    restored, plain = average_tokens(iter(chunks), True), average_tokens(iter(chunks), False)
    assert torch.allclose(restored.norm(dim=-1), chunks[0].norm(dim=-1).mean(1), rtol=1e-5)
    assert torch.allclose(torch.cosine_similarity(restored, plain, dim=-1), torch.ones(2, 4), atol=1e-6)
    assert (plain.norm(dim=-1) <= 1 + 1e-6).all()


def test_purifier_runs_before_and_mapper_after_the_encoder(images):
    purifier = lambda noisy, sigma: noisy * 0 + sigma.view(-1, 1, 1, 1) + 0.9
    mapper = lambda tokens, sigma: -tokens + 2.0
    smoothed = SmoothedEncoder(Tokens(), SmoothingConfig(sigma=0.25))
    smoothed.purifier, smoothed.mapper = purifier, None
    expected = Tokens()(torch.ones(2, 3, 8, 8))  # 1.15 clamped to 1
    assert torch.allclose(smoothed.encode(images), expected)
    smoothed.mapper = mapper
    assert torch.allclose(smoothed.encode(images), torch.full((2, 4, 8), 2.0))
    assert torch.allclose(smoothed.reference(images), reduce_tokens(Tokens()(images), "flat"))


def test_gradients_reach_the_image_through_the_average(images):
    smoothed = SmoothedEncoder(Rotating(), SmoothingConfig(sigma=0.1))
    images = images.double().float().requires_grad_()
    reference = smoothed.reference(images.detach())
    value = (smoothed.mean_feature(images, 64, seeded()) * torch.tensor([0.3, 0.8])).sum()
    (gradient,) = torch.autograd.grad(value, images)
    step = 1e-2
    moved = smoothed.mean_feature(images.detach() + step * gradient / gradient.norm(), 64, seeded())
    slope = ((moved * torch.tensor([0.3, 0.8])).sum() - value) / step
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.05)
    assert not reference.requires_grad


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan"), float("inf")])
def test_a_sigma_that_is_no_noise_level_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be a positive number"):
        SmoothingConfig(sigma=sigma)


def test_training_mode_and_bad_counts_are_refused(images):
    with pytest.raises(ValueError, match="eval mode"):
        SmoothedEncoder(Tokens(), SmoothingConfig()).train()
    with pytest.raises(ValueError, match="n0 must be at least 1"):
        SmoothingConfig(n0=0)


def test_nan_features_are_an_error_not_a_dropped_sample(images):
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1) * float("nan")

    with pytest.raises(ValueError, match="NaN or infinite features"):
        SmoothedEncoder(Broken(), SmoothingConfig())(images)
