"""The colour of a surface at a point, averaged over the footprint of a ray, so that a pattern does not flicker in the distance.

A regular pattern is a product of pulse trains whose edges are as wide as the footprint and which fade to their mean where it covers
a period. Each pattern is computed only for the rays that meet it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.worlds.textures import image_index, look_up, tone

Rays = Float[Tensor, " rays"]
Color = Float[Tensor, "3 rays"]
Look = tuple[Color, Rays]  # colour, and light given off as a multiple of it


@dataclass(frozen=True)
class Surface:
    """Where rays meet a surface, and its material.

    Args:
        u, v: position on the surface in periods of the pattern.
        width_u, width_v: of the footprint in periods.
        color, second, ratio, image, emission: see :class:`visiongraft.worlds.scenes.Material`.
    """

    u: Rays
    v: Rays
    width_u: Rays
    width_v: Rays
    aspect: Rays
    color: Color
    second: Color
    ratio: Rays
    image: Int[Tensor, " rays"]
    emission: Rays


def pulse(x: Rays, ratio: Rays, width: Rays) -> Rays:
    """Share of a footprint around x that lies in the first ``ratio`` of a period; all in periods."""
    edge = ratio / 2 - (_fraction(x - ratio / 2 + 0.5) - 0.5).abs_()
    cover = (edge / width + 0.5).clamp_(0, 1)
    return torch.lerp(cover, ratio, (2 * width - 1).clamp_(0, 1))


def _fraction(x: Tensor) -> Tensor:
    return x - x.floor()


def _cells(x: Rays, y: Rays) -> Rays:
    return tone(x.floor().long(), y.floor().long())


def _fading(surface: Surface) -> Rays:
    """1 near by, 0 where a footprint covers a period: for differences between neighbouring bricks."""
    return (2 - 2 * torch.maximum(surface.width_u, surface.width_v)).clamp_(0, 1)


def checker(s: Surface) -> Look:
    half = torch.full_like(s.ratio, 0.5)
    a, b = pulse(s.u, half, s.width_u), pulse(s.v, half, s.width_v)
    return torch.lerp(s.second, s.color, a * b + (1 - a) * (1 - b)), s.emission


def stripes(s: Surface) -> Look:
    return torch.lerp(s.second, s.color, pulse(s.u, s.ratio, s.width_u)), s.emission


def bricks(s: Surface) -> Look:
    row = s.v.floor()
    u = s.u + 0.5 * (row.remainder(2))
    gap = 1 - s.ratio
    cover = pulse(u, s.ratio, s.width_u) * pulse(s.v, 1 - (gap * s.aspect).clamp(max=0.5), s.width_v)
    shade = 1 + 0.5 * (_cells(u, row) - 0.5) * _fading(s)
    return torch.lerp(s.second, s.color * shade, cover), s.emission


def planks(s: Surface) -> Look:
    row = s.v.floor()
    offset = tone(row.long(), torch.zeros_like(row).long())
    u = s.u + offset
    seam = pulse(u, 1 - 0.1 * (1 - s.ratio), s.width_u) * pulse(s.v, s.ratio, s.width_v)
    # fibres: noise, stretched along the plank, from another place for each plank
    start = _cells(u, row)
    fibre = look_up(s.image, s.u * 0.25 + start, s.v * 0.37 + 5 * offset, torch.maximum(s.width_u * 0.25, s.width_v * 0.37))[0]
    grain = (0.45 * fibre + 0.25 + 0.5 * (start - 0.5) * _fading(s)).clamp_(0, 1)
    return torch.lerp(s.color, s.second, grain) * (0.35 + 0.65 * seam), s.emission


def windows(s: Surface) -> Look:
    """One window a cell; where the wall gives off light, a part of the windows does so instead."""
    glass = pulse(s.u - (1 - s.ratio) / 2, s.ratio, s.width_u) * pulse(s.v - 0.2, s.ratio, s.width_v)
    frame = pulse(s.u - 0.48, torch.full_like(s.ratio, 0.04), s.width_u)
    cell = _cells(s.u, s.v)
    lit = (cell > 0.6) & (s.emission > 0)
    pane = torch.where(lit, s.u.new_tensor([[1.0], [0.72], [0.35]]), s.second * (1 + 0.8 * (cell - 0.5) * _fading(s)))
    return torch.lerp(s.color, pane, glass * (1 - frame)), lit * glass * s.emission


def mottled(s: Surface) -> Look:
    """A grey texture, with patches ten times as large: a texture alone shows how it repeats."""
    width = torch.maximum(s.width_u, s.width_v)
    fine = look_up(s.image, s.u, s.v, width)[0]
    coarse = look_up(torch.full_like(s.image, image_index("clouds")), s.u * 0.093, s.v * 0.093, width * 0.093)[0]
    mix = (0.7 * fine + 0.6 * coarse - 0.15).clamp_(0, 1)
    return torch.lerp(s.second, s.color, mix), s.emission


def photograph(s: Surface) -> Look:
    return look_up(s.image, s.u, s.v, torch.maximum(s.width_u, s.width_v)), s.emission


PATTERN_COLORS: dict[str, Callable[[Surface], Look]] = {
    "checker": checker,
    "stripes": stripes,
    "bricks": bricks,
    "planks": planks,
    "windows": windows,
    "mottled": mottled,
    "photograph": photograph,
}
