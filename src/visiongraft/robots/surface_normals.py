"""Normals of MuJoCo's geoms at points on them: exact for primitives, from neighbouring pixels for meshes and height fields.

Points are columns here, (3, points): coordinate by coordinate, NumPy works several times as fast on them as on rows.
"""

from collections.abc import Callable

import mujoco
import numpy as np
from jaxtyping import Float, Int32

Columns = Float[np.ndarray, "3 points"]
Size = Float[np.ndarray, "3"]


def primitive_normals(kind: int, size: Size, local: Columns) -> Columns | None:
    """Normals in a geom's frame, of any length but zero; None where the kind of geom has no formula.

    Args:
        kind: MuJoCo's type of geom.
        size: of the geom, in MuJoCo's convention.
        local: points on it, in its frame.
    """
    formula = _FORMULAS.get(kind)
    return None if formula is None else formula(local, size)


def _plane(local: Columns, size: Size) -> Columns:
    return np.broadcast_to(np.array([[0.0], [0.0], [1.0]]), local.shape)


def _sphere(local: Columns, size: Size) -> Columns:
    return local


def _ellipsoid(local: Columns, size: Size) -> Columns:
    """Gradient of x²/a² + y²/b² + z²/c²."""
    return local / size[:, None] ** 2


def _capsule(local: Columns, size: Size) -> Columns:
    """Away from the nearest point of the axis."""
    normal = local.copy()
    normal[2] -= np.clip(local[2], -size[1], size[1])
    return normal


def _cylinder(local: Columns, size: Size) -> Columns:
    """Of the cap or the mantle, whichever is nearer."""
    is_cap = size[1] - np.abs(local[2]) < size[0] - np.hypot(local[0], local[1])
    return np.stack([np.where(is_cap, 0.0, local[0]), np.where(is_cap, 0.0, local[1]), np.where(is_cap, local[2], 0.0)])


def _box(local: Columns, size: Size) -> Columns:
    """Of the nearest face."""
    face = np.argmin(size[:, None] - np.abs(local), axis=0)
    return np.where(np.arange(3)[:, None] == face, local, 0.0)


_FORMULAS: dict[int, Callable[[Columns, Size], Columns]] = {
    int(mujoco.mjtGeom.mjGEOM_PLANE): _plane,
    int(mujoco.mjtGeom.mjGEOM_SPHERE): _sphere,
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): _capsule,
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): _ellipsoid,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): _cylinder,
    int(mujoco.mjtGeom.mjGEOM_BOX): _box,
}


def pixel_normals(
    geoms: Int32[np.ndarray, "height width"], offsets: Float[np.ndarray, "3 height width"]
) -> Float[np.ndarray, "3 height width"]:
    """Normals from what neighbouring pixels of the same geom see, turned to the camera; towards the camera where there are no neighbours.

    Args:
        geoms: that the pixels see.
        offsets: from the camera to what they see.
    """
    normal = np.cross(_step(geoms, offsets, 0), _step(geoms, offsets, 1), axis=0)
    lone = np.sum(normal**2, axis=0) < 1e-24
    normal = np.where(lone, -offsets, normal)
    return np.where(np.sum(normal * offsets, axis=0) > 0, -normal, normal)


def _step(
    geoms: Int32[np.ndarray, "height width"], offsets: Float[np.ndarray, "3 height width"], axis: int
) -> Float[np.ndarray, "3 height width"]:
    """The shorter of the steps to the next and from the previous pixel along an axis; zero where neither sees the same geom."""
    length = geoms.shape[axis]
    before = (slice(0, length - 1), slice(None)) if axis == 0 else (slice(None), slice(0, length - 1))
    after = (slice(1, length), slice(None)) if axis == 0 else (slice(None), slice(1, length))
    difference = offsets[:, after[0], after[1]] - offsets[:, before[0], before[1]]
    size = np.where(geoms[after] == geoms[before], np.sum(difference**2, axis=0), np.inf)
    step, best = np.zeros_like(offsets), np.full(geoms.shape, np.inf)
    for rows, columns in (before, after):
        shorter = size < best[rows, columns]
        step[:, rows, columns] = np.where(shorter, difference, step[:, rows, columns])
        best[rows, columns] = np.where(shorter, size, best[rows, columns])
    return step
