"""Pictures of the study and the demo: what an attack sees, does and cannot do."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.studies.plots import plot_style, save_figure

LABELS = {"fcsb": "paper's bound (F)", "reference": "tight, to the clean feature (A)", "smoothed": "tight, smoothed to smoothed (B)"}
COLOURS = {"fcsb": "#3b6fb6", "reference": "#c8553d", "smoothed": "#4f8f57"}


def bound_against_attack(
    path: Path,
    eps: Sequence[float],
    bounds: Mapping[str, Sequence[float]],
    attack_eps: Sequence[float],
    reached: Mapping[str, Sequence[float]],
) -> Path:
    """Mean certified cosine over the radius, and the mean cosine that attacks reached: points must lie above their line.

    Args:
        path: PNG to write.
        eps: radii of the curves.
        bounds: mean certified cosine by bound (0 where nothing is certified).
        attack_eps: radii that were attacked.
        reached: mean cosine under attack, by the bound it is to be compared with.
    """
    import matplotlib.pyplot as plt

    with plot_style():
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        for name, values in bounds.items():
            axes.plot(eps, values, color=COLOURS[name], label=f"certified: {LABELS[name]}")
        for name, values in reached.items():
            axes.plot(attack_eps, values, "o", color=COLOURS[name], label=f"attacked: {_compared(name)}")
        axes.set(xlabel="l2 radius (pixel units of [0, 1])", ylabel="cosine similarity", ylim=(-0.02, 1.03))
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        save_figure(figure, path)
        plt.close(figure)
    return path


def _compared(bound: str) -> str:
    return "smoothed against smoothed" if bound == "smoothed" else "smoothed against clean"


def certified_accuracy_curves(path: Path, radii: Sequence[float], curves: dict[str, Sequence[float]], title: str) -> Path:
    """Certified accuracy over the radius, one curve a certificate."""
    import matplotlib.pyplot as plt

    with plot_style():
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        for name, values in curves.items():
            axes.step(radii, values, where="post", label=name)
        axes.set(xlabel="l2 radius (pixel units of [0, 1])", ylabel="certified accuracy", ylim=(-0.02, 1.03), title=title)
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        save_figure(figure, path)
        plt.close(figure)
    return path


def bars_by_condition(path: Path, groups: Sequence[str], series: dict[str, Sequence[Sequence[float]]], ylabel: str) -> Path:
    """Grouped bars, the mean over seeds with the range of seeds as a line.

    Args:
        groups: names along the axis.
        series: name to one list of seed values a group.
    """
    import matplotlib.pyplot as plt

    with plot_style():
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        width = 0.8 / len(series)
        for i, (name, values) in enumerate(series.items()):
            means = np.array([np.mean(v) for v in values])
            low, high = (np.array([f(v) for v in values]) for f in (np.min, np.max))
            at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
            axes.bar(at, means, width, label=name, yerr=[means - low, high - means], capsize=2)
        axes.set_xticks(range(len(groups)), groups)
        axes.set(ylabel=ylabel, ylim=(0, 1.03))
        axes.legend(fontsize=8, ncols=len(series), loc="upper center", bbox_to_anchor=(0.5, 1.16))
        save_figure(figure, path)
        plt.close(figure)
    return path


def attack_strip(
    path: Path, rows: Sequence[tuple[Sequence[Float[Tensor, "3 height width"]], Sequence[str]]], headers: Sequence[str]
) -> Path:
    """A table of pictures with a line of text below each.

    Args:
        rows: (images in [0, 1], captions), as many as headers.
        headers: column titles.
    """
    import matplotlib.pyplot as plt

    with plot_style():
        figure, grid = plt.subplots(len(rows), len(headers), figsize=(2.0 * len(headers), 2.35 * len(rows)), squeeze=False)
        for line, (images, captions) in zip(grid, rows, strict=True):
            for axes, image, caption in zip(line, images, captions, strict=True):
                axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
                axes.set_xlabel(caption, fontsize=8)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
        for axes, header in zip(grid[0], headers, strict=True):
            axes.set_title(header, fontsize=9)
        figure.tight_layout()
        save_figure(figure, path)
        plt.close(figure)
    return path


def amplified(perturbation: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
    """A perturbation around mid-grey, scaled so that its largest value is visible."""
    largest = perturbation.abs().max().clamp(min=1e-8)
    return torch.clamp(0.5 + 0.5 * perturbation / largest, 0, 1)
