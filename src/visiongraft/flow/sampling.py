"""From noise to data along a velocity field: Euler's method by Diffusers' scheduler, Heun's method, and parts that are given."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from visiongraft.flow.paths import interpolate

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Known:
    """The part of a sample that is given and that sampling must not change.

    Args:
        values: clean values, of the sample's shape (or broadcasting to it).
        mask: True where they hold.
        noise: ``None`` keeps the part clean at every time, as a condition; else it is at each time mixed with this noise, as the
            sampler's own values are (inpainting, overlapping windows).
    """

    values: Float[Tensor, "*values"]
    mask: Bool[Tensor, "*mask"]
    noise: Float[Tensor, "*noise"] | None = None

    def impose(self, sample: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
        """The sample with the known part at time ``t`` in its place."""
        values = self.values.to(sample.dtype)
        if self.noise is not None:
            values = interpolate(values, self.noise.to(sample.dtype), sample.new_tensor(t))
        return torch.where(self.mask, values, sample)


def sample(
    velocity_fn: Velocity,
    start: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " grid"],
    solver: Literal["euler", "heun"] = "euler",
    *,
    known: Known | None = None,
    callback: Callable[[int, float, Tensor], Tensor | None] | None = None,
    progress: bool = False,
) -> Float[Tensor, "batch *shape"]:
    """Follows ``dy/dt = velocity(y, t)`` from the first time to the last.

    Args:
        velocity_fn: maps (y, t) to the velocity ``noise - data``; y as ``start``, t (B) float32 in [0, 1]. Guidance wraps it, see
            :func:`visiongraft.flow.guidance.guided`.
        start: standard normal noise where the first time is 1; else ``interpolate(image, noise, times[0])`` (SDEdit).
        times: falling, see :func:`visiongraft.flow.times.time_grid`; or the ``sigmas`` of a Diffusers flow-matching scheduler.
        solver: ``euler`` calls the network once a step and errs by the step; ``heun`` calls it twice (once in a last step to t = 0)
            and errs by its square: better for the same calls from about 10 calls on, where the field is smooth.
        known: the part that is given.
        callback: called after every step with (step, time reached, sample); a tensor it returns takes the sample's place.
        progress: show a bar.

    Returns:
        The sample at the last time, in the dtype of ``start``. In between it is kept in float32 (float64 with ``heun`` for a
        float64 start), so that many small steps in bfloat16 do not lose themselves.

    Raises:
        ValueError: times that do not fall from at most 1 to at least 0, or an unknown solver.
    """
    if solver not in ("euler", "heun"):
        raise ValueError(f"solver must be euler or heun; got {solver!r}.")
    grid = check_times(times)
    scheduler: Any = euler_scheduler(times, start.device) if solver == "euler" else None
    precision = torch.promote_types(start.dtype, torch.float32)

    def derivative(y: Tensor, t: float) -> Tensor:
        batch_times = torch.full((y.shape[0],), t, dtype=torch.float32, device=y.device)
        return velocity_fn(y.to(start.dtype), batch_times).to(precision)

    def impose(y: Tensor, t: float) -> Tensor:
        return y if known is None else known.impose(y, t)

    y = impose(start.to(precision), grid[0])
    for step, (t, t_next) in enumerate(zip(tqdm(grid[:-1], desc="sampling", disable=not progress), grid[1:], strict=True)):
        v = derivative(y, t)
        if scheduler is not None:
            y = scheduler.step(v, scheduler.timesteps[step], y, return_dict=False)[0]
        else:
            y = _heun_step(derivative, impose, y, v, t, t_next)
        y = impose(y, t_next)
        replaced = callback(step, t_next, y.to(start.dtype)) if callback is not None else None
        y = y if replaced is None else replaced.to(precision)
    return y.to(start.dtype)


def euler_scheduler(times: Float[Tensor, " grid"], device: torch.device | str = "cpu") -> FlowMatchEulerDiscreteScheduler:
    """Diffusers' Euler scheduler on exactly these times, for :func:`sample` or for a pipeline that takes a scheduler.

    Its ``sigmas`` are the times and one more zero, its ``timesteps`` 1000 times the times; it has no shift, since a scheduler
    built with ``shift=...`` would apply it again to sigmas that have it already.

    Args:
        times: falling from at most 1 to at least 0. ``sample`` takes one step less than there are times.
        device: of ``timesteps`` and ``sigmas``.

    Raises:
        ValueError: other times.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=check_times(times), device=device)
    scheduler.set_begin_index(0)
    return scheduler


def check_times(times: Float[Tensor, " grid"]) -> list[float]:
    """The times as numbers.

    Raises:
        ValueError: unless they fall strictly, from at most 1 to at least 0.
    """
    grid = [float(t) for t in times]
    if len(grid) < 2 or not (grid[0] <= 1 and grid[-1] >= 0 and all(a > b for a, b in pairwise(grid))):
        raise ValueError(
            f"times must fall strictly from at most 1 (noise) to at least 0 (data) and be at least two; got {len(grid)} times"
            + (f" from {grid[0]:g} to {grid[-1]:g}" if grid else "")
            + ". time_grid makes them."
        )
    return grid


def _heun_step(
    derivative: Callable[[Tensor, float], Tensor], impose: Callable[[Tensor, float], Tensor], y: Tensor, v: Tensor, t: float, t_next: float
) -> Tensor:
    """One step of Heun's method (the explicit trapezoidal rule) from ``y`` with velocity ``v``.

    The step to t = 0 is Euler's: networks are hardly trained there, and one first-order step of many leaves the order at two.
    Diffusers' ``FlowMatchHeunDiscreteScheduler`` is not used: it takes no sigmas, only a number of steps, and shifts its own twice.
    """
    ahead = y + (t_next - t) * v
    if t_next == 0:
        return ahead
    return y + (t_next - t) * (v + derivative(impose(ahead, t_next), t_next)) / 2
