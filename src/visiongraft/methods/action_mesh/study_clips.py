"""Held-out clips of the study: what is seen of an animal, its tracked surface, and its mesh."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visiongraft.methods.action_mesh.grouped_sampling import encode_clips
from visiongraft.methods.action_mesh.toy_video import SIZE, toy_context
from visiongraft.metrics.occupancy import grid_points
from visiongraft.training.order import derived_seed
from visiongraft.worlds.animated_shapes import AnimatedShape, make_shape
from visiongraft.worlds.creatures import Creatures, creature_dice, draw_creatures

SURFACE_POINTS = 128
"""Of the cloud that is encoded, as many as in training."""
_TAIL = torch.linspace(0.4, 1.0, 8)
"""Places on the tail's axis that tell its side, as shares of its length."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips of one motion, all measured at once.

    Args:
        seeds: of the animals, which are those of :func:`visiongraft.worlds.animated_shapes.make_shape`.
        motion: ``const`` or ``mixed``.
        times: of the frames, in periods of the training clips.
        creatures: the animals.
        surface: tracked points with normals that are encoded.
        truth: other tracked points with normals, which results are compared with.
        pictures: silhouettes.
        grid: points a side of the grid that overlap is counted on.
    """

    seeds: tuple[int, ...]
    motion: str
    times: Float[Tensor, " frames"]
    creatures: Creatures
    surface: Float[Tensor, "clips frames _ 6"]
    truth: Float[Tensor, "clips frames points 6"]
    pictures: Float[Tensor, "clips frames side side"]
    grid: int

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def context(self) -> Float[Tensor, "clips frames tokens dim"]:
        """Tokens of the pictures."""
        return toy_context(self.pictures[:, :, None])

    @cached_property
    def inside(self) -> Bool[Tensor, "clips frames cells"]:
        """Which of :func:`overlap_points` the animals contain."""
        points = overlap_points(self.grid).expand(len(self), len(self.times), -1, -1)
        return self.creatures.sdf(points) < 0

    def tail(self) -> Float[Tensor, "clips frames places 3"]:
        """Places on the axes of the tails."""
        along = (_TAIL * self.creatures.tail_length[:, None])[:, None]
        angles = self.creatures.angles[..., None]
        x = self.creatures.hinge_x[:, None, None] + along * angles.cos()
        return torch.stack([x, torch.zeros_like(x), along * angles.sin()], -1)

    def first(self, count: int) -> "Clips":
        """The first clips."""
        parts = {name: getattr(self, name)[:count] for name in ("surface", "truth", "pictures")}
        return Clips(self.seeds[:count], self.motion, self.times, self._animals(slice(count)), grid=self.grid, **parts)

    def animal(self, index: int) -> Creatures:
        """One animal by itself."""
        return self._animals(slice(index, index + 1))

    def _animals(self, some: slice) -> Creatures:
        animals = self.creatures
        return Creatures(animals.radii[some], animals.tail_length[some], animals.tail_radius[some], animals.angles[some])

    def shape(self, index: int) -> AnimatedShape:
        """One animal with its mesh."""
        return make_shape("creature", self.seeds[index], self.motion)

    def mesh(self, index: int) -> tuple[Float[Tensor, "frames v 3"], Int[Tensor, "f 3"], Bool[Tensor, "frames v"]]:
        """One animal's vertices, faces, and which vertices are seen: those inside the other part are not on the surface."""
        shape = self.shape(index)
        vertices = shape.vertices(self.times)
        return vertices, shape.faces, shape.sdf(vertices, self.times) > -1e-4


def overlap_points(grid: int) -> Float[Tensor, "points 3"]:
    """Points of a grid over the part of the box with |y| <= 0.5, twice the animals' height; the last axis changes fastest."""
    points = grid_points(grid)
    return points[points[:, 1].abs() <= 0.5]


def held_out_clips(motion: str, count: int, frames: int, points: int, grid: int, seed: int, period: int = 6) -> Clips:
    """Clips that no training saw.

    Args:
        motion: ``const`` or ``mixed``.
        count: clips.
        frames: of a clip; from ``period`` on the motion goes on as it was.
        points: of ``truth``.
        grid: points a side.
        seed: of the study.
        period: frames of a training clip, whose spacing in time is kept.
    """
    seeds = tuple(derived_seed("held-out clips of the study", seed, motion, index) for index in range(count))
    times = torch.arange(frames) / period
    creatures = draw_creatures(torch.stack([creature_dice(one) for one in seeds]).float(), times, motion)
    generator = torch.Generator().manual_seed(derived_seed("surfaces of the study", seed, motion, frames))

    def surface(num: int) -> Tensor:
        return creatures.surface(torch.rand(count, 2 * num + 2, 4, generator=generator), num)

    return Clips(seeds, motion, times, creatures, surface(SURFACE_POINTS), surface(points), creatures.silhouettes(SIZE, "box"), grid)


def true_latents(vae: Any, clips: Clips, num_tokens: int, seed: int) -> Float[Tensor, "clips frames tokens channels"]:
    """The VAE's latents of the true shapes, the same surface points in every frame, drawn from its posterior."""
    generator = torch.Generator().manual_seed(derived_seed("true latents of the study", seed, clips.motion))
    return encode_clips(vae, clips.surface, num_tokens, generator)
