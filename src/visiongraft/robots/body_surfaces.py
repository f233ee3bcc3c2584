"""Surfaces of bodies straight from a MuJoCo model: no asset files, no mesh library."""

from collections.abc import Collection

import mujoco
import numpy as np
import torch
from jaxtyping import Float

from visiongraft.geometry.surfaces import Box, Capsule, Cylinder, Ellipsoid, Mesh, Surface
from visiongraft.robots.mujoco_bodies import body_id, geoms_of
from visiongraft.robots.poses import make_pose, rotation_from_quaternion, transform_points

VISUAL_GROUPS = (1,)
"""Groups of geoms that are only looked at, in the models of robosuite, LIBERO, MimicLabs and Meta-World."""

_KINDS = (
    mujoco.mjtGeom.mjGEOM_BOX,
    mujoco.mjtGeom.mjGEOM_SPHERE,
    mujoco.mjtGeom.mjGEOM_CYLINDER,
    mujoco.mjtGeom.mjGEOM_CAPSULE,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_MESH,
)


def body_surfaces(
    model: mujoco.MjModel, body: str, skip_groups: Collection[int] = VISUAL_GROUPS
) -> list[tuple[Surface, Float[np.ndarray, "4 4"]]]:
    """Surfaces of a body's own geoms, not of the bodies that hang from it, and their poses in its frame.

    Args:
        model: MuJoCo's.
        body: its name.
        skip_groups: geoms of these groups are left out where the body also has others. The default leaves out visual duplicates of
            collision geoms in robosuite's family; where visual and collision geoms are the same (group 0, as MuJoCo makes them),
            nothing is left out, and a body with geoms of group 1 only keeps them.

    Raises:
        ValueError: no such body, or one without a surface (planes and height fields have none of their own).

    Source: Point Bridge brief, 2.3.
    """
    geoms = _geoms_with_surface(model, body)
    if not geoms:
        raise ValueError(f"Body {body!r} has no box, sphere, cylinder, capsule, ellipsoid or mesh, so that no points lie on it.")
    kept = [i for i in geoms if int(model.geom_group[i]) not in skip_groups] or geoms
    # the compiler moves the pose of a mesh geom along with its recentred vertices: both belong together and need no correction
    return [(_surface(model, i), make_pose(rotation_from_quaternion(model.geom_quat[i]), model.geom_pos[i])) for i in kept]


def has_surface(model: mujoco.MjModel, body: str) -> bool:
    """Whether a body has geoms of its own that points can lie on.

    Raises:
        ValueError: no such body.
    """
    return bool(_geoms_with_surface(model, body))


def sample_body(
    model: mujoco.MjModel, body: str, num: int, generator: torch.Generator, skip_groups: Collection[int] = VISUAL_GROUPS
) -> Float[np.ndarray, "num 3"]:
    """Random points on a body's surface in its own frame, uniform by area over all its geoms; arguments as in :func:`body_surfaces`.

    Where geoms overlap, points may lie inside another geom.
    """
    surfaces = body_surfaces(model, body, skip_groups)
    areas = torch.tensor([surface.area for surface, _ in surfaces], dtype=torch.float64)
    counts = torch.multinomial(areas, num, replacement=True, generator=generator).bincount(minlength=len(surfaces)).tolist()
    drawn = [
        transform_points(pose, surface.sample(count, generator).numpy())
        for (surface, pose), count in zip(surfaces, counts, strict=True)
        if count
    ]
    return np.concatenate(drawn)


def _geoms_with_surface(model: mujoco.MjModel, body: str) -> list[int]:
    kinds = [int(kind) for kind in _KINDS]
    return [geom for geom in geoms_of(model, [body_id(model, body)]) if int(model.geom_type[geom]) in kinds]


def _surface(model: mujoco.MjModel, geom: int) -> Surface:
    kind, (x, y, z) = int(model.geom_type[geom]), model.geom_size[geom].tolist()
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return Box(x, y, z)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return Ellipsoid(x, x, x)
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return Ellipsoid(x, y, z)
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return Cylinder(x, y)
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return Capsule(x, y)
    mesh = int(model.geom_dataid[geom])
    vertex, face = int(model.mesh_vertadr[mesh]), int(model.mesh_faceadr[mesh])
    vertices = model.mesh_vert[vertex : vertex + int(model.mesh_vertnum[mesh])]
    faces = model.mesh_face[face : face + int(model.mesh_facenum[mesh])]
    return Mesh(torch.from_numpy(vertices.astype(np.float64)), torch.from_numpy(faces.astype(np.int64)))
