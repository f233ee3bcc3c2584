"""Stage I: one latent for each frame of a clip, window after window, from the latents that are known."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.methods.action_mesh.guidance import Denoise, PairGuidance
from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.sampler import frame_noise, sample_window
from visiongraft.methods.action_mesh.windows import SLIDE, WINDOW, plan_windows

Callback = Callable[[int, int, int, int], None]
"""Called with (steps done, steps of the window, windows before this one, windows)."""


@torch.no_grad()
def generate_latents(
    denoise: Denoise,
    context: Float[Tensor, "batch frames words dim"],
    known: TimeBank,
    *,
    anchor: int | None = 0,
    num_tokens: int | None = None,
    channels: int | None = None,
    window: int = WINDOW,
    slide: int = SLIDE,
    num_steps: int = 30,
    shift: float | int = 3.0,
    guidance: PairGuidance | None = None,
    seed: int = 44,
    noise_correlation: float | int = 0.0,
    split_cfg_batch: bool = False,
    force: bool = False,
    callback: Callback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> TimeBank:
    """Latents of all frames. A batch is several clips of one length with the same known frames.

    Args:
        denoise: the temporal denoiser.
        context: image features of each frame; the result is on its device.
        known: clean latents (batch x tokens x channels) by frame number, the anchor's at least; it stays as it is. Further ones, such
            as those of a shorter clip that is to go on, are kept too.
        anchor: frame that windows start from. ``None``: nothing is known, all frames of the first window are generated from noise,
            which the released weights were not trained for.
        num_tokens, channels: of the latents; needed where nothing is known.
        window, slide: see :func:`visiongraft.methods.action_mesh.windows.plan_windows`.
        num_steps, shift, guidance, split_cfg_batch: see :func:`visiongraft.methods.action_mesh.sampler.sample_window`.
        seed: the noise of window i is that of seed + i, drawn on the CPU, so that every device gets the same.
        noise_correlation: of the frames' noise in a window, in [0, 1].
        force: let the denoiser run on a CPU whatever the window's size.
        callback: told after each step.
        cancel: asked before each step.

    Returns:
        A new bank with the known latents and one for every frame, float32.

    Raises:
        IndexError: an anchor outside the clip.
        ValueError: fewer than 2 frames, an anchor without latents, or latents that the denoiser does not take.
        Cancelled: when ``cancel`` says so.

    Source: ActionMesh brief, 2.4, 2.5 and 2.8.
    """
    batch, total = context.shape[:2]
    planned = plan_windows(0 if anchor is None else anchor, total, window, slide)
    if anchor is None:
        warnings.warn("Without an anchor all frames come from noise, which the released weights were not trained for.", stacklevel=2)
    elif anchor not in known:
        raise ValueError(f"The anchor, frame {anchor}, has no latents; encode its mesh or generate it from its picture first.")
    num_tokens, channels = _latent_size(denoise, known, batch, num_tokens, channels)
    bank = TimeBank({time: known[time].to(context.device, torch.float32) for time in known.times})
    for index, frames in enumerate(planned):
        if all(frame in bank for frame in frames):
            continue
        generator = torch.Generator().manual_seed(seed + index)
        noise = frame_noise((batch, len(frames), num_tokens, channels), generator, noise_correlation).to(context.device)
        mask = torch.tensor([[float(frame in bank) for frame in frames]], device=context.device).repeat(batch, 1)
        clean = [bank[frame] if frame in bank else torch.zeros_like(noise[:, 0]) for frame in frames]
        latents = sample_window(
            partial(denoise, force=True) if force else denoise,
            noise,
            context[:, frames],
            torch.tensor([frames], dtype=torch.float32, device=context.device).repeat(batch, 1),
            known=torch.stack(clean, 1),
            mask=mask,
            num_steps=num_steps,
            shift=shift,
            guidance=guidance,
            split_cfg_batch=split_cfg_batch,
            callback=None if callback is None else lambda step, steps: callback(step, steps, index, len(planned)),
            cancel=cancel,
        )
        for frame, latent in zip(frames, latents.unbind(1), strict=True):
            bank.add(frame, latent)
    return bank


def _latent_size(denoise: Any, known: TimeBank, batch: int, num_tokens: int | None, channels: int | None) -> tuple[int, int]:
    expected = getattr(getattr(denoise, "config", None), "in_channels", None)
    if len(known):
        shape = tuple(known[known.times[0]].shape)
        if len(shape) != 3 or shape[0] != batch:
            raise ValueError(f"Known latents must be (batch, tokens, channels) for {batch} clips; got {shape}.")
        num_tokens, channels = shape[1:]
    channels = expected if channels is None else channels
    if num_tokens is None or channels is None:
        raise ValueError("Where no latents are known, num_tokens and channels must be given.")
    if expected is not None and channels != expected:
        raise ValueError(f"The latents have {channels} channels, and the denoiser takes {expected}; they come from another VAE.")
    return num_tokens, channels
