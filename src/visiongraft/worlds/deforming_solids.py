"""Solids that bend, twist, wave, breathe and walk: maps of a rest shape over time, with their distance fields.

A solid is at rest in coordinates of its own; :class:`visiongraft.worlds.animated_shapes.AnimatedShape` fits it into the world.
All functions take points of every frame at once and are differentiable, in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.surfaces import Box, Ellipsoid
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.solid_meshes import box_mesh, join, sphere_mesh

Move = Callable[[Float[Tensor, "n 3"], Int[Tensor, "n"], Float[Tensor, "t"]], Float[Tensor, "t n 3"]]
Field = Callable[[Float[Tensor, "t q 3"], Float[Tensor, "t"]], Float[Tensor, "t q"]]
Sample = Callable[[int, torch.Generator], tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"], Int[Tensor, "n"]]]
TAU = 2 * torch.pi


@dataclass(frozen=True, eq=False)
class Solid:
    """A shape at rest, how it moves, and where its inside is.

    Args:
        vertices: at rest.
        faces: counter-clockwise from outside, closed.
        part: of every vertex.
        move: (rest points, parts, times) to points at each time.
        inside: (points, times) to numbers that are negative inside and 0 on the surface.
        sample: (number, generator) to random rest points, their normals and parts, uniform by area.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    part: Int[Tensor, "v"]
    move: Move
    inside: Field
    sample: Sample


def box_field(points: Float[Tensor, "*batch 3"], half: Float[Tensor, "3"]) -> Float[Tensor, "*batch"]:
    """Exact signed distance to a box at the origin."""
    beyond = points.abs() - half
    return beyond.clamp(min=0).square().sum(-1).clamp(min=1e-24).sqrt() + beyond.amax(-1).clamp(max=0)


def bending(dice: Dice) -> Solid:
    """A standing bar that bends to and fro, its foot held."""
    half = torch.tensor([dice.between(0.1, 0.18), dice.between(0.65, 0.85), dice.between(0.12, 0.25)], dtype=torch.float64)
    swing, middle, rate, phase = dice.between(0.6, 1.1), dice.between(-0.3, 0.3), dice.between(0.5, 1.0), dice.between(0, 1)

    def curvature(times: Tensor) -> Tensor:
        value = middle + swing * (TAU * (rate * times + phase)).sin()
        return torch.where(value.abs() < 1e-4, 1e-4, value)[:, None]  # a straight bar is the limit, where the formulas divide by 0

    def move(points: Tensor, part: Tensor, times: Tensor) -> Tensor:
        k, (x, y, z) = curvature(times), points.unbind(-1)
        turn = k * (y + half[1])
        # 1 - cos, without cancellation
        side = 2 * (turn / 2).sin().square() / k + x * turn.cos()
        return torch.stack([side, turn.sin() / k - x * turn.sin(), z.expand_as(turn)], -1)

    def inside(points: Tensor, times: Tensor) -> Tensor:
        k, (x, y, z) = curvature(times), points.unbind(-1)
        # angle and distance from the centre of curvature, (1/k, 0)
        turn = torch.atan2(k * y, 1 - k * x)
        radius = ((1 - k * x).square() + (k * y).square()).sqrt()
        return box_field(torch.stack([(1 - radius) / k, turn / k - half[1], z], -1), half)

    return _from_box(half, (4, 24, 4), move, inside)


def twisting(dice: Dice) -> Solid:
    """A standing bar that is wrung about its axis."""
    half = torch.tensor([dice.between(0.2, 0.3), dice.between(0.65, 0.85), dice.between(0.1, 0.18)], dtype=torch.float64)
    swing, middle, rate, phase = dice.between(0.7, 1.5), dice.between(-0.4, 0.4), dice.between(0.5, 1.0), dice.between(0, 1)

    def turn(y: Tensor, times: Tensor) -> Tensor:
        return (middle + swing * (TAU * (rate * times + phase)).sin())[:, None] * y

    def about_y(x: Tensor, y: Tensor, z: Tensor, angle: Tensor) -> Tensor:
        cosine, sine = angle.cos(), angle.sin()
        return torch.stack([cosine * x + sine * z, y.expand_as(angle), cosine * z - sine * x], -1)

    def move(points: Tensor, part: Tensor, times: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        return about_y(x, y, z, turn(y, times))

    def inside(points: Tensor, times: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        return box_field(about_y(x, y, z, -turn(y, times)), half)

    return _from_box(half, (6, 28, 4), move, inside)


def waving(dice: Dice) -> Solid:
    """A cloth on a mast at its left, in the wind: waves run along it and grow."""
    half = torch.tensor([dice.between(0.7, 0.85), dice.between(0.4, 0.6), dice.between(0.025, 0.04)], dtype=torch.float64)
    height, length, slant = dice.between(0.12, 0.22), dice.between(0.8, 1.3), dice.between(-0.6, 0.6)
    rate, phase = dice.between(0.7, 1.3), dice.between(0, 1)

    def wave(x: Tensor, y: Tensor, times: Tensor) -> Tensor:
        grown = ((x + half[0]) / (2 * half[0])).clamp(0, 1.2)
        return height * grown * (TAU * ((x + slant * y) / length - rate * times[:, None] + phase)).sin()

    def move(points: Tensor, part: Tensor, times: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        moved = z + wave(x, y, times)
        return torch.stack([x.expand_as(moved), y.expand_as(moved), moved], -1)

    def inside(points: Tensor, times: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        return box_field(torch.stack([x, y, z - wave(x, y, times)], -1), half)

    return _from_box(half, (40, 16, 1), move, inside)


def breathing(dice: Dice) -> Solid:
    """A round blob that breathes, while bumps on it grow and shrink."""
    size, breath, rate, phase = dice.between(0.5, 0.65), dice.between(0.08, 0.16), dice.between(0.5, 1.0), dice.between(0, 1)
    bumps = [(dice.between(-1, 1), dice.between(-1, 1), dice.between(-1, 1)) for _ in range(4)]
    axes = torch.nn.functional.normalize(torch.tensor(bumps, dtype=torch.float64), dim=-1)
    strength = torch.tensor([dice.between(0.2, 0.5) for _ in bumps], dtype=torch.float64)
    phases = torch.tensor([dice.between(0, 1) for _ in bumps], dtype=torch.float64)

    def radius(direction: Tensor, times: Tensor) -> Tensor:
        grown = strength * (0.5 + 0.5 * (TAU * (rate * times[:, None] + phases)).sin())
        bump = (direction @ axes.mT).clamp(min=0) ** 4
        return size * (1 + breath * (TAU * (rate * times + phase)).sin()[:, None] + torch.einsum("tnk,tk->tn", bump, grown))

    def move(points: Tensor, part: Tensor, times: Tensor) -> Tensor:
        direction = (points / points.norm(dim=-1, keepdim=True)).expand(len(times), -1, -1)
        return direction * radius(direction, times)[..., None]

    def inside(points: Tensor, times: Tensor) -> Tensor:
        length = points.square().sum(-1).clamp(min=1e-12).sqrt()
        return length - radius(points / length[..., None], times)

    def sample(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        points = Ellipsoid(1.0, 1.0, 1.0).sample(num, generator)
        return points, points, torch.zeros(num, dtype=torch.long)

    vertices, faces = sphere_mesh(24, 32)
    return Solid(vertices, faces, torch.zeros(len(vertices), dtype=torch.long), move, inside, sample)


def walking(dice: Dice) -> Solid:
    """A body of one box on four legs, which swing from its underside as it walks along x."""
    body = torch.tensor([dice.between(0.38, 0.5), dice.between(0.12, 0.18), dice.between(0.18, 0.26)], dtype=torch.float64)
    leg = torch.tensor([dice.between(0.05, 0.075), dice.between(0.2, 0.28), dice.between(0.05, 0.075)], dtype=torch.float64)
    swing, rate, phase, walked = dice.between(0.35, 0.6), dice.between(1.0, 1.6), dice.between(0, 1), dice.between(0.1, 0.3)
    corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    # hips lie inside the body, so that no gap opens as a leg swings and no side of a leg coincides with one of the body
    inset = 1.3 * leg
    hips = torch.stack([corners[:, 0] * (body[0] - inset[0]), -body[1].expand(4) + leg[0], corners[:, 1] * (body[2] - inset[2])], -1)
    halves = torch.stack([body, *[leg] * 4])
    # legs hang from their hips; opposite corners swing together
    centers = torch.cat([torch.zeros(1, 3, dtype=torch.float64), hips - torch.stack([leg[1] * 0, leg[1], leg[1] * 0])])
    pivots = torch.cat([torch.zeros(1, 3, dtype=torch.float64), hips])
    beat = torch.tensor([0.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)

    def pose(times: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of the parts about z, and where the whole is."""
        turn = TAU * (rate * times + phase)
        zero = torch.zeros_like(times)
        return swing * turn.sin()[:, None] * beat, torch.stack([walked * (times - 0.5), 0.03 * (2 * turn).cos(), zero], -1)

    def move(points: Tensor, part: Tensor, times: Tensor) -> Tensor:
        angles, place = pose(times)
        angle = angles[:, part]
        x, y, z = (points - pivots[part]).unbind(-1)
        turned = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y, z.expand_as(angle)], -1)
        return turned + pivots[part] + place[:, None]

    def inside(points: Tensor, times: Tensor) -> Tensor:
        angles, place = pose(times)
        at = points - place[:, None]
        distances = []
        for part in range(5):
            angle = angles[:, part, None]
            x, y, z = (at - pivots[part]).unbind(-1)
            back = torch.stack([angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x, z], -1)
            distances.append(box_field(back + pivots[part] - centers[part], halves[part]))
        return torch.stack(distances).amin(0)

    def sample(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        boxes = [Box(*half.tolist()) for half in halves]
        areas = torch.tensor([box.area for box in boxes], dtype=torch.float64)
        part = torch.multinomial(areas, num, replacement=True, generator=generator).sort().values
        drawn = [box.sample(int((part == i).sum()), generator) for i, box in enumerate(boxes)]
        normals = torch.cat([_box_normals(points, half) for points, half in zip(drawn, halves, strict=True)])
        return torch.cat(drawn) + centers[part], normals, part

    meshes = [box_mesh(half, (8, 4, 5) if i == 0 else (2, 6, 2)) for i, half in enumerate(halves)]
    vertices, faces, part = join([(vertices + center, faces) for (vertices, faces), center in zip(meshes, centers, strict=True)])
    return Solid(vertices, faces, part, move, inside, sample)


def _from_box(half: Tensor, cells: tuple[int, int, int], move: Move, inside: Field) -> Solid:
    """A deformed box."""

    def sample(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        points = Box(*half.tolist()).sample(num, generator)
        return points, _box_normals(points, half), torch.zeros(num, dtype=torch.long)

    vertices, faces = box_mesh(half, cells)
    return Solid(vertices, faces, torch.zeros(len(vertices), dtype=torch.long), move, inside, sample)


def _box_normals(points: Float[Tensor, "n 3"], half: Float[Tensor, "3"]) -> Float[Tensor, "n 3"]:
    """Outward normals of points on a box: along the axis on whose side they lie."""
    axis = (points.abs() / half).argmax(-1, keepdim=True)
    return torch.zeros_like(points).scatter(1, axis, points.gather(1, axis).sign())
