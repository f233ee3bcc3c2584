"""Attention of TripoSG and ActionMesh: their interleaved head layout, on tensors stored under their names.

The names ``to_q``, ``to_k`` and ``to_v`` are storage only. Self-attention joins their outputs on the channel axis and deals the
joined channels out by heads, so that the first heads' queries, keys and values all come from ``to_q``, and the last heads' from
``to_v``. Every module here computes in the dtype of its input: a checkpoint held in half precision can answer in float32.
"""

from typing import NamedTuple

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

    def forward(self, input: Tensor) -> Tensor:
        parts = self._parameters
        return F.linear(input, _as(parts["weight"], input.dtype), _as(parts["bias"], input.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm (eps 1e-5, affine) whose statistics are float32 at least, with the output in its input's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        wide = torch.promote_types(input.dtype, weight.dtype)  # the kernel itself accumulates half precision in float32
        return _as(F.layer_norm(_as(input, wide), self.normalized_shape, _as(weight, wide), _as(bias, wide), self.eps), input.dtype)


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
        joined = _joined(x, self.to_q, self.to_k, self.to_v).unflatten(-1, (self.num_heads, 3, -1))
        queries_keys, values = joined[..., :2, :], joined[..., 2, :]  # what both undergo is done once
        if self.norm_q is not None and self.norm_k is not None:
            queries_keys = _rms_norm(queries_keys, torch.stack([self.norm_q.weight, self.norm_k.weight]))
        if turns is not None:
            queries_keys = rotate_pairs(queries_keys, turns)
        queries, keys = queries_keys.unbind(-2)
        return self.to_out[0](_attend(queries, keys, values))


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
        context = context if self.norm_cross is None else self.norm_cross(context)
        keys, values = _joined(context, self.to_k, self.to_v).unflatten(-1, (self.num_heads, 2, -1)).unbind(-2)
        return KeysValues(_normed(keys, self.norm_k), values)

    def forward(self, x: Float[Tensor, "batch tokens width"], context: Tensor | KeysValues) -> Float[Tensor, "batch tokens width"]:
        queries = _normed(self.to_q(x).unflatten(-1, (self.num_heads, -1)), self.norm_q)
        keys, values = context if isinstance(context, KeysValues) else self.keys_values(context)
        return self.to_out[0](_attend(queries, keys, values))


def _head_dim(width: int, num_heads: int) -> int:
    if width % num_heads:
        raise ValueError(f"The width {width} must be a multiple of the {num_heads} attention heads.")
    return width // num_heads


def _as(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``x.to(dtype)`` without the call where there is nothing to do; small models are bound by calls."""
    return x if x is None or x.dtype is dtype else x.to(dtype)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of the last axis; the weight may have an axis more, for the last but one."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    normed = F.rms_norm(_as(x, wide), weight.shape[-1:], eps=1e-6)
    return _as(normed * _as(weight, wide), x.dtype)


def _normed(x: Tensor, norm: RMSNorm | None) -> Tensor:
    return x if norm is None else norm(x)


def _joined(x: Tensor, *layers: nn.Module) -> Tensor:
    """Outputs of bias-free layers side by side: one product with the joined weights, which are far smaller than the activations.

    Layers that something took hold of (LoRA, quantisation, offloading hooks) are called as they are, since their weights do not tell all.
    """
    if all(type(layer) is Linear and "forward" not in vars(layer) and not _hooked(layer) for layer in layers):
        return F.linear(x, _as(torch.cat([layer.weight for layer in layers]), x.dtype))  # pyright: ignore
    return torch.cat([layer(x) for layer in layers], dim=-1)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention of (batch, tokens, heads, head_dim), heads merged; the scores are never stored where a fused kernel exists."""
    queries, keys = queries.to(values.dtype), keys.to(values.dtype)
    return F.scaled_dot_product_attention(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)).transpose(1, 2).flatten(2)
