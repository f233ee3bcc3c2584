"""A claim of a paper, and what came out when it was measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper and its measurement, held or not.

    Args:
        name: short name.
        sentence: what the paper says, in our words.
        source: where it says so.
        quantity: what was measured, with its unit.
        without: one value a seed without the graft; ``None`` where there is nothing to compare with.
        with_graft: one value a seed with the graft.
        held: whether the claim held here.
        rule: how ``held`` was decided, fixed before measuring.

    Raises:
        ValueError: no values, or different numbers of seeds.
    """

    name: str
    sentence: str
    source: str
    quantity: str
    without: tuple[float, ...] | None
    with_graft: tuple[float, ...]
    held: bool
    rule: str

    def __post_init__(self) -> None:
        if not self.with_graft:
            raise ValueError(f"The claim {self.name!r} has no measured values; give one for each seed.")
        if self.without is not None and len(self.without) != len(self.with_graft):
            raise ValueError(
                f"The claim {self.name!r} has {len(self.without)} values without and {len(self.with_graft)} with the graft; "
                "give one of each for every seed."
            )

    @property
    def verdict(self) -> str:
        """In words: held, or did not hold."""
        return "held" if self.held else "did not hold"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Claim":
        """Inverse of :meth:`to_dict`; values may also be text such as "inf", which JSON has no number for."""
        without, with_graft = record["without"], record["with_graft"]
        values = {"without": None if without is None else tuple(map(float, without)), "with_graft": tuple(map(float, with_graft))}
        return cls(**{**record, **values})


def mean_text(values: Sequence[float] | None) -> str:
    """Mean over seeds, such as "0.912"; a dash for nothing."""
    return "–" if values is None else _text(sum(values) / len(values), values)


def range_text(values: Sequence[float] | None) -> str:
    """Range over seeds, such as "0.900 to 0.930"; empty for fewer than two."""
    return "" if values is None or len(values) < 2 else f"{_text(min(values), values)} to {_text(max(values), values)}"


def spread(values: Sequence[float] | None) -> str:
    """Mean with the range over seeds, such as "0.912 (0.900 to 0.930)"; a dash for nothing."""
    between = range_text(values)
    return f"{mean_text(values)} ({between})" if between else mean_text(values)


def _text(value: float, values: Sequence[float]) -> str:
    """Three decimals, or three digits where all values are tiny or one is large."""
    largest = max(map(abs, values))
    return f"{value:.3f}" if largest == 0 or 0.01 <= largest < 1000 else f"{value:.3g}"
