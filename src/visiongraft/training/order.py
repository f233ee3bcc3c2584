"""Order of the data and seeds of the steps: pure functions of the seed, so that a resumed run needs no history."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Sampler


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and names, the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Share(NamedTuple):
    """One process's part of one (micro-)batch."""

    position: int
    """Samples the run has drawn before the first of these."""
    indices: list[int]


class StepBatches(Sampler[Share]):
    """One process's share of every (micro-)batch, from ``start`` on.

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
        self,
        *,
        length: int,
        batch_size: int,
        seed: int,
        steps: int,
        start: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
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

    def __iter__(self) -> Iterator[Share]:
        share = self.batch_size // (self.accumulate * self.processes)
        for step in range(self.start, self.steps):
            for micro in range(self.accumulate):
                position = step * self.batch_size + (micro * self.processes + self.rank) * share
                yield Share(position, self._samples(position, share))

    def _samples(self, position: int, count: int) -> list[int]:
        samples: list[int] = []
        while len(samples) < count:
            epoch, offset = divmod(position + len(samples), self.length)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, "epoch", epoch))
                self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
            samples += self._order[offset : offset + count - len(samples)].tolist()
        return samples


class SeededItems(Dataset):
    """Items of a data set; what they draw from torch's global randomness depends only on seed and position in the run.

    An augmentation therefore differs from epoch to epoch, and is the same after a resume, in any loading process and on any
    number of machines.
    """

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self._first_seed = data, derived_seed(seed, "items")

    def __getitems__(self, share: Share) -> list[Any]:  # PyTorch's hook for a whole batch
        with torch.random.fork_rng(devices=[]):
            if hasattr(self.data, "__getitems__"):
                self._seed(share.position)
                return self.data.__getitems__(share.indices)  # pyright: ignore[reportAttributeAccessIssue]
            items = []
            for offset, index in enumerate(share.indices):
                self._seed(share.position + offset)
                items.append(self.data[index])
            return items

    def _seed(self, position: int) -> None:
        torch.default_generator.manual_seed((self._first_seed + position) % 2**63)
