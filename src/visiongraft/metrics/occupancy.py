"""Overlap of solid shapes: points of a grid, which of them are inside, and the intersection over the union."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Field = Callable[[Tensor], Tensor]
"""Maps points (n, 3) to values (n,) that are positive inside: the VAE's logits, or minus a signed distance."""


def grid_points(resolution: int = 32, bounds: float = 1.0) -> Float[Tensor, "points 3"]:
    """Centres of the cells of a cubic grid over [-bounds, bounds]^3; the last axis changes fastest.

    Raises:
        ValueError: no cells or no size.
    """
    if resolution < 1 or not bounds > 0:
        raise ValueError(f"A grid needs at least 1 cell a side and positive bounds; got resolution={resolution}, bounds={bounds}.")
    axis = ((torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution * 2 - 1) * bounds
    return torch.cartesian_prod(axis, axis, axis).float()


def inside_field(field: Field, points: Float[Tensor, "n 3"], chunk: int = 65_536) -> Bool[Tensor, "n"]:
    """Which points a field says are inside, asked in chunks.

    Raises:
        ValueError: a field that gives another number of values, or values that are not finite.
    """
    values = torch.cat([field(part) for part in points.split(chunk)])
    if values.shape != points.shape[:1]:
        raise ValueError(f"The field must give one value a point; got shape {tuple(values.shape)} for {len(points)} points.")
    if not bool(values.isfinite().all()):
        raise ValueError(f"The field gives {int((~values.isfinite()).sum())} values that are not finite for {len(points)} points.")
    return values > 0


def inside_mesh(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], points: Float[Tensor, "n 3"], max_pairs: int = 1 << 22
) -> Bool[Tensor, "n"]:
    """Which points a mesh encloses, by its winding number: parts may overlap, and small holes do little harm.

    The time is that of points times faces; ask for a coarse grid or decimate large meshes first.

    Args:
        vertices, faces: counter-clockwise seen from outside.
        points: to ask for.
        max_pairs: of points and faces, in memory at a time.

    Raises:
        ValueError: a mesh without faces.

    Source: van Oosterom & Strackee 1983 (solid angle of a triangle); Jacobson et al. 2013 (winding number above one half).
    """
    if not len(faces):
        raise ValueError("A mesh without faces encloses nothing; look at what made it.")
    corners = vertices.double()[faces]
    return torch.cat([_winding(corners, part.double()) > 0.5 for part in points.split(max(1, max_pairs // len(faces)))])


def _winding(corners: Float[Tensor, "f 3 3"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    a, b, c = (corners[None] - points[:, None, None]).unbind(2)
    la, lb, lc = (side.norm(dim=-1) for side in (a, b, c))
    volume = (a * torch.linalg.cross(b, c)).sum(-1)
    solid = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return 2 * torch.atan2(volume, solid).sum(1) / (4 * math.pi)


def occupancy_iou(prediction: Bool[Tensor, "*batch points"], truth: Bool[Tensor, "..."]) -> Float[Tensor, "*batch"]:
    """Intersection over union of two shapes, from which points of a grid they contain: 1 is equal, 0 apart.

    Raises:
        ValueError: different shapes, or a pair of shapes that both contain nothing.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"Both shapes must be asked at the same points; got {tuple(prediction.shape)} and {tuple(truth.shape)}.")
    union = (prediction | truth).sum(-1)
    if bool((union == 0).any()):
        raise ValueError("Neither shape contains a point of the grid; use a finer grid or look at the fields' sign (positive inside).")
    return (prediction & truth).sum(-1).double() / union
