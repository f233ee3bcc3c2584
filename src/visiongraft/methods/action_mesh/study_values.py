"""Values of the study's measurements: one a seed for claims, and over seeds and clips with a bootstrap interval."""

from typing import Any

import numpy as np
from jaxtyping import Float

from visiongraft.methods.action_mesh.study_cells import MOTIONS

Results = list[dict[str, Any]]
"""One dictionary a seed: ``training`` by variant, ``cells`` and ``moved`` by key and motion, each with one value a clip by name."""
_DRAWS = 2000


def clip_values(result: dict[str, Any], key: str, name: str, motions: tuple[str, ...] = MOTIONS, clips: int | None = None) -> np.ndarray:
    """One value a clip of one seed.

    Args:
        result: of the seed.
        key: in ``CELLS``, or in ``MOVED``.
        name: of the value.
        motions: of the clips, one after the other.
        clips: only the first of each motion, where others have no more.
    """
    rows = result["cells"].get(key) or result["moved"][key]
    return np.concatenate([np.asarray(rows[motion][name][:clips], dtype=float) for motion in motions])


def seed_values(results: Results, key: str, name: str, motions: tuple[str, ...] = MOTIONS, clips: int | None = None) -> tuple[float, ...]:
    """Mean over clips, one a seed."""
    return tuple(float(clip_values(result, key, name, motions, clips).mean()) for result in results)


def agreement(results: Results, key: str, motions: tuple[str, ...] = MOTIONS) -> tuple[float, ...]:
    """Side agreement, one a seed: frames that agree over those counted; NaN where none was."""
    counts = [[clip_values(result, key, name, motions).sum() for name in ("agree", "counted")] for result in results]
    return tuple(float(agree / counted) if counted else float("nan") for agree, counted in counts)


def interval(groups: list[Float[np.ndarray, "_"]], draws: int = _DRAWS) -> tuple[float, float]:
    """95 % interval of the mean over seeds and clips, bootstrapped over both: seeds are drawn, then clips of each; always the same draws.

    Args:
        groups: one array of clips a seed.
        draws: bootstrap samples.

    Raises:
        ValueError: no seeds, or a seed without clips.
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError(f"An interval needs clips in every seed; got {[len(group) for group in groups]}.")
    random = np.random.default_rng(0)
    means = np.empty((len(groups), draws))
    for row, group in zip(means, groups, strict=True):
        row[:] = group[random.integers(0, len(group), (draws, len(group)))].mean(1)
    # a seed that is drawn twice brings different clips: the means of other draws
    shuffled = np.stack([means[random.integers(0, len(groups), draws), random.integers(0, draws, draws)] for _ in groups])
    low, high = np.quantile(shuffled.mean(0), [0.025, 0.975])
    return float(low), float(high)


def paired(
    results: Results, key: str, other: str, name: str, motions: tuple[str, ...] = MOTIONS, clips: int | None = None
) -> tuple[float, float, float]:
    """Mean of ``key`` minus ``other`` over the same clips, and its interval."""
    groups = [clip_values(r, key, name, motions, clips) - clip_values(r, other, name, motions, clips) for r in results]
    return (float(np.mean([group.mean() for group in groups])), *interval(groups))


def interval_text(values: tuple[float, float, float]) -> str:
    """Such as "-0.095 [-0.120, -0.070]"."""
    mean, low, high = values
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
