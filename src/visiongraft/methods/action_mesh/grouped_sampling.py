"""Which surface points become latent tokens: the same ones in every frame, so that tokens correspond over time.

Resampling each frame by itself makes the training of stage I unstable; it is offered for the comparison.

Source: ActionMesh brief, 2.2 (query subset) and 2.7.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.point_sets import farthest_points

CANDIDATES = 4  # random points for each token


def grouped_indices(
    points: Float[Tensor, "batch frames points channels"], num_tokens: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch tokens"]:
    """Points of each clip that become its tokens in all frames: farthest points of 4 N random ones, chosen on the first frame.

    Args:
        points: tracked: the i-th one is the same in every frame. The first three channels are the position.
        num_tokens: N.
        generator: draws the candidates, without repetition where there are at least 4 N points; one seeded with 0 by default.

    Raises:
        ValueError: num_tokens below 1, a clip without points or frames, or points that are not finite.

    Source: ActionMesh brief, 2.7.
    """
    return _spread_out(_positions(points, num_tokens)[:, 0], num_tokens, generator)


def independent_indices(
    points: Float[Tensor, "batch frames points channels"], num_tokens: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch frames tokens"]:
    """The same for each frame by itself: tokens do not correspond over time. For the comparison only.

    Raises:
        ValueError: as :func:`grouped_indices`.
    """
    positions = _positions(points, num_tokens)
    return _spread_out(positions.flatten(0, 1), num_tokens, generator).unflatten(0, positions.shape[:2])


def encode_clips(
    vae: Any,
    points: Float[Tensor, "batch frames points channels"],
    num_tokens: int,
    generator: torch.Generator | None = None,
    *,
    sample: bool = True,
    grouped: bool = True,
) -> Float[Tensor, "batch frames tokens latent"]:
    """Latents of every frame of tracked clips by a frozen VAE.

    Args:
        vae: a ``TripoSGVAE``.
        points: surface points with their normals.
        num_tokens: N.
        generator: draws the tokens' points, then the latents.
        sample: draws from the posterior, as upstream does; False takes its mean.
        grouped: the same points in every frame; False resamples each frame, for the comparison.

    Raises:
        ValueError: as :func:`grouped_indices`.
    """
    if grouped:
        indices = grouped_indices(points, num_tokens, generator).repeat_interleave(points.shape[1], 0)
    else:
        indices = independent_indices(points, num_tokens, generator).flatten(0, 1)
    with torch.no_grad():
        posterior = vae.encode(points.flatten(0, 1), num_tokens, indices=indices)
        latents = posterior.sample(generator) if sample else posterior.mode()
    return latents.unflatten(0, points.shape[:2])


def _positions(points: Tensor, num_tokens: int) -> Float[Tensor, "batch frames points 3"]:
    if num_tokens < 1 or 0 in points.shape or points.shape[-1] < 3:
        raise ValueError(
            f"Tokens are chosen from clips of batch x frames x points x (xyz, ...) with at least one of each; got {tuple(points.shape)} "
            f"and num_tokens {num_tokens}."
        )
    return points[..., :3]


def _spread_out(cloud: Float[Tensor, "clouds points 3"], num: int, generator: torch.Generator | None) -> Int[Tensor, "clouds num"]:
    """Farthest points of random candidates, as indices into the cloud."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    clouds, count = cloud.shape[:2]
    dice = torch.rand(clouds, max(count, CANDIDATES * num), dtype=torch.float64, generator=generator, device=generator.device)
    if count >= CANDIDATES * num:
        candidates = dice.argsort(1)[:, : CANDIDATES * num]
    else:
        candidates = (dice[:, : CANDIDATES * num] * count).long()
    candidates = candidates.to(cloud.device)
    chosen = farthest_points(cloud.gather(1, candidates[..., None].expand(-1, -1, 3)), num)
    return candidates.gather(1, chosen)
