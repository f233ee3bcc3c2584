"""What an evaluation found: episodes, success rates, intervals."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Reason = Literal["success", "time out", "policy error", "perception error", "stale points"]


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How one episode ended.

    Args:
        label: the task with its options, as it is told in tables.
        task: name.
        options: of the environment.
        index: number of the episode within its label.
        seed: of the environment's start.
        success: whether the task's predicate became true.
        steps: control steps under the policy.
        reason: why the episode ended.
        detail: a sentence where the reason needs one, else empty.
    """

    label: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    index: int
    seed: int
    success: bool
    steps: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """Finished episodes, sorted by task and index, so that the order in which they ended leaves no trace.

    Args:
        episodes: what ended.
    """

    episodes: tuple[EpisodeResult, ...]

    @property
    def num_successes(self) -> int:
        """Episodes that succeeded."""
        return sum(episode.success for episode in self.episodes)

    def success(self) -> float:
        """Success rate in [0, 1].

        Raises:
            ValueError: no episodes.
        """
        if not self.episodes:
            raise ValueError("No episode has ended, so that there is no success rate.")
        return self.num_successes / len(self.episodes)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson interval of the success rate; see :func:`wilson_interval`."""
        return wilson_interval(self.num_successes, len(self.episodes), confidence)

    def by_task(self) -> dict[str, "EvaluationResult"]:
        """Results of every label, in the order of their first episode."""
        labels = dict.fromkeys(episode.label for episode in self.episodes)
        return {label: EvaluationResult(tuple(e for e in self.episodes if e.label == label)) for label in labels}

    def reasons(self) -> dict[str, int]:
        """Number of episodes by the reason of their end, the most frequent first."""
        return dict(Counter(episode.reason for episode in self.episodes).most_common())

    def table(self, confidence: float = 0.95) -> list[dict[str, Any]]:
        """A row a label, and one for all where there are several: rate, interval, mean steps of successes, other reasons of the end."""
        parts = self.by_task()
        if len(parts) > 1:
            parts["all"] = self
        return [_row(label, part, confidence) for label, part in parts.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with the table for readers."""
        return {"episodes": [asdict(episode) for episode in self.episodes], "table": self.table()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EvaluationResult":
        """Result of :meth:`to_dict`.

        Raises:
            ValueError: another record.
        """
        try:
            return cls(tuple(EpisodeResult(**row) for row in record["episodes"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no record of an evaluation ({error}); EvaluationResult.to_dict writes one.") from error

    def __str__(self) -> str:
        """One line a label."""
        return format_table(self.table())


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate.

    Raises:
        ValueError: no trials, or a confidence outside (0, 1).
    """
    if trials < 1:
        raise ValueError("No episode has ended, so that there is no interval.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), such as 0.95; got {confidence}.")
    # imported here because it takes a second, and simulator processes need results but no intervals
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of :meth:`EvaluationResult.table` as aligned text."""
    width = max((len(row["label"]) for row in rows), default=0)
    return "\n".join(_line(row, width) for row in rows)


def _row(label: str, part: EvaluationResult, confidence: float) -> dict[str, Any]:
    low, high = part.interval(confidence)
    steps = [episode.steps for episode in part.episodes if episode.success]
    return {
        "label": label,
        "episodes": len(part.episodes),
        "successes": part.num_successes,
        "success": part.success(),
        "low": low,
        "high": high,
        "steps": sum(steps) / len(steps) if steps else None,
        "failures": {reason: count for reason, count in part.reasons().items() if reason != "success"},
    }


def _line(row: dict[str, Any], width: int) -> str:
    rate = f"{row['success']:7.1%}  [{row['low']:6.1%}, {row['high']:6.1%}]  {row['successes']}/{row['episodes']}"
    steps = f"  {row['steps']:.0f} steps" if row["steps"] is not None else ""
    failures = ", ".join(f"{count} {reason}" for reason, count in row["failures"].items())
    return f"{row['label']:<{width}}  {rate}{steps}" + (f"  ({failures})" if failures else "")
