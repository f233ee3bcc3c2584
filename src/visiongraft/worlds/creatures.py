"""The smallest animal whose video is ambiguous: an ellipsoid body with a capsule tail that swings about a vertical hinge.

Seen along z a tail that swings towards the viewer has the same silhouette as one that swings away by the same angle, and as the
animal is symmetric in y, the wrong guess is the right animal turned by half a turn about x. Axes of meshes: x right, y up, z
towards the viewer, inside the box [-1, 1]^3. Many animals are drawn and measured at once, as training needs them.

Source: ActionMesh brief, 9 (world).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOTIONS = ("mixed", "const")
FRAMINGS = ("world", "box")
BODY_X = -0.35
HINGE_SHARE = 0.8  # of the way from the body's centre to its tip
LARGEST_ANGLE = 1.25
NUM_CREATURE_DICE = 10


@dataclass(frozen=True, eq=False)
class Creatures:
    """Animals in motion.

    Args:
        radii: half axes of the bodies.
        tail_length: from the hinge to the centre of the tail's last half sphere.
        tail_radius: of the capsules.
        angles: of the tails at each frame, radians from +x; towards +z, the viewer, where positive.
    """

    radii: Float[Tensor, "batch 3"]
    tail_length: Float[Tensor, " batch"]
    tail_radius: Float[Tensor, " batch"]
    angles: Float[Tensor, "batch frames"]

    def __len__(self) -> int:
        return len(self.radii)

    @property
    def hinge_x(self) -> Float[Tensor, " batch"]:
        """Where the tails are hinged, on the x axis."""
        return BODY_X + HINGE_SHARE * self.radii[:, 0]

    def frames(self, index: Int[Tensor, "batch kept"]) -> "Creatures":
        """The same animals at some of their frames."""
        return replace(self, angles=self.angles.gather(1, index))

    def sdf(self, points: Float[Tensor, "batch frames q 3"]) -> Float[Tensor, "batch frames q"]:
        """Signed distance, negative inside: exact for the tail, of first order for the body, the lesser of the two where they meet."""
        x, y, z = points.unbind(-1)
        radii = self.radii[:, None, None]
        body = torch.stack([x - BODY_X, y, z], -1) / radii
        length, steepness = body.norm(dim=-1), (body / radii).norm(dim=-1)
        body_distance = length * (length - 1) / steepness.clamp(min=1e-6)
        # at the very centre the formula says 0
        body_distance = torch.where(length < 1e-3, -self.radii.amin(1)[:, None, None].expand_as(length), body_distance)
        along, across = self._to_tail(x, z)
        off = along - torch.minimum(along.clamp(min=0), self.tail_length[:, None, None])
        tail_distance = (off * off + y * y + across * across).sqrt() - self.tail_radius[:, None, None]
        return torch.minimum(body_distance, tail_distance)

    def _to_tail(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates along and across the tails, from the hinges."""
        cosine, sine = self.angles.cos()[..., None], self.angles.sin()[..., None]
        x = x - self.hinge_x[:, None, None]
        return cosine * x + sine * z, cosine * z - sine * x

    def pose(
        self, rest: Float[Tensor, "batch p 3"], tail: Float[Tensor, "batch p"], *, directions: bool = False
    ) -> Float[Tensor, "batch frames p 3"]:
        """Where points of straight animals (angle 0) are at each frame; exact.

        Args:
            rest: points, or directions.
            tail: 1 for points that the tail carries, 0 for those of the body.
            directions: they turn and do not move.
        """
        angles = self.angles[..., None] * tail[:, None]
        cosine, sine = angles.cos(), angles.sin()
        x, y, z = (rest[:, None, :, axis] for axis in range(3))
        pivot = 0 * self.hinge_x[:, None, None] if directions else self.hinge_x[:, None, None]
        away = x - pivot
        return torch.stack([pivot + cosine * away - sine * z, y.expand_as(cosine), sine * away + cosine * z], -1)

    def surface(self, dice: Float[Tensor, "batch pool 4"], num: int) -> Float[Tensor, "batch frames num 6"]:
        """Tracked points with their unit normals, uniform by area over body and tail together.

        Points that are inside the other part at every frame are not on the surface and are never drawn.

        Args:
            dice: uniform in [0, 1), which fix the points; at least twice ``num`` of them keep repeated points rare.
            num: points.
        """
        rest, normal, carried, weight = self.rest_surface(dice)
        moved = self.pose(rest, carried)
        hidden = (self.sdf(moved) < -1e-5).all(1)
        chosen = spread_choice(weight.masked_fill(hidden, 0), dice[:, :num, 3])
        points = moved.gather(2, chosen[:, None, :, None].expand(-1, moved.shape[1], -1, 3))
        chosen_normal = normal.gather(1, chosen[..., None].expand(-1, -1, 3))
        return torch.cat([points, self.pose(chosen_normal, carried.gather(1, chosen), directions=True)], -1)

    def rest_surface(
        self, dice: Float[Tensor, "batch pool _"]
    ) -> tuple[Float[Tensor, "batch pool 3"], Float[Tensor, "batch pool 3"], Float[Tensor, "batch pool"], Float[Tensor, "batch pool"]]:
        """Points of straight animals, their normals, 1 for those of the tail, and the area that each point stands for."""
        # body and tail each propose half of the pool; the areas make up for what their shares should be
        half = dice.shape[1] // 2
        body, body_normal, body_area = self._body_points(dice[:, :half])
        tail, tail_normal, tail_area = self._tail_points(dice[:, half:])
        area = torch.cat([body_area / half, tail_area / (dice.shape[1] - half)], 1)
        carried = torch.zeros_like(area)
        carried[:, half:] = 1
        return torch.cat([body, tail], 1), torch.cat([body_normal, tail_normal], 1), carried, area

    def _body_points(self, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points of the ellipsoids, normals, and the areas that they stand for (a sphere's, stretched)."""
        on_sphere = _directions(dice)
        radii = self.radii[:, None]
        cofactors = on_sphere * (radii.prod(-1, keepdim=True) / radii)
        stretch = cofactors.norm(dim=-1)
        points = on_sphere * radii
        points[..., 0] += BODY_X
        return points, cofactors / stretch[..., None], 4 * torch.pi * stretch

    def _tail_points(self, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points of the straight capsules, normals, and the areas that they stand for."""
        length, radius = self.tail_length[:, None], self.tail_radius[:, None]
        # Archimedes: a capsule's area is spread evenly over its extent, as a sphere's is
        place = dice[..., 0] * (length + 2 * radius) - radius
        on_axis = place.clamp(min=0).minimum(length)
        along = ((place - on_axis) / radius).clamp(-1, 1)
        ring, turn = (1 - along * along).clamp(min=0).sqrt(), 2 * torch.pi * dice[..., 1]
        normal = torch.stack([along, ring * turn.cos(), ring * turn.sin()], -1)
        points = radius[..., None] * normal
        points[..., 0] += self.hinge_x[:, None] + on_axis
        return points, normal, (2 * torch.pi * radius * (length + 2 * radius)).expand_as(place)

    def silhouettes(self, size: int = 16, framing: str = "world") -> Float[Tensor, "batch frames size size"]:
        """How much of each pixel an orthographic camera that looks along -z sees covered; x to the right, y up.

        Args:
            size: pixels a side.
            framing: ``world``: the square [-1, 1]^2. ``box``: the square around the silhouettes of all frames with a tenth of its
                side as margin, as real videos are cropped.
        """
        center, half = self._framing(framing)
        grid = (torch.arange(size, dtype=self.radii.dtype) + 0.5) * (2 / size) - 1
        x = (center[:, None, None, :1] + half * grid).expand(-1, 1, size, size)
        y = (center[:, None, None, 1:] - half * grid[:, None]).expand(-1, 1, size, size)
        radii = self.radii[:, :2, None, None, None]
        flat = torch.stack([(x - BODY_X) / radii[:, 0], y / radii[:, 1]], -1)
        length = flat.norm(dim=-1)
        steepness = torch.stack([flat[..., 0] / radii[:, 0], flat[..., 1] / radii[:, 1]], -1).norm(dim=-1)
        body = length * (length - 1) / steepness.clamp(min=1e-6)
        body = torch.where(length < 1e-3, -radii.amin(1), body)
        shown = (self.tail_length[:, None] * self.angles.cos())[..., None, None]
        x = x - self.hinge_x[:, None, None, None]
        off = x - torch.minimum(x.clamp(min=0), shown)
        tail = (off * off + y * y).sqrt() - self.tail_radius[:, None, None, None]
        return (0.5 - torch.minimum(body, tail) * size / (2 * half)).clamp(0, 1)

    def _framing(self, framing: str) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch 1 1 1"]]:
        """Centre and half side of what is seen."""
        zero = torch.zeros_like(self.hinge_x)
        if framing == "world":
            return torch.stack([zero, zero], -1), torch.ones_like(zero)[:, None, None, None]
        right = self.hinge_x + self.tail_length * self.angles.cos().amax(1) + self.tail_radius
        left = torch.minimum(BODY_X - self.radii[:, 0], self.hinge_x - self.tail_radius)
        right = torch.maximum(right, BODY_X + self.radii[:, 0])
        side = torch.maximum(right - left, 2 * self.radii[:, 1])
        return torch.stack([(left + right) / 2, zero], -1), (0.6 * side)[:, None, None, None]


def draw_creatures(dice: Float[Tensor, "batch dice"], times: Float[Tensor, "frames"], motion: str = "mixed") -> Creatures:
    """Animals of the study.

    The angle is ``c + A sin(2 pi f time + phase)``, held within 1.25 rad.

    Args:
        dice: ``NUM_CREATURE_DICE`` numbers in [0, 1) an animal, which fix it.
        times: of the frames; a clip lasts from 0 to 1.
        motion: ``mixed``, for training: half of the clips cross angle 0. ``const``: the tail stays on one side.

    Raises:
        ValueError: another motion or number of dice.

    Source: ActionMesh brief, 9.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion must be one of {', '.join(MOTIONS)}; got {motion!r}.")
    if dice.shape[1] != NUM_CREATURE_DICE:
        raise ValueError(f"A creature needs {NUM_CREATURE_DICE} dice; got {dice.shape[1]}.")
    between = lambda index, low, high: low + (high - low) * dice[:, index]
    radii = torch.stack([between(0, 0.30, 0.40), between(1, 0.18, 0.26), between(2, 0.18, 0.26)], -1)
    swing = between(5, 0.35, 0.70)
    middle = 1.2 * dice[:, 8] * swing if motion == "mixed" else swing + between(8, 0.15, 0.35)
    side = torch.where(dice[:, 9] < 0.5, -1.0, 1.0)
    turns = between(6, 0.5, 1.0)[:, None] * times + dice[:, 7, None]
    angles = (side * middle)[:, None] + swing[:, None] * (2 * torch.pi * turns).sin()
    angles = angles.clamp(-LARGEST_ANGLE, LARGEST_ANGLE)
    return Creatures(radii=radii, tail_length=between(3, 0.65, 0.85), tail_radius=between(4, 0.08, 0.12), angles=angles)


def creature_dice(seed: int) -> Float[Tensor, "dice"]:
    """Numbers for one animal from a seed; float64."""
    return torch.rand(NUM_CREATURE_DICE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _directions(dice: Float[Tensor, "*batch dice"]) -> Float[Tensor, "*batch 3"]:
    """Unit vectors, uniform on the sphere for uniform dice: Archimedes' hat box, with the height along x."""
    height = 2 * dice[..., 0] - 1
    ring = (1 - height * height).clamp(min=0).sqrt()
    turn = 2 * torch.pi * dice[..., 1]
    return torch.stack([height, ring * turn.cos(), ring * turn.sin()], -1)


def spread_choice(weight: Float[Tensor, "batch pool"], dice: Float[Tensor, "batch num"]) -> Int[Tensor, "batch num"]:
    """Indices drawn in proportion to their weights, evenly spread over the pool so that few repeat, in random order."""
    num = dice.shape[1]
    total = weight.double().cumsum(1)
    offset = dice[:, :1].double()
    places = (torch.arange(num, dtype=torch.float64) + offset) / num * total[:, -1:]
    chosen = torch.searchsorted(total, places, right=True).clamp(max=weight.shape[1] - 1)
    return chosen.gather(1, dice.argsort(1))
