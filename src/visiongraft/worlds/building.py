"""Solids that stand on something: sizes in width (x), height (up) and depth (z), heights measured upwards. Up is -y in the world."""

import dataclasses
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.worlds.scenes import Material, Number, Solid, Vector


def block(x: Number, z: Number, base: Number, size: Vector, material: Material, yaw: Number = 0.0) -> Solid:
    """A box of (width, height, depth) whose lower face is at height ``base``."""
    width, height, depth = size
    return Solid("box", (x, -base - height / 2, z), (width / 2, height / 2, depth / 2), material, turn(yaw))


def post(x: Number, z: Number, base: Number, radius: Number, height: Number, material: Material) -> Solid:
    """An upright cylinder."""
    return Solid("cylinder", (x, -base - height / 2, z), (radius, height / 2, radius), material)


def egg(x: Number, z: Number, base: Number, radii: Vector, material: Material, yaw: Number = 0.0) -> Solid:
    """An ellipsoid that touches height ``base``; radii along x, up and z."""
    return Solid("ellipsoid", (x, -base - radii[1], z), radii, material, turn(yaw))


def sheet(x: Number, z: Number, height: Number, width: Number, depth: Number, material: Material) -> Solid:
    """A level rectangle, which casts no shadow."""
    return Solid("plane", (x, -height, z), (width / 2, 1.0, depth / 2), material, casts_shadow=False)


def rod(start: Vector, end: Vector, radius: Number, material: Material, shape: str = "capsule") -> Solid:
    """A capsule or cylinder from one point to another (world axes, y down)."""
    low, high = (start, end) if start[1] <= end[1] else (end, start)
    length = math.dist(low, high)
    x, y, z = ((b - a) / length for a, b in zip(low, high, strict=True))
    # the smallest rotation that takes y to the rod's direction, which has been chosen less than a quarter turn away
    share = 1 / (1 + y)
    rows = ((1 - x * x * share, x, -x * z * share), (-x, y, -z), (-x * z * share, z, 1 - z * z * share))
    middle = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, (low[2] + high[2]) / 2)
    return Solid(shape, middle, (radius, length / 2, radius), material, torch.tensor(rows))


def turn(yaw: Number, pitch: Number = 0.0, roll: Number = 0.0) -> Float[Tensor, "3 3"]:
    """Rotation from angles in radians; yaw > 0 turns +z towards +x."""
    if pitch == 0 and roll == 0:  # most turns are upright; this takes a tenth of the time
        cosine, sine = math.cos(yaw), math.sin(yaw)
        return torch.tensor(((cosine, 0.0, sine), (0.0, 1.0, 0.0), (-sine, 0.0, cosine)))
    return rotation_from_angles(*(torch.tensor(float(angle)) for angle in (yaw, pitch, roll)))


def placed(solids: Iterable[Solid], x: Number, z: Number, yaw: Number = 0.0, height: Number = 0.0) -> list[Solid]:
    """Solids described around the origin, turned and moved to their place."""
    rotation = turn(yaw)
    cosine, sine = math.cos(yaw), math.sin(yaw)
    moved = []
    for solid in solids:
        px, py, pz = solid.position
        position = (x + cosine * px + sine * pz, py - height, z - sine * px + cosine * pz)
        moved.append(dataclasses.replace(solid, position=position, rotation=rotation @ solid.rotation))
    return moved
