"""What a policy remembers of each episode that it acts in."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from visiongraft.training.order import derived_seed


@dataclass(eq=False)
class _Memory:
    episode: int = 0
    steps: int = 0
    first: dict[str, np.ndarray] = field(default_factory=dict)
    recent: deque[dict[str, np.ndarray]] = field(default_factory=deque)


class Slots:
    """Histories by slot, each as long as the model sees; an episode's first step is repeated before it.

    Args:
        history: steps.
        seed: of :meth:`generator`.
    """

    def __init__(self, history: int, seed: int = 0) -> None:
        self.history, self.seed = history, seed
        self._memories: dict[int, _Memory] = {}

    def reset(self, slot: int) -> None:
        """An episode begins."""
        before = self._memories.get(slot)
        self._memories[slot] = _Memory(episode=0 if before is None else before.episode + 1)

    def push(self, slot: int, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds a step; gives the arrays of the last ``history`` steps, stacked, oldest first.

        Raises:
            ValueError: an array of another shape than the episode's earlier ones.
        """
        memory = self._memories.setdefault(slot, _Memory())
        if not memory.steps:
            memory.first = values
            memory.recent = deque([values] * self.history, maxlen=self.history)
        for name, array in values.items():
            if array.shape != memory.first[name].shape:
                raise ValueError(
                    f"{name} had the shape {memory.first[name].shape} when the episode began and has {array.shape} now; "
                    "call reset when an episode begins."
                )
        memory.recent.append(values)
        memory.steps += 1
        return {name: np.stack([step[name] for step in memory.recent]) for name in values}

    def first(self, slot: int) -> dict[str, np.ndarray]:
        """Arrays of the episode's first step."""
        return self._memories[slot].first

    def generator(self, slot: int) -> torch.Generator:
        """Randomness of the slot's present step: a function of seed, slot, episode and step, whatever else is in the batch."""
        memory = self._memories[slot]
        return torch.Generator().manual_seed(derived_seed(self.seed, "slot", slot, memory.episode, memory.steps))
