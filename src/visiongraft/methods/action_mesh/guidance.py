"""Guidance of the temporal denoiser: branches with and without the image and the known latents, and how they are joined.

Velocities of this method point to the data (x0 - noise), opposite to :mod:`visiongraft.flow`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PAIRS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(image on, latents on): what a branch may be given."""

Denoise = Callable[..., Tensor]
"""``denoise(latents, context, framestep, timestep, mask) -> velocity``, as ``TemporalDenoiser.forward``."""


@dataclass(frozen=True)
class PairGuidance:
    """Which branches are evaluated, in this order, and how far each pushes away from the one before.

    Args:
        pairs: (image on, latents on) of each branch. Image off: the context is zero. Latents off: the mask is zero, so that clean
            latents stay in the input, but are declared noise.
        scales: of each branch after the first. ``((0, 1), (1, 1))`` with one scale is the released setting; ``((0, 0), (0, 1), (1, 1))``
            takes two.

    Raises:
        ValueError: a pair that is none of the four, no pair, or other than one scale for each pair after the first.

    Source: ActionMesh brief, 2.5 (Guidance).
    """

    pairs: tuple[tuple[int, int], ...] = ((0, 1), (1, 1))
    scales: tuple[float, ...] = (7.5,)

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if tuple(pair) not in PAIRS:  # before anything is rounded
                allowed = ", ".join(str(list(one)) for one in PAIRS)
                raise ValueError(f"A guidance pair is [image on, latents on], one of {allowed}; got {list(pair)}.")
        object.__setattr__(self, "pairs", tuple(tuple(int(value) for value in pair) for pair in self.pairs))
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.pairs or len(self.scales) != len(self.pairs) - 1:
            raise ValueError(
                f"len(scales) must be len(pairs)-1, one for each branch after the first; got {len(self.scales)} scales "
                f"for {len(self.pairs)} pairs."
            )

    @classmethod
    def image(cls, scale: float | int) -> "PairGuidance":
        """Guidance by the image alone; at scale 1 a single branch, since the other would cancel."""
        return cls(((1, 1),), ()) if scale == 1 else cls(((0, 1), (1, 1)), (scale,))


def join_branches(velocities: Sequence[Float[Tensor, "*shape"]], scales: Sequence[float | int]) -> Float[Tensor, "*shape"]:
    """``v_0 + sum_i g_i (v_{i+1} - v_i)``; the inputs stay as they are.

    Source: ActionMesh brief, 2.5 and pitfall 7.
    """
    joined = velocities[0]
    for before, after, scale in zip(velocities[:-1], velocities[1:], scales, strict=True):
        joined = joined + scale * (after - before)
    return joined


def guided_velocity(
    denoise: Denoise,
    latents: Float[Tensor, "batch frames tokens channels"],
    context: Float[Tensor, "batch frames words dim"],
    framestep: Float[Tensor, "batch frames"],
    timestep: Float[Tensor, "batch"],
    mask: Float[Tensor, "batch frames"],
    guidance: PairGuidance,
    *,
    split: bool = False,
) -> Float[Tensor, "batch frames tokens channels"]:
    """The velocity, to the data, of all branches together, in float32.

    Args:
        denoise: the temporal denoiser.
        latents: noisy ones, and clean ones where the mask is 1.
        context: image features of each frame.
        framestep: frame numbers.
        timestep: 1000 times sigma.
        mask: 1 where latents are known.
        guidance: branches and scales.
        split: evaluate the branches one by one: the same result at half the memory.

    Source: ActionMesh brief, 2.5.
    """
    contexts = [context if image else torch.zeros_like(context) for image, _ in guidance.pairs]
    masks = [mask if known else torch.zeros_like(mask) for _, known in guidance.pairs]
    if split or len(contexts) == 1:
        velocities = [denoise(latents, one, framestep, timestep, known).float() for one, known in zip(contexts, masks, strict=True)]
    else:
        count = len(contexts)
        stacked = denoise(
            torch.cat([latents] * count),
            torch.cat(contexts),
            torch.cat([framestep] * count),
            torch.cat([timestep] * count),
            torch.cat(masks),
        )
        velocities = list(stacked.float().chunk(count))
    return join_branches(velocities, guidance.scales)
