"""Which pixels are the object: a pluggable step before the frames are cropped.

A *matting* maps the colours of a clip to its alpha. There are three sources: the alpha that came with the frames, the keying of a plain
background (below), and networks (:mod:`visiongraft.methods.action_mesh.matting_networks`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from visiongraft.methods.action_mesh.frames import MIN_SHARE, composite_on_white, foreground_share, named_numbers

Matting = Callable[[Float[Tensor, "frames 3 height width"]], Float[Tensor, "frames height width"]]
"""Colours of a clip in [0, 1] to its alpha in [0, 1]."""

_EIGHT = np.ones((3, 3), bool)
_BAND = 2  # pixels of an outline whose colours are mixed, by lenses and video codecs
_NETWORKS = {
    "rmbg": "RMBG-1.4's network is code on its hub page (trust_remote_code), which visiongraft does not run. Read it, load it yourself and "
    "pass matting=RmbgMatting(model); or give masks, a plain background (matting='key') or SAM 2.",
    "sam2": "SAM 2 needs a model and a click on the object: pass matting=Sam2Matting(load_sam2_video(), click=(u, v)).",
}


def matte_frames(
    frames: Float[Tensor, "frames channels height width"], matting: str | Matting = "auto", *, min_share: float | int = MIN_SHARE
) -> Float[Tensor, "frames 4 height width"]:
    """Frames with the object's alpha.

    Args:
        frames: in [0, 1], with or without alpha (3 or 4 channels).
        matting: ``auto`` keeps the alpha of frames that have a valid one and keys the background of the others; ``alpha`` takes what is
            given; ``key`` keys every frame; or a function such as ``RmbgMatting(model)``, which gets the frames before white.
        min_share: see :func:`has_valid_alpha`.

    Returns:
        New RGBA frames. Whether there is an object in each is checked where they are cropped
        (:func:`visiongraft.methods.action_mesh.frames.prepare_frames`).

    Raises:
        ValueError: other channels, a name that does not exist, no valid alpha for ``alpha``, a background that is not plain, or a
            function that gives another shape.

    Source: ActionMesh brief, 2.9.
    """
    if frames.shape[1] not in (3, 4):
        raise ValueError(f"Frames have 3 channels, or 4 with alpha; got {frames.shape[1]} (frames x channels x height x width).")
    if isinstance(matting, str) and matting not in ("auto", "alpha", "key"):
        hint = _NETWORKS.get(matting, f"There is no matting {matting!r}; there are 'auto', 'alpha', 'key', or a function.")
        raise ValueError(hint)
    colours = composite_on_white(frames) if frames.shape[1] == 4 else frames
    if matting == "key":
        return _joined(colours, key_background(colours))
    if not isinstance(matting, str):
        return _joined(colours, matting(colours))
    given = frames[:, 3] if frames.shape[1] == 4 else torch.ones_like(frames[:, 0])
    todo = (~has_valid_alpha(given, min_share)).nonzero()[:, 0].tolist()
    if todo and matting == "alpha":
        raise ValueError(
            f"Frames {named_numbers(todo)} have no valid alpha: at least {100 * min_share:g} % of the pixels must be opaque, and as many "
            "not. Give masks, or matting='key' for a plain background."
        )
    if not todo:
        return frames.clone()
    alpha = given.clone()
    alpha[todo] = key_background(colours[todo], numbers=todo)
    if len(todo) == len(frames):
        return _joined(colours, alpha)
    # frames with an alpha keep their colours, which are not before white
    kept = frames[:, :3].clone()
    kept[todo] = colours[todo]
    return _joined(kept, alpha)


def _joined(colours: Float[Tensor, "frames 3 height width"], alpha: Float[Tensor, "..."]) -> Float[Tensor, "frames 4 height width"]:
    if alpha.shape != colours[:, 0].shape:
        raise ValueError(f"A matting gives frames x height x width, here {tuple(colours[:, 0].shape)}; got {tuple(alpha.shape)}.")
    return torch.cat([colours, alpha[:, None].to(colours)], 1)


def has_valid_alpha(alpha: Float[Tensor, "*batch height width"], min_share: float | int = MIN_SHARE) -> Bool[Tensor, "*batch"]:
    """Whether an alpha is a mask: at least ``min_share`` of the pixels are above 127 of 255, and as many are not.

    Source: ActionMesh brief, 2.9.
    """
    share = foreground_share(alpha)
    return (share >= min_share) & (1 - share >= min_share)


@dataclass(frozen=True, kw_only=True)
class Keying:
    """How a plain background is told from the object.

    Args:
        tolerance: difference of colour, of 1, up to which a pixel is background; noise of the background raises it.
        max_noise: standard deviation of the background's colours above which it is not plain.
        plain_share: of the border that must be background.
        min_piece: share of the picture below which a separate piece of the object is dropped.
        min_hole: share of the picture below which a hole in the object is filled.
    """

    tolerance: float | int = 0.06
    max_noise: float | int = 0.08
    plain_share: float | int = 0.6
    min_piece: float | int = 5e-4
    min_hole: float | int = 5e-4


def key_background(
    frames: Float[Tensor, "frames 3 height width"], keying: Keying | None = None, *, numbers: list[int] | None = None
) -> Float[Tensor, "frames height width"]:
    """Alpha of an object before a plain background, frame by frame.

    The background is a colour that changes slowly over the picture: a polynomial of degree 2 in x and y, fitted to the border with
    outliers left out, so that light that falls off and an object that leaves the picture do no harm. On the object's outline alpha
    is the share of the object's colour in the pixel; inside it is 1. Pieces and holes smaller than a share of the picture are noise.

    Args:
        frames: in [0, 1].
        keying: see :class:`Keying`.
        numbers: by which messages name the frames; counted from 0 without.

    Raises:
        ValueError: a background that is not plain; the message names the frame.

    Source: our choice (ActionMesh brief, 3 and 8: background removal without RMBG).
    """
    keying = keying or Keying()
    alphas = []
    for number, frame in zip(numbers or range(len(frames)), frames, strict=True):
        alphas.append(_key_frame(frame.permute(1, 2, 0).double().cpu().numpy(), keying, number))
    return torch.from_numpy(np.stack(alphas)).to(frames)


def _key_frame(pixels: Float[np.ndarray, "height width 3"], keying: Keying, number: int) -> Float[np.ndarray, "height width"]:
    background, noise, share = border_colours(pixels, keying.tolerance)
    if share < keying.plain_share or noise > keying.max_noise:
        raise ValueError(
            f"frame {number}: the background is not plain ({100 * share:.0f} % of the border have one colour, "
            f"{100 * keying.plain_share:.0f} % are needed); give masks, or use SAM 2 (Sam2Matting) or RMBG (RmbgMatting)."
        )
    difference = np.abs(pixels - background).max(-1)
    tolerance = max(keying.tolerance, 4 * noise)
    inside = difference > tolerance
    inside = drop_small(inside, keying.min_piece * inside.size)
    filled = ~drop_small(~inside, keying.min_hole * inside.size)
    return np.where(filled, _outline_alpha(pixels, background, filled, tolerance), 0.0)


def _outline_alpha(
    pixels: Float[np.ndarray, "height width 3"],
    background: Float[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
    tolerance: float | int,
) -> Float[np.ndarray, "height width"]:
    """How much of a pixel near a mask's outline is object: where its colour lies between the background's and that of the nearest
    pixel of the inside. 1 farther inside, so that what resembles the background there stays opaque, and where there is no inside."""
    inside = np.asarray(ndimage.binary_erosion(mask, _EIGHT, iterations=_BAND, border_value=1), bool)
    found: Any = ndimage.distance_transform_edt(~inside, return_indices=True)
    distance, (rows, columns) = found
    full = pixels[rows, columns] - background
    length = (full**2).sum(-1)
    share = ((pixels - background) * full).sum(-1) / np.maximum(length, tolerance**2)
    known = ~inside & inside.any() & (distance <= 2 * _BAND) & (length > tolerance**2)
    return np.where(known, np.clip(share, 0, 1), 1.0)


def border_colours(
    pixels: Float[np.ndarray, "height width 3"], tolerance: float | int
) -> tuple[Float[np.ndarray, "height width 3"], float, float]:
    """Background of a picture as its border tells.

    Args:
        pixels: in [0, 1].
        tolerance: difference up to which a pixel of the border is the background's.

    Returns:
        The background's colour at every pixel, the standard deviation of the border around it, and the share of the border that
        agrees with it.
    """
    height, width = pixels.shape[:2]
    ring = max(1, round(0.02 * min(height, width)))
    on_border = np.ones((height, width), bool)
    on_border[ring : height - ring, ring : width - ring] = False
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    design, colours = terms[on_border], pixels[on_border]
    fitted = np.median(colours, 0) + np.zeros((len(design), 3))
    weights = np.zeros((6, 3))
    noise, agrees = np.inf, np.ones(len(design), bool)
    # from the median on, pixels that differ less and less are let in
    for reach in (0.3, 0.2, 0.12, 0.12, 0.12):
        agrees = np.abs(colours - fitted).max(1) <= max(reach, tolerance)
        if agrees.sum() < len(terms[0, 0]):
            return np.broadcast_to(np.median(colours, 0), pixels.shape), np.inf, float(agrees.mean())
        weights = np.linalg.lstsq(design[agrees], colours[agrees], rcond=None)[0]
        fitted = design @ weights
    residuals = np.abs(colours - fitted)
    noise = float(1.4826 * np.median(residuals[agrees], 0).max())
    share = float((residuals.max(1) <= max(tolerance, 4 * noise)).mean())
    return (terms.reshape(-1, 6) @ weights).reshape(pixels.shape), noise, share


def drop_small(mask: Bool[np.ndarray, "height width"], min_area: float | int) -> Bool[np.ndarray, "height width"]:
    """A mask without its pieces (8-connected) of fewer than ``min_area`` pixels."""
    labels, _ = ndimage.label(mask, _EIGHT)
    labels = np.asarray(labels, np.int64)
    areas = np.bincount(labels.ravel())
    return np.asarray(mask, bool) & (areas >= min_area)[labels]
