"""Animated shapes from a seed: closed meshes of one topology, tracked surface points with normals, distance fields, captions.

Every point of a surface is known at every time, so that correspondences are exact. Axes are those of meshes: x right, y up, z
towards the viewer (scenes of this package have y down). A shape stays inside [-1, 1]^3 throughout.

Source: ActionMesh brief, 5 (data) and 9 (world).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.worlds.creatures import BODY_X, MOTIONS, Creatures, creature_dice, draw_creatures, spread_choice
from visiongraft.worlds.deforming_solids import Solid, bending, breathing, twisting, walking, waving
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.solid_meshes import capsule_mesh, join, sphere_mesh

KINDS = ("bend", "twist", "walk", "cloth", "blob", "creature")
_COLORS = {
    "red": (0.80, 0.25, 0.22),
    "orange": (0.90, 0.55, 0.20),
    "green": (0.30, 0.62, 0.35),
    "blue": (0.25, 0.45, 0.80),
    "purple": (0.55, 0.35, 0.70),
    "brown": (0.55, 0.40, 0.30),
}
_SOLIDS: dict[str, tuple[Callable[[Dice], Solid], str]] = {
    "bend": (bending, "a {} bar that bends to and fro"),
    "twist": (twisting, "a {} bar that twists about its axis"),
    "walk": (walking, "a {} animal made of boxes that walks"),
    "cloth": (waving, "a {} cloth that waves in the wind"),
    "blob": (breathing, "a {} blob that breathes"),
}
_EXTENT = 0.9  # half of the longest side of the box that holds a whole animation
_HIDDEN = 1e-6
_STEP = 1e-5


@dataclass(frozen=True, eq=False)
class AnimatedShape:
    """A closed surface that moves.

    Args:
        kind: one of ``KINDS``.
        caption: what one sees.
        color: RGB in [0, 1].
        solid: the shape in coordinates of its own.
        center: of the solid, which becomes the world's origin.
        scale: of the solid.
    """

    kind: str
    caption: str
    color: tuple[float, float, float]
    solid: Solid
    center: Float[Tensor, "3"]
    scale: float

    @property
    def faces(self) -> Int[Tensor, "f 3"]:
        """Of the mesh at all times; counter-clockwise from outside."""
        return self.solid.faces

    def vertices(self, times: Float[Tensor, "t"]) -> Float[Tensor, "t v 3"]:
        """The mesh at each time; a clip lasts from 0 to 1."""
        moved = self.solid.move(self.solid.vertices, self.solid.part, times.double())
        return self._to_world(moved).float()

    def surface(self, num: int, times: Float[Tensor, "t"], generator: torch.Generator) -> Float[Tensor, "t num 6"]:
        """Random points of the surface with unit normals, tracked over the times, uniform by area of the shape at rest.

        Points that another part of the shape hides at every time are left out.
        """
        times = times.double()
        kept: list[Tensor] = []
        missing = num
        while missing > 0:
            rest, normal, part = self.solid.sample(2 * missing, generator)
            moved = self.solid.move(rest, part, times)
            # the order of a sample may follow the parts
            order = torch.randperm(len(rest), generator=generator)
            seen = order[(self.solid.inside(moved, times) > -_HIDDEN).any(0)[order]][:missing]
            normals = _moved_normals(self.solid, rest[seen], normal[seen], part[seen], times)
            kept.append(torch.cat([self._to_world(moved[:, seen]), normals], -1))
            missing -= len(seen)
        return torch.cat(kept, 1).float()

    def sdf(self, points: Float[Tensor, "t q 3"], times: Float[Tensor, "t"]) -> Float[Tensor, "t q"]:
        """Signed distance at each time, negative inside; correct to first order near the surface.

        It is the shape's implicit function divided by the length of its gradient.
        """
        with torch.enable_grad():
            inside = (points.detach().double() / self.scale + self.center).requires_grad_()
            value = self.solid.inside(inside, times.double())
            gradient = torch.autograd.grad(value.sum(), inside)[0]
        steepness = gradient.norm(dim=-1).clamp(min=0.1)
        return (value.detach() / steepness * self.scale).float()

    def _to_world(self, points: Tensor) -> Tensor:
        return (points - self.center) * self.scale


def clip_times(num_frames: int) -> Float[Tensor, "t"]:
    """Times of a clip's frames: k / num_frames.

    Raises:
        ValueError: fewer than one frame.
    """
    if num_frames < 1:
        raise ValueError(f"A clip has at least 1 frame; got {num_frames}.")
    return torch.arange(num_frames) / num_frames


def make_shape(kind: str, seed: int, motion: str = "mixed") -> AnimatedShape:
    """A random shape of a kind; the same for the same seed.

    Args:
        kind: one of ``KINDS``.
        seed: any integer.
        motion: of creatures; see :func:`visiongraft.worlds.creatures.draw_creatures`. The others have one sort of motion.

    Raises:
        ValueError: another kind or motion.
    """
    if kind not in KINDS or motion not in MOTIONS:
        raise ValueError(
            f"Animated shapes are of kind {', '.join(KINDS)} with motion {' or '.join(MOTIONS)}; got kind {kind!r}, motion {motion!r}."
        )
    dice = Dice(seed)
    name = dice.pick(list(_COLORS))
    if kind == "creature":
        # not fitted into the world: its size and place are those of the study
        solid, caption = _creature_solid(creature_dice(seed)[None], motion), "a {} animal that swings its tail"
        center, scale = torch.zeros(3, dtype=torch.float64), 1.0
    else:
        build, caption = _SOLIDS[kind]
        solid = build(dice)
        low, high = solid.move(solid.vertices, solid.part, torch.linspace(0, 1, 65, dtype=torch.float64)).flatten(0, 1).aminmax(dim=0)
        center, scale = (low + high) / 2, 2 * _EXTENT / float((high - low).max())
    caption = caption.format(name).replace("a orange", "an orange")
    return AnimatedShape(kind, caption, _COLORS[name], solid, center, scale)


def _creature_solid(dice: Float[Tensor, "1 dice"], motion: str) -> Solid:
    """One creature as a solid; at rest its tail points along x."""

    def at(times: Tensor) -> Creatures:
        return draw_creatures(dice, times, motion)

    def move(points: Tensor, part: Tensor, times: Tensor) -> Tensor:
        return at(times).pose(points[None], part.double()[None])[0]

    def inside(points: Tensor, times: Tensor) -> Tensor:
        return at(times).sdf(points[None])[0]

    still = at(torch.zeros(1, dtype=torch.float64))
    still = Creatures(still.radii, still.tail_length, still.tail_radius, torch.zeros_like(still.angles))

    def sample(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        dice = torch.rand(1, 2 * num + 2, 3, dtype=torch.float64, generator=generator)
        points, normals, carried, area = (found[0] for found in still.rest_surface(dice))
        chosen = spread_choice(area[None], dice[:, :num, 2])[0]
        return points[chosen], normals[chosen], carried[chosen].long()

    ball, ball_faces = sphere_mesh(16, 24)
    body = ball * still.radii[0] + torch.tensor([BODY_X, 0.0, 0.0], dtype=torch.float64)
    tail, tail_faces = capsule_mesh(float(still.tail_length), float(still.tail_radius), 10, 16)
    tail = tail + torch.cat([still.hinge_x, torch.zeros(2, dtype=torch.float64)])
    vertices, faces, part = join([(body, ball_faces), (tail, tail_faces)])
    return Solid(vertices, faces, part, move, inside, sample)


def _moved_normals(
    solid: Solid, rest: Float[Tensor, "n 3"], normal: Float[Tensor, "n 3"], part: Int[Tensor, "n"], times: Float[Tensor, "t"]
) -> Float[Tensor, "t n 3"]:
    """Unit normals of moved points: the cross product of two tangents, each moved along."""
    least = torch.nn.functional.one_hot(normal.abs().argmin(-1), 3).to(normal)
    first = torch.nn.functional.normalize(torch.linalg.cross(least, normal), dim=-1)
    second = torch.linalg.cross(normal, first)
    # central differences in float64: an error of 1e-9, and no forward-mode differentiation to load
    moved = [solid.move(rest + _STEP * along, part, times) - solid.move(rest - _STEP * along, part, times) for along in (first, second)]
    return torch.nn.functional.normalize(torch.linalg.cross(*moved), dim=-1, eps=1e-30)
