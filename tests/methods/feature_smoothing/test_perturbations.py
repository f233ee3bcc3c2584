"""The admissible set: inside the ball and the box after rounding, and the nearest such point."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.methods.feature_smoothing.perturbations import ascent_direction, perturb, project, random_start


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=60)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    log_eps=st.floats(-12, 3),
    log_length=st.floats(-8, 6),
    seed=st.integers(0, 10_000),
    binary=st.booleans(),
)
def test_perturbed_images_stay_in_the_ball_and_in_the_box(norm, log_eps, log_length, seed, binary):
    images = torch.rand(2, 3, 24, 24, generator=seeded(seed))
    images = images.round() if binary else images
    delta = math.exp(log_length) * torch.randn(images.shape, generator=seeded(seed + 1))
    eps = math.exp(log_eps)
    adversarial = perturb(images, delta, eps, norm)
    change = (adversarial.double() - images.double()).flatten(1)
    size = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    assert (size <= eps * (1 + 1e-6)).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1


@pytest.mark.parametrize("eps", [0.05, 1.0, 4.0, 100.0])
def test_perturb_in_l2_is_the_nearest_point_of_ball_and_box(eps):
    images = torch.rand(1, 3, 5, 5, generator=seeded(6), dtype=torch.float64)
    delta = torch.randn(images.shape, generator=seeded(7), dtype=torch.float64)
    found = perturb(images, delta, eps, "l2")
    # Variational inequality: y is the projection of z onto a convex set C iff <z - y, c - y> <= 0 for all c in C.
    others = perturb(images.expand(500, -1, -1, -1), torch.randn(500, 3, 5, 5, generator=seeded(8)).double(), eps, "l2")
    assert ((images + delta - found) * (others - found)).flatten(1).sum(1).max() <= 1e-5 * eps


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_project_is_idempotent_and_keeps_what_is_inside(norm):
    delta = torch.randn(4, 3, 5, 5, generator=seeded())
    once = project(delta, 0.3, norm)
    torch.testing.assert_close(project(once, 0.3, norm), once)
    inside = 1e-3 * delta
    torch.testing.assert_close(project(inside, 0.3, norm), inside, atol=0, rtol=0)


def test_random_start_in_l2_is_uniform_in_the_ball():
    images = torch.full((20_000, 1, 1, 2), 0.5)
    radius = (random_start(images, 0.4, "l2", seeded()) - images).flatten(1).norm(dim=1) / 0.4
    # In d = 2 the share of points within radius r is r^2.
    for inner in (0.25, 0.5, 0.75):
        assert float((radius <= inner).float().mean()) == pytest.approx(inner**2, abs=0.015)


def test_gradient_direction_survives_tiny_and_zero_gradients():
    gradient = torch.stack([1e-30 * torch.ones(3, 4, 4), torch.zeros(3, 4, 4)])
    direction = ascent_direction(gradient, "l2")
    torch.testing.assert_close(direction[0], torch.full((3, 4, 4), 48**-0.5))
    assert torch.equal(direction[1], torch.zeros(3, 4, 4))
