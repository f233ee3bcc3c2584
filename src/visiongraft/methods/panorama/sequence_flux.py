"""The graft on FLUX: clean tokens of a perspective image, appended to the noisy tokens of the panorama.

The stock forward runs as it is, inside whatever wraps it (offloading, DDP, FSDP2, LoRA scale, gradient checkpointing): the two
grids differ in the time of their rotary positions only. Dropped conditions are zeroed by a hook behind the token embedding.
Condition tokens at time 0 need a modulation for each token, which the stock blocks do not have; for these the stock submodules
run in the stock order.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import isqrt
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import FluxTransformer2DModel
from diffusers.utils import apply_lora_scale
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from visiongraft.methods.panorama.config import CondTimestep


def flux_velocity(
    transformer: nn.Module,
    panorama: Float[Tensor, "batch channels height width"],
    condition: Float[Tensor, "batch channels condition_height condition_width"] | None,
    timestep: Float[Tensor, " batch"],
    prompt_embeds: Float[Tensor, "batch words embedding"],
    pooled_prompt_embeds: Float[Tensor, "batch pooled"],
    *,
    guidance: Float[Tensor, " batch"] | float | None = None,
    time_offset: float = 1.0,
    cond_timestep: CondTimestep = "shared",
    keep_condition: Bool[Tensor, " batch"] | None = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> Float[Tensor, "batch out_channels height width"]:
    """Velocity ``noise - data`` of noisy panorama latents beside the clean latents of a perspective image.

    Without a condition this is the stock forward; with one and ``shared`` time it is the stock forward on the joined tokens.

    Args:
        transformer: a ``FluxTransformer2DModel``; may be wrapped in DDP, but for ``zero``.
        panorama: normalised noisy latents, not packed; both sides multiples of the patch.
        condition: normalised clean latents of the perspective image, of any size; None: the base model as it is.
        timestep: in [0, 1], 0 data, 1 noise.
        prompt_embeds: of T5.
        pooled_prompt_embeds: of CLIP.
        guidance: of a guidance-distilled model, 1.0 in training; None for one without guidance embedding.
        time_offset: time of the condition tokens in the rotary embedding, where panorama tokens have 0; fractions are kept.
        cond_timestep: ``shared`` modulates condition tokens with ``timestep``; ``zero`` modulates them with time 0.
        keep_condition: where False, the sample's embedded condition tokens are zero: the null condition of guidance.
        attention_kwargs: as the stock ``joint_attention_kwargs``, with ``scale`` for LoRA.

    Returns:
        Velocity of the panorama, in the dtype of ``panorama``.

    Raises:
        TypeError: another model.
        ValueError: sizes that the patch does not divide, or guidance that does not fit the model.
        NotImplementedError: ``keep_condition`` with a transformer that is compiled as a whole or split over its tokens; ``zero`` with
            a wrapped transformer, or blocks that are sharded, offloaded in groups, cached or IP-adapted.

    Source: arXiv 2601.16192, sequence concatenation, on FLUX.
    """
    base: Any = extract_model_from_parallel(transformer)
    if not hasattr(base, "x_embedder"):
        raise TypeError(f"flux_velocity needs a FluxTransformer2DModel; got a {type(base).__name__}.")
    if cond_timestep not in ("shared", "zero"):
        raise ValueError(f"cond_timestep must be 'shared' or 'zero'; got {cond_timestep!r}.")
    patch = patch_size(base, panorama.shape[1])
    sides = panorama.shape[2] // patch, panorama.shape[3] // patch
    tokens, ids = [pack(panorama, patch)], [position_ids(*sides, 0.0, panorama.device)]
    if condition is not None:
        tokens.append(pack(condition, patch))
        ids.append(position_ids(condition.shape[2] // patch, condition.shape[3] // patch, time_offset, panorama.device))
    dtype = base.dtype
    inputs = {
        "hidden_states": torch.cat([part.to(dtype) for part in tokens], dim=1),
        "encoder_hidden_states": prompt_embeds.to(dtype),
        "pooled_projections": pooled_prompt_embeds.to(dtype),
        "timestep": timestep,
        "guidance": _guidance(base, guidance, timestep),
        # positions stay float32: in bfloat16 300 is not representable and 0.1 moves
        "img_ids": torch.cat(ids),
        "txt_ids": torch.zeros(prompt_embeds.shape[1], 3, device=panorama.device),
        "joint_attention_kwargs": attention_kwargs,
    }
    length = tokens[0].shape[1]
    keep = None if condition is None else keep_condition
    with nullcontext() if keep is None else _dropped_conditions(base, length, keep):
        if condition is None or cond_timestep == "shared":
            output = transformer(**inputs, return_dict=False)[0]
        else:
            _check_zero_time(transformer, base, attention_kwargs)
            _onload(base)
            output = _zero_time_forward(base, **inputs, counts=(length, inputs["hidden_states"].shape[1] - length))
    return unpack(output[:, :length], *sides, patch).to(panorama.dtype)


def patch_size(transformer: FluxTransformer2DModel, channels: int) -> int:
    """Side of the square of latents that one token holds, from the model's width and the number of latent channels.

    Raises:
        ValueError: channels that do not fit the model.
    """
    width = transformer.config.in_channels
    patch = isqrt(width // channels)
    if patch < 1 or patch * patch * channels != width:
        raise ValueError(
            f"A transformer with in_channels {width} takes {width // 4} latent channels in 2x2 patches; got {channels} channels."
        )
    return patch


def pack(
    latents: Float[Tensor, "batch channels height width"], patch: int
) -> Float[Tensor, "batch (height//{patch})*(width//{patch}) channels*{patch}*{patch}"]:
    """Latents as tokens in row order, each the ``channels x patch x patch`` latents of one square.

    Raises:
        ValueError: a side that is not a multiple of the patch.
    """
    batch, channels, height, width = latents.shape
    if height % patch or width % patch:
        raise ValueError(f"Latent height and width must be multiples of the patch {patch}; got {height}x{width}.")
    squares = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // patch) * (width // patch), channels * patch**2)


def unpack(
    tokens: Float[Tensor, "batch {rows}*{columns} values"], rows: int, columns: int, patch: int
) -> Float[Tensor, "batch channels {rows}*{patch} {columns}*{patch}"]:
    """Inverse of :func:`pack` for a grid of ``rows x columns`` tokens."""
    squares = tokens.reshape(tokens.shape[0], rows, columns, -1, patch, patch)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, rows * patch, columns * patch)


def position_ids(rows: int, columns: int, time: float, device: torch.device) -> Float[Tensor, "{rows}*{columns} 3"]:
    """(time, row, column) of a grid of tokens, float32. Source: arXiv 2601.16192, positions of the tokens."""
    ids = torch.empty(rows, columns, 3, device=device, dtype=torch.float32)
    ids[..., 0] = time
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)
    return ids.flatten(0, 1)


def _guidance(transformer: FluxTransformer2DModel, guidance: Tensor | float | None, timestep: Tensor) -> Tensor | None:
    if (guidance is not None) != bool(transformer.config.guidance_embeds):
        raise ValueError(
            "This FLUX has a guidance embedding; pass guidance, 1.0 in training or about 3.0 at inference."
            if guidance is None
            else "This FLUX has no guidance embedding; leave guidance out."
        )
    if guidance is None or isinstance(guidance, Tensor):
        return guidance
    return torch.full_like(timestep, guidance)


@contextmanager
def _dropped_conditions(base: FluxTransformer2DModel, panorama_tokens: int, keep: Tensor) -> Iterator[None]:
    """While open, the embedded tokens behind the panorama's are zero in the samples that are not kept."""
    if base._compiled_call_impl is not None or hasattr(base, "_orig_mod"):
        # a graph of the whole transformer is not compiled again when hooks change
        raise NotImplementedError("keep_condition needs the blocks compiled, not the whole: use transformer.compile_repeated_blocks().")
    if getattr(base._parallel_config, "context_parallel_config", None) is not None:
        raise NotImplementedError("keep_condition does not work with context parallelism; load the transformer without it.")

    def zero_condition(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        kept = output[:, panorama_tokens:] * keep.to(output)[:, None, None]
        return torch.cat([output[:, :panorama_tokens], kept], dim=1)

    handle = base.x_embedder.register_forward_hook(zero_condition)
    try:
        yield
    finally:
        handle.remove()


def _onload(base: FluxTransformer2DModel) -> None:
    """Brings an offloaded model to its device, as Diffusers does where a method other than ``forward`` is called."""
    hook: Any = getattr(base, "_hf_hook", None)
    if hasattr(hook, "pre_forward"):
        hook.pre_forward(base)


def _check_zero_time(transformer: nn.Module, base: Any, attention_kwargs: dict[str, Any] | None) -> None:
    """Time 0 runs the parts of the model, so whatever acts on the call of the model or of a block would be passed by."""
    if base is not transformer and not hasattr(transformer, "_orig_mod"):
        raise NotImplementedError(
            f"cond_timestep='zero' does not go through {type(transformer).__name__}; wrap a module that calls flux_velocity instead."
        )
    if any(isinstance(block, FSDPModule) or hasattr(block, "_diffusers_hook") for block in base.transformer_blocks):
        raise NotImplementedError(
            "cond_timestep='zero' does not work with blocks that are sharded by FSDP, offloaded in groups or cached; "
            "use enable_model_cpu_offload, or cond_timestep='shared'."
        )
    if {"ip_adapter_image_embeds", "ip_hidden_states"} & set(attention_kwargs or {}):
        raise NotImplementedError("cond_timestep='zero' does not work with IP-Adapters; unload them or use cond_timestep='shared'.")


@apply_lora_scale("joint_attention_kwargs")
def _zero_time_forward(
    self: FluxTransformer2DModel,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    guidance: Tensor | None,
    img_ids: Tensor,
    txt_ids: Tensor,
    joint_attention_kwargs: dict[str, Any] | None,
    counts: tuple[int, int],
) -> Tensor:
    """The stock forward but for the modulation: ``counts[0]`` tokens at the timestep, the ``counts[1]`` behind them at time 0."""
    hidden = self.x_embedder(hidden_states)

    def conditioning(time: Tensor) -> Tensor:
        scales = [time] if guidance is None else [time, guidance]
        return self.time_text_embed(*(scale.to(hidden.dtype) * 1000 for scale in scales), pooled_projections)

    times = conditioning(timestep), conditioning(torch.zeros_like(timestep))
    text = self.context_embedder(encoder_hidden_states)
    rotary = self.pos_embed(torch.cat([txt_ids, img_ids]))
    for blocks, run in ((self.transformer_blocks, _double_block), (self.single_transformer_blocks, _single_block)):
        for block in blocks:
            arguments = (block, hidden, text, times, counts, rotary, joint_attention_kwargs or {})
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                checkpoint: Any = self._gradient_checkpointing_func
                text, hidden = checkpoint(run, *arguments)
            else:
                text, hidden = run(*arguments)
    return self.proj_out(self.norm_out(hidden, times[0]))


def _modulation(norm: Any, times: tuple[Tensor, Tensor], counts: tuple[int, int], parts: int) -> tuple[Tensor, ...]:
    """Shifts, scales and gates of a norm for every token: ``counts[0]`` tokens with the first conditioning, then the second."""
    values = [norm.linear(norm.silu(time))[:, None].expand(-1, count, -1) for time, count in zip(times, counts, strict=True)]
    return torch.cat(values, dim=1).chunk(parts, dim=-1)


def _double_block(
    block: Any,
    hidden: Tensor,
    text: Tensor,
    times: tuple[Tensor, Tensor],
    counts: tuple[int, int],
    rotary: tuple[Tensor, Tensor],
    attention_kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """A stock double-stream block whose image stream is modulated token by token; (text, image) as the stock one."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _modulation(block.norm1, times, counts, 6)
    normed_text, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = block.norm1_context(text, emb=times[0])
    attended, attended_text = block.attn(
        hidden_states=block.norm1.norm(hidden) * (1 + scale) + shift,
        encoder_hidden_states=normed_text,
        image_rotary_emb=rotary,
        **attention_kwargs,
    )
    hidden = hidden + gate * attended
    hidden = hidden + mlp_gate * block.ff(block.norm2(hidden) * (1 + mlp_scale) + mlp_shift)
    text = text + text_gate[:, None] * attended_text
    normed_text = block.norm2_context(text) * (1 + text_mlp_scale[:, None]) + text_mlp_shift[:, None]
    return _clip_half(text + text_mlp_gate[:, None] * block.ff_context(normed_text)), hidden


def _single_block(
    block: Any,
    hidden: Tensor,
    text: Tensor,
    times: tuple[Tensor, Tensor],
    counts: tuple[int, int],
    rotary: tuple[Tensor, Tensor],
    attention_kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """A stock single-stream block that is modulated token by token; the text goes with the panorama."""
    words = text.shape[1]
    joint = torch.cat([text, hidden], dim=1)
    shift, scale, gate = _modulation(block.norm, times, (words + counts[0], counts[1]), 3)
    normed = block.norm.norm(joint) * (1 + scale) + shift
    attended = block.attn(hidden_states=normed, image_rotary_emb=rotary, **attention_kwargs)
    mixed = block.proj_out(torch.cat([attended, block.act_mlp(block.proj_mlp(normed))], dim=2))
    joint = _clip_half(joint + gate * mixed)
    return joint[:, :words], joint[:, words:]


def _clip_half(values: Tensor) -> Tensor:
    """float16 overflows in FLUX; the stock blocks clip at its largest number."""
    return values.clip(-65504, 65504) if values.dtype == torch.float16 else values
