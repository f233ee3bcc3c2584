"""Where the left border of a panorama meets the right one: how visible the seam is, alone and against a ground truth.

No single number tells a seamless panorama: report the discontinuity score together with its interior baseline and the seam ratio.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)
_SCHARR = ((-3.0, 0.0, 3.0), (-10.0, 0.0, 10.0), (-3.0, 0.0, 3.0))


class SeamError(NamedTuple):
    """An error at the seam and the same error elsewhere, one number a panorama."""

    seam: Float[Tensor, " batch"]
    interior: Float[Tensor, " batch"]


def discontinuity_score(
    panorama: Float[Tensor, "batch 3 height width"], scale: float = 255.0, constant: float = 0.1
) -> Float[Tensor, " batch"]:
    """Discontinuity score: response of a Scharr filter on the seam over the response beside it; lower is better.

    Blind to blur and to a symmetric dark line at the seam, and heavy-tailed where the picture is flat: compare with
    :func:`interior_discontinuity` and :func:`seam_ratio`. Meaningless on pixels that went through JPEG or H.264.

    Args:
        panorama: in [0, 1], at least 6 columns.
        scale: of the grey values; published numbers are in 0..255, and the score depends on it through ``constant``.
        constant: added to the response in the denominator.

    Returns:
        0 for a constant image.

    Raises:
        ValueError: NaN, values outside [0, 1], fewer than 6 columns.

    Source: Christensen et al., ECCV 2024, in the public re-implementation of the survey of panorama generation.
    """
    gray = _gray(panorama) * scale
    strip = torch.cat([gray[..., -3:], gray[..., :3]], -1)
    kernel = strip.new_tensor(_SCHARR)[None, None]
    e = F.conv2d(strip[:, None], kernel, padding=(1, 0)).abs()[:, 0]
    return (0.5 * (e[..., 1] / (e[..., 0] + constant) + e[..., 2] / (e[..., 3] + constant))).mean(-1)


def interior_discontinuity(
    panorama: Float[Tensor, "batch 3 height width"], columns: int = 6, scale: float = 255.0, constant: float = 0.1
) -> Float[Tensor, "batch columns"]:
    """The discontinuity score at evenly spaced columns inside the picture, where there is no seam: the baseline of the score.

    Raises:
        ValueError: fewer than 6 columns, or a picture so narrow that a strip would touch the seam; else as the score.
    """
    width = panorama.shape[-1]
    if columns < 6:
        raise ValueError(f"The interior baseline needs at least 6 columns, one alone says little; got {columns}.")
    if width < 3 * (columns + 1):
        raise ValueError(f"{columns} interior columns need a panorama of at least {3 * (columns + 1)} columns; got {width}.")
    positions = [round(k * width / (columns + 1)) for k in range(1, columns + 1)]
    return torch.stack([discontinuity_score(panorama.roll(-p, -1), scale, constant) for p in positions], -1)


def seam_ratio(panorama: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " batch"]:
    """Mean grey step across the seam over the mean step between neighbours inside; about 1 where there is no seam.

    Real panoramas scatter around 1 with their content: compare with the same quantity on panoramas of the same kind.

    Args:
        panorama: in [0, 1], at least 2 columns.

    Returns:
        Infinite where only the seam has a step, 1 where nothing has.

    Raises:
        ValueError: NaN, values outside [0, 1], fewer than 2 columns.
    """
    gray = _gray(panorama, columns=2)
    seam = (gray[..., 0] - gray[..., -1]).abs().mean(-1)
    interior = gray.diff(dim=-1).abs().mean((-2, -1))
    return torch.where((seam == 0) & (interior == 0), torch.ones_like(seam), seam / interior)


def edge_error(panorama: Float[Tensor, "batch 3 height width"], truth: Float[Tensor, "batch 3 height width"], width: int = 4) -> SeamError:
    """Mean absolute error over ``width`` columns on each side of the seam, and over all others.

    Args:
        panorama: reconstruction or sample, in [0, 1].
        truth: what it should be.
        width: columns on each side.

    Raises:
        ValueError: NaN, values outside [0, 1], different shapes, or no column left inside.
    """
    _check_pair(panorama, truth)
    if not 1 <= width < panorama.shape[-1] / 2:
        raise ValueError(f"width must be at least 1 and below half of the {panorama.shape[-1]} columns; got {width}.")
    error = (panorama - truth).abs().mean((1, 2))
    return SeamError(torch.cat([error[:, :width], error[:, -width:]], -1).mean(-1), error[:, width:-width].mean(-1))


def step_error(panorama: Float[Tensor, "batch 3 height width"], truth: Float[Tensor, "batch 3 height width"]) -> SeamError:
    """Mean absolute error of the step across the seam, ``|(a_first - a_last) - (t_first - t_last)|``, and of steps inside.

    Args:
        panorama: reconstruction or sample, in [0, 1].
        truth: what it should be.

    Raises:
        ValueError: NaN, values outside [0, 1], different shapes.
    """
    _check_pair(panorama, truth)
    error = panorama - truth
    seam = (error[..., 0] - error[..., -1]).abs().mean((1, 2))
    return SeamError(seam, error.diff(dim=-1).abs().mean((1, 2, 3)))


def _gray(panorama: Tensor, columns: int = 6) -> Float[Tensor, "batch height width"]:
    _check_values(panorama, "panorama")
    if panorama.shape[-1] < columns:
        raise ValueError(f"A seam is measured on at least {columns} columns; got {panorama.shape[-1]}.")
    precision = torch.promote_types(panorama.dtype, torch.float32)
    return torch.einsum("bchw,c->bhw", panorama.to(precision), panorama.new_tensor(_LUMA, dtype=precision))


def _check_pair(panorama: Tensor, truth: Tensor) -> None:
    if panorama.shape != truth.shape:
        raise ValueError(f"panorama and truth must have one shape; got {tuple(panorama.shape)} and {tuple(truth.shape)}.")
    _check_values(panorama, "panorama")
    _check_values(truth, "truth")


def _check_values(panorama: Shaped[Tensor, "*shape"], name: str) -> None:
    if panorama.dim() != 4 or panorama.shape[1] != 3:
        raise ValueError(f"{name} must be batch x 3 x height x width; got {tuple(panorama.shape)}.")
    low, high = panorama.aminmax()
    # NaN fails every comparison
    if not bool((low >= -1e-3) & (high <= 1 + 1e-3)):
        raise ValueError(f"{name} must be in [0, 1] without NaN; got values from {float(low):.3g} to {float(high):.3g}.")
