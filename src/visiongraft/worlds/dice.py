"""Seeded choices for the generators of scenes."""

from collections.abc import Sequence
from typing import TypeVar

import torch

Option = TypeVar("Option")


class Dice:
    """A stream of choices that a seed fixes, on every machine.

    Args:
        seed: any integer.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def between(self, low: float | int, high: float | int) -> float:
        """A number, evenly distributed."""
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.between(0, 1) < probability

    def pick(self, options: Sequence[Option]) -> Option:
        """One of them."""
        return options[self.whole(0, len(options) - 1)]

    def some(self, options: Sequence[Option], count: int) -> list[Option]:
        """Different ones, in random order; all of them where there are fewer."""
        order = torch.randperm(len(options), generator=self._generator).tolist()
        return [options[i] for i in order[:count]]
