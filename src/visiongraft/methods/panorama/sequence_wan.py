"""The graft on Wan's transformer: clean tokens of a perspective clip, appended to the noisy tokens of the panorama.

The stock forward runs as it is, inside whatever wraps it (offloading, DDP, FSDP2, autocast, LoRA scale, gradient checkpointing).
Three hooks, attached for one call, make its sequence longer: behind the patch embedding the condition's tokens are appended, behind
the rotary embedding their positions, and behind the last projection their outputs are dropped.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from jaxtyping import Bool, Float
from torch import Tensor, nn

TRAIN_TIMESTEPS = 1000
"""Wan's transformer counts time from 0 to this."""


def wan_velocity(
    transformer: nn.Module,
    panorama: Float[Tensor, "batch channels frames height width"],
    condition: Float[Tensor, "batch channels condition_frames condition_height condition_width"] | None,
    timestep: Float[Tensor, "batch"],
    prompt_embeds: Float[Tensor, "batch text text_dim"],
    *,
    time_offset: float = 0.1,
    cond_timestep: Literal["shared", "zero"] = "shared",
    keep_condition: Bool[Tensor, "batch"] | None = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> Float[Tensor, "batch channels frames height width"]:
    """Velocity (noise - data) of the panorama's latents, seen beside the clean latents of a perspective clip.

    Latent frame k of the panorama stands at time k, that of the condition at ``k + time_offset``; rows and columns of both start at 0.
    Without a condition this is the stock forward.

    Args:
        transformer: a text-to-video ``WanTransformer3DModel``; may be wrapped in DDP.
        panorama: noisy latents at time ``timestep``, in the transformer's dtype.
        condition: clean latents of the perspective clip, as many latent frames; None: text alone.
        timestep: in [0, 1]: 0 data, 1 noise.
        prompt_embeds: of the text encoder, padded as the base does.
        time_offset: a whole number would make frame k of the condition coincide with frame k + 1 of the panorama.
        cond_timestep: ``shared`` modulates condition tokens with ``timestep``, ``zero`` with 0. Zero needs a modulation for each token:
            24 bytes x tokens x width more memory in a block (6 GB for 48384 tokens of the 14B model).
        keep_condition: False sets the embedded condition tokens of a sample to zero (the null condition of guidance); they stay
            in the sequence.
        attention_kwargs: ``{"scale": ...}`` scales LoRA.

    Raises:
        ValueError: grids that do not fit the patches, different frame counts, or another ``cond_timestep``.
        NotImplementedError: an image-to-video transformer, feature caching, context parallelism, a transformer compiled as a whole.

    Source: arXiv 2601.16192, sequence concatenation, on Wan.
    """
    base = extract_model_from_parallel(transformer)
    _check_support(base)
    if cond_timestep not in ("shared", "zero"):
        raise ValueError(f"cond_timestep must be 'shared' or 'zero'; got {cond_timestep!r}.")
    tokens = _count_tokens(base, panorama, "panorama")
    time = timestep.float() * TRAIN_TIMESTEPS
    with ExitStack() as hooks:
        if condition is not None:
            appended = _count_tokens(base, condition, "condition")
            if condition.shape[2] != panorama.shape[2]:
                raise ValueError(
                    f"Perspective and panorama must have the same number of frames; got {condition.shape[2]} and {panorama.shape[2]} "
                    "latent frames."
                )
            hooks.enter_context(_appended_tokens(base, tokens, condition, time_offset, keep_condition))
            if cond_timestep == "zero":
                clean = time.new_zeros(time.shape[0], appended)
                time = torch.cat([time[:, None].expand(-1, tokens), clean], dim=1)
        return transformer(
            hidden_states=panorama,
            timestep=time,
            encoder_hidden_states=prompt_embeds,
            attention_kwargs=attention_kwargs,
            return_dict=False,
        )[0]


def rotary_embedding(
    times: Float[Tensor, "frames"],
    rows: Float[Tensor, "height"],
    columns: Float[Tensor, "width"],
    head_dim: int,
    theta: float = 10000.0,
) -> tuple[Float[Tensor, "1 tokens 1 head_dim"], Float[Tensor, "1 tokens 1 head_dim"]]:
    """Cosines and sines of a grid's rotary angles ``position / theta^(2 i / axis_dim)`` at any positions, whole or not.

    Wan's layout: the head is split into time, row and column, each a third rounded down to an even number and time the rest; every
    frequency twice in a row.

    Args:
        times: positions of the frames, float64 (bfloat16 makes 20.125 of 20.1).
        rows: of the rows.
        columns: of the columns.
        head_dim: of an attention head.
        theta: longest wavelength over 2 pi.

    Returns:
        float32, token order frame, row, column. Angles are computed in float64.

    Source: arXiv 2601.16192, positions of the tokens.
    """
    space_dim = 2 * (head_dim // 6)
    shape = (len(times), len(rows), len(columns))
    tables = []
    for axis, (positions, dim) in enumerate(((times, head_dim - 2 * space_dim), (rows, space_dim), (columns, space_dim))):
        view = [1, 1, 1, dim]
        view[axis] = shape[axis]
        axis_tables = get_1d_rotary_pos_embed(dim, positions.double(), theta, use_real=True, freqs_dtype=torch.float64)  # pyright: ignore
        tables.append([table.view(view).expand(*shape, dim) for table in axis_tables])
    cosines, sines = (torch.cat(parts, -1).reshape(1, prod(shape), 1, head_dim) for parts in zip(*tables, strict=True))
    return cosines, sines


@contextmanager
def _appended_tokens(
    base: WanTransformer3DModel,
    tokens: int,
    condition: Float[Tensor, "batch channels frames height width"],
    time_offset: float,
    keep: Bool[Tensor, "batch"] | None,
) -> Iterator[None]:
    """While open, the transformer's sequence is the panorama's ``tokens`` followed by those of the condition."""

    def append_tokens(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        embedding.remove()  # the call below is for the condition
        extra = module(condition.to(args[0])).flatten(2)
        if keep is not None:
            extra = extra * keep.to(extra)[:, None, None]
        return torch.cat([output.flatten(2), extra], dim=2)

    def append_positions(module: nn.Module, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        frames, height, width = _grid(condition, base.config.patch_size)
        # on the CPU: not every accelerator has float64, and the tables of the base are computed there too
        positions = [torch.arange(count, dtype=torch.float64, device="cpu") for count in (frames, height, width)]
        extra = rotary_embedding(positions[0] + time_offset, positions[1], positions[2], base.config.attention_head_dim)
        cosines, sines = (torch.cat([own, more.to(own.device)], dim=1) for own, more in zip(output, extra, strict=True))
        return cosines, sines

    def drop_outputs(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output[:, :tokens]

    embedding = base.patch_embedding.register_forward_hook(append_tokens)
    others = [base.rope.register_forward_hook(append_positions), base.proj_out.register_forward_hook(drop_outputs)]
    try:
        yield
    finally:
        for handle in (embedding, *others):
            handle.remove()


def _grid(latents: Tensor, patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Frames, rows and columns of the tokens."""
    frames, height, width = (size // patch for size, patch in zip(latents.shape[2:], patch_size, strict=True))
    return frames, height, width


def _count_tokens(base: WanTransformer3DModel, latents: Tensor, name: str) -> int:
    patch_size = base.config.patch_size
    if latents.shape[1] != base.config.in_channels or any(size % patch for size, patch in zip(latents.shape[2:], patch_size, strict=True)):
        raise ValueError(
            f"The {name}'s latents must have {base.config.in_channels} channels and frames x height x width in multiples of "
            f"{tuple(patch_size)}; got shape {tuple(latents.shape)}."
        )
    return prod(_grid(latents, patch_size))


def _check_support(base: nn.Module) -> None:
    if base.config.image_dim is not None or base.config.added_kv_proj_dim is not None:
        raise NotImplementedError("Wan's image-to-video transformers (image embeddings) do not fit; use a text-to-video transformer.")
    if base.is_cache_enabled:
        raise NotImplementedError("Feature caching is not supported beside condition tokens; call transformer.disable_cache() first.")
    if getattr(base._parallel_config, "context_parallel_config", None) is not None:
        raise NotImplementedError("Context parallelism is not supported beside condition tokens; load the transformer without it.")
    if base._compiled_call_impl is not None or hasattr(base, "_orig_mod"):
        # a graph of the whole transformer is not compiled again when hooks change
        raise NotImplementedError("A transformer compiled as a whole is not supported; use transformer.compile_repeated_blocks().")
