"""Which times a network is trained on and sampled at: distributions, the shift towards noise, the grid of a sampler."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TimeDistribution:
    """Distribution of training times before the shift (t = 0 data, t = 1 noise).

    Args:
        kind: ``uniform``; ``logit_normal``: the sigmoid of a normal variable, most times in the middle; ``truncated_normal``: a
            normal variable, kept where it lies in the bounds.
        mean: of the normal variable: in logits for ``logit_normal`` (0 is t = 0.5), in t for ``truncated_normal``. Unused by ``uniform``.
        std: standard deviation of the same variable.
        low: times are never below; the distribution is cut, not clamped.
        high: times are never above. RAE cuts at 0.999.

    Raises:
        ValueError: bounds outside [0, 1] or in the wrong order, a std that is not positive, or bounds beyond the distribution.

    Source: arXiv 2403.03206, Sec. 3.1 (logit-normal).
    """

    kind: Literal["uniform", "logit_normal", "truncated_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "logit_normal", "truncated_normal"):
            raise ValueError(f"kind must be uniform, logit_normal or truncated_normal; got {self.kind!r}.")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Times lie between 0 (data) and 1 (noise): 0 <= low < high <= 1; got low={self.low}, high={self.high}.")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"std must be positive and mean finite; got mean={self.mean}, std={self.std}.")
        if self.kind != "uniform" and _mass(self) < 1e-6:
            raise ValueError(
                f"A {self.kind} distribution with mean {self.mean} and std {self.std} has next to no mass in [{self.low}, {self.high}]; "
                "move the mean towards the bounds."
            )


def sample_times(
    count: int, distribution: TimeDistribution, generator: torch.Generator, device: torch.device | str | None = None
) -> Float[Tensor, " count"]:
    """Independent times, by inversion of the distribution function.

    Args:
        count: how many, one a sample as a rule.
        distribution: before the shift; see :func:`shift_times`, to be applied once, after.
        generator: source of randomness; times are drawn where it lives.
        device: where to put them; ``None`` leaves them with the generator.

    Returns:
        float32 in [low, high].
    """
    # ndtri in float32 has tails of 5 sigma only; Apple's GPUs have no float64
    home = torch.device("cpu") if generator.device.type == "mps" else generator.device
    precision = torch.float32 if generator.device.type == "mps" else torch.float64
    u = torch.rand(count, generator=generator, device=generator.device, dtype=precision).to(home, torch.float64)
    if distribution.kind == "uniform":
        t = distribution.low + (distribution.high - distribution.low) * u
    else:
        below, above = (_normal_cdf(z) for z in _normal_bounds(distribution))
        z = torch.special.ndtri((below + (above - below) * u).clamp(2.0**-53, 1 - 2.0**-53))
        t = distribution.mean + distribution.std * z
        t = t.sigmoid() if distribution.kind == "logit_normal" else t
    # rounding to float32 may cross a bound
    return t.float().clamp(distribution.low, distribution.high).to(device or generator.device)


def shift_times(t: Float[Tensor, "*times"], shift: float) -> Float[Tensor, "*times"]:
    """``s t / (1 + (s - 1) t)``: towards noise for s > 1, unchanged for s = 1, ends fixed.

    Shifts compose by their product, and ``1 / s`` undoes ``s``. Diffusers schedulers that have a ``shift`` of their own apply it to
    every sigma they are given: hand them unshifted ones, or use :func:`visiongraft.flow.sampling.euler_scheduler`.

    Args:
        t: in [0, 1].
        shift: a constant (Wan: 3 or 5), :func:`dimension_shift`, or :func:`resolution_shift`.

    Raises:
        ValueError: a shift that is not positive.

    Source: arXiv 2403.03206, Sec. 5.3.2, Eq. 23.
    """
    _check_shift(shift)
    return shift * t / (1 + (shift - 1) * t)


def dimension_shift(dimension: int, base: int = 4096) -> float:
    """The shift ``sqrt(dimension / base)`` for data of many dimensions: at the shifted time its signal is as hard to see through
    the noise as that of ``base`` dimensions at the unshifted one.

    Args:
        dimension: numbers in one sample, tokens times channels. Below ``base`` the shift is towards data.
        base: dimensions for which the unshifted times were found good.

    Raises:
        ValueError: dimensions below 1.

    Source: arXiv 2510.11690 and 2601.16208, dimension-dependent schedule shift.
    """
    if dimension < 1 or base < 1:
        raise ValueError(f"dimension and base count numbers and are at least 1; got {dimension} and {base}.")
    return math.sqrt(dimension / base)


def resolution_shift(tokens: int, base_tokens: int = 256, max_tokens: int = 4096, base_mu: float = 0.5, max_mu: float = 1.15) -> float:
    """FLUX's shift ``e^mu`` of a sequence of image tokens, with mu linear through (256, 0.5) and (4096, 1.15), extrapolated beyond.

    The panorama's tokens count, not those of a condition: that is what the model denoises.

    Raises:
        ValueError: no tokens, or two equal anchors.

    Source: Diffusers' FluxPipeline with the scheduler of FLUX.1-dev (``use_dynamic_shifting``, ``time_shift_type="exponential"``).
    """
    if tokens < 1 or base_tokens == max_tokens:
        raise ValueError(
            f"tokens must be at least 1 and the anchors different; got {tokens} tokens, anchors {base_tokens} and {max_tokens}."
        )
    return math.exp(base_mu + (max_mu - base_mu) * (tokens - base_tokens) / (max_tokens - base_tokens))


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0, end: float = 0.0) -> Float[Tensor, " grid"]:
    """Times of a sampler from noise to data: evenly spaced before the shift.

    Args:
        steps: how many steps, whatever ``start`` is.
        shift: see :func:`shift_times`; the same as in training.
        start: the time to start from, as it is after the shift; below 1 to continue from :func:`visiongraft.flow.paths.interpolate`
            of an image (SDEdit).
        end: the last time, after the shift. RAE stops at ``shift_times(0.001)``.

    Returns:
        float64, ``steps + 1`` falling times, the first ``start``, the last ``end``.

    Raises:
        ValueError: no steps, a shift that is not positive, or not ``0 <= end < start <= 1``.
    """
    if steps < 1:
        raise ValueError(f"A sampler needs at least 1 step; got {steps}.")
    if not 0 <= end < start <= 1:
        raise ValueError(f"Sampling goes from noise to data: 0 <= end < start <= 1; got start={start}, end={end}.")
    _check_shift(shift)
    ends = torch.tensor([start, end], dtype=torch.float64)
    first, last = shift_times(ends, 1 / shift).tolist()
    grid = shift_times(torch.linspace(first, last, steps + 1, dtype=torch.float64), shift)
    grid[0], grid[-1] = ends  # exact ends in spite of rounding
    return grid


def _check_shift(shift: float) -> None:
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be a positive number; got {shift}. 1 leaves times as they are.")


def _normal_bounds(distribution: TimeDistribution) -> tuple[float, float]:
    """The bounds as standard scores of the normal variable."""
    bounds = (distribution.low, distribution.high)
    if distribution.kind == "logit_normal":
        bounds = tuple(-math.inf if b == 0 else math.inf if b == 1 else math.log(b / (1 - b)) for b in bounds)
    low, high = ((b - distribution.mean) / distribution.std for b in bounds)
    return low, high


def _mass(distribution: TimeDistribution) -> float:
    low, high = _normal_bounds(distribution)
    return _normal_cdf(high) - _normal_cdf(low)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
