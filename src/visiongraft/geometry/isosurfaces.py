"""The surface where a field is zero, as a mesh, with few evaluations of the field.

A coarse grid is evaluated whole. Then the grid is halved again and again, and only nodes of cells near the surface are evaluated; all
others are interpolated from the coarser grid. Where an evaluated node contradicts its interpolation at the edge of what was evaluated,
the evaluated region grows, so that the surface is followed into cells that the coarse grid took for empty.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Field = Callable[[Tensor], Tensor]

_COARSEST = 32


class Isosurface(NamedTuple):
    """A closed mesh, counter-clockwise seen from outside, and how often the field was evaluated for it."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    evaluations: int


def extract_isosurface(
    field: Field,
    resolution: int = 256,
    bounds: float | int = 1.005,
    levels: int | None = None,
    chunk: int = 50_000,
    *,
    margin: float | int = 1.0,
    upstream_scale: bool = False,
    device: torch.device | str = "cpu",
) -> Isosurface:
    """The surface where ``field`` is zero, by marching cubes on a grid that is evaluated near the surface only.

    Nodes i = 0 .. resolution stand at ``-bounds + 2 bounds i / resolution``. What reaches the border is closed there.

    Args:
        field: points ``(q, 3)`` to values ``(q,)``, positive inside: logits, or a negated signed distance.
        resolution: cells along an axis.
        bounds: half side of the cube about the origin that is searched.
        levels: how often the grid is halved; by default as often as the coarsest grid keeps 32 cells or more. A part that is smaller
            than a coarse cell can be missed: with fewer levels the search is more thorough and slower. 0 evaluates the dense grid.
        chunk: points per call of the field.
        margin: a node may have a thin part beside it where the size of its value is at most this many times its greatest difference
            to a neighbour; cells there are searched although their corners agree in sign. More finds more and costs more.
        upstream_scale: divides by the next power of two in place of the resolution, as the authors' code does (504 cells, division by
            512): the mesh is then too small and lies towards the least corner. For comparisons with their files only.
        device: where points are made; the mesh is returned on the CPU.

    Returns:
        ``vertices``, ``faces`` and the number of evaluated points.

    Raises:
        ValueError: no zero crossing, values that are not finite or of another shape, or a resolution that cannot be halved so often.

    Source: ActionMesh brief, 2.10 ("our extractor").
    """
    levels = _check_levels(resolution, levels)
    if not (bounds > 0 and chunk >= 1 and margin >= 0):
        raise ValueError(f"bounds and chunk must be positive and margin not negative; got {bounds}, {chunk} and {margin}.")
    grid, evaluations = _coarse_to_fine(field, resolution, bounds, levels, chunk, margin, torch.device(device))
    if not float(grid.max()) > 0:
        raise ValueError(
            f"There is no zero crossing: max logit = {float(grid.max()):.4g} within ±{bounds:g}; check the latents (NaN?) or the bounds."
        )
    divisor = 2 ** math.ceil(math.log2(resolution)) if upstream_scale else resolution
    vertices, faces = _marching_cubes(grid.cpu().numpy())
    return Isosurface(vertices * (2 * bounds / divisor) - bounds, faces, evaluations)


def _check_levels(resolution: int, levels: int | None) -> int:
    if resolution < 2:
        raise ValueError(f"An isosurface needs at least 2 cells along an axis; got resolution {resolution}.")
    if levels is None:
        levels = 0
        while resolution % 2 ** (levels + 1) == 0 and resolution >> (levels + 1) >= _COARSEST:
            levels += 1
    if levels < 0 or resolution % 2**levels or resolution >> levels < 2:
        raise ValueError(
            f"resolution {resolution} cannot be halved {levels} times to 2 cells or more; choose a multiple of {2 ** max(levels, 0)}."
        )
    return levels


@torch.no_grad()
def _coarse_to_fine(
    field: Field, resolution: int, bounds: float | int, levels: int, chunk: int, margin: float | int, device: torch.device
) -> tuple[Float[Tensor, "n n n"], int]:
    """Values on all nodes of the finest grid, and the number of evaluations."""
    cells = resolution >> levels
    everywhere = torch.ones((cells + 1,) * 3, dtype=torch.bool, device=device)
    grid = torch.empty(everywhere.shape, device=device)
    evaluations = _evaluate(field, grid, everywhere, bounds, chunk)
    while cells < resolution:
        near = _cells_near_surface(grid, margin)
        cells *= 2
        finer = F.interpolate(grid[None, None], size=(cells + 1,) * 3, mode="trilinear", align_corners=True)[0, 0]
        known = torch.zeros_like(finer, dtype=torch.bool)
        known[::2, ::2, ::2] = True
        wanted = _finer_nodes(near) & ~known
        while bool(wanted.any()):
            expected = finer > 0
            evaluations += _evaluate(field, finer, wanted, bounds, chunk)
            known |= wanted
            wanted = _spread(((finer > 0) != expected) & wanted, 2) & ~known
        grid = finer
    return grid, evaluations


def _evaluate(field: Field, grid: Float[Tensor, "n n n"], where: Bool[Tensor, "n n n"], bounds: float | int, chunk: int) -> int:
    """Writes the field's values into the grid where they are wanted; gives their number."""
    nodes = where.reshape(-1).nonzero()[:, 0]
    side = grid.shape[0]
    for some in nodes.split(chunk):
        index = torch.stack([some // side**2, some // side % side, some % side], -1)
        values = field((index * (2 * bounds / (side - 1)) - bounds).to(grid.dtype))
        if values.shape != some.shape:
            raise ValueError(f"The field must give one value for each of {len(some)} points; got shape {tuple(values.shape)}.")
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).sum())
            raise ValueError(f"{bad} of {len(some)} values of the field are not finite; check the latents (NaN?).")
        grid.view(-1)[some] = values.to(grid)
    return len(nodes)


def _cells_near_surface(grid: Float[Tensor, "n n n"], margin: float | int) -> Bool[Tensor, "m m m"]:
    """Cells whose corners differ in sign, and those at a node that a thin part may pass without reaching another node."""
    inside = grid > 0
    slope, crossed = torch.zeros_like(grid), torch.zeros_like(inside)
    for axis in range(3):
        change, differs = grid.diff(dim=axis).abs(), inside.diff(dim=axis)
        for start in (0, 1):
            there = (axis, start, change.shape[axis])
            slope.narrow(*there).copy_(torch.maximum(slope.narrow(*there), change))
            crossed.narrow(*there).logical_or_(differs)
    thin = (grid.abs() <= margin * slope) & ~crossed
    return (_any_corner(inside) & _any_corner(~inside)) | _any_corner(thin)


def _any_corner(nodes: Bool[Tensor, "n n n"]) -> Bool[Tensor, "m m m"]:
    """Cells of which at least one corner is marked."""
    for axis in range(3):
        cells = nodes.shape[axis] - 1
        nodes = nodes.narrow(axis, 0, cells) | nodes.narrow(axis, 1, cells)
    return nodes


def _finer_nodes(cells: Bool[Tensor, "m m m"]) -> Bool[Tensor, "k k k"]:
    """The 27 nodes of every marked cell on the grid with half the spacing."""
    for axis in range(3):
        doubled = cells.repeat_interleave(2, axis)
        edge = torch.zeros_like(doubled.narrow(axis, 0, 1))
        wide = torch.cat([doubled, edge], axis)
        cells = wide | torch.cat([edge, doubled], axis)
    return cells


def _spread(mask: Bool[Tensor, "n n n"], reach: int) -> Bool[Tensor, "n n n"]:
    """Also the nodes at most ``reach`` steps away along every axis."""
    for axis in range(3):
        wide = mask.clone()
        for step in range(1, reach + 1):
            kept = mask.shape[axis] - step
            wide.narrow(axis, step, kept).logical_or_(mask.narrow(axis, 0, kept))
            wide.narrow(axis, 0, kept).logical_or_(mask.narrow(axis, step, kept))
        mask = wide
    return mask


def _marching_cubes(grid: Float[np.ndarray, "n n n"]) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """Vertices in units of cells, and faces."""
    from skimage.measure import marching_cubes

    outside = -float(np.abs(grid).max())
    closed = np.pad(grid, 1, constant_values=outside)
    # "ascent": with positive values inside, scikit-image's "descent" (its default) would wind the faces clockwise
    vertices, faces, _, _ = marching_cubes(closed, 0.0, gradient_direction="ascent", allow_degenerate=False)
    return torch.from_numpy(vertices.astype(np.float32)) - 1, torch.from_numpy(faces.astype(np.int64))
