"""Losses of the four trainings: signed distances and KL of the VAE, masked flow matching of the denoisers, tracked points of the decoder.

The velocity here points to the data, ``latents - noise``: the opposite of :mod:`visiongraft.flow`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

ALL_SOURCES = "all frames are sources, nothing to generate"


def truncated_sdf(sdf: Float[Tensor, "*shape"], truncation: float = 0.1) -> Float[Tensor, "*shape"]:
    """What the VAE's ``tanh(logit / 2)`` is to be: ``clamp(-sdf / truncation, -1, 1)``, positive inside.

    Args:
        sdf: signed distances to the surface, positive outside.
        truncation: distance at which the field saturates.

    Raises:
        ValueError: a truncation that is not positive.

    Source: ActionMesh brief, 2.2 and 9.
    """
    if not truncation > 0:
        raise ValueError(f"truncation is a distance and must be positive; got {truncation}.")
    return (-sdf / truncation).clamp(-1, 1)


def sdf_losses(
    logits: Float[Tensor, "batch queries"], sdf: Float[Tensor, "batch queries"], truncation: float = 0.1
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean absolute, mean squared) difference between ``2 sigmoid(logit) - 1`` and the truncated signed distance, in float32.

    Args:
        logits: of the decoder, positive inside.
        sdf: true signed distances at the same points, positive outside.
        truncation: see :func:`truncated_sdf`.

    Source: ActionMesh brief, 5 (L1 + L2 of TripoSG) and 9 (L2 alone).
    """
    difference = _wide(logits).div(2).tanh() - truncated_sdf(_wide(sdf), truncation)
    return difference.abs().mean(), difference.square().mean()


def gaussian_kl(mean: Float[Tensor, "*shape"], logvar: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """KL divergence of ``N(mean, exp(logvar))`` from the standard normal, in nats, averaged over tokens and channels.

    Source: ActionMesh brief, 5 and 9.
    """
    mean, logvar = _wide(mean), _wide(logvar)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def noisy_latents(
    latents: Float[Tensor, "batch frames tokens channels"],
    noise: Float[Tensor, "batch frames tokens channels"],
    sigma: Float[Tensor, " batch"],
    mask: Float[Tensor, "batch frames"],
) -> Float[Tensor, "batch frames tokens channels"]:
    """``(1 - sigma) latents + sigma noise`` on target frames; source frames stay clean, to the bit.

    Args:
        latents: clean.
        noise: standard normal, independent for every frame.
        sigma: one time a clip, 1 is pure noise.
        mask: 1 for source frames, 0 for targets.

    Source: ActionMesh brief, 2.4.
    """
    time = sigma[:, None, None, None]
    return torch.where(mask[..., None, None] > 0, latents, (1 - time) * latents + time * noise)


def velocity_loss(
    velocity: Float[Tensor, "batch frames tokens channels"],
    latents: Float[Tensor, "batch frames tokens channels"],
    noise: Float[Tensor, "batch frames tokens channels"],
    mask: Float[Tensor, "batch frames"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference between a velocity and ``latents - noise``, over target frames only.

    Every clip counts the same, however many of its frames are sources. What the network says of source frames has no influence, on the
    gradient either.

    Args:
        velocity: the network's, towards the data.
        latents: clean.
        noise: that they were mixed with.
        mask: 1 for source frames, 0 for targets; None: all are targets.

    Returns:
        A scalar in float32 (float64 for float64 input).

    Raises:
        ValueError: a clip whose frames are all sources.

    Source: ActionMesh brief, 2.4.
    """
    difference = _wide(velocity) - (_wide(latents) - _wide(noise))
    if mask is None:
        return difference.square().mean()
    target = mask == 0
    counts = target.sum(1)
    if bool((counts == 0).any()):
        raise ValueError(f"{ALL_SOURCES} (clip {int((counts == 0).nonzero()[0, 0])} of the batch); leave a target frame to learn from.")
    # the difference is cut before it is squared, so that a NaN on a source frame has no gradient
    kept = torch.where(target[..., None, None], difference, 0).square().mean((2, 3))
    return (kept.sum(1) / counts).mean()


def tracked_point_loss(predicted: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]) -> Float[Tensor, ""]:
    """Mean squared difference of coordinates between where points are said to go and where they go, in float32.

    It is a third of the mean squared distance.

    Source: ActionMesh brief, 2.6.
    """
    return (_wide(predicted) - _wide(target)).square().mean()


def draw_sources(count: int, frames: int, sources: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "count frames"]:
    """Masks of source frames: their number uniform between two bounds, their places uniform among the frames.

    Args:
        count: how many masks.
        frames: of a clip.
        sources: fewest and most source frames; the authors' (1, 3), and (0, 0) for training without masked generation. At least one
            frame stays a target, so that short clips have fewer sources.
        generator: source of randomness; masks are made where it lives.

    Returns:
        1 for source frames, 0 for targets.

    Raises:
        ValueError: bounds in the wrong order or negative, or more sources than a clip can have.

    Source: ActionMesh brief, 5.
    """
    fewest, most = sources
    if not 0 <= fewest <= most:
        raise ValueError(f"sources must be (fewest, most) with 0 <= fewest <= most; got {sources}.")
    if fewest >= frames:
        raise ValueError(f"{ALL_SOURCES}: at least {fewest} of {frames} frames; use longer clips or fewer sources.")
    device = generator.device
    wanted = torch.randint(fewest, min(most, frames - 1) + 1, (count, 1), generator=generator, device=device)
    rank = torch.rand(count, frames, generator=generator, device=device).argsort(1).argsort(1)
    return (rank < wanted).float()


def draw_pairs(count: int, frames: int, generator: torch.Generator) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
    """Source and target frames of stage II: independent and uniform among a clip's frames, so that now and then they are the same.

    Raises:
        ValueError: clips of one frame.

    Source: ActionMesh brief, 2.6.
    """
    if frames < 2:
        raise ValueError(f"stage II needs at least two distinct timesteps; clips have {frames} frame{'s' * (frames != 1)}.")
    pairs = torch.randint(frames, (2, count), generator=generator, device=generator.device)
    return pairs[0], pairs[1]


def _wide(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return values.to(torch.promote_types(values.dtype, torch.float32))
