"""Sampling of one window of latents: the schedule with its double shift, the noise, and the steps that leave known frames alone."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.methods.action_mesh.guidance import Denoise, PairGuidance, guided_velocity

TRAIN_TIMESTEPS = 1000

StepCallback = Callable[[int, int], None]
"""Called after each step with (steps done, steps of the window)."""


class Cancelled(RuntimeError):
    """The caller's ``cancel`` said so; nothing was changed."""


def check_cancel(cancel: Callable[[], bool] | None, where: str) -> None:
    """Stops the run when the caller asks for it.

    Raises:
        Cancelled: ``cancel()`` is true.
    """
    if cancel is not None and cancel():
        raise Cancelled(f"Cancelled {where}.")


def stage_one_sigmas(num_steps: int = 30, shift: float | int = 3.0) -> Float[Tensor, "grid"]:
    """Noise levels of stage I: from 1 down to about 0.0089 at shift 3, **not** to 0, with the shift applied twice.

    ``warp(s) = shift s / (1 + (shift - 1) s)``; the levels are ``warp(linspace(1, warp(1/1000), n + 1))``. Stage 0 has a schedule of
    its own, :class:`visiongraft.methods.action_mesh.rectified_flow.RectifiedFlowScheduler`; the two must not be swapped.

    Args:
        num_steps: n.
        shift: 1 is none.

    Returns:
        n + 1 falling levels, float32.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.

    Source: ActionMesh brief, 2.5.
    """
    if num_steps < 1 or not shift > 0:
        raise ValueError(f"Stage I needs at least 1 step and a positive shift; got {num_steps} steps and shift {shift:g}.")

    def warp(s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return shift * s / (1 + (shift - 1) * s)

    lowest = float(warp(torch.tensor(1 / TRAIN_TIMESTEPS, dtype=torch.float64)))
    return warp(torch.linspace(1, lowest, num_steps + 1, dtype=torch.float64)).float()


def frame_noise(
    shape: tuple[int, int, int, int], generator: torch.Generator, correlation: float | int = 0.0
) -> Float[Tensor, "batch frames tokens channels"]:
    """Standard normal noise, ``sqrt(c) shared + sqrt(1 - c) independent`` over the frames.

    The shared part is drawn first whatever c is, so that one seed gives one independent part.

    Args:
        shape: batch, frames, tokens, channels.
        generator: source of randomness; the noise is on its device.
        correlation: c in [0, 1], of any two frames; 0 in the released setting.

    Raises:
        ValueError: another correlation.

    Source: ActionMesh brief, 2.5 (Noise).
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"The correlation of the frames' noise must be in [0, 1]; got {correlation:g}.")
    batch, frames, tokens, channels = shape
    shared = torch.randn(batch, 1, tokens, channels, generator=generator, device=generator.device)
    independent = torch.randn(batch, frames, tokens, channels, generator=generator, device=generator.device)
    return independent if correlation == 0 else correlation**0.5 * shared + (1 - correlation) ** 0.5 * independent


@torch.no_grad()
def sample_window(
    denoise: Denoise,
    noise: Float[Tensor, "batch frames tokens channels"],
    context: Float[Tensor, "batch frames words dim"],
    framestep: Float[Tensor, "batch frames"],
    *,
    known: Float[Tensor, "batch frames _ _"] | None = None,
    mask: Tensor | None = None,
    num_steps: int = 30,
    shift: float | int = 3.0,
    guidance: PairGuidance | None = None,
    split_cfg_batch: bool = False,
    callback: StepCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Float[Tensor, "batch frames tokens channels"]:
    """Latents of the frames that are not known, all at once: ``x <- x + (sigma_i - sigma_{i+1}) v`` with v = x0 - noise.

    No argument is changed. Known frames come back bit for bit. Between steps everything is float32.

    Args:
        denoise: the temporal denoiser.
        noise: where the path starts.
        context: image features of each frame.
        framestep: frame numbers; any order, fractions too.
        known: clean latents, read where the mask is 1.
        mask: (batch, frames), 1 where latents are known and else 0; default: nowhere.
        num_steps, shift: of :func:`stage_one_sigmas`.
        guidance: default: the released one.
        split_cfg_batch: branches of the guidance one by one.
        callback: told after each step.
        cancel: asked before each step.

    Raises:
        ValueError: a mask of another shape or with other values than 0 and 1, one without frames to generate, a mask without known
            latents, or shapes that differ.
        Cancelled: when ``cancel`` says so.

    Source: ActionMesh brief, 2.5.
    """
    guidance = PairGuidance() if guidance is None else guidance
    mask = _checked_mask(noise, known, mask)
    sigmas = stage_one_sigmas(num_steps, shift).tolist()
    source = mask[:, :, None, None] > 0
    x = noise.float() if known is None else torch.where(source, known.float(), noise.float())
    for step in range(num_steps):
        check_cancel(cancel, f"before step {step + 1} of {num_steps} of stage I")
        timestep = torch.full((len(x),), TRAIN_TIMESTEPS * sigmas[step], dtype=torch.float32, device=x.device)
        velocity = guided_velocity(denoise, x, context, framestep, timestep, mask, guidance, split=split_cfg_batch)
        x = torch.where(source, x, x + (sigmas[step] - sigmas[step + 1]) * velocity)
        if callback is not None:
            callback(step + 1, num_steps)
    return x


def _checked_mask(noise: Tensor, known: Tensor | None, mask: Tensor | None) -> Float[Tensor, "batch frames"]:
    expected = tuple(noise.shape[:2])
    if mask is None:
        return noise.new_zeros(expected, dtype=torch.float32)
    if tuple(mask.shape) != expected or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"The mask must be (batch, frames) = {expected} of 0 and 1; got shape {tuple(mask.shape)}.")
    if bool((mask == 1).all(1).any()):
        raise ValueError("All frames are sources, nothing to generate; leave at least one frame unknown.")
    if known is None:
        if bool(mask.any()):
            raise ValueError("The mask names known frames, but there are no known latents; give them too.")
    elif known.shape != noise.shape:
        raise ValueError(f"Known latents must have the noise's shape {tuple(noise.shape)}; got {tuple(known.shape)}.")
    return mask.to(noise.device, torch.float32)
