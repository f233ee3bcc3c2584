"""Perspective clips as the video pipeline takes them: read from what users hold, cropped or resized to the size of the weights."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from visiongraft.media.images import Alpha, center_square, resize, to_image_tensor

Fit = Literal["crop", "keep"]
Frame = Image.Image | np.ndarray | Tensor
Video = Tensor | np.ndarray | Sequence[Frame] | Sequence[Sequence[Frame]]
"""One clip or several of the same length: tensors (batch x) frames x channels x height x width, arrays (batch x) frames x height x
width x channels, or (lists of) lists of frames."""


def to_clips(video: Any, alpha: Alpha = "refuse") -> Float[Tensor, "batch frames 3 height width"]:
    """Clips as RGB tensors in [0, 1].

    Args:
        video: see :data:`Video`. 8-bit, or floating point in [0, 1]; PIL frames of any mode.
        alpha: what lies behind transparent pixels, or ``refuse`` to raise where there are any.

    Raises:
        ValueError: another layout, an empty clip, frames or clips that differ in size or number, and what
            :func:`visiongraft.media.images.to_image_tensor` refuses.
    """
    batch = video if _depth(video) == 2 else [video]
    clips = []
    for clip in batch:
        frames = [to_image_tensor(frame, alpha) for frame in clip]
        sizes = sorted({f"{frame.shape[1]}x{frame.shape[2]}" for frame in frames})
        if len(sizes) != 1:
            raise ValueError(f"All frames of a clip must have one size; got {', '.join(sizes) or 'no frames'}.")
        clips.append(torch.stack(frames))
    shapes = sorted({f"{len(clip)} frames of {clip.shape[2]}x{clip.shape[3]}" for clip in clips})
    if len(shapes) != 1:
        raise ValueError(f"All clips of a batch must have one length and size; got {', '.join(shapes) or 'no clips'}. Run them one by one.")
    return torch.stack(clips)


def _depth(video: Any) -> int:
    """1 for frames of one clip, 2 for clips."""
    axes, inner = 0, video
    while isinstance(inner, list | tuple) and inner:
        axes, inner = axes + 1, inner[0]
    if isinstance(inner, Tensor | np.ndarray):
        axes += inner.ndim - 3
    elif not isinstance(inner, Image.Image):
        axes = 0
    if axes not in (1, 2):
        given = f"shape {tuple(inner.shape)}" if isinstance(inner, Tensor | np.ndarray) else f"{type(inner).__name__}"
        raise ValueError(
            "A video is a tensor (batch x) frames x channels x height x width, an array (batch x) frames x height x width x channels, "
            f"or a list of frames; got {given}."
        )
    return axes


def fit_clips(
    clips: Float[Tensor, "batch frames 3 height width"], size: int, fit: Fit = "crop", multiple: int = 16
) -> Float[Tensor, "batch frames 3 new_height new_width"]:
    """Clips at the size of the weights' perspective input. Padding is not offered: it changes the apparent field of view.

    Args:
        clips: of any size.
        size: side of the square that the weights were trained on, in pixels.
        fit: ``crop`` takes the middle square; ``keep`` keeps the aspect ratio and about as many pixels, out of the training
            distribution.
        multiple: sides are multiples of this (stride of the VAE times patch).

    Raises:
        ValueError: another ``fit``, or a size that is no multiple.

    Source: arXiv 2601.16192, preparation of the input.
    """
    if fit not in ("crop", "keep"):
        raise ValueError(f"fit must be 'crop' or 'keep' (padding would change the field of view); got {fit!r}.")
    if size % multiple:
        raise ValueError(f"condition_size must be a multiple of {multiple} (stride of the VAE x patch); got {size}.")
    if fit == "crop":
        new_size = (size, size)
        clips = center_square(clips)
    else:
        new_size = kept_size(clips.shape[-2], clips.shape[-1], size, multiple)
        warn_of_kept_size(new_size, size)
    batch = clips.flatten(0, 1)
    return resize(batch, new_size).unflatten(0, clips.shape[:2])


def kept_size(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """Height and width of an input that keeps its proportions: whole tokens, about as many as in the square.

    Args:
        height, width: of the picture in pixels.
        size: side of the square that the weights were trained on, in pixels.
        multiple: pixels of a token along a side.
    """
    scale = size / math.sqrt(height * width)
    return max(1, round(height * scale / multiple)) * multiple, max(1, round(width * scale / multiple)) * multiple


def warn_of_kept_size(new_size: tuple[int, int], size: int) -> None:
    """Warns whoever calls a pipeline of an input that is not the square of the weights."""
    if new_size != (size, size):
        warnings.warn(
            f"fit='keep' gives an input of {new_size[0]}x{new_size[1]}; the weights were trained on squares of {size}, so expect less.",
            stacklevel=4,
        )
