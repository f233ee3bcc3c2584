"""What the stages train on: clips of tracked surface points with the frames that show them, made up or read from files.

An item is a dict of float32 tensors, which PyTorch's default collation stacks:

- ``points`` (frames, points, 6): xyz and unit normal; the i-th point is the same in every frame.
- ``frames`` (frames, 4, height, width): straight RGBA in [0, 1].
- ``framestep`` (frames,): number of each frame in its clip.
- ``queries`` (frames, queries, 3) and ``sdf`` (frames, queries), negative inside: only where ``near`` or ``uniform`` is not 0.
- ``context`` (frames, tokens, dim): image features, only from files that hold them.

Source: ActionMesh brief, 5 (data), 2.7 and 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from visiongraft.training.order import derived_seed
from visiongraft.worlds.animated_shapes import KINDS, AnimatedShape, clip_times, make_shape
from visiongraft.worlds.creatures import FRAMINGS, MOTIONS, Creatures, creature_dice, draw_creatures
from visiongraft.worlds.mesh_cameras import MeshCamera, orbit_camera
from visiongraft.worlds.mesh_rasteriser import render_animation

Item = dict[str, Tensor]
_SHADE = 0.5  # of a creature's silhouette, so that toy_context sees it alike with alpha and on white


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Where distances to the surface are asked for.

    Args:
        near: points of the surface, moved by noise.
        uniform: points, uniform in [-1, 1]^3.
        sigma: standard deviation of the noise, each coordinate.

    Raises:
        ValueError: negative numbers.
    """

    near: int = 0
    uniform: int = 0
    sigma: float = 0.06

    def __post_init__(self) -> None:
        if min(self.near, self.uniform) < 0 or not self.sigma >= 0:
            raise ValueError(f"near, uniform and near_sigma must not be negative; got {self.near}, {self.uniform} and {self.sigma}.")

    def __len__(self) -> int:
        return self.near + self.uniform

    def draw(self, points: Float[Tensor, "t p 6"], generator: torch.Generator) -> Float[Tensor, "t q 3"]:
        """Near ones first."""
        frames, count = points.shape[:2]
        pick = torch.randint(count, (frames, self.near, 1), generator=generator).expand(-1, -1, 3)
        near = points[..., :3].gather(1, pick) + self.sigma * torch.randn(frames, self.near, 3, generator=generator)
        return torch.cat([near, 2 * torch.rand(frames, self.uniform, 3, generator=generator) - 1], 1)


class ProceduralAnimations(Dataset):
    """Clips of made-up shapes; an item is a pure function of the seed and its index.

    Creatures are made many at once where a whole batch is asked for (``__getitems__``): the small trainings live on that. The other
    kinds are rasterised one by one, several milliseconds a frame: write them to files first, see
    :func:`visiongraft.methods.action_mesh.animation_files.write_animations`.

    Args:
        kinds: drawn with equal chances; of ``visiongraft.worlds.animated_shapes.KINDS``.
        motion: of creatures: ``mixed`` or ``const``.
        clip_frames: frames of a clip, which is one period or less of the motion.
        num_frames: frames of an item, drawn from those of the clip without repetition, ascending; None: all. 1 for what learns from
            single frames (the VAE, the base).
        num_points: tracked points of an item.
        near, uniform, near_sigma: of the distance queries, see :class:`Queries`; none by default.
        image_size: side of the frames.
        framing: of a view from the front: ``box``: the square around the whole clip with a tenth as margin, as
            :func:`visiongraft.methods.action_mesh.frames.prepare_frames` crops; ``world``: the square [-1, 1]^2.
        random_view: the camera's azimuth is uniform and its polar angle in [40, 85] degrees, in perspective, as in the paper's
            training data; else it looks along -z, orthographic. Creatures are then rasterised, too.
        length: items.
        seed: of everything that is drawn.

    Raises:
        ValueError: an unknown kind, motion or framing, sizes below 1, or more frames than a clip has.

    Source: ActionMesh brief, 5 and 9.
    """

    def __init__(
        self,
        *,
        kinds: Sequence[str] = ("creature",),
        motion: str = "mixed",
        clip_frames: int = 6,
        num_frames: int | None = None,
        num_points: int = 128,
        near: int = 0,
        uniform: int = 0,
        near_sigma: float = 0.06,
        image_size: int = 16,
        framing: str = "box",
        random_view: bool = False,
        length: int = 2**20,
        seed: int = 0,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds or motion not in MOTIONS or framing not in FRAMINGS:
            raise ValueError(
                f"kinds are of {', '.join(KINDS)}, motion is {' or '.join(MOTIONS)}, framing is {' or '.join(FRAMINGS)}; "
                f"got {', '.join(kinds) or 'no kinds'}, {motion!r} and {framing!r}."
            )
        if min(clip_frames, num_points, image_size, length) < 1:
            raise ValueError(
                f"clip_frames, num_points, image_size and length must be at least 1; "
                f"got {clip_frames}, {num_points}, {image_size} and {length}."
            )
        self.num_frames = check_num_frames(num_frames, clip_frames)
        self.kinds, self.motion, self.clip_frames, self.num_points = tuple(kinds), motion, clip_frames, num_points
        self.queries = Queries(near=near, uniform=uniform, sigma=near_sigma)
        self.image_size, self.framing, self.random_view, self.length, self.seed = image_size, framing, random_view, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Items of these indices; each is what it would be alone."""
        kinds = [self.kind(index) for index in indices]
        fast = [] if self.random_view else [place for place, kind in enumerate(kinds) if kind == "creature"]
        items = dict(zip(fast, self._creature_items([indices[place] for place in fast]), strict=True))
        for place, index in enumerate(indices):
            if place not in items:
                items[place] = self._shape_item(index)
        return [items[place] for place in range(len(indices))]

    def kind(self, index: int) -> str:
        """What an item shows.

        Raises:
            IndexError: outside the data set.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"The data set has {self.length} items; got index {index}.")
        return self.kinds[derived_seed(self.seed, "kind", index) % len(self.kinds)]

    def shape(self, index: int) -> AnimatedShape:
        """The shape of an item, with its mesh. A creature is the same one as in the item."""
        return make_shape(self.kind(index), derived_seed(self.seed, "shape", index), self.motion)

    def creatures(self, indices: Sequence[int]) -> Creatures:
        """The creatures of some items at all frames of their clips, with their angles and distance fields.

        Raises:
            ValueError: items that are no creatures.
        """
        others = [index for index in indices if self.kind(index) != "creature"]
        if others:
            raise ValueError(f"Item {others[0]} is a {self.kind(others[0])}, no creature.")
        dice = torch.stack([creature_dice(derived_seed(self.seed, "shape", index)) for index in indices])
        return draw_creatures(dice.float(), clip_times(self.clip_frames), self.motion)

    def _creature_items(self, indices: Sequence[int]) -> list[Item]:
        if not indices:
            return []
        creatures = self.creatures(indices)
        generators = [self._generator(index) for index in indices]
        steps = torch.stack([draw_steps(self.clip_frames, self.num_frames, generator) for generator in generators])
        pictures = creatures.silhouettes(self.image_size, self.framing)
        pictures = pictures.gather(1, steps[..., None, None].expand(-1, -1, *pictures.shape[2:]))
        frames = torch.stack([torch.full_like(pictures, _SHADE)] * 3 + [pictures], 2)
        shown = creatures.frames(steps)
        dice = torch.stack([torch.rand(2 * self.num_points + 2, 4, generator=generator) for generator in generators])
        points = shown.surface(dice, self.num_points)
        items: dict[str, Tensor] = {"points": points, "frames": frames, "framestep": steps.float()}
        if len(self.queries):
            items["queries"] = torch.stack([self.queries.draw(p, generator) for p, generator in zip(points, generators, strict=True)])
            items["sdf"] = shown.sdf(items["queries"])
        return [{name: values[place] for name, values in items.items()} for place in range(len(indices))]

    def _shape_item(self, index: int) -> Item:
        shape, generator = self.shape(index), self._generator(index)
        steps = draw_steps(self.clip_frames, self.num_frames, generator)
        times = clip_times(self.clip_frames)[steps]
        points = shape.surface(self.num_points, times, generator)
        whole = shape.vertices(clip_times(self.clip_frames))
        camera = self._camera(whole, generator)
        frames = render_animation(whole[steps], shape.faces, camera, self.image_size, color=shape.color, supersample=4)
        item = {"points": points, "frames": frames, "framestep": steps.float()}
        if len(self.queries):
            item["queries"] = self.queries.draw(points, generator)
            item["sdf"] = shape.sdf(item["queries"], times)
        return item

    def _camera(self, vertices: Float[Tensor, "t v 3"], generator: torch.Generator) -> MeshCamera:
        if self.random_view:
            azimuth, polar = torch.rand(2, generator=generator).tolist()
            return orbit_camera(360 * azimuth, 90 - (40 + 45 * polar), hfov_deg=40.0)
        if self.framing == "world":
            return orbit_camera(half_width=1.0)
        low, high = vertices[..., :2].flatten(0, 1).aminmax(dim=0)
        center = torch.cat([(low + high) / 2, torch.zeros(1)])
        return orbit_camera(half_width=0.6 * float((high - low).max()), target=center)

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, "item", index))


def check_num_frames(num_frames: int | None, available: int) -> int:
    """Frames of an item: all for None.

    Raises:
        ValueError: fewer than 1, or more than there are.
    """
    num_frames = available if num_frames is None else num_frames
    if not 1 <= num_frames <= available:
        raise ValueError(f"An item has from 1 to {available} frames, those of a clip; got num_frames {num_frames}.")
    return num_frames


def draw_steps(available: int, num_frames: int, generator: torch.Generator) -> Int[Tensor, "num_frames"]:
    """Different frames of a clip, ascending."""
    return torch.randperm(available, generator=generator)[:num_frames].sort().values
