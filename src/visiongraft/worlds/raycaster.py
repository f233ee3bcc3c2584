"""One function for every picture of a scene: what any bundle of rays meets, and in which colour.

Rays are handled in tiles of neighbours that fit the cache. For a tile only the solids in its cone are intersected, all of one shape
at once, and only the nearest one of each ray is shaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.worlds.intersections import sum_of_products
from visiongraft.worlds.scenes import Scene
from visiongraft.worlds.shading import local_frame, shade
from visiongraft.worlds.sky import sky_color
from visiongraft.worlds.threads import share
from visiongraft.worlds.visibility import Posed, nearest, pose

TILE = 16_384  # rays at a time: few enough for the cache, enough to hide the cost of calls


@dataclass(frozen=True)
class Hits:
    """What rays meet.

    Args:
        distance: along the ray in metres, infinity for the sky.
        normal: of the surface, of unit length and facing the ray; 0 for the sky.
        solid: number of the solid in the scene's tensors; -1 for the sky.
        instance: number of the thing, an index of ``scene.names``; -1 for the sky.
        color: linear light; NaN where it was not asked for.
    """

    distance: Float[Tensor, "*rays"]
    normal: Float[Tensor, "*rays 3"]
    solid: Int[Tensor, "*rays"]
    instance: Int[Tensor, "*rays"]
    color: Float[Tensor, "*rays 3"]


@torch.inference_mode(False)  # results and look-up tables are ordinary tensors whoever calls first
@torch.no_grad()
def cast(
    scene: Scene,
    origins: Float[Tensor, "*#rays 3"],
    directions: Float[Tensor, "*rays 3"],
    time: float = 0.0,
    *,
    footprint: float = 0.0,
    color: bool = True,
    shadows: bool = True,
    tile: int = TILE,
) -> Hits:
    """What rays meet. Nothing is differentiable.

    Args:
        scene: what is there.
        origins: metres; one point for all rays is fastest.
        directions: of any length and any leading shape; neighbours in the last two dimensions should be neighbours in the picture.
        time: seconds.
        footprint: angle between neighbouring rays in radians, over which patterns are averaged.
        color: whether to shade; without, only the geometry is found.
        shadows: whether surfaces are hidden from the light by others.
        tile: rays at a time; changes nothing but speed.

    Raises:
        ValueError: rays that are not finite or have no direction.
    """
    directions, origins = directions.to(scene.position), origins.to(scene.position)
    shape = directions.shape[:-1]
    _check_rays(origins, directions)
    grid = directions.reshape(-1, *((1, 1, *shape)[-2:]), 3)
    starts = origins.reshape(1, 3) if origins.numel() == 3 else origins.expand(*shape, 3).reshape(grid.shape)
    posed = pose(scene, time)

    distance = grid.new_empty(grid.shape[:-1])
    solid = torch.empty_like(distance, dtype=torch.long)
    normal = grid.new_empty(3, *distance.shape)
    rgb = torch.empty_like(normal) if color else grid.new_tensor(torch.nan).expand_as(normal)

    def fill(part: tuple[int, slice, slice]) -> None:
        size = distance[part].shape
        order, back = _curve(*size, grid.device)
        ray = _rows(grid[part], order)
        ray = ray * sum_of_products(ray, ray).rsqrt_()
        start = starts.T if starts.ndim == 2 else _rows(starts[part], order)
        found = _cast_tile(posed, start, ray, footprint, color, shadows)
        distance[part], solid[part] = found[0][back].view(size), found[1][back].view(size)
        normal[:, *part] = found[2][:, back].view(3, *size)
        if found[3] is not None:
            rgb[:, *part] = found[3][:, back].view(3, *size)

    share(fill, list(_tiles(distance.shape, tile)), grid.device)
    instance = torch.cat([scene.instance, scene.instance.new_tensor([-1])])[solid]
    return Hits(
        distance.view(shape),
        normal.movedim(0, -1).view(*shape, 3),
        solid.view(shape),
        instance.view(shape),
        rgb.movedim(0, -1).reshape(*shape, 3),
    )


def _cast_tile(
    posed: Posed, origin: Tensor, ray: Tensor, footprint: float, color: bool, shadows: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    distance, solid = nearest(posed, origin, ray, posed.everything)
    seen = (solid >= 0).nonzero()[:, 0]
    normal = torch.zeros_like(ray)
    rgb = None
    if color:
        rgb = sky_color(posed.scene.sky, ray, footprint) if len(seen) < len(solid) else torch.empty_like(ray)
    if len(seen):
        of, way, far = solid[seen], ray[:, seen], distance[seen]
        point = (origin if origin.shape[1] == 1 else origin[:, seen]) + far * way
        frame = local_frame(posed, of, point, way)
        normal[:, seen] = frame.world_normal
        if rgb is not None:
            rgb[:, seen] = shade(posed, of, point, way, far, frame, footprint, shadows)
    return distance, solid, normal, rgb


def _check_rays(origins: Tensor, directions: Tensor) -> None:
    if not bool(torch.isfinite(origins.sum() + directions.sum())):
        raise ValueError("rays must be finite; got NaN or infinity in their origins or directions. Check the pose and the field of view.")
    if bool((directions == 0).all(-1).any()):
        raise ValueError("every ray needs a direction; got one of length 0.")


def _tiles(shape: torch.Size, tile: int) -> Iterator[tuple[int, slice, slice]]:
    count, height, width = shape
    rows = min(height, max(1, round(tile**0.5)))
    columns = min(width, max(1, tile // max(rows, 1)))
    rows = max(1, tile // max(columns, 1))
    for i in range(count):
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                yield i, slice(y, y + rows), slice(x, x + columns)


def _rows(rays: Float[Tensor, "height width 3"], order: Tensor) -> Float[Tensor, "3 flat"]:
    return rays.reshape(-1, 3).T.contiguous().index_select(1, order)


@lru_cache(maxsize=16)
def _curve(height: int, width: int, device: torch.device) -> tuple[Int[Tensor, " rays"], Int[Tensor, " rays"]]:
    """Pixels along a Z-shaped curve, on which each half of a range is a compact patch, and the way back."""
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]
    code = torch.zeros(height, width, dtype=torch.long, device=device)
    for bit in range(max(height, width).bit_length()):
        code |= ((y >> bit & 1) << 2 * bit + 1) | ((x >> bit & 1) << 2 * bit)
    order = code.flatten().argsort()
    return order, order.argsort()
