"""Attention of TripoSG and ActionMesh: their interleaved head layout, on tensors stored under their names.

The names ``to_q``, ``to_k`` and ``to_v`` are storage only. Self-attention joins their outputs on the channel axis and deals the
joined channels out by heads, so that the first heads' queries, keys and values all come from ``to_q``, and the last heads' from
``to_v``. Every module here computes in the dtype of its input: a checkpoint held in half precision can answer in float32.
"""

from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from visiongraft.nn.rotary import rotate_pairs


class KeysValues(NamedTuple):
    """A context seen through one cross-attention, computed once for any number of queries; both (batch, tokens, heads, head_dim)."""

    keys: Tensor
    values: Tensor


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype."""

    _parameters: dict[str, Any]

    def forward(self, input: Tensor) -> Tensor:
        parts = self._parameters
        return F.linear(input, cast(parts["weight"], input.dtype), cast(parts["bias"], input.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm (eps 1e-5, affine) whose statistics are float32 at least, with the output in its input's dtype."""

    _parameters: dict[str, Any]

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        wide = torch.promote_types(input.dtype, weight.dtype)  # the kernel itself accumulates half precision in float32
        return cast(F.layer_norm(cast(input, wide), self.normalized_shape, cast(weight, wide), cast(bias, wide), self.eps), input.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last axis (eps 1e-6) with the mean square in float32 at least."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return _rms_norm(x, self.weight)


class SelfAttention(nn.Module):
    """Self-attention, optionally with QK norm and a rotary embedding (after the norm).

    Args:
        width: channels in and out, a multiple of num_heads.
        num_heads: attention heads.
        qk_norm: RMS norm of each head's queries and keys.

    Source: ActionMesh brief, 2.1.
    """

    _modules: dict[str, Any]

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads, head_dim = num_heads, _head_dim(width, num_heads)
        self.to_q, self.to_k, self.to_v = (Linear(width, width, bias=False) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(head_dim), RMSNorm(head_dim)) if qk_norm else (None, None)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x: Float[Tensor, "batch tokens width"], turns: Tensor | None = None) -> Float[Tensor, "batch tokens width"]:
        """Attention of all tokens to all.

        Args:
            x: tokens.
            turns: of :func:`~visiongraft.nn.rotary.rotations` at the tokens' positions.
        """
        parts = self._modules  # attributes of a module are slow, and small models are bound by such things
        joined = _joined(x, parts["to_q"], parts["to_k"], parts["to_v"]).unflatten(-1, (self.num_heads, 3, -1))
        queries_keys, values = joined.split([2, 1], dim=-2)  # what queries and keys both undergo is done once
        if "norm_q" in parts:
            queries_keys = _both_normed(queries_keys, parts["norm_q"], parts["norm_k"])
        if turns is not None:
            queries_keys = rotate_pairs(queries_keys, turns)
        queries, keys = queries_keys.unbind(-2)
        return parts["to_out"]._modules["0"](_attend(queries, keys, values.squeeze(-2)))


class CrossAttention(nn.Module):
    """Attention to a context; queries have the usual head layout, keys and values the interleaved one.

    Args:
        width: channels of queries and output, a multiple of num_heads.
        num_heads: attention heads.
        context_dim: channels of the context.
        qk_norm: RMS norm of each head's queries and keys.
        norm_context: layer norm of the context.

    Source: ActionMesh brief, 2.1 and 2.2.
    """

    _modules: dict[str, Any]

    def __init__(self, width: int, num_heads: int, context_dim: int, *, qk_norm: bool = False, norm_context: bool = False) -> None:
        super().__init__()
        self.num_heads, head_dim = num_heads, _head_dim(width, num_heads)
        self.norm_cross = LayerNorm(context_dim) if norm_context else None
        self.to_q = Linear(width, width, bias=False)
        self.to_k, self.to_v = (Linear(context_dim, width, bias=False) for _ in range(2))
        self.norm_q, self.norm_k = (RMSNorm(head_dim), RMSNorm(head_dim)) if qk_norm else (None, None)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def keys_values(self, context: Float[Tensor, "batch tokens context_dim"]) -> KeysValues:
        """What of the attention depends on the context alone."""
        parts = self._modules
        context = parts["norm_cross"](context) if "norm_cross" in parts else context
        keys, values = _joined(context, parts["to_k"], parts["to_v"]).unflatten(-1, (self.num_heads, 2, -1)).unbind(-2)
        return KeysValues(_normed(keys, parts.get("norm_k")), values)

    def forward(self, x: Float[Tensor, "batch tokens width"], context: Tensor | KeysValues) -> Float[Tensor, "batch tokens width"]:
        parts = self._modules
        queries = _normed(parts["to_q"](x).unflatten(-1, (self.num_heads, -1)), parts.get("norm_q"))
        keys, values = context if isinstance(context, KeysValues) else self.keys_values(context)
        return parts["to_out"]._modules["0"](_attend(queries, keys, values))


def _head_dim(width: int, num_heads: int) -> int:
    if width % num_heads:
        raise ValueError(f"The width {width} must be a multiple of the {num_heads} attention heads.")
    return width // num_heads


@overload
def cast(x: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def cast(x: None, dtype: torch.dtype) -> None: ...
def cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``x.to(dtype)`` without the call where there is nothing to do; small models are bound by calls."""
    return x if x is None or x.dtype is dtype else x.to(dtype)


def widened(x: Tensor) -> Tensor:
    """In float32 at least."""
    return cast(x, torch.promote_types(x.dtype, torch.float32))


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of the last axis; the weight may have an axis more, for the last but one."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    normed = F.rms_norm(cast(x, wide), weight.shape[-1:], eps=1e-6)
    return cast(normed * cast(weight, wide), x.dtype)


def _normed(x: Tensor, norm: nn.Module | None) -> Tensor:
    return x if norm is None else norm(x)


def _both_normed(queries_keys: Tensor, norm_q: Any, norm_k: Any) -> Tensor:
    """Queries and keys (batch, tokens, heads, 2, head_dim), each by its norm."""
    if _taken_hold_of(norm_q) or _taken_hold_of(norm_k):
        return torch.stack([norm(part) for norm, part in zip((norm_q, norm_k), queries_keys.unbind(-2), strict=True)], dim=-2)
    return _rms_norm(queries_keys, torch.stack([norm_q._parameters["weight"], norm_k._parameters["weight"]]))


def _joined(x: Tensor, *layers: Any) -> Tensor:
    """Outputs of bias-free layers side by side: one product with the joined weights, which are far smaller than the activations.

    Layers that something took hold of (LoRA, quantisation, offloading hooks) are called as they are, since their weights do not tell all.
    """
    if not any(map(_taken_hold_of, layers)):
        return F.linear(x, cast(torch.cat([layer._parameters["weight"] for layer in layers]), x.dtype))
    return torch.cat([layer(x) for layer in layers], dim=-1)


def _taken_hold_of(layer: nn.Module) -> bool:
    own = vars(layer)
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return type(layer) not in (Linear, RMSNorm) or bool(hooks) or "forward" in own


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention of (batch, tokens, heads, head_dim), heads merged; the scores are never stored where a fused kernel exists."""
    queries, keys = cast(queries, values.dtype), cast(keys, values.dtype)
    return F.scaled_dot_product_attention(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)).transpose(1, 2).flatten(2)
