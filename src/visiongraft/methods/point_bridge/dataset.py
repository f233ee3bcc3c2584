"""What the policy trains on: windows of episodes, drawn by task, episode and time; and their statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from visiongraft.methods.point_bridge.episodes import Episode
from visiongraft.methods.point_bridge.language import TextEncoder
from visiongraft.methods.point_bridge.model import PointBridgeModel
from visiongraft.robots.normalisation import POSE_NAMES, MinMax, statistics
from visiongraft.training.order import derived_seed

POINT_NOISE = 0.01
SIM_SHARE = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskEpisodes:
    """Episodes of one task file.

    Args:
        task: name, such as ``tabletop/stack``.
        episodes: any sequence: a list, or a file that reads them when they are asked for.
        weight: probability of being drawn, up to a common factor.
        point_noise: standard deviation (metres, each coordinate) of the noise on object points; 0 for real data.

    Raises:
        ValueError: no episodes, or a negative weight or noise.
    """

    task: str
    episodes: Sequence[Episode]
    weight: float = 1.0
    point_noise: float = POINT_NOISE

    def __post_init__(self) -> None:
        if not len(self.episodes):
            raise ValueError(f"The task {self.task} has no episodes; record or generate demonstrations first.")
        if not self.weight >= 0 or not self.point_noise >= 0:
            raise ValueError(f"weight and point_noise must be 0 or more; got {self.weight} and {self.point_noise} for {self.task}.")


def co_training(sim: Sequence[TaskEpisodes], real: Sequence[TaskEpisodes], sim_share: float = SIM_SHARE) -> list[TaskEpisodes]:
    """Simulated and real task files in one loader: ``sim_share`` of the samples are simulated, and real points get no noise.

    Raises:
        ValueError: a share outside (0, 1), or one side without tasks.

    Source: brief, 5 (co-training).
    """
    if not 0 < sim_share < 1 or not sim or not real:
        raise ValueError(f"Co-training needs simulated and real tasks and a share in (0, 1); got {len(sim)}, {len(real)} and {sim_share}.")
    return [
        *(replace(task, weight=sim_share / len(sim)) for task in sim),
        *(replace(task, weight=(1 - sim_share) / len(real), point_noise=0.0) for task in real),
    ]


def action_targets(episode: Episode, action_mode: str) -> Float[np.ndarray, "steps action"]:
    """Action of every step: the pose (or the robot points) reached at the next step and its gripper command; the last step is repeated.

    Args:
        episode: with robot points for ``points``.
        action_mode: ``pose`` or ``points``, see ``PointBridgeModel``.

    Source: brief, 2.6 (action).
    """
    after = np.minimum(np.arange(len(episode)) + 1, len(episode) - 1)
    if action_mode == "pose":
        return episode.proprioception[after]
    points, gripper = _needed(episode, "robot_points")[after], episode.proprioception[after, 9:]
    return np.concatenate([points.reshape(len(episode), -1), np.repeat(gripper, 3, axis=1)], axis=1)


def policy_statistics(tasks: Sequence[TaskEpisodes], model: PointBridgeModel, range_floor: float = 0.0) -> dict[str, MinMax]:
    """Statistics of ``points`` (the robot's key points), ``proprioception`` and ``actions`` over all episodes.

    A scene cloud is normalised by the robot's points where there are any, else by its own.

    Args:
        tasks: training data.
        model: says what is seen and predicted.
        range_floor: 0 is the paper's; the small study uses 0.1.

    Raises:
        ValueError: a dimension that never changes, while ``range_floor`` is 0.
    """

    def arrays(episode: Episode) -> dict[str, np.ndarray]:
        kept = {"proprioception": episode.proprioception, "actions": action_targets(episode, model.config.action_mode)}
        if model.config.observed == "points" or episode.robot_points is not None:
            kept["points"] = _needed(episode, "robot_points")
        elif model.config.observed == "scene":
            kept["points"] = _needed(episode, "scene_points")
        return kept

    names = {"proprioception": POSE_NAMES}
    if model.config.action_mode == "pose":
        names["actions"] = POSE_NAMES
    episodes = chain.from_iterable(task.episodes for task in tasks)
    return statistics((arrays(episode) for episode in episodes), range_floor=range_floor, names=names)


class PolicyDataset(Dataset):
    """Normalised windows: a task by its weight, an episode of it uniformly, a time of it uniformly (short episodes weigh more per step).

    An item is a pure function of the seed and its index. It has ``actions`` (history, chunk, action) and what the model looks at, see
    ``PointBridgeModel.forward``. Before an episode its first step is repeated, after it its last action. The label of every step of a
    history begins at that step (the authors' code shifts older ones, which is the same with a history of 1).

    Args:
        tasks: where samples come from.
        model: only its configuration is used.
        statistics: of :func:`policy_statistics`.
        text_encoder: for models with language.
        cameras: whose images an image policy sees, in the model's order.
        points_per_object: random subset of an object's points in every sample (not the same for each object); None: all.
        pad_objects: with tasks of different numbers of objects: repeat the last object, masked, up to the most. False refuses.
        image_shift: largest random shift of images in pixels, with edges repeated; augmentation for image policies.
        length: items; the Trainer draws all of them before any comes again.
        seed: of everything that is drawn.

    Raises:
        ValueError: no tasks, tasks that do not fit together, or episodes that lack what the model looks at.

    Source: brief, 2.7 (sampling), 2.3 (noise), 5 and 10.
    """

    def __init__(
        self,
        tasks: Sequence[TaskEpisodes],
        model: PointBridgeModel,
        statistics: dict[str, MinMax],
        *,
        text_encoder: TextEncoder | None = None,
        cameras: Sequence[str] = (),
        points_per_object: int | None = None,
        pad_objects: bool = True,
        image_shift: int = 0,
        length: int = 2**20,
        seed: int = 0,
    ) -> None:
        self.tasks, self.config, self.statistics, self.cameras = list(tasks), model.config, statistics, tuple(cameras)
        self.points_per_object, self.image_shift, self.length, self.seed = points_per_object, image_shift, length, seed
        weights = np.array([task.weight for task in self.tasks])
        if not weights.sum() > 0:
            raise ValueError("Training needs at least one task with a positive weight.")
        self._probabilities = weights / weights.sum()
        if self.config.observed == "image" and len(self.cameras) != self.config.num_cameras:
            raise ValueError(f"The model sees {self.config.num_cameras} cameras; name as many, got {', '.join(self.cameras) or 'none'}.")
        if self.config.use_language and text_encoder is None:
            raise ValueError("The model has a language token; give a text_encoder, or build it with use_language=False.")
        firsts = [task.episodes[0] for task in self.tasks]
        self.object_counts = self._count_objects(firsts, pad_objects) if self.config.observed == "points" else {}
        self._text_encoder = text_encoder
        self._languages: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng(derived_seed(self.seed, "window", index))
        task = self.tasks[rng.choice(len(self.tasks), p=self._probabilities)]
        episode = task.episodes[int(rng.integers(len(task.episodes)))]
        return self.window(episode, int(rng.integers(len(episode))), task.point_noise, rng)

    def window(self, episode: Episode, time: int, point_noise: float, rng: np.random.Generator) -> dict[str, Tensor]:
        """The sample of one time of an episode; see the class."""
        seen = np.maximum(np.arange(time - self.config.history + 1, time + 1), 0)
        item = {"actions": self._labels(episode, seen)}
        if self.config.use_proprio:
            item["proprioception"] = self.statistics["proprioception"].normalise(episode.proprioception[seen])
        if self.config.use_language:
            item["language"] = self._language(episode.instruction)
        if self.config.observed == "points":
            item["robot_points"] = self.statistics["points"].normalise(_needed(episode, "robot_points")[seen])
            item |= self._object_points(_needed(episode, "object_points")[seen], point_noise, rng)
        elif self.config.observed == "scene":
            points = _noisy(_needed(episode, "scene_points")[seen], point_noise, rng)
            item["scene_points"] = self.statistics["points"].normalise(points)
        else:
            item["images"] = self._images(episode, seen, rng)
        return {name: torch.from_numpy(np.ascontiguousarray(v, None if v.dtype == bool else np.float32)) for name, v in item.items()}

    def _labels(self, episode: Episode, seen: np.ndarray) -> np.ndarray:
        times = np.minimum(seen[:, None] + np.arange(self.config.chunk), len(episode) - 1)
        return self.statistics["actions"].normalise(action_targets(episode, self.config.action_mode)[times])

    def _language(self, instruction: str) -> np.ndarray:
        if instruction not in self._languages:
            assert self._text_encoder is not None  # checked at the start
            self._languages[instruction] = self._text_encoder([instruction])[0]
        return self._languages[instruction]

    def _object_points(self, points: np.ndarray, noise: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
        count = points.shape[1]
        if count not in self.object_counts.values():
            told = ", ".join(f"{task} has {number}" for task, number in self.object_counts.items())
            raise ValueError(
                f"An episode has {count} objects; the first of each task: {told}. All episodes of a task have the same objects."
            )
        points = _noisy(subset(points, self.points_per_object, rng), noise, rng)
        points, mask = pad_objects(points, max(self.object_counts.values()))
        padded = {"object_mask": mask} if len(set(self.object_counts.values())) > 1 else {}
        return {"object_points": self.statistics["points"].normalise(points), **padded}

    def _images(self, episode: Episode, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        views = []
        for camera in self.cameras:
            if camera not in (episode.images or {}):
                raise ValueError(f"An episode has no images of {camera!r}, only of {', '.join(episode.images or {}) or 'no camera'}.")
            views.append(_shifted(episode.images[camera][seen], self.image_shift, rng))  # pyright: ignore[reportOptionalSubscript]
        return np.stack(views, axis=1).transpose(0, 1, 4, 2, 3).astype(np.float32) / 255

    def _count_objects(self, firsts: list[Episode], pad: bool) -> dict[str, int]:
        counts = {task.task: _needed(e, "object_points").shape[1] for task, e in zip(self.tasks, firsts, strict=True)}
        if not pad and len(set(counts.values())) > 1:
            first = next(iter(counts.items()))
            other = next(pair for pair in counts.items() if pair[1] != first[1])
            raise ValueError(f"Task {first[0]} has {first[1]} objects, task {other[0]} {other[1]}: pad or train separately.")
        return counts


def subset(points: Float[np.ndarray, "history objects points 3"], count: int | None, rng: np.random.Generator) -> np.ndarray:
    """``count`` random points of each object, the same ones at every step; all where None is given or there are no more.

    Raises:
        ValueError: a count that is not positive.
    """
    if count is not None and count < 1:
        raise ValueError(f"points_per_object must be at least 1; got {count}.")
    total = points.shape[2]
    if count is None or count >= total:
        return points
    chosen = rng.random((points.shape[1], total)).argpartition(count, axis=1)[:, :count]
    return np.take_along_axis(points, chosen[None, :, :, None], axis=2)


def pad_objects(points: Float[np.ndarray, "history objects points 3"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(points of ``count`` objects, the last repeated; which of them are there)."""
    there = points.shape[1]
    return points[:, np.minimum(np.arange(count), there - 1)], np.arange(count) < there


def _noisy(points: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    return points + rng.standard_normal(points.shape, np.float32) * np.float32(noise) if noise else points


def _shifted(images: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Images moved by up to ``most`` pixels each way, all steps alike."""
    if not most:
        return images
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    y, x = rng.integers(2 * most + 1, size=2)
    return padded[:, y : y + images.shape[1], x : x + images.shape[2]]


def _needed(episode: Episode, name: str) -> np.ndarray:
    values = getattr(episode, name)
    if values is None:
        raise ValueError(f"An episode has no {name}; record it with an observer that adds them.")
    return values
