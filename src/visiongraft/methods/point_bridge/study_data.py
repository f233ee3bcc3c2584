"""What the study's policies learn from: the same demonstrations for all, recorded once with points, an image and an unfiltered cloud."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visiongraft.methods.point_bridge.episodes import Episode, episode_from_demonstration, read_episodes, write_episodes
from visiongraft.methods.point_bridge.observing import Eyes, make_observer
from visiongraft.methods.point_bridge.study_options import StudyBudget
from visiongraft.robots.demonstrations import read_demonstrations
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.generation import collect, generate
from visiongraft.robots.observers import Observer
from visiongraft.robots.policy import Observation
from visiongraft.robots.scene_clouds import SceneCloud
from visiongraft.robots.subtasks import Settings
from visiongraft.robots.views import View
from visiongraft.training.order import derived_seed

CAMERA = "left"
NUM_POINTS = 128
"""Of every object, in training data and roll-outs."""
_RENDERED = ("images", "depth", "segmentation", "cameras")
_SETTINGS = Settings(trim_approach=True)
_OFFSET = (2, 5)


@dataclass(frozen=True)
class TrainingEyes:
    """What is recorded of a simulated demonstration. The environment renders the depth of one camera, see ``view``.

    Args:
        size: of the depth image.
        points: of every object, aligned to the depth image.
        scene_points: of the unfiltered cloud of the same image.
        image_size: side of the picture.
        seed: draws the points.
    """

    size: tuple[int, int]
    points: int
    scene_points: int
    image_size: int
    seed: int

    @property
    def view(self) -> View:
        """What the environment has to render."""
        return View(cameras=(CAMERA,), modalities=("depth",), size=self.size)

    def __call__(self, environment: RobotEnvironment) -> "TrainingObserver":
        """The observer of an environment."""
        return TrainingObserver(self, environment)


class TrainingObserver:
    """Adds ``robot_points``, aligned ``object_points``, ``scene_points`` and a picture; the depth image itself is not kept."""

    def __init__(self, eyes: TrainingEyes, environment: RobotEnvironment) -> None:
        self.environment, self.size = environment, (eyes.image_size, eyes.image_size)
        self.objects = make_observer(Eyes("aligned", CAMERA, size=eyes.size, points=eyes.points, seed=eyes.seed), environment)
        self.scene = SceneCloud(CAMERA, eyes.scene_points)

    def reset(self, observation: Observation) -> None:
        """An episode begins."""
        self.objects.reset(observation)
        self.scene.reset(observation)

    def __call__(self, observation: Observation) -> Observation:
        """The observation with everything that the policies learn from."""
        seen = _without_pictures(self.scene(self.objects(observation)))
        return {**seen, "images": {CAMERA: self.environment.render_view(CAMERA, ("images",), self.size)["images"]}}


@dataclass(frozen=True)
class FilteredEyes:
    """Filtered points of a twin demonstration; the pictures that they come from are not kept."""

    eyes: Eyes

    def __call__(self, environment: RobotEnvironment) -> "FilteredObserver":
        """The observer of an environment."""
        return FilteredObserver(make_observer(self.eyes, environment))


class FilteredObserver:
    """Another observer, without the pictures."""

    def __init__(self, inner: Observer) -> None:
        self.inner = inner

    def reset(self, observation: Observation) -> None:
        """An episode begins."""
        self.inner.reset(observation)

    def __call__(self, observation: Observation) -> Observation:
        """What the other observer gives, without the pictures."""
        return _without_pictures(self.inner(observation))


def _without_pictures(observation: Observation) -> Observation:
    return {name: value for name, value in observation.items() if name not in _RENDERED}


def twin_eyes(budget: StudyBudget, seed: int) -> Eyes:
    """What policies on points see in the twin."""
    return Eyes("segmentation", CAMERA, size=budget.camera_size, points=NUM_POINTS, seed=seed)


def make_demonstrations(task: str, seed: int, budget: StudyBudget, folder: Path) -> dict[str, Any]:
    """Scripted demonstrations, generated ones from them in simulation and in the twin, and the episodes that policies learn from.

    Writes ``simulation.safetensors`` and ``twin.safetensors`` to the folder, see :func:`read_simulation` and :func:`read_twin`. An
    interrupted call continues.

    Returns:
        Numbers: demonstrations, mean steps, attempts.
    """
    sizes = {"size": budget.camera_size, "points": NUM_POINTS, "scene_points": budget.scene_points, "image_size": budget.image_size}
    training, filtered = TrainingEyes(**sizes, seed=seed), FilteredEyes(twin_eyes(budget, seed))
    paths: dict[str, list[Path]] = {"simulation": [], "twin": []}
    attempts = 0
    for place, pair in enumerate(budget.pairs):
        source = folder / f"{pair}-source.hdf5"
        options: dict[str, Any] = {"pair": pair}
        collect(task, source, num=budget.sources, options=options, seed=derived_seed("sources", task, pair, seed), progress=False)
        common: dict[str, Any] = {"offset_range": _OFFSET, "settings": _SETTINGS, "progress": False}
        made = generate(
            task,
            source,
            folder / f"{pair}.hdf5",
            num=budget.demonstrations,
            options=options | {"view": training.view},
            seed=derived_seed("generated", task, pair, seed),
            make_observer=training,
            **common,
        )
        attempts += made.attempts
        paths["simulation"].append(made.path)
        if share := shares(budget.twin_demonstrations, len(budget.pairs))[place]:
            twin = generate(
                task,
                source,
                folder / f"{pair}-twin.hdf5",
                num=share,
                options=options | {"twin": True, "view": filtered.eyes.view},
                seed=derived_seed("twin", task, pair, seed),
                make_observer=filtered,
                **common,
            )
            paths["twin"].append(twin.path)
    episodes = {name: _episodes(files, (CAMERA,) if name == "simulation" else ()) for name, files in paths.items()}
    for name, found in episodes.items():
        write_episodes(folder / f"{name}.safetensors", found)
    steps = [len(episode) for episode in episodes["simulation"]]
    return {
        "demonstrations": len(steps),
        "steps": sum(steps) / len(steps),
        "twin demonstrations": len(episodes["twin"]),
        "attempts": attempts,
    }


def shares(total: int, parts: int) -> list[int]:
    """``total`` in as even parts as it goes, the larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _episodes(paths: Sequence[Path], cameras: Sequence[str]) -> list[Episode]:
    episodes: list[Episode] = []
    for path in paths:
        with read_demonstrations(path) as file:
            episodes += [episode_from_demonstration(demonstration, cameras) for demonstration in file]
    return episodes


def read_simulation(folder: Path, images: bool) -> list[Episode]:
    """Episodes of :func:`make_demonstrations` in simulation, in memory: points, clouds and, where they are asked for, pictures."""
    episodes = read_episodes(folder / "simulation.safetensors")
    return [episode if images else replace(episode, images=None) for episode in episodes]


def read_twin(folder: Path) -> list[Episode]:
    """Episodes of :func:`make_demonstrations` in the twin, in memory: filtered points."""
    return list(read_episodes(folder / "twin.safetensors"))
