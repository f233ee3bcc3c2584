"""Pictures of the study: the twin's looks, and an episode, with the points that the policy sees drawn over the camera's image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from visiongraft.geometry.lifting import project_points
from visiongraft.methods.point_bridge.observing import Eyes, make_observer
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.study_data import CAMERA, twin_eyes
from visiongraft.methods.point_bridge.study_options import StudyBudget
from visiongraft.robots.cameras import Camera
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.environments import make_environment
from visiongraft.robots.policy import Observation
from visiongraft.robots.rollout_episode import EpisodeRules, EpisodeSlot, EpisodeSpec, Recording, Waiting
from visiongraft.studies.plots import plot_style, save_figure
from visiongraft.training.order import derived_seed

TWIN_PICTURE, EPISODE_PICTURE = "twins.png", "episode.png"
_SIZE = (240, 320)
_TWINS, _FRAMES = 3, 8
_COLOURS = ("#ff5a4d", "#35c4ff", "#ffd23f", "#7bdc6c")


def twin_sheet(task: str, seed: int, budget: StudyBudget, path: Path) -> Path:
    """Writes a start of two pairs, in simulation and in three twins, with the points that a policy is given there."""
    simulation, twin = (replace(twin_eyes(budget, seed), perception=name, size=_SIZE) for name in ("aligned", "segmentation"))
    rows: list[list[Panel]] = []
    for pair in budget.pairs[:2]:
        nominal = make_environment(task, pair=pair)
        nominal.reset(seed=_seed(seed, pair, 0))
        start = nominal.get_state()
        row = [_seen(simulation, start, _seed(seed, pair, 0), task, pair=pair)]
        row += [_seen(twin, start, _seed(seed, pair, look), task, pair=pair, twin=True) for look in range(1, _TWINS + 1)]
        rows.append([_panel(observation) for observation in row])
    titles = ["simulation", *(f"twin {look}" for look in range(1, _TWINS + 1))]
    return _sheet(rows, [titles] * len(rows), path)


def _seed(seed: int, pair: int, look: int) -> int:
    return derived_seed("pictures", seed, pair, look) % 2**31


def _seen(eyes: Eyes, start: np.ndarray, look: int, task: str, **options: Any) -> Observation:
    """The image of a start in one look, and the points."""
    environment = make_environment(task, view=replace(eyes.view, modalities=("images", "depth", "segmentation")), **options)
    environment.reset(seed=look)
    environment.set_state(start)
    observation, observer = environment.observe(), make_observer(eyes, environment)
    observer.reset(observation)
    return observer(observation)


def episode_sheet(policy: PointBridgePolicy, task: str, pair: int, start: int, budget: StudyBudget, seed: int, path: Path) -> bool:
    """Rolls one episode out in the twin as the study does and writes larger frames of it; returns whether it succeeded."""
    eyes = twin_eyes(budget, seed)
    rules = EpisodeRules(convention=policy.convention, max_steps=budget.max_steps)
    environments: list[RobotEnvironment] = []

    def watched(environment: RobotEnvironment) -> Any:
        environments.append(environment)
        return make_observer(eyes, environment)

    slot = EpisodeSlot(rules, make_environment, watched, eyes.view, Recording())
    policy.reset()
    event = slot.start(EpisodeSpec(label=task, task=task, options={"pair": pair, "twin": True}, index=0, seed=start))
    moments: list[Panel] = []
    while isinstance(event, Waiting):
        moments.append(_panel(event.observation | _larger(environments[-1])))
        event = slot.advance(policy.act(event.observation))
    slot.close()
    if not moments:
        raise ValueError(f"The episode to be shown ended before its first step: {event.result.detail}")
    shown = np.unique(np.linspace(0, len(moments) - 1, _FRAMES).round().astype(int)).tolist()
    panels = [moments[index] for index in shown]
    titles = [f"step {index}" for index in shown]
    columns = -(-len(panels) // 2)
    rows = [slice(0, columns), slice(columns, None)] if len(panels) > 1 else [slice(0, 1)]
    _sheet([panels[row] for row in rows], [titles[row] for row in rows], path)
    return event.result.success


def _larger(environment: RobotEnvironment) -> Observation:
    """The camera's image at the size that is shown."""
    image = environment.render_view(CAMERA, ("images",), _SIZE)["images"]
    return {"images": {CAMERA: image}, "cameras": {CAMERA: environment.camera(CAMERA, _SIZE)}}


Panel = tuple[np.ndarray, list[Float[np.ndarray, "_ 2"]]]
"""An image, and the pixels of each group of points; those of the robot come last."""


def _panel(observation: Observation) -> Panel:
    camera = observation["cameras"][CAMERA]
    groups = [*observation["object_points"], observation["robot_points"]]
    return observation["images"][CAMERA], [_pixels(points, camera) for points in groups]


def _pixels(points: np.ndarray, camera: Camera) -> Float[np.ndarray, "points 2"]:
    matrices = torch.from_numpy(camera.intrinsics), torch.from_numpy(camera.base_to_camera)
    return project_points(torch.from_numpy(points.astype(np.float64)), *matrices)[0].numpy()


def _sheet(rows: Sequence[Sequence[Panel]], titles: Sequence[Sequence[str]], path: Path) -> Path:
    import matplotlib.pyplot as plt

    columns = max(map(len, rows))
    height, width = rows[0][0][0].shape[:2]
    with plot_style():
        figure, axes = plt.subplots(len(rows), columns, figsize=(2.6 * columns, (2.6 * height / width + 0.25) * len(rows)), squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for line, row, words in zip(axes, rows, titles, strict=True):
            for axis, (image, groups), title in zip(line, row, words, strict=False):  # a last row may be shorter
                axis.imshow(image)
                for number, pixels in enumerate(groups):
                    colour = "white" if number == len(groups) - 1 else _COLOURS[number % len(_COLOURS)]
                    axis.scatter(*(pixels - 0.5).T, s=2.5, c=colour, linewidths=0)  # imshow's pixel centres are integers
                axis.set_xlim(-0.5, width - 0.5)
                axis.set_ylim(height - 0.5, -0.5)
                axis.set_title(title, fontsize=8)
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.12 / len(rows), wspace=0.03, hspace=0.12)
        save_figure(figure, path)
        plt.close(figure)
    return path
