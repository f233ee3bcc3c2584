"""Losses of the four trainings against closed forms."""

import math
import re

import pytest
import torch

from visiongraft.methods.action_mesh.losses import (
    draw_pairs,
    draw_sources,
    gaussian_kl,
    noisy_latents,
    sdf_losses,
    tracked_point_loss,
    truncated_sdf,
    velocity_loss,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def test_truncated_sdf_is_positive_inside_and_saturates():
    sdf = torch.tensor([-1.0, -0.05, 0.0, 0.025, 3.0])
    torch.testing.assert_close(truncated_sdf(sdf), torch.tensor([1.0, 0.5, 0.0, -0.25, -1.0]))
    torch.testing.assert_close(truncated_sdf(sdf, 0.2), torch.tensor([1.0, 0.25, 0.0, -0.125, -1.0]))


def test_sdf_losses_vanish_at_the_logit_whose_sigmoid_is_the_truncated_distance():
    sdf = torch.linspace(-0.09, 0.09, 19, dtype=torch.float64)[None]
    value = -sdf / 0.1
    logits = ((1 + value) / (1 - value)).log()  # 2 sigmoid(logit) - 1 = value
    torch.testing.assert_close(2 * logits.sigmoid() - 1, value)
    absolute, squared = sdf_losses(logits, sdf)
    assert float(absolute) < 1e-12 and float(squared) < 1e-12
    absolute, squared = sdf_losses(torch.zeros(1, 19, dtype=torch.float64), sdf)
    torch.testing.assert_close(absolute, value.abs().mean())
    torch.testing.assert_close(squared, value.square().mean())


def test_kl_is_that_of_torch_distributions_and_zero_for_the_standard_normal():
    mean, logvar = clips(2, 3, 4), clips(2, 3, 4, seed=1)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected)
    assert float(gaussian_kl(torch.zeros(1, 2), torch.zeros(1, 2))) == 0


def test_sources_stay_clean_to_the_bit_and_targets_are_mixed_with_their_clips_time():
    latents, noise = clips(2, 3, 4, 5), clips(2, 3, 4, 5, seed=1)
    mask = torch.tensor([[0.0, 1, 0], [0, 0, 0]])
    sigma = torch.tensor([0.25, 0.75], dtype=torch.float64)
    noisy = noisy_latents(latents, noise, sigma, mask)
    assert torch.equal(noisy[0, 1], latents[0, 1])
    torch.testing.assert_close(noisy[0, 2], 0.75 * latents[0, 2] + 0.25 * noise[0, 2])
    torch.testing.assert_close(noisy[1, 0], 0.25 * latents[1, 0] + 0.75 * noise[1, 0])


def test_velocity_points_to_the_data():
    latents, noise = clips(2, 3, 4, 5), clips(2, 3, 4, 5, seed=1)
    assert float(velocity_loss(latents - noise, latents, noise)) == 0
    torch.testing.assert_close(velocity_loss(noise - latents, latents, noise), 4 * (latents - noise).square().mean())
    # from any time, going on along the target velocity for sigma arrives at the data
    sigma = torch.tensor([0.3, 0.9], dtype=torch.float64)
    start = noisy_latents(latents, noise, sigma, torch.zeros(2, 3))
    torch.testing.assert_close(start + sigma[:, None, None, None] * (latents - noise), latents)


def test_loss_counts_target_frames_only_and_every_clip_the_same():
    latents, noise = clips(2, 3, 4, 5), clips(2, 3, 4, 5, seed=1)
    velocity = clips(2, 3, 4, 5, seed=2)
    mask = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    error = (velocity - (latents - noise)).square().mean((2, 3))
    expected = (error[0, 1] + (error[1, 0] + error[1, 1]) / 2) / 2
    torch.testing.assert_close(velocity_loss(velocity, latents, noise, mask), expected)
    torch.testing.assert_close(velocity_loss(velocity, latents, noise, torch.zeros(2, 3)), velocity_loss(velocity, latents, noise))


def test_source_frames_have_no_gradient_even_where_they_are_nan():
    latents, noise, velocity = clips(1, 3, 2, 2), clips(1, 3, 2, 2, seed=1), clips(1, 3, 2, 2, seed=2)
    velocity[0, 1] = math.nan
    velocity.requires_grad_(True)
    loss = velocity_loss(velocity, latents, noise, torch.tensor([[0.0, 1, 0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.equal(velocity.grad[0, 1], torch.zeros(2, 2, dtype=torch.float64))
    assert float(velocity.grad[0, 0].abs().min()) > 0


def test_half_precision_losses_are_computed_in_float32():
    far = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)  # its square overflows float16
    loss = velocity_loss(far, torch.zeros_like(far), torch.zeros_like(far))
    assert loss.dtype == torch.float32 and float(loss) == 90_000


def test_tracked_point_loss_is_a_third_of_the_squared_distance():
    predicted, target = clips(2, 5, 3), clips(2, 5, 3, seed=1)
    torch.testing.assert_close(tracked_point_loss(predicted, target), (predicted - target).norm(dim=-1).square().mean() / 3)


def test_number_and_places_of_sources_are_uniform():
    mask = draw_sources(6000, 5, (1, 3), seeded())
    counts = mask.sum(1)
    for wanted in (1, 2, 3):
        assert abs(float((counts == wanted).float().mean()) - 1 / 3) < 0.025
    torch.testing.assert_close(mask.mean(0), torch.full((5,), 0.4), atol=0.025, rtol=0)
    pairs = {tuple(row.nonzero().flatten().tolist()) for row in mask[counts == 2]}
    assert len(pairs) == 10


def test_a_target_always_remains_and_no_sources_can_be_asked_for():
    assert float(draw_sources(500, 2, (1, 3), seeded()).sum(1).max()) == 1
    assert float(draw_sources(10, 4, (0, 0), seeded()).sum()) == 0
    assert torch.equal(draw_sources(10, 4, (1, 3), seeded(3)), draw_sources(10, 4, (1, 3), seeded(3)))


def test_pairs_are_independent_and_uniform():
    source, target = draw_pairs(8000, 4, seeded())
    together = torch.bincount(4 * source + target, minlength=16) / 8000
    torch.testing.assert_close(together, torch.full((16,), 1 / 16), atol=0.012, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: truncated_sdf(torch.zeros(1), 0.0), "truncation is a distance and must be positive; got 0.0"),
        (
            lambda: velocity_loss(*[torch.zeros(2, 2, 1, 1)] * 3, torch.tensor([[0.0, 1], [1, 1]])),
            "all frames are sources, nothing to generate (clip 1 of the batch)",
        ),
        (lambda: draw_sources(1, 4, (3, 1), seeded()), "0 <= fewest <= most; got (3, 1)"),
        (lambda: draw_sources(1, 4, (-1, 1), seeded()), "0 <= fewest <= most; got (-1, 1)"),
        (lambda: draw_sources(1, 3, (3, 3), seeded()), "all frames are sources, nothing to generate: at least 3 of 3 frames"),
        (lambda: draw_pairs(1, 1, seeded()), "stage II needs at least two distinct timesteps; clips have 1 frame."),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
