"""Embeddings without positions of tokens: times, points, and the pair of times of stage II."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from visiongraft.methods.action_mesh.attention import Linear, widened


def timestep_features(timesteps: Float[Tensor, "batch"], width: int) -> Float[Tensor, "batch width"]:
    """Sines, then cosines, of model times (in [0, 1000]) at width / 2 frequencies 10000^(-2j / width).

    Raises:
        ValueError: an odd width.

    Source: ActionMesh brief, 2.1.
    """
    angles = _angles(timesteps, width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def pair_features(source: Float[Tensor, "batch"], target: Float[Tensor, "batch"], width: int) -> Float[Tensor, "batch width"]:
    """The time-pair token: cosines, then sines, of the source's relative time in [0, 1], then the same of the target's.

    Each half has width / 4 frequencies 10000^(-4j / width); the sinusoid itself is the token.

    Raises:
        ValueError: a width that 4 does not divide.

    Source: ActionMesh brief, 2.6.
    """
    if width % 4:
        raise ValueError(f"The time-pair token needs a width that is a multiple of 4; got {width}.")
    angles = _angles(torch.stack([source, target], dim=1), width // 2)
    return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)  # (batch, 2 times, 2 waves, frequencies)


def _angles(times: Float[Tensor, "*batch"], width: int) -> Float[Tensor, "*batch half"]:
    if width % 2:
        raise ValueError(f"A sinusoidal embedding needs an even width; got {width}.")
    times = widened(times)
    exponents = torch.arange(width // 2, dtype=times.dtype, device=times.device) / (width // 2)
    return times[..., None] * 10_000.0**-exponents


def point_features(points: Float[Tensor, "*batch 3"], num_frequencies: int, include_pi: bool = False) -> Float[Tensor, "*batch channels"]:
    """Points beside their sines and cosines at frequencies 1, 2, 4 …: 3 + 6 x num_frequencies channels, in float32 at least.

    Sines come first, ordered by coordinate and then by frequency.

    Args:
        points: in the box [-1, 1]^3.
        num_frequencies: octaves.
        include_pi: multiply the frequencies by pi.

    Source: ActionMesh brief, 2.1.
    """
    points = widened(points)
    frequencies = 2.0 ** torch.arange(num_frequencies, dtype=points.dtype, device=points.device)
    angles = (points[..., None] * (frequencies * math.pi if include_pi else frequencies)).flatten(-2)
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def num_point_features(num_frequencies: int) -> int:
    """Channels of :func:`point_features`."""
    return 3 + 6 * num_frequencies


class TimestepMLP(nn.Module):
    """Width -> 4 width -> width with an exact GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, 4 * width)
        self.linear_2 = Linear(4 * width, width)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return self.linear_2(F.gelu(self.linear_1(features)))
