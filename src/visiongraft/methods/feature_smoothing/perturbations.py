"""Perturbations within a budget: the l2 or l-infinity ball around an image, intersected with the pixel range [0, 1]."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Norm = Literal["l2", "linf"]
Images = Float[Tensor, "batch channels height width"]
RADIUS_MARGIN = 1e-6  # relative; keeps float32 sums of squares from overstepping the l2 ball


def project(delta: Images, eps: float, norm: Norm) -> Images:
    """Nearest perturbation in the eps ball, whatever the images; :func:`perturb` also respects [0, 1]."""
    return delta.clamp(-eps, eps) if norm == "linf" else delta * _scale_into_ball(delta, eps)


def perturb(images: Images, delta: Images, eps: float, norm: Norm) -> Images:
    """Nearest image to ``images + delta`` that lies in the eps ball around ``images`` and in [0, 1].

    Projecting onto the ball and then clamping to [0, 1] stays in the ball: a clean pixel lies in [0, 1], so clamping only moves
    a perturbed one towards it. In l2 that leaves budget unused, and the nearest point (by the Lagrange condition) is
    clamp(images + s * delta) with the largest s <= 1 that fits into the ball. From s = eps / ||delta||, each round solves for s
    with the pixels clamped so far held fixed: s only grows, pixels only join the clamped ones, and no round leaves the ball.

    Args:
        images: clean images in [0, 1].
        delta: any perturbation.
        eps: radius.
        norm: ``l2`` or ``linf``.

    Returns:
        Images; their distance to ``images`` does not exceed eps by more than 1e-6 of it, after rounding to float32.
    """
    lower, upper = -images, 1 - images
    if norm == "linf":
        admissible = project(delta, eps, norm).clamp(lower, upper)
    else:
        scale = _scale_into_ball(delta, eps)
        admissible = (scale * delta).clamp(lower, upper)
        while not torch.equal(grown := _regrow_scale(scale, delta, admissible, eps), scale):
            scale, admissible = grown, (grown * delta).clamp(lower, upper)
    moved = images + admissible
    # The sum may round away from the clean image, which for small eps is more than 1e-6 of it: take the float before.
    overstepped = (moved - images).abs() > admissible.abs()
    return torch.where(overstepped, torch.nextafter(moved, images), moved).clamp(0, 1)


def ascent_direction(gradient: Images, norm: Norm) -> Images:
    """Direction of unit norm (in the given norm) in which a linear score rises fastest; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    # Dividing by the largest entry first keeps tiny gradients from underflowing when squared.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, 1)
    length = scaled.square().sum((1, 2, 3), keepdim=True).sqrt()
    return scaled / torch.where(length > 0, length, 1)


def random_start(images: Images, eps: float, norm: Norm, generator: torch.Generator | None = None) -> Images:
    """Images moved by a uniform random point of the ball, then brought back into [0, 1]."""
    device = generator.device if generator is not None else images.device
    if norm == "linf":
        delta = eps * (2 * torch.rand(images.shape, generator=generator, device=device, dtype=images.dtype) - 1)
    else:
        normal = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
        uniform = torch.rand((len(images), 1, 1, 1), generator=generator, device=device, dtype=images.dtype)
        delta = eps * uniform ** (1 / images[0].numel()) * ascent_direction(normal, norm)
    return perturb(images, delta.to(images.device), eps, norm)


def _scale_into_ball(delta: Tensor, eps: float) -> Tensor:
    length = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
    return (eps * (1 - RADIUS_MARGIN) / torch.where(length > 0, length, 1)).clamp(max=1)


def _regrow_scale(scale: Tensor, delta: Tensor, admissible: Tensor, eps: float) -> Tensor:
    free = admissible == scale * delta
    budget = (eps * (1 - RADIUS_MARGIN)) ** 2 - (admissible.square() * ~free).sum((1, 2, 3), keepdim=True)
    length = (delta.square() * free).sum((1, 2, 3), keepdim=True)
    grown = (budget.clamp(min=0) / torch.where(length > 0, length, 1)).sqrt().clamp(max=1)
    # Growth below rounding counts as none, which also ends the rounds.
    return torch.where((length > 0) & (grown > scale * (1 + RADIUS_MARGIN)), grown, scale)
