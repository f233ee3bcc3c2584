"""Success rates of the study's cells: one a seed, and pooled over seeds and tasks with a Wilson interval."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visiongraft.robots.results import wilson_interval

Results = list[dict[str, Any]]
"""One dictionary a seed: ``cells`` by policy, cell and task, ``training`` by policy and tasks, ``data`` by task."""


@dataclass(frozen=True)
class Pooled:
    """Episodes counted together.

    Args:
        successes, episodes: counts.
    """

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        """Success rate in [0, 1]."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval, 95 %, of episodes that are counted as independent."""
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.0%} ({low:.0%} to {high:.0%})"


def pool(counts: Iterable[dict[str, Any]]) -> Pooled:
    """Adds the ``successes`` and ``episodes`` of roll-outs.

    Raises:
        ValueError: no episodes.
    """
    rows = list(counts)
    total = Pooled(sum(row["successes"] for row in rows), sum(row["episodes"] for row in rows))
    if total.episodes < 1:
        raise ValueError("These cells have no episodes, so that there is no success rate.")
    return total


def pooled(results: Results, policy: str, cell: str, task: str | None = None) -> Pooled:
    """A policy's cell over all seeds, of one task or of all."""
    return pool(row for result in results for name, row in result["cells"][policy][cell].items() if task in (None, name))


def rates(results: Results, policy: str, cell: str) -> tuple[float, ...]:
    """Success rate over all tasks, one a seed."""
    return tuple(pool(result["cells"][policy][cell].values()).rate for result in results)


def difference(values: tuple[float, ...], others: tuple[float, ...]) -> float:
    """Mean over seeds of ``values`` minus ``others``."""
    return sum(value - other for value, other in zip(values, others, strict=True)) / len(values)
