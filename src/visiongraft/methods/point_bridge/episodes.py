"""Episodes as a policy learns from them: arrays in memory, in one safetensors file, or made from demonstrations."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visiongraft.media.files import atomic_write
from visiongraft.robots.episodes import Demonstration
from visiongraft.robots.poses import rotation_6d

_FORMAT = "visiongraft-episodes-1"
_ARRAYS = ("proprioception", "robot_points", "object_points", "scene_points")


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One demonstration, reduced to what policies see. Frames: robot base; metres.

    Args:
        instruction: what is done.
        proprioception: (steps, 10): position, 6D rotation (first two rows), last gripper command. The action of a step is the next
            step's row: the pose that was reached, and the gripper command that was given.
        robot_points: (steps, key points, 3); 8 on the authors' gripper.
        object_points: (steps, objects, points, 3).
        scene_points: (steps, points, 3), for policies on an unfiltered cloud.
        images: (steps, height, width, 3) by camera, for image policies.

    Raises:
        ValueError: arrays of different lengths or wrong shapes, or numbers that are not finite.
    """

    # shapes are checked below, with a sentence that says what does not fit
    instruction: str
    proprioception: Float[np.ndarray, "..."]
    robot_points: Float[np.ndarray, "..."] | None = None
    object_points: Float[np.ndarray, "..."] | None = None
    scene_points: Float[np.ndarray, "..."] | None = None
    images: dict[str, UInt8[np.ndarray, "..."]] | None = None

    def __post_init__(self) -> None:
        shapes = {"proprioception": (10,), "robot_points": (None, 3), "object_points": (None, None, 3), "scene_points": (None, 3)}
        if not len(self.proprioception):
            raise ValueError("An episode needs at least one step.")
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None:
                continue
            fits = values.ndim == len(shape) + 1 and all(want in (None, got) for want, got in zip(shape, values.shape[1:], strict=True))
            if not fits:
                wanted = ", ".join(["steps", *("any" if n is None else str(n) for n in shape)])
                raise ValueError(f"{name} of an episode must have the shape ({wanted}); got {values.shape}.")
            require_finite(values, name)
        arrays = {name: getattr(self, name) for name in _ARRAYS} | {f"images of {name}": v for name, v in (self.images or {}).items()}
        for name, values in arrays.items():
            if values is not None and len(values) != len(self):
                raise ValueError(f"The episode has {len(self)} steps of proprioception but {len(values)} of {name}.")

    def __len__(self) -> int:
        return len(self.proprioception)


def require_finite(values: Float[np.ndarray, "..."], name: str) -> None:
    """Refuses numbers that are not finite.

    Raises:
        ValueError: says how many points (rows of the last axis) hold them.
    """
    bad = ~np.isfinite(values).all(axis=-1)
    if bad.any():
        thing = "points of " if name.endswith("_points") else "rows of "
        raise ValueError(f"{int(bad.sum())} of {bad.size} {thing}{name} are not finite after lifting; check the depth map.")


def episode_from_demonstration(demonstration: Demonstration, cameras: Sequence[str] = ()) -> Episode:
    """What a policy learns from a recorded demonstration.

    Args:
        demonstration: recorded with an observer, so that its observations have points.
        cameras: whose images are kept.

    Raises:
        ValueError: a camera that was not recorded.
    """
    there = demonstration.observations
    proprioception = there.get("proprioception")
    if proprioception is None:
        before = np.concatenate([[-1.0], demonstration.actions[:-1, 6]])[:, None]  # the last command, open at first
        poses = demonstration.gripper_poses
        proprioception = np.concatenate([poses[:, :3, 3], rotation_6d(poses[:, :3, :3]), before], axis=1)
    images = {}
    for camera in cameras:
        if f"{camera}_image" not in there:
            raise ValueError(
                f"The demonstration has no images of {camera!r}, only {', '.join(there) or 'nothing'}; record it with that camera in view."
            )
        images[camera] = there[f"{camera}_image"]
    points = {name: there[name].astype(np.float32) for name in _ARRAYS[1:] if name in there}
    return Episode(instruction=demonstration.instruction, proprioception=proprioception.astype(np.float32), images=images or None, **points)


def write_episodes(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Writes episodes to one safetensors file, whole or not at all; :func:`read_episodes` gives them back.

    Raises:
        ValueError: no episodes.
    """
    tensors: dict[str, np.ndarray] = {}
    instructions: list[str] = []
    for number, episode in enumerate(episodes):
        instructions.append(episode.instruction)
        arrays = {name: getattr(episode, name) for name in _ARRAYS} | {f"images/{k}": v for k, v in (episode.images or {}).items()}
        tensors |= {f"{number}/{name}": np.ascontiguousarray(values) for name, values in arrays.items() if values is not None}
    if not instructions:
        raise ValueError("There are no episodes to write.")
    with atomic_write(path) as file:
        save_file(tensors, file, metadata={"format": _FORMAT, "instructions": json.dumps(instructions)})


class EpisodeFile(Sequence[Episode]):
    """Episodes of a file that :func:`write_episodes` wrote; each is read when it is asked for.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another kind of file, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        try:
            with safe_open(self.path, "numpy") as file:
                metadata, self._keys = file.metadata() or {}, list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is no safetensors file, or is damaged ({error}).") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{self.path} is a safetensors file without episodes; write it with write_episodes.")
        self.instructions: list[str] = json.loads(metadata["instructions"])

    def __len__(self) -> int:
        return len(self.instructions)

    def __getitem__(self, index: int) -> Episode:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        prefix = f"{index % len(self)}/"
        with safe_open(self.path, "numpy") as file:
            arrays = {key.removeprefix(prefix): file.get_tensor(key) for key in self._keys if key.startswith(prefix)}
        images = {key.removeprefix("images/"): arrays.pop(key) for key in list(arrays) if key.startswith("images/")}
        options: dict[str, Any] = arrays
        return Episode(instruction=self.instructions[index], images=images or None, **options)


def read_episodes(path: str | Path) -> EpisodeFile:
    """Opens a file that :func:`write_episodes` wrote; see :class:`EpisodeFile`."""
    return EpisodeFile(path)
