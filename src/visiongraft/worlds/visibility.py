"""Which solid each ray of a tile meets first, and whether anything stands between a point and the light."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from visiongraft.worlds.intersections import INTERVALS, first_hit
from visiongraft.worlds.scenes import SHAPES, Scene, poses_at

FARTHEST = 1e6  # metres; beyond it a ray sees the sky
NEAREST = 1e-4  # metres; what is nearer does not hide anything
# pairs of a ray and a solid at a time: few enough for the cache of a processor, or for the memory of anything else
_WORK, _WORK_ELSEWHERE = 1 << 18, 1 << 25
_FEW_RAYS = 512


@dataclass(frozen=True)
class Posed:
    """A scene at one time, ready to be met by rays.

    Args:
        scene: at time 0.
        position, rotation: of the solids now.
        to_unit: takes offsets from the position to the axes in which each solid has unit size.
        radius: of a sphere around each solid, metres.
        shape: index into ``SHAPES``.
        columns: material (12), half size (3), position (3), rotation row by row (9), one row for each number, to gather from.
        patterns: those that occur, without plain.
        everything: numbers of all solids; ``casters``: of those that cast shadows.
    """

    scene: Scene
    position: Float[Tensor, "solids 3"]
    rotation: Float[Tensor, "solids 3 3"]
    to_unit: Float[Tensor, "solids 3 3"]
    radius: Float[Tensor, " solids"]
    shape: Int[Tensor, " solids"]
    columns: Float[Tensor, "27 solids"]
    patterns: tuple[int, ...]
    everything: Int[Tensor, " solids"]
    casters: Int[Tensor, " some"]


def pose(scene: Scene, time: float = 0.0) -> Posed:
    """The scene at a time in seconds."""
    position, rotation = poses_at(scene, time)
    shape = torch.repeat_interleave(torch.tensor(scene.counts)).to(position.device)[:, None]
    size = scene.half_size
    scale = torch.where(shape == SHAPES.index("capsule"), size[:, :1], size)
    flat = (shape == SHAPES.index("plane")) & (torch.arange(3, device=size.device) == 1)
    scale = torch.where(flat, torch.ones_like(size), scale)
    radius = torch.where(shape == SHAPES.index("ellipsoid"), size.amax(1, keepdim=True), size.norm(dim=1, keepdim=True))
    radius = torch.where(shape == SHAPES.index("capsule"), size[:, :1] + size[:, 1:2], radius)[:, 0]
    everything = torch.arange(len(position), device=position.device)
    patterns = tuple(kind for kind in scene.pattern.unique().tolist() if kind)
    columns = torch.cat([scene.material, size.clamp(max=FARTHEST), position, rotation.flatten(1)], 1).T.contiguous()
    return Posed(
        scene,
        position,
        rotation,
        rotation.mT / scale[:, :, None],
        radius,
        shape[:, 0],
        columns,
        patterns,
        everything,
        everything[scene.casts_shadow],
    )


def nearest(
    posed: Posed, origin: Float[Tensor, "3 #rays"], direction: Float[Tensor, "3 rays"], solids: Int[Tensor, " some"]
) -> tuple[Float[Tensor, " rays"], Int[Tensor, " rays"]]:
    """Distance to the first surface along unit directions (infinity for none) and the number of its solid (-1 for none).

    Rays next to each other should be neighbours in the picture: a bundle that may meet too many solids is halved.
    """
    if origin.shape[1] == 1 and _culls(direction):
        solids = solids[_in_cone(posed, origin[:, 0], direction, solids)]
    if _too_much(solids, direction):
        halves = [nearest(posed, o, d, solids) for o, d in _halves(origin, direction)]
        return torch.cat([t for t, _ in halves]), torch.cat([index for _, index in halves])
    best = direction.new_full(direction.shape[1:], FARTHEST)
    solid = torch.full(direction.shape[1:], -1, dtype=torch.long, device=direction.device)
    for shape, chosen in _groups(posed, solids):
        t, index = _meet(posed, shape, chosen, origin, direction).min(0)
        solid = torch.where(t < best, chosen[index], solid)
        best = torch.minimum(best, t)
    return best.masked_fill_(solid < 0, torch.inf), solid


def hidden(
    posed: Posed, origin: Float[Tensor, "3 #rays"], direction: Float[Tensor, "3 #rays"], end: float, solids: Int[Tensor, " some"]
) -> Bool[Tensor, " rays"]:
    """Whether one of the solids is met before ``end`` times the direction; either all origins or all directions may be one."""
    if _culls(direction):
        solids = solids[_near_bundle(posed, origin, direction, solids)]
    long = origin if origin.shape[1] > 1 else direction
    if _too_much(solids, long):
        return torch.cat([hidden(posed, o, d, end, solids) for o, d in _halves(origin, direction)])
    best = long.new_full(long.shape[1:], torch.inf)
    for shape, chosen in _groups(posed, solids):
        best = torch.minimum(best, _meet(posed, shape, chosen, origin, direction).amin(0))
    return best < end


def _culls(rays: Tensor) -> bool:
    return rays.device.type == "cpu"  # elsewhere waiting for the answer costs more than it saves


def _too_much(solids: Tensor, rays: Tensor) -> bool:
    work = _WORK if _culls(rays) else _WORK_ELSEWHERE
    return len(solids) * rays.shape[1] > work and rays.shape[1] > _FEW_RAYS


def _halves(origin: Tensor, direction: Tensor) -> list[tuple[Tensor, Tensor]]:
    half = max(origin.shape[1], direction.shape[1]) // 2
    parts = [(a, a) if a.shape[1] == 1 else (a[:, :half], a[:, half:]) for a in (origin, direction)]
    return [(parts[0][i], parts[1][i]) for i in (0, 1)]


def _meet(posed: Posed, shape: str, chosen: Tensor, origin: Tensor, direction: Tensor) -> Float[Tensor, "solids rays"]:
    to_unit = posed.to_unit[chosen]
    maps = to_unit.transpose(0, 1).reshape(-1, 3)  # component by component, so that each is contiguous
    middle = (to_unit @ posed.position[chosen, :, None]).transpose(0, 1)
    start = (maps @ origin).view(3, len(chosen), -1) - middle
    way = (maps @ direction).view(3, len(chosen), -1)
    return first_hit(INTERVALS[shape](start, way, posed.scene.half_size[chosen]), NEAREST)


def _groups(posed: Posed, solids: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The solids, shape by shape; they are sorted."""
    edges = torch.tensor(posed.scene.counts, device=solids.device).cumsum(0)
    counts = torch.searchsorted(solids, edges).diff(prepend=edges.new_zeros(1)).tolist()
    for shape, chosen in zip(SHAPES, solids.split(counts), strict=True):
        if len(chosen):
            yield shape, chosen


def _in_cone(posed: Posed, origin: Tensor, direction: Tensor, solids: Tensor) -> Bool[Tensor, " some"]:
    """Solids whose bounding sphere meets the cone around the middle direction that holds all rays."""
    axis = F.normalize(direction.sum(1), dim=0)
    half = torch.acos((axis @ direction).min().clamp(-1, 1))
    offset, radius = posed.position[solids] - origin, posed.radius[solids]
    away = offset.norm(dim=1).clamp(min=NEAREST)
    toward = torch.acos(((offset @ axis) / away).clamp(-1, 1))
    spread = torch.asin((radius / away).clamp(max=1))
    return (toward <= half + spread + 1e-3) | (away <= radius)


def _near_bundle(posed: Posed, origin: Tensor, direction: Tensor, solids: Tensor) -> Bool[Tensor, " some"]:
    """Solids that can stand in the way of rays with one origin, or with one direction."""
    if origin.shape[1] == 1:
        unit = direction * (direction * direction).sum(0).clamp(min=NEAREST**2).rsqrt_()
        return _in_cone(posed, origin[:, 0], unit, solids)
    axis = F.normalize(direction[:, 0], dim=0)
    low, high = origin.amin(1), origin.amax(1)
    middle, around = (low + high) / 2, (high - low).norm() / 2
    offset, radius = posed.position[solids] - middle, posed.radius[solids]
    along = offset @ axis
    aside = (offset - along[:, None] * axis).norm(dim=1)
    return (aside <= around + radius) & (along >= -around - radius)
