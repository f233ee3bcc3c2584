"""What is known at which time: latents for stage I, vertices for stage II. New entries are added, never overwritten."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

_DIGITS = 6  # times are frame numbers and fractions between them; thirds must find themselves again


class TimeBank:
    """Tensors of one shape by time.

    Args:
        entries: the first ones, by time in frames.

    Source: ActionMesh brief, 2.8.
    """

    def __init__(self, entries: Mapping[int, Tensor] | Mapping[float, Tensor] | None = None) -> None:
        self._entries: dict[float, Tensor] = {}
        for time, value in (entries or {}).items():
            self.add(time, value)

    def add(self, time: float | int, value: Float[Tensor, "..."]) -> None:
        """Keeps a tensor for a time that has none; a time that has one keeps it.

        Raises:
            ValueError: another shape than that of the tensors in the bank.
        """
        first = next(iter(self._entries.values()), value)
        if first.shape != value.shape:
            raise ValueError(
                f"All times must have tensors of one shape (equal numbers of tokens); there is {tuple(first.shape)}, "
                f"and time {time:g} has {tuple(value.shape)}."
            )
        self._entries.setdefault(round(float(time), _DIGITS), value)

    def __contains__(self, time: float | int) -> bool:
        return round(float(time), _DIGITS) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, time: float | int) -> Float[Tensor, "..."]:
        """The tensor of a time.

        Raises:
            KeyError: a time without one.
        """
        if time not in self:
            known = ", ".join(f"{one:g}" for one in self.times)
            raise KeyError(f"Nothing is known at time {time:g}; there are {known or 'no times'}.")
        return self._entries[round(float(time), _DIGITS)]

    @property
    def times(self) -> list[float]:
        """Times with a tensor, rising."""
        return sorted(self._entries)

    def stack(self, times: Iterable[float | int] | None = None, dim: int = 0) -> Float[Tensor, "..."]:
        """Tensors of several times (default: all, rising) along a new axis.

        Raises:
            KeyError: a time without one.
        """
        return torch.stack([self[time] for time in (self.times if times is None else times)], dim)

    def copy(self) -> "TimeBank":
        """A bank of its own with the same tensors."""
        return TimeBank(self._entries)
