"""Order of the data and seeds of the steps: pure functions of the seed, so that a resumed run needs no history."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and names, the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class StepBatches(Sampler[list[int]]):
    """Indices of one process's share of every (micro-)batch, from ``start`` on.

    The samples of a step are the next ``batch_size`` of an endless row of per-epoch permutations; processes and
    accumulation only divide them, so that the same step sees the same samples on any number of machines.

    Args:
        length: samples of the data set.
        batch_size: samples of one optimiser step, over all processes.
        seed: of the permutations.
        start: first step (0-based).
        steps: step to stop before.
        accumulate: micro-batches a step.
        rank, processes: this process, and how many there are.

    Raises:
        ValueError: an empty data set, or a batch size that does not divide.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, start: int, steps: int, accumulate: int, rank: int, processes: int
    ) -> None:
        if length < 1:
            raise ValueError("The data set is empty; training needs at least one sample.")
        if batch_size % (accumulate * processes):
            raise ValueError(
                f"batch_size {batch_size} is the number of samples of one step over all processes; it must be divisible by "
                f"accumulate x processes = {accumulate} x {processes}."
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.steps, self.accumulate, self.rank, self.processes = start, steps, accumulate, rank, processes
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // (self.accumulate * self.processes)
        for step in range(self.start, self.steps):
            for micro in range(self.accumulate):
                first = step * self.batch_size + (micro * self.processes + self.rank) * share
                yield [self._sample(position) for position in range(first, first + share)]

    def _sample(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
        return int(self._order[offset])
