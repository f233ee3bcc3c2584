"""Min-max normalisation that travels with a policy. Needs NumPy only; works on PyTorch tensors through their operators."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

EPSILON = 1e-5
POSE_NAMES = (
    *("position x", "position y", "position z"),
    *(f"rotation row {row} {axis}" for row in (1, 2) for axis in "xyz"),
    "gripper",
)
"""Names of the ten dimensions of proprioception and absolute actions."""


@dataclass(frozen=True, eq=False)
class MinMax:
    """Maps each dimension (the last axis) of the data it was made from to [0, 1].

    ``normalise`` is ``(x - minimum) / (range + 1e-5)`` and ``denormalise`` is ``y * range + minimum``, as the authors write them: each
    undoes the other up to a part of 1e-5 / range.

    Args:
        minimum, maximum: (dimensions,).
        range_floor: ranges below it are taken as this. A dimension that hardly moves would otherwise amplify noise. 0 is the paper's.

    Raises:
        ValueError: shapes that differ, numbers that are not finite, a maximum below its minimum, a negative floor, or a dimension
            whose range is zero while ``range_floor`` is too.

    Source: brief, 2.6 (normalisation) and 10 (range floor).
    """

    # sizes are checked below, with a sentence that says what does not fit
    minimum: Shaped[np.ndarray, "..."]
    maximum: Shaped[np.ndarray, "..."]
    range_floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum"):
            object.__setattr__(self, name, np.atleast_1d(np.asarray(getattr(self, name), np.float64)))
        if self.minimum.ndim != 1 or self.minimum.shape != self.maximum.shape:
            raise ValueError(
                f"minimum and maximum must be two rows of the same length; got shapes {self.minimum.shape} and {self.maximum.shape}."
            )
        if not (np.isfinite(self.minimum).all() and np.isfinite(self.maximum).all()):
            raise ValueError("Statistics hold numbers that are not finite; look for NaN in the data they were made from.")
        if (self.maximum < self.minimum).any():
            raise ValueError(f"Statistics have a maximum below the minimum in dimension {int(np.argmax(self.maximum < self.minimum))}.")
        if not 0 <= self.range_floor < np.inf:
            raise ValueError(f"range_floor must be 0 or more; got {self.range_floor}.")
        require_range(self.range)

    @property
    def range(self) -> Float[np.ndarray, " dimensions"]:
        """Range of each dimension, at least the floor."""
        return np.maximum(self.maximum - self.minimum, self.range_floor)

    def normalise(self, values: Any) -> Any:
        """Values (..., dimensions), an array or a tensor, as multiples of the range; what it was made from falls into [0, 1].

        Raises:
            ValueError: another number of dimensions.
        """
        minimum, span = self._beside(values)
        return (values - minimum) / (span + EPSILON)

    def denormalise(self, values: Any) -> Any:
        """Back from :meth:`normalise`.

        Raises:
            ValueError: another number of dimensions.
        """
        minimum, span = self._beside(values)
        return values * span + minimum

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON, exact."""
        return {"minimum": self.minimum.tolist(), "maximum": self.maximum.tolist(), "range_floor": self.range_floor}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MinMax":
        """Back from :meth:`to_dict`.

        Raises:
            ValueError: other keys.
        """
        if set(values) != {"minimum", "maximum", "range_floor"}:
            raise ValueError(f"Statistics have the keys minimum, maximum and range_floor; got {', '.join(map(str, values)) or 'none'}.")
        return cls(np.asarray(values["minimum"], np.float64), np.asarray(values["maximum"], np.float64), float(values["range_floor"]))

    def _beside(self, values: Any) -> tuple[Any, Any]:
        """Minimum and range as what ``values`` is: a tensor of its type and device, or an array of its precision."""
        if values.shape[-1:] != self.minimum.shape:
            raise ValueError(f"Statistics of {len(self.minimum)} dimensions do not fit values of shape {tuple(values.shape)}.")
        if hasattr(values, "new_tensor"):
            return values.new_tensor(self.minimum), values.new_tensor(self.range)
        dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.dtype(np.float64)
        return self.minimum.astype(dtype), self.range.astype(dtype)


def require_range(span: Float[np.ndarray, " dimensions"], key: str = "", names: Sequence[str] = ()) -> None:
    """Refuses dimensions that never change.

    Args:
        span: range of each dimension, with the floor.
        key: what they are of, for the message.
        names: of the dimensions, for the message.

    Raises:
        ValueError: names the first dimension whose range is zero.
    """
    zero = np.flatnonzero(span == 0)
    if len(zero):
        index = int(zero[0])
        name = names[index] if index < len(names) else ""
        never = "rotates" if any(word in name for word in ("rotation", "yaw")) else "moves" if "position" in name else "changes there"
        raise ValueError(
            f"statistics of {f'{key} ' if key else ''}dimension {index}{f' ({name})' if name else ''} have zero range: the data never "
            f"{never}; pass range_floor or drop the dimension."
        )


def statistics(
    episodes: Mapping[str, Shaped[np.ndarray, "..."]] | Iterable[Mapping[str, Shaped[np.ndarray, "..."]]],
    *,
    range_floor: float = 0.0,
    names: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, MinMax]:
    """Minimum and maximum of every key's dimensions over all episodes, which may be a generator.

    Args:
        episodes: arrays (..., dimensions) by name, of one episode or of many with the same names.
        range_floor: see :class:`MinMax`.
        names: of the dimensions by key, for the message on a zero range.

    Raises:
        ValueError: no episodes, episodes with other names or dimensions than the first, numbers that are not finite, a zero range.
    """
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    several: Any = [episodes] if isinstance(episodes, Mapping) else episodes
    for number, episode in enumerate(several):
        if low and set(episode) != set(low):
            raise ValueError(f"Episode {number} has {', '.join(sorted(episode))}; the first has {', '.join(sorted(low))}.")
        for key, values in episode.items():
            rows = np.asarray(values, np.float64).reshape(-1, np.shape(values)[-1])
            if not len(rows) or not np.isfinite(rows).all():
                raise ValueError(f"{key} of episode {number} is empty or holds numbers that are not finite; leave the episode out.")
            if key in low and low[key].shape != rows.shape[1:]:
                raise ValueError(f"{key} of episode {number} has {rows.shape[1]} dimensions; the first episode's has {len(low[key])}.")
            low[key] = np.minimum(low.get(key, np.inf), rows.min(axis=0))
            high[key] = np.maximum(high.get(key, -np.inf), rows.max(axis=0))
    if not low:
        raise ValueError("There are no episodes to take statistics from; record or generate demonstrations first.")
    for key in low:
        require_range(np.maximum(high[key] - low[key], range_floor), key, (names or {}).get(key, ()))
    return {key: MinMax(low[key], high[key], range_floor) for key in low}
