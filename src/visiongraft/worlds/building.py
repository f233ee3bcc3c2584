"""Solids that stand on something: sizes in width (x), height (up) and depth (z), heights measured upwards. Up is -y in the world."""

import dataclasses
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import minimal_rotation, rotation_from_angles

from .scenes import Material, Solid, Vector


def block(x: float, z: float, base: float, size: Vector, material: Material, yaw: float = 0.0) -> Solid:
    """A box of (width, height, depth) whose lower face is at height ``base``."""
    width, height, depth = size
    rotation = turn(yaw) if yaw else None
    return Solid("box", (x, -base - height / 2, z), (width / 2, height / 2, depth / 2), material, rotation)


def post(x: float, z: float, base: float, radius: float, height: float, material: Material) -> Solid:
    """An upright cylinder."""
    return Solid("cylinder", (x, -base - height / 2, z), (radius, height / 2, radius), material)


def egg(x: float, z: float, base: float, radii: Vector, material: Material, yaw: float = 0.0) -> Solid:
    """An ellipsoid that touches height ``base``; radii along x, up and z."""
    return Solid("ellipsoid", (x, -base - radii[1], z), radii, material, turn(yaw) if yaw else None)


def sheet(x: float, z: float, height: float, width: float, depth: float, material: Material) -> Solid:
    """A level rectangle, which casts no shadow."""
    return Solid("plane", (x, -height, z), (width / 2, 1.0, depth / 2), material, casts_shadow=False)


def rod(start: Vector, end: Vector, radius: float, material: Material, shape: str = "capsule") -> Solid:
    """A capsule or cylinder from one point to another (world axes, y down)."""
    a, b = torch.tensor(start), torch.tensor(end)
    length = float((b - a).norm())
    middle = ((a + b) / 2).tolist()
    rotation = minimal_rotation(torch.tensor([0.0, 1.0, 0.0]), (b - a) / length)
    return Solid(shape, (middle[0], middle[1], middle[2]), (radius, length / 2, radius), material, rotation)


def turn(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Float[Tensor, "3 3"]:
    """Rotation from angles in radians; yaw > 0 turns +z towards +x."""
    return rotation_from_angles(torch.tensor(yaw), torch.tensor(pitch), torch.tensor(roll))


def placed(solids: Iterable[Solid], x: float, z: float, yaw: float = 0.0, height: float = 0.0) -> list[Solid]:
    """Solids described around the origin, turned and moved to their place."""
    rotation = turn(yaw)
    cosine, sine = math.cos(yaw), math.sin(yaw)
    moved = []
    for solid in solids:
        px, py, pz = solid.position
        position = (x + cosine * px + sine * pz, py - height, z - sine * px + cosine * pz)
        own = rotation if solid.rotation is None else rotation @ solid.rotation
        moved.append(dataclasses.replace(solid, position=position, rotation=own))
    return moved
