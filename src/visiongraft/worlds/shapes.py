"""Procedural images of one coloured shape on a coloured ground, drawn from signed distance functions, with captions."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHAPES = ("disc", "triangle", "cross", "ring", "bar", "square")
COLOURS = {
    "red": (0.85, 0.15, 0.12),
    "green": (0.15, 0.65, 0.22),
    "blue": (0.13, 0.28, 0.80),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.55, 0.18, 0.65),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
    "orange": (0.95, 0.55, 0.10),
}
_MIN_CONTRAST = 0.5  # largest channel difference between shape and ground


def _distance(kind: Int[Tensor, " batch"], x: Tensor, y: Tensor) -> Float[Tensor, "batch height width"]:
    """Signed distance to each of ``SHAPES`` at unit size, negative inside; picked per image."""
    radius = torch.hypot(x, y)
    box = torch.maximum(x.abs(), y.abs())
    upright, lying = torch.maximum(x.abs() - 0.3, y.abs() - 1.0), torch.maximum(x.abs() - 1.0, y.abs() - 0.3)
    triangle = torch.maximum(x.abs() * math.sqrt(3) / 2 + y / 2, -y) - 0.5
    every = torch.stack([radius - 0.9, triangle, torch.minimum(upright, lying), (radius - 0.7).abs() - 0.22, upright, box - 0.75])
    return every.gather(0, kind.view(1, -1, 1, 1).expand(1, *x.shape))[0]


def coloured_shapes(
    count: int, size: int, generator: torch.Generator
) -> tuple[Float[Tensor, "count 3 size size"], Int[Tensor, " count"], list[str]]:
    """Random shapes with random position, size, rotation (15 degrees at most either way) and contrasting colours.

    Args:
        count: images.
        size: side in pixels.
        generator: fixes everything; the same seed gives the same images.

    Returns:
        Images in [0, 1], the index of each shape in ``SHAPES``, and captions such as "a red disc on a blue ground".
    """
    kind = torch.randint(len(SHAPES), (count,), generator=generator)
    palette = torch.tensor(list(COLOURS.values()))
    contrast = (palette[:, None] - palette[None]).abs().amax(-1) >= _MIN_CONTRAST
    pairs = contrast.nonzero()
    pair = pairs[torch.randint(len(pairs), (count,), generator=generator)]
    uniform = torch.rand(count, 4, generator=generator)
    scale = 0.6 + 0.25 * uniform[:, 0]
    shift = (uniform[:, 1:3] - 0.5) * 0.3
    angle = (uniform[:, 3] - 0.5) * math.pi / 6

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    column = (-1, 1, 1)
    x = (grid_x - shift[:, 0].view(column)) / scale.view(column)
    y = (grid_y - shift[:, 1].view(column)) / scale.view(column)
    cosine, sine = angle.cos().view(column), angle.sin().view(column)
    distance = _distance(kind, cosine * x + sine * y, cosine * y - sine * x) * scale.view(column)
    cover = (0.5 - distance * size / 2).clamp(0, 1).unsqueeze(1)  # one pixel of anti-aliasing
    ink, ground = palette[pair[:, 0]].view(-1, 3, 1, 1), palette[pair[:, 1]].view(-1, 3, 1, 1)
    names = list(COLOURS)
    captions = [f"a {names[i]} {SHAPES[k]} on a {names[g]} ground" for k, (i, g) in zip(kind.tolist(), pair.tolist(), strict=True)]
    return ground + (ink - ground) * cover, kind, captions
