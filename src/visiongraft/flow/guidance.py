"""Classifier-free guidance with one or two conditions, for an interval of times, and the dropping in training that it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visiongraft.flow.sampling import Velocity

Predict = Callable[[Tensor, Tensor, bool, bool], Tensor]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How a prediction is pushed towards its conditions: a condition p (such as a perspective image) and a text c.

    Args:
        mode: ``none``: v(p,c). ``joint``: from v(0,0) towards v(p,c). ``text``: from v(p,0) towards v(p,c). ``two``: from v(0,0)
            towards v(p,0) by ``condition_scale`` and from there towards v(p,c) by ``scale``, three passes of the network.
        scale: of ``joint`` and ``text``, and of the text in ``two``; 1 is no guidance.
        condition_scale: of the condition in ``two``.
        interval: (lowest, highest) time with guidance, both included; elsewhere v(p,c) alone, in one pass.

    Raises:
        ValueError: another mode, or an interval that is not 0 <= lowest <= highest <= 1.

    Source: arXiv 2207.12598; two conditions: 2211.09800, Eq. 3; interval: 2404.07724.
    """

    mode: Literal["none", "joint", "text", "two"] = "joint"
    scale: float = 5.0
    condition_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.mode not in ("none", "joint", "text", "two"):
            raise ValueError(f"mode must be none, joint, text or two; got {self.mode!r}.")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must be (lowest, highest) time within [0, 1]; got {self.interval}.")


def guide(conditional: Float[Tensor, "*shape"], null: Float[Tensor, "*shape"], scale: float | Tensor) -> Float[Tensor, "*shape"]:
    """``null + scale (conditional - null)``; the conditional prediction itself at scale 1, the null one at 0."""
    return conditional + (scale - 1) * (conditional - null)


def guide_two(
    neither: Float[Tensor, "*shape"],
    condition: Float[Tensor, "*shape"],
    both: Float[Tensor, "*shape"],
    condition_scale: float | Tensor,
    text_scale: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """``v(0,0) + s_p (v(p,0) - v(0,0)) + s_t (v(p,c) - v(p,0))``.

    Source: arXiv 2211.09800, Eq. 3.
    """
    return both + (condition_scale - 1) * (condition - neither) + (text_scale - 1) * (both - condition)


def guided(predict: Predict, guidance: Guidance) -> Velocity:
    """The velocity field with guidance, for :func:`visiongraft.flow.sampling.sample`.

    Passes run one after another, so that the memory is that of one; a pass whose scale is 1 is left out.

    Args:
        predict: maps (y, t, keep_condition, keep_text) to a velocity. The null passes need the same tokens and positions as the
            full one, with embeddings zeroed or replaced as in training.
        guidance: mode, scales and interval.
    """

    def velocity_fn(y: Tensor, t: Tensor) -> Tensor:
        both = predict(y, t, True, True)
        inside = (t >= guidance.interval[0]) & (t <= guidance.interval[1])
        if guidance.mode == "none" or not inside.any():
            return both
        inside = inside.to(both.dtype).reshape(-1, *(1,) * (both.dim() - 1))
        text = 1 + (guidance.scale - 1) * inside
        condition = 1 + (guidance.condition_scale - 1) * inside
        if guidance.mode == "two" and guidance.condition_scale != 1:
            null = predict(y, t, True, False)
            return guide_two(predict(y, t, False, False), null, both, condition, text)
        return both if guidance.scale == 1 else guide(both, predict(y, t, guidance.mode != "joint", False), text)

    return velocity_fn


def condition_dropout(
    count: int, generator: torch.Generator, *, both: float = 0.10, text: float = 0.05, condition: float = 0.05
) -> tuple[Bool[Tensor, " count"], Bool[Tensor, " count"]]:
    """Which samples keep their condition and which their text in a training step.

    The three events exclude one another, so that the null of ``joint`` guidance is trained as often as its rate says: with
    independent dropping both would be gone in 1 of 100 samples.

    Args:
        count: samples.
        generator: source of randomness.
        both: share of samples that lose condition and text.
        text: share that loses the text only.
        condition: share that loses the condition only.

    Returns:
        (keep_condition, keep_text), on the generator's device.

    Raises:
        ValueError: shares that are negative or sum to more than 1.

    Source: arXiv 2601.16192 (10% dropped; how the two are joined is our choice).
    """
    if min(both, text, condition) < 0 or both + text + condition > 1:
        raise ValueError(
            f"Shares of dropped samples are at least 0 and sum to at most 1; got both={both}, text={text}, condition={condition}."
        )
    u = torch.rand(count, generator=generator, device=generator.device)
    drop_both, drop_text = u < both, (u >= both) & (u < both + text)
    drop_condition = (u >= both + text) & (u < both + text + condition)
    return ~(drop_both | drop_condition), ~(drop_both | drop_text)
