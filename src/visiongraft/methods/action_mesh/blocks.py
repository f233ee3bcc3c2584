"""The transformer block that all four models are made of, under TripoSG's names or ActionMesh's."""

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from visiongraft.methods.action_mesh.attention import CrossAttention, KeysValues, LayerNorm, Linear, SelfAttention

CPU_TOKENS = 20_000
"""Latent tokens of a window above which the CPU is refused."""


@dataclass(frozen=True)
class BlockNames:
    """What the parts of a block are called in a checkpoint."""

    self_norm: str
    self_attention: str
    cross_norm: str
    cross_attention: str
    feed_norm: str
    skip_norm: str
    skip_linear: str


TRIPOSG = BlockNames("norm1", "attn1", "norm2", "attn2", "norm3", "skip_norm", "skip_linear")
ACTION_MESH = BlockNames("norm_s_attn", "s_attn", "norm_x_attn", "x_attn", "norm_ff", "norm_skip", "linear_skip")


def renamed(keys: Iterable[str], old: BlockNames, new: BlockNames) -> dict[str, str]:
    """From each tensor name to what it is called under other block names; names of other parts stay.

    Source: ActionMesh brief, 4 (the renaming is a bijection).
    """
    table = dict(zip(astuple(old), astuple(new), strict=True))
    return {key: ".".join(table.get(part, part) for part in key.split(".")) for key in keys}


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; Diffusers' names."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_GELU(width, inner), nn.Identity(), Linear(inner, width)])

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        layers = self.net._modules
        return layers["2"](layers["0"](x))


class _GELU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class Block(nn.Module):
    """Pre-norm residual block: skip, self-attention, cross-attention, feed-forward, each where the block has it.

    Args:
        width, num_heads: of the tokens.
        names: of the parts.
        self_attention: whether there is one.
        context_dim: of the cross-attention; None for none.
        qk_norm: in both attentions.
        norm_context: layer norm of the context within the cross-attention.
        skip: whether it takes the output of an earlier block.
        mlp_ratio: inner width of the feed-forward layer by the width.

    Source: ActionMesh brief, 2.1.
    """

    _modules: dict[str, Any]

    def __init__(
        self,
        width: int,
        num_heads: int,
        names: BlockNames,
        *,
        self_attention: bool = True,
        context_dim: int | None = None,
        qk_norm: bool = False,
        norm_context: bool = False,
        skip: bool = False,
        mlp_ratio: float | int = 4.0,
    ) -> None:
        super().__init__()
        self.names, self.has_self, self.has_cross, self.has_skip = names, self_attention, context_dim is not None, skip
        if self_attention:
            self.add_module(names.self_norm, LayerNorm(width))
            self.add_module(names.self_attention, SelfAttention(width, num_heads, qk_norm=qk_norm))
        if context_dim is not None:
            cross = CrossAttention(width, num_heads, context_dim, qk_norm=qk_norm, norm_context=norm_context)
            self.add_module(names.cross_norm, LayerNorm(width))
            self.add_module(names.cross_attention, cross)
        self.add_module(names.feed_norm, LayerNorm(width))
        self.ff = FeedForward(width, int(width * mlp_ratio))
        if skip:
            self.add_module(names.skip_norm, LayerNorm(width))
            self.add_module(names.skip_linear, Linear(2 * width, width))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Tensor | KeysValues | None = None,
        skip: Float[Tensor, "batch tokens width"] | None = None,
        turns: Tensor | None = None,
        frames: int = 1,
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens after the block.

        Args:
            x: tokens.
            context: tokens of the cross-attention, or what :meth:`keys_values` gave.
            skip: output of the earlier block.
            turns: rotary embedding of the self-attention; its batch and tokens are those of the joined sequence.
            frames: how many successive items of the batch self-attention joins into one sequence.
        """
        names, parts = self.names, self._modules
        if self.has_skip:
            x = parts[names.skip_norm](parts[names.skip_linear](torch.cat([skip, x], dim=-1)))  # pyright: ignore[reportArgumentType, reportCallIssue] it is given one
        if self.has_self:
            tokens = parts[names.self_norm](x)
            joined = tokens if frames == 1 else tokens.reshape(-1, frames * x.shape[1], x.shape[2])
            x = x + parts[names.self_attention](joined, turns).view_as(x)
        if self.has_cross:
            x = x + parts[names.cross_attention](parts[names.cross_norm](x), context)
        return x + parts["ff"](parts[names.feed_norm](x))

    def keys_values(self, context: Float[Tensor, "batch tokens context_dim"]) -> KeysValues:
        """The context as the block's cross-attention sees it, for reuse with other queries."""
        return getattr(self, self.names.cross_attention).keys_values(context)


def compute_dtype(model: Any) -> torch.dtype:
    """What a model computes in: its weights' dtype, unless they are only stored in 8 bits; then Diffusers knows."""
    stored = next(model.parameters()).dtype
    return stored if stored.is_floating_point and stored.itemsize > 1 else model.dtype


def run_block(model: Any, block: nn.Module, *arguments: Any) -> Tensor:
    """A block's output; what it computed on the way is computed again in the backward pass where the model checkpoints gradients."""
    if model.gradient_checkpointing and torch.is_grad_enabled():
        return model._gradient_checkpointing_func(block, *arguments)
    return block(*arguments)


def offloadable(method: Callable[..., Any]) -> Callable[..., Any]:
    """For entrances other than ``forward``: they, too, bring a model that Diffusers keeps elsewhere to its device."""

    @wraps(method)
    def entrance(self: Any, *arguments: Any, **options: Any) -> Any:
        hook = getattr(self, "_hf_hook", None)
        if hook is not None and hasattr(hook, "pre_forward"):
            hook.pre_forward(self)
        return method(self, *arguments, **options)

    return entrance


def in_chunks(function: Any, chunk: int, *arguments: Float[Tensor, "batch points _"] | None) -> Tensor:
    """Applies a function of points to pieces of at most ``chunk`` of them: exact, since no point sees another, and flat in memory.

    Raises:
        ValueError: a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 point; got {chunk}.")
    pieces = [[None] if value is None else value.split(chunk, dim=1) for value in arguments]
    count = max(map(len, pieces))
    outputs = [function(*(piece[i] if piece[0] is not None else None for piece in pieces)) for i in range(count)]
    return outputs[0] if count == 1 else torch.cat(outputs, dim=1)


def refuse_on_cpu(device: torch.device, frames: int, tokens: int, force: bool) -> None:
    """Stops a window that the CPU would take hours for.

    Raises:
        ValueError: more than 20,000 latent tokens on the CPU, unless forced.

    Source: ActionMesh brief, pitfall 19.
    """
    if device.type == "cpu" and frames * tokens > CPU_TOKENS and not force:
        raise ValueError(
            f"{frames} frames of {tokens} tokens are {frames * tokens:,} tokens in one attention; the CPU is refused above "
            f"{CPU_TOKENS:,}. Use a GPU, fewer tokens or a shorter window, or pass force=True."
        )
