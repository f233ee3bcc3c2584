"""Plots of the study: success by policy, and over numbers of points and camera errors."""

from pathlib import Path
from typing import Any

import numpy as np

from visiongraft.methods.point_bridge.study_cells import CAMERA_ERRORS, FEWER_POINTS, NEW_PAIR, SIMULATION, TWIN
from visiongraft.methods.point_bridge.study_data import NUM_POINTS
from visiongraft.methods.point_bridge.study_pictures import EPISODE_PICTURE, TWIN_PICTURE
from visiongraft.methods.point_bridge.study_policies import POINTS, SCENE, VARIANTS
from visiongraft.methods.point_bridge.study_values import Pooled, Results, pooled, rates
from visiongraft.studies import Figure
from visiongraft.studies.plots import plot_style, save_figure

_CELLS = {SIMULATION: "#9aa3ad", TWIN: "#3b6fb6", NEW_PAIR: "#4a9aa5"}


def draw_figures(folder: Path, results: Results) -> list[Figure]:
    """Plots of the measurements, among the pictures that stand in the folder."""
    twin = Figure(
        title="A start in simulation, and three of its twins",
        path=TWIN_PICTURE,
        alt="The same tabletop in simulation and in three twins, each with the points that the policy is given",
        caption="The same places of the objects. The policy sees only the dots: points on every object, and 8 on the gripper (white). "
        "In simulation they come from the objects' surfaces, in the twins from noisy rendered depth.",
    )
    episode = Figure(
        title="An episode in the twin",
        path=EPISODE_PICTURE,
        alt="Frames of an episode of the points policy in the twin",
        caption="The policy on points, trained in simulation only, with the filtered points that it acted on. It "
        f"{'succeeded' if results[0]['pictures']['success'] else 'failed'} here.",
    )
    return [twin, episode, _policy_plot(folder / "policies.png", results), _curves(folder / "curves.png", results)]


def _policy_plot(path: Path, results: Results) -> Figure:
    import matplotlib.pyplot as plt

    names = [name for name in VARIANTS if name in results[0]["cells"]]
    width = 0.8 / len(_CELLS)
    with plot_style():
        figure, axis = plt.subplots(figsize=(10, 3.8))
        for place, (cell, colour) in enumerate(_CELLS.items()):
            x = np.arange(len(names)) + (place - (len(_CELLS) - 1) / 2) * width
            found = [pooled(results, name, cell) for name in names]
            axis.bar(x, [100 * each.rate for each in found], width * 0.92, color=colour, label=cell)
            axis.errorbar(x, [100 * each.rate for each in found], _bars(found), fmt="none", ecolor="#1f2430", elinewidth=1, capsize=2)
            for centre, name in zip(x, names, strict=True):
                seeds = rates(results, name, cell)
                axis.plot([centre + width / 4] * len(seeds), [100 * rate for rate in seeds], "o", color="#1f2430", markersize=2.5)
        axis.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        axis.set_ylim(0, 104)
        axis.set_ylabel("success (%)")
        axis.legend(ncol=len(_CELLS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        figure.tight_layout()
        save_figure(figure, path)
        plt.close(figure)
    return Figure(
        title="Success by policy",
        path=path.name,
        alt="Bars of success in simulation, in the twin and on the held-out pair for every policy",
        caption="All tasks; bars with Wilson 95 % intervals of the pooled episodes, dots are the seeds.",
    )


def _curves(path: Path, results: Results) -> Figure:
    import matplotlib.pyplot as plt

    counts = {**FEWER_POINTS, NUM_POINTS: TWIN}
    errors = {0.0: TWIN, **CAMERA_ERRORS}
    with plot_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
        _curve(left, list(counts), [pooled(results, POINTS, cell) for cell in counts.values()], POINTS)
        left.set_xscale("log", base=2)
        left.set_xticks(list(counts), [str(count) for count in counts])
        left.set_xlabel("points of every object in roll-outs")
        for aside, name in ((-0.04, POINTS), (0.04, SCENE)):  # so that intervals stand side by side
            _curve(right, [100 * metres + aside for metres in errors], [pooled(results, name, cell) for cell in errors.values()], name)
        right.set_xlabel("error of the camera's reported place (cm)")
        left.set_ylabel("success in the twin (%)")
        left.set_ylim(-2, 104)
        right.legend()
        figure.tight_layout()
        save_figure(figure, path)
        plt.close(figure)
    return Figure(
        title="Fewer points, and a camera that is off",
        path=path.name,
        alt="Curves of success over the number of points and over the camera error",
        caption="Success in the twin with Wilson 95 % intervals. Left: the same policies, rolled out with fewer points. Right: the "
        "camera is not where the perception believes it to be.",
    )


def _curve(axis: Any, x: list[float] | list[int], found: list[Pooled], label: str) -> None:
    axis.errorbar(x, [100 * each.rate for each in found], _bars(found), marker="o", markersize=4, elinewidth=1, capsize=2, label=label)


def _bars(found: list[Pooled]) -> np.ndarray:
    """Lengths of error bars below and above, percent."""
    low, high = np.array([each.interval for each in found]).T
    rate = np.array([each.rate for each in found])
    return 100 * np.maximum([rate - low, high - rate], 0)
