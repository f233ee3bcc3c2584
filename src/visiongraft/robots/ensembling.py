"""From chunks of actions to the action of one control step: temporal ensembling, or running part of a chunk.

Both take the place of each other: ``needs_chunk`` says whether the policy has to be asked before the next ``step``.
"""

import math

import numpy as np
from jaxtyping import Float, Shaped


class TemporalEnsemble:
    """Weighted mean of everything that was predicted for the present step, the policy being asked at every step.

    Predictions are ordered from the oldest, i = 0, to the newest, and weigh exp(-decay i): **the oldest weighs most**.

    The weights sum to one, so that the mean commutes with every affine map of the action's numbers, normalisation to a range among
    them. Point Bridge averages normalised actions and de-normalises the mean; averaging de-normalised actions, as is done here,
    gives the same numbers, and no policy has to hand out normalised ones. Gram-Schmidt does not commute with the mean and comes
    after it, in :func:`visiongraft.robots.actions.pose_of_absolute`. What is averaged must mean the same at every step: absolute
    actions do, delta actions (relative to a gripper that moves) do so only roughly.

    Args:
        decay: per prediction; 0 is the plain mean.

    Raises:
        ValueError: a decay that is negative or not finite.

    Source: brief 2.6.6; Zhao et al. 2023 (ACT), Algorithm 2.
    """

    needs_chunk = True

    def __init__(self, decay: float = 0.005) -> None:
        if not (math.isfinite(decay) and decay >= 0):
            raise ValueError(f"decay of the temporal ensemble must be a number of at least 0; got {decay}.")
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions; called when an episode begins."""
        self._time = 0
        # a ring: the chunk predicted at time t lives in row t % length until the row is needed again, when it no longer covers the present
        self._chunks: Float[np.ndarray, "length length size"] | None = None
        self._present: Shaped[np.ndarray, "length"] = np.zeros(0, bool)

    def step(self, chunk: Shaped[np.ndarray, "length size"] | None) -> Float[np.ndarray, "size"]:
        """Action of the present step, given the chunk predicted from its observation; the next call is one step later.

        Raises:
            ValueError: no chunk, one without actions, or another shape than the episode's earlier chunks.
        """
        if chunk is None:
            raise ValueError("A temporal ensemble takes a chunk at every step.")
        chunk = _checked(chunk)
        length = len(chunk)
        if self._chunks is None:
            self._chunks, self._present = np.zeros((length, *chunk.shape)), np.zeros(length, bool)
        if chunk.shape != self._chunks.shape[1:]:
            raise ValueError(f"All chunks of an episode have one shape; got {chunk.shape} after {self._chunks.shape[1:]}.")
        self._chunks[self._time % length], self._present[self._time % length] = chunk, True
        ages = np.arange(length - 1, -1, -1)  # oldest first
        rows = (self._time - ages) % length
        # an explicit mask; Point Bridge's code takes predictions that are exactly zero for missing ones
        mask = self._present[rows]
        covering = self._chunks[rows[mask], ages[mask]]
        weights = np.exp(-self.decay * np.arange(len(covering)))
        self._time += 1
        return weights @ covering / weights.sum()


class ChunkQueue:
    """Runs the first ``execute`` actions of a chunk before the policy is asked again.

    Args:
        execute: actions to run of every chunk.

    Raises:
        ValueError: less than one action.
    """

    def __init__(self, execute: int) -> None:
        if execute < 1:
            raise ValueError(f"execute must be at least 1 action of every chunk; got {execute}.")
        self.execute = execute
        self.reset()

    def reset(self) -> None:
        """Forgets the chunk; called when an episode begins."""
        self._chunk: Float[np.ndarray, "execute size"] | None = None
        self._done = 0

    @property
    def needs_chunk(self) -> bool:
        """Whether the next step takes a chunk."""
        return self._chunk is None

    def step(self, chunk: Shaped[np.ndarray, "length size"] | None = None) -> Float[np.ndarray, "size"]:
        """Action of the present step; the next call is one step later.

        Args:
            chunk: predicted from the present observation; exactly where ``needs_chunk``.

        Raises:
            ValueError: a chunk that is missing, not needed, or shorter than ``execute``.
        """
        if (chunk is None) != (self._chunk is not None):
            state = "is empty" if chunk is None else "has one"
            raise ValueError(f"A chunk is given exactly when needs_chunk is true: the queue {state}.")
        if chunk is not None:
            chunk = _checked(chunk)
            if len(chunk) < self.execute:
                raise ValueError(too_short(len(chunk), self.execute))
            self._chunk, self._done = chunk[: self.execute], 0
        assert self._chunk is not None
        action = self._chunk[self._done]
        self._done += 1
        if self._done == self.execute:
            self._chunk = None
        return action


def too_short(length: int, execute: int) -> str:
    """The sentence for chunks that are shorter than what is run of them."""
    return f"The policy predicts {length} actions at a time, and {execute} of them were to be run; lower execute."


def _checked(chunk: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "length size"]:
    """A chunk of our own in float64."""
    chunk = np.array(chunk, np.float64)
    if chunk.ndim != 2 or not len(chunk):
        raise ValueError(f"A chunk is a table of actions, (steps, numbers), with at least one step; got shape {chunk.shape}.")
    return chunk
