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

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Claim":
        """Inverse of :meth:`to_dict`."""
        without = record["without"]
        values = {"without": None if without is None else tuple(without), "with_graft": tuple(record["with_graft"])}
        return cls(**{**record, **values})


def spread(values: Sequence[float] | None, digits: int = 3) -> str:
    """Mean with the range over seeds, such as "0.912 (0.900 to 0.930)"; a dash for nothing."""
    if values is None:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
