"""Plots of the study: distances by way, and the trainings."""

from pathlib import Path
from typing import Any

import numpy as np

from visiongraft.methods.action_mesh.study_cells import CELLS, MOTIONS
from visiongraft.methods.action_mesh.study_pictures import SHEET
from visiongraft.methods.action_mesh.study_training import VARIANTS
from visiongraft.methods.action_mesh.study_values import Results, clip_values, interval, seed_values
from visiongraft.studies import Figure
from visiongraft.studies.plots import plot_style, save_figure

BARS, CURVES = "distances.png", "training.png"
_COLORS = {"all": "#3b6fb6", "side": "#4a9aa5", "long": "#8a5fa8"}
_REFERENCES = ("base", "same-noise", "truth", "vae", "long-base")
_ALONE = "#9aa3ad"
_DOT = "#1f2430"


def draw_figures(folder: Path, results: Results) -> list[Figure]:
    """Plots of the measurements, after the picture that stands in the folder."""
    sheet = Figure(
        title="A clip from another side",
        path=SHEET,
        alt="Rows of a clip's silhouettes, the true shapes, and the shapes of single frames and of both stages, seen obliquely from above",
        caption="The video looks along the depth axis, where a tail towards the viewer looks like one away from him; the meshes are seen "
        "from above. Shapes of single frames flip; from one noise they flip less often. Both stages are given the first "
        "frame and should keep to its side; stage II moves one mesh, which suffers where stage I leaves it. The clip is "
        "the first, not chosen.",
    )
    return [sheet, _bars(folder / BARS, results), _curves(folder / CURVES, results)]


def _bars(path: Path, results: Results) -> Figure:
    """CD-4D by cell, seeds as dots."""
    import matplotlib.pyplot as plt

    keys = list(CELLS)
    with plot_style():
        figure, axes = plt.subplots(1, len(MOTIONS), figsize=(11, 0.29 * len(keys) + 0.9), sharey=True, sharex=True)
        for axis, motion in zip(axes, MOTIONS, strict=True):
            for place, key in enumerate(keys):
                seeds = seed_values(results, key, "cd_4d", (motion,))
                mean = float(np.mean(seeds))
                low, high = interval([clip_values(result, key, "cd_4d", (motion,)) for result in results])
                axis.barh(place, mean, 0.68, color=_ALONE if key in _REFERENCES else _COLORS[CELLS[key].clips])
                axis.errorbar(mean, place, xerr=[[max(0, mean - low)], [max(0, high - mean)]], ecolor=_DOT, elinewidth=1, capsize=2)
                axis.plot(seeds, [place + 0.17] * len(seeds), "o", color=_DOT, markersize=2.5)
            axis.set_title(f"motion {motion}", fontsize=10)
            axis.set_xlabel("CD-4D")
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(keys)), [CELLS[key].label for key in keys], fontsize=8)
        axes[0].invert_yaxis()
        figure.tight_layout()
        save_figure(figure, path)
        plt.close(figure)
    return Figure(
        title="CD-4D by result",
        path=path.name,
        alt="Bars of CD-4D for single frames, both stages, ablations, anchors and long clips, for two motions",
        caption="Lower is better. Bars are means over seeds with 95 % intervals over seeds and clips, dots the seeds; grey: no graft. "
        "Ablations and anchors (green) are on fewer clips of the same kind, long clips (violet) on others.",
    )


def _curves(path: Path, results: Results) -> Figure:
    """Losses of every stage."""
    import matplotlib.pyplot as plt

    stages = list(dict.fromkeys(variant.stage for variant in VARIANTS.values()))
    with plot_style():
        figure, axes = plt.subplots(1, len(stages), figsize=(12, 3.0))
        for axis, stage in zip(axes, stages, strict=True):
            for name in (name for name, variant in VARIANTS.items() if variant.stage == stage):
                curves = [_smooth(result["training"][name]["curve"]) for result in results]
                few = "o" if len(curves[0][0]) < 5 else ""
                (line,) = axis.plot(*curves[0], marker=few, label=VARIANTS[name].label, linewidth=1.4)
                for steps, losses in curves[1:]:
                    axis.plot(steps, losses, color=line.get_color(), marker=few, markersize=3, linewidth=0.8, alpha=0.6)
            axis.set_yscale("log")
            axis.set_title({"vae": "VAE", "base": "base", "denoiser": "stage I", "autoencoder": "stage II"}[stage], fontsize=10)
            axis.set_xlabel("step")
            if len([v for v in VARIANTS.values() if v.stage == stage]) > 1:
                axis.legend(fontsize=6.5)
        axes[0].set_ylabel("loss")
        figure.tight_layout()
        save_figure(figure, path)
        plt.close(figure)
    return Figure(
        title="Training",
        path=path.name,
        alt="Losses of the four stages and their ablations over steps",
        caption="Losses, smoothed over ten records; the first seed drawn strongest. Stage II stays at the error of standing still for "
        "a while and then drops. The loss of stage I without masked sources is of all frames, that of the others of the unknown ones only.",
    )


def _smooth(curve: dict[str, list[Any]]) -> tuple[list[int], list[float]]:
    """Steps, and means of up to ten losses before each."""
    losses = next(values for name, values in curve.items() if name != "step")
    return curve["step"], [float(np.mean(losses[max(0, i - 9) : i + 1])) for i in range(len(losses))]
