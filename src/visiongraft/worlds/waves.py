"""A world that is a colour for every direction: a fixed profile by latitude under random waves. No geometry, no resampling error.

The profile tells up from down and a wide view from a narrow one, so that a picture of the world betrays its camera.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class WaveWorlds:
    """Plane waves ``amplitude cos(wave . direction + phase)`` of several worlds."""

    wave: Float[Tensor, "worlds waves 3"]
    phase: Float[Tensor, "worlds waves"]
    amplitude: Float[Tensor, "worlds waves channels"]

    def color(self, directions: Float[Tensor, "worlds *grid 3"]) -> Float[Tensor, "worlds 3 *grid"]:
        """Colours in [0, 1] that each world shows in its directions (of any length; y points down)."""
        flat = torch.nn.functional.normalize(directions.flatten(1, -2), dim=-1)
        latitude = torch.asin((-flat[..., 1]).clamp(-1, 1))
        profile = torch.stack([0.5 + 0.35 * (2 * latitude).sin(), 0.5 + 0.3 * (3 * latitude).cos(), 0.5 - 0.35 * (3 * latitude).tanh()], -1)
        waves = torch.cos(torch.einsum("bnd,bkd->bnk", flat, self.wave) + self.phase[:, None])
        color = (profile + waves @ self.amplitude).clamp(0, 1)
        return color.transpose(1, 2).unflatten(2, directions.shape[1:-1])


def wave_worlds(count: int, generator: torch.Generator | None = None, waves: int = 6) -> WaveWorlds:
    """Random worlds.

    Args:
        count: of worlds.
        generator: fixes them; none draws from torch's global randomness.
        waves: plane waves of a world.
    """
    return WaveWorlds(
        wave=1.6 * torch.randn(count, waves, 3, generator=generator),
        phase=2 * torch.pi * torch.rand(count, waves, generator=generator),
        amplitude=0.16 * torch.randn(count, waves, 3, generator=generator),
    )
