"""Points on surfaces, uniform by area: the shapes that simulators know, triangle meshes among them.

The shapes stand at the origin with their axis along z, in MuJoCo's manner: sizes are **half** sizes in metres.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.meshes import face_areas, surface_samples

_ELLIPSOID_DIRECTIONS = 20_000


@dataclass(frozen=True)
class Box:
    """A cuboid.

    Args:
        x, y, z: half sizes.
    """

    x: float
    y: float
    z: float

    @property
    def area(self) -> float:
        return 8 * (self.x * self.y + self.y * self.z + self.z * self.x)

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, "num 3"]:
        """Random points on the surface, float64."""
        half = torch.tensor([self.x, self.y, self.z], dtype=torch.float64)
        pairs = torch.tensor([self.y * self.z, self.z * self.x, self.x * self.y], dtype=torch.float64)
        axis = _choose(pairs, num, generator)
        points = (2 * _uniform(num, 3, generator) - 1) * half
        side = torch.where(points.gather(1, axis[:, None]) < 0, -1.0, 1.0) * half[axis, None]
        return points.scatter(1, axis[:, None], side)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid; a sphere where its half axes are equal.

    Args:
        x, y, z: half axes.
    """

    x: float
    y: float
    z: float

    @property
    def area(self) -> float:
        """Knud Thomsen's formula, within 1.1 %; exact for a sphere."""
        p = 1.6075
        x, y, z = self.x**p, self.y**p, self.z**p
        return 4 * math.pi * ((x * y + y * z + z * x) / 3) ** (1 / p)

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, "num 3"]:
        """Random points on the surface, float64."""
        half = torch.tensor([self.x, self.y, self.z], dtype=torch.float64)
        if self.x == self.y == self.z:
            return _directions(num, generator) * half
        # a piece of the unit sphere is stretched by the length of its normal's image under the cofactors
        directions = _directions(max(_ELLIPSOID_DIRECTIONS, 8 * num), generator)
        stretch = (directions * (half.prod() / half)).norm(dim=-1)
        return directions[_choose(stretch, num, generator)] * half


@dataclass(frozen=True)
class Cylinder:
    """A closed cylinder along z.

    Args:
        radius: of it.
        z: half length.
    """

    radius: float
    z: float

    @property
    def area(self) -> float:
        return 2 * math.pi * self.radius * (2 * self.z + self.radius)

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, "num 3"]:
        """Random points on the surface, float64."""
        part = _choose(torch.tensor([2 * self.z, self.radius / 2, self.radius / 2], dtype=torch.float64), num, generator)  # side, ends
        turn, along = _uniform(num, 2, generator).unbind(1)
        radius = torch.where(part == 0, 1.0, along.sqrt()) * self.radius
        z = torch.where(part == 0, 2 * along - 1, torch.where(part == 1, 1.0, -1.0)) * self.z
        return torch.stack([radius * (2 * math.pi * turn).cos(), radius * (2 * math.pi * turn).sin(), z], -1)


@dataclass(frozen=True)
class Capsule:
    """A cylinder along z with half spheres at its ends.

    Args:
        radius: of both.
        z: half length of the cylinder alone.
    """

    radius: float
    z: float

    @property
    def area(self) -> float:
        return 4 * math.pi * self.radius * (self.radius + self.z)

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, "num 3"]:
        """Random points on the surface, float64."""
        part = _choose(torch.tensor([self.z, self.radius], dtype=torch.float64), num, generator)  # side, ends
        ball = _directions(num, generator)
        along = 2 * _uniform(num, 1, generator)[:, 0] - 1
        around = ball[:, :2] / ball[:, :2].norm(dim=-1, keepdim=True)
        side = torch.cat([self.radius * around, self.z * along[:, None]], -1)
        shift = torch.zeros_like(ball)
        shift[:, 2] = torch.where(ball[:, 2] < 0, -self.z, self.z)
        return torch.where((part == 0)[:, None], side, self.radius * ball + shift)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh.

    Args:
        vertices: metres.
        faces: indices of vertices.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]

    @property
    def area(self) -> float:
        return float(face_areas(self.vertices, self.faces).sum())

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, "num 3"]:
        """Random points on the surface, float64."""
        return surface_samples(self.vertices.double(), self.faces, num, generator).points


Surface = Box | Ellipsoid | Cylinder | Capsule | Mesh


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    return torch.rand(rows, columns, dtype=torch.float64, generator=generator)


def _choose(weights: Float[Tensor, "k"], num: int, generator: torch.Generator) -> Int[Tensor, "num"]:
    """Random indices with probabilities in proportion to weights."""
    total = weights.cumsum(0)
    return torch.searchsorted(total, _uniform(num, 1, generator)[:, 0] * total[-1], right=True).clamp(max=len(weights) - 1)


def _directions(num: int, generator: torch.Generator) -> Float[Tensor, "num 3"]:
    """Random unit vectors, uniform on the sphere: Archimedes' hat box."""
    turn, height = _uniform(num, 2, generator).unbind(1)
    z = 2 * height - 1
    radius = (1 - z * z).clamp(min=0).sqrt()
    return torch.stack([radius * (2 * math.pi * turn).cos(), radius * (2 * math.pi * turn).sin(), z], -1)
