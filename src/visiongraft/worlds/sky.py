"""The sky in any direction: a gradient, a sun with its glow or a moon among stars, and clouds. Colours are linear light."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.worlds.intersections import sum_of_products
from visiongraft.worlds.scenes import Sky, column
from visiongraft.worlds.textures import image_index, look_up, tone

SUN_RADIUS = 0.025  # as seen, radians: five times the real one, to be a few pixels wide in a small picture
_CLOUD_SCALE = 0.12  # cloud textures repeat after about eight times the height of the clouds
_STAR_CELLS = 80.0  # a radian


def sky_color(sky: Sky, directions: Float[Tensor, "3 rays"], footprint: float) -> Float[Tensor, "3 rays"]:
    """Colour of the sky.

    Args:
        sky: of the scene.
        directions: of unit length.
        footprint: angle of a pixel in radians.
    """
    high = (-directions[1]).clamp_(0, 1)
    color = torch.lerp(column(sky.horizon, directions), column(sky.zenith, directions), high.sqrt())
    if sky.stars > 0:
        color = color + sky.stars * _stars(directions, footprint) * high
    if sky.sun is None:
        return _with_clouds(sky, color, directions, high, footprint) if sky.clouds > 0 else color
    tint = column(sky.sun_color, directions)
    cosine = sum_of_products(directions, column(sky.sun, directions))
    glow = 0.2 * torch.exp(14 * (cosine - 1)) + 0.5 * torch.exp(300 * (cosine - 1))
    color = torch.addcmul(color, tint, glow)
    if sky.clouds > 0:
        color = _with_clouds(sky, color, directions, high, footprint)
    edge = max(footprint * math.sin(SUN_RADIUS), 1e-5)
    disc = ((cosine - math.cos(SUN_RADIUS)) / edge).clamp_(0, 1)
    return torch.lerp(color, 1.5 * tint, disc * (1 - 0.5 * sky.clouds))


def _with_clouds(sky: Sky, color: Tensor, directions: Tensor, high: Tensor, footprint: float) -> Tensor:
    # a curved ceiling: distances stay finite at the horizon
    reach = _CLOUD_SCALE / (high + 0.12)
    image = torch.full(high.shape, image_index("clouds"), device=high.device)
    density = look_up(image, directions[0] * reach, directions[2] * reach, footprint * reach / (high + 0.12))[0]
    cover = ((density - (0.8 - 0.7 * sky.clouds)) * 3).clamp_(0, 1)
    cover = cover * cover * (3 - 2 * cover) * (high * 8).clamp_(0, 1)
    brightest = max(sky.horizon)
    pale = column(sky.horizon, color).lerp(torch.full((3, 1), brightest, dtype=color.dtype, device=color.device), 0.45)
    lit = pale.lerp(column(sky.sun_color, color) * brightest, 0.2) * (1.32 - 0.5 * density)
    return torch.lerp(color, lit, cover * 0.92)


def _stars(directions: Tensor, footprint: float) -> Tensor:
    """One star in some of the cells of a grid of longitudes and latitudes, as large as a pixel at least."""
    x = torch.atan2(directions[0], directions[2]) * _STAR_CELLS
    y = torch.asin(directions[1].clamp(-1, 1)) * _STAR_CELLS
    bright = (tone(x.floor().long(), y.floor().long()) - 0.96).clamp_(min=0) / 0.04
    distance = torch.hypot(x - x.floor() - 0.5, y - y.floor() - 0.5)
    size = min(max(0.1, footprint * _STAR_CELLS), 0.5)
    return bright * (1 - distance / size).clamp_(min=0) * (0.1 / size)
