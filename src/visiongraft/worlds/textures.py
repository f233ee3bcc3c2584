"""A pyramid of photographs and noise to look surface textures up in."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from visiongraft.worlds.scans import photograph

# pictures for walls, and surfaces; the photographs among them come inside scikit-image's wheel
PICTURES = ("astronaut", "cat", "coffee", "rocket", "motorcycle", "galaxies", "moon")
SURFACES = ("clouds", "brickwork", "grass", "gravel")
IMAGES = PICTURES + SURFACES
SIDE = 512
LEVELS = SIDE.bit_length()
_OFFSETS = [sum((SIDE >> k) ** 2 for k in range(level)) for level in range(LEVELS + 1)]


def image_index(name: str) -> int:
    """Number of an image in the pyramid.

    Raises:
        ValueError: an image that is not there.
    """
    if name not in IMAGES:
        raise ValueError(f"image must be one of {', '.join(IMAGES)}; got {name!r}.")
    return IMAGES.index(name)


def look_up(
    image: Int[Tensor, " rays"], u: Float[Tensor, " rays"], v: Float[Tensor, " rays"], width: Float[Tensor, " rays"]
) -> Float[Tensor, "3 rays"]:
    """Colours (linear light) of images that repeat with period 1, averaged over a footprint: bilinear, between two levels.

    Args:
        image: numbers of the images.
        u: to the right; ``v``: down, in periods.
        width: of the footprint in periods.
    """
    rows = _pyramid(u.device, u.dtype)
    level = (width * SIDE).clamp(1, SIDE / 2).log2_()
    fine = level.floor()
    blend = level - fine
    fine = fine.long()
    near = _bilinear(rows, image, fine, u, v)
    return torch.lerp(near, _bilinear(rows, image, fine + 1, u, v), blend[:, None]).T


def tone(x: Int[Tensor, " rays"], y: Int[Tensor, " rays"]) -> Float[Tensor, " rays"]:
    """A number in [0, 1] for each pair of whole numbers, the same on every machine."""
    table = _tones(x.device)
    return table.take((x * 157 + y * 6121) % table.numel())


def _bilinear(rows: Tensor, image: Tensor, level: Tensor, u: Tensor, v: Tensor) -> Tensor:
    side = torch.bitwise_right_shift(torch.full_like(level, SIDE), level)
    start = _offsets(u.device)[level] + image * _OFFSETS[-1]
    x, y = u * side - 0.5, v * side - 0.5
    left, top = x.floor(), y.floor()
    right_share, low_share = (x - left)[:, None], (y - top)[:, None]
    mask = side - 1
    x0, y0 = left.long(), top.long()
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    x0, y0 = x0 & mask, y0 & mask
    top_row, low_row = start + y0 * side, start + y1 * side
    upper = torch.lerp(rows.index_select(0, top_row + x0), rows.index_select(0, top_row + x1), right_share)
    lower = torch.lerp(rows.index_select(0, low_row + x0), rows.index_select(0, low_row + x1), right_share)
    return torch.lerp(upper, lower, low_share)


@cache
def _offsets(device: torch.device) -> Tensor:
    return torch.tensor(_OFFSETS[:-1], device=device)


@cache
def _tones(device: torch.device) -> Tensor:
    return torch.rand(8191, generator=torch.Generator().manual_seed(0)).to(device)


@cache
def _pyramid(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "rows 3"]:
    """All levels of all images, one texel a row."""
    if device.type != "cpu" or dtype != torch.float32:
        return _pyramid(torch.device("cpu"), torch.float32).to(device, dtype)
    parts = []
    for name in IMAGES:
        image = _image(name)
        for _ in range(LEVELS):
            parts.append(image.flatten(1).T)
            image = F.avg_pool2d(image, 2) if image.shape[-1] > 1 else image
    return torch.cat(parts).contiguous()


def _image(name: str) -> Float[Tensor, "3 side side"]:
    """One image, square, in linear light."""
    if name == "clouds":
        return cloud_noise(SIDE).expand(3, -1, -1)
    if name in SURFACES:
        return _even(_square(_grey(name)))
    return _square(_picture(name)) ** 2.2


def _picture(name: str) -> Tensor:
    from skimage import data

    if name in ("astronaut", "cat", "coffee", "rocket"):
        return photograph(name)
    if name == "motorcycle":
        return _floats(data.stereo_motorcycle()[0])
    return _floats(data.hubble_deep_field()) if name == "galaxies" else _floats(data.moon())


def _grey(name: str) -> Tensor:
    from skimage import data

    return _floats({"brickwork": data.brick, "grass": data.grass, "gravel": data.gravel}[name]())


def _floats(array: np.ndarray) -> Tensor:
    image = torch.from_numpy(np.array(array)).float() / 255
    return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)


def _square(image: Tensor) -> Tensor:
    return F.interpolate(image[None], size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def _even(image: Tensor) -> Tensor:
    """Grey values spread evenly around 0.5, so that a mix of two colours shows both."""
    return (0.5 + (image - image.mean()) / (4.5 * image.std())).clamp(0, 1)


def cloud_noise(side: int) -> Float[Tensor, "1 side side"]:
    """Smooth noise of six octaves with period 1, mean 0.5, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 1, side, side)
    for octave in range(6):
        lattice = torch.rand(1, 1, 4 << octave, 4 << octave, generator=generator)
        pad = 3
        wide = F.pad(lattice, (pad, pad, pad, pad), mode="circular")
        scale = side // (4 << octave)
        smooth = F.interpolate(wide, scale_factor=scale, mode="bicubic", align_corners=False)
        total += smooth[..., pad * scale : pad * scale + side, pad * scale : pad * scale + side] * 0.55**octave
    return _even(total[0])
