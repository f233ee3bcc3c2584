"""Frames of a clip: reading them from a video, a folder or a list as RGBA, and cropping them for the image encoder."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visiongraft.media.images import list_images, read_image, resize, to_image_tensor
from visiongraft.media.video import MAX_BYTES, VIDEO_SUFFIXES, iter_video

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, an array (height x width x channels) or a tensor (channels x height x width)."""
Source = str | Path | Sequence[Picture] | np.ndarray | Tensor
"""A video file, a folder of pictures, or pictures."""

TRAINED_FRAMES = 16
MIN_SHARE = 0.01
"""Share of a frame's pixels that the object, and what is around it, must each have at least."""
OPAQUE = 0.5
"""Alpha above which a pixel is the object's: 127.5 of 255."""
VISIBLE = 0.5 / 255
"""Alpha above which a pixel is not wholly transparent: half a step of eight bits."""


def read_frames(
    source: Source,
    masks: Source | None = None,
    *,
    first: int = 0,
    stride: int = 1,
    max_frames: int | None = None,
    fps: float | int | None = None,
    max_side: int | None = None,
    min_frames: int = 2,
    max_bytes: int = MAX_BYTES,
) -> Float[Tensor, "frames 4 height width"]:
    """Frames of a clip with their alpha, in [0, 1]. Alpha is 1 everywhere where the source has none, as in every video file.

    Args:
        source: a video file, a folder of pictures (natural order: 2 before 10), or a list of pictures or of their files.
        masks: the same for the alpha: white is the object, black what is around it. Read with the same ``first``, ``stride`` …
        first: number of the first frame to use.
        stride: every how manieth frame to use.
        max_frames: at most so many frames.
        fps: reads a video file at so many frames a second, before ``stride``; ``None`` takes its frames as they are.
        max_side: pixels of the longer side above which frames are made smaller while they are read.
        min_frames: that are needed; 1 for an image.
        max_bytes: that the frames may take.

    Raises:
        FileNotFoundError: no such file, or a folder without pictures.
        ValueError: fewer than ``min_frames`` frames, frames of several sizes, masks of another number or size, numbers that cannot be,
            more than ``max_bytes``, or a file that is damaged; the message names the frame or the file.

    Source: ActionMesh brief, 2.9 and section 10 (opaque alpha counts as no mask).
    """
    for name, value, least in (("first", first, 0), ("stride", stride, 1), ("max_frames", max_frames, 1), ("max_side", max_side, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be {least} or more; got {value}.")
    chosen = slice(first, None if max_frames is None else first + stride * max_frames, stride)
    frames = _collect(_pictures(source, chosen, fps), max_side, max_bytes)
    if len(frames) < min_frames:
        hint = f" after first={first}, stride={stride}" if (first, stride) != (0, 1) else ""
        raise ValueError(f"need at least {_count(min_frames)}, got {len(frames)}{hint}; give a longer clip or a smaller stride.")
    rgba = torch.stack(frames)
    if masks is None:
        return rgba
    return _with_masks(rgba, _collect(_pictures(masks, chosen, fps), max_side, max_bytes))


def _pictures(source: Source, chosen: slice, fps: float | int | None) -> Iterator[Callable[[], Tensor]]:
    """What gives each chosen picture as RGBA."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
            for frame in islice(iter_video(path, fps), chosen.start, chosen.stop, chosen.step):
                yield lambda frame=frame: to_image_tensor(frame, "keep")
            return
        source = list_images(path)
    if fps is not None:
        raise ValueError(f"fps={fps:g} is for video files; pictures have no times: use stride.")
    if isinstance(source, Tensor | np.ndarray) and source.ndim != 4:
        raise ValueError(
            f"Frames have four axes (tensors: frames x channels x height x width, arrays: channels last); got {tuple(source.shape)}."
        )
    for picture in list(source)[chosen]:
        if isinstance(picture, str | Path):
            yield lambda path=picture: read_image(path, alpha="keep")
        else:
            yield lambda image=picture: to_image_tensor(image, "keep")


def _collect(pictures: Iterable[Callable[[], Tensor]], max_side: int | None, max_bytes: int) -> list[Tensor]:
    frames: list[Tensor] = []
    for number, picture in enumerate(pictures):
        try:
            frame = _reduced(picture(), max_side)
        except ValueError as error:
            raise ValueError(f"frame {number}: {error}") from error
        if frames and frame.shape != frames[0].shape:
            raise ValueError(
                f"frame {number} has {_size(frame)} pixels and frame 0 has {_size(frames[0])} (width x height); "
                "give frames of one size: crop or pad them first."
            )
        frames.append(frame)
        if frame.nbytes * len(frames) > max_bytes:
            raise ValueError(
                f"{len(frames)} or more frames of {_size(frame)} need more than the {max_bytes / 1e9:.3g} GB accepted; "
                "give a larger stride, or a smaller max_frames or max_side."
            )
    return frames


def _reduced(rgba: Float[Tensor, "4 height width"], max_side: int | None) -> Float[Tensor, "4 _ _"]:
    """Made smaller where it is larger; transparent pixels lend the others no colour."""
    height, width = rgba.shape[-2:]
    if max_side is None or max(height, width) <= max_side:
        return rgba
    scale = max_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    alpha = resize(rgba[3:], size)
    before_black = resize(rgba[:3] * rgba[3:], size)
    colour = torch.where(alpha > VISIBLE, before_black / alpha.clamp_min(VISIBLE), torch.ones(())).clamp(0, 1)
    return torch.cat([colour, alpha])


def _with_masks(
    rgba: Float[Tensor, "frames 4 height width"], masks: list[Float[Tensor, "4 _ _"]]
) -> Float[Tensor, "frames 4 height width"]:
    if len(masks) != len(rgba):
        raise ValueError(f"There are {len(masks)} masks for {len(rgba)} frames; give one mask a frame.")
    if masks[0].shape != rgba.shape[1:]:
        raise ValueError(f"The masks have {_size(masks[0])} pixels and the frames {_size(rgba)} (width x height); resize the masks first.")
    stacked = torch.stack(masks)
    grey = stacked[:, :3].mean(1, keepdim=True) * stacked[:, 3:]
    return torch.cat([rgba[:, :3], grey], 1)


def check_num_frames(num_frames: int, trained: int = TRAINED_FRAMES) -> None:
    """Refuses fewer than 2 frames, and warns of fewer than the model was trained on.

    Raises:
        ValueError: fewer than 2.
    """
    if num_frames < 2:
        raise ValueError(f"need at least 2 frames, got {num_frames}.")
    if num_frames < trained:
        warnings.warn(f"The clip has {num_frames} frames and the model was trained on {trained}; motion may be poorer.", stacklevel=2)


def composite_on_white(rgba: Float[Tensor, "*batch 4 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Frames before a white background: colour x alpha + 1 - alpha."""
    colour, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    return colour * alpha + (1 - alpha)


def foreground_share(alpha: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch"]:
    """Share of a frame's pixels that are more opaque than transparent."""
    return (alpha > OPAQUE).double().mean((-2, -1))


def check_foreground(alpha: Float[Tensor, "frames height width"], min_share: float | int = MIN_SHARE) -> None:
    """Refuses frames in which the object was not found, and warns where it touches the border.

    Args:
        alpha: in [0, 1].
        min_share: of the pixels that must be object, and that must not be.

    Raises:
        ValueError: a frame without object or without background; the message names the first one.
    """
    for number, share in enumerate(foreground_share(alpha).tolist()):
        if share < min_share or share == 0:
            raise ValueError(f"frame {number}: no foreground ({100 * share:.2g} % of pixels); give masks.")
        if 1 - share < min_share:
            raise ValueError(f"frame {number}: no background ({100 * share:.4g} % of pixels are foreground); give masks.")
    if cut := border_frames(alpha):
        warnings.warn(
            f"The object touches the border in frames {named_numbers(cut)}: what lies outside the picture cannot be rebuilt. "
            "Give a clip that shows all of it.",
            stacklevel=2,
        )


def border_frames(alpha: Float[Tensor, "frames height width"]) -> list[int]:
    """Numbers of the frames whose object touches the picture's border."""
    inside = alpha > OPAQUE
    rows, columns = inside[:, [0, -1], :].flatten(1).any(1), inside[:, :, [0, -1]].flatten(1).any(1)
    return (rows | columns).nonzero()[:, 0].tolist()


def union_box(alpha: Float[Tensor, "frames height width"]) -> tuple[int, int, int, int]:
    """The smallest box that holds what is visible in any frame: top, left, bottom, right, the last two exclusive.

    Raises:
        ValueError: nothing is visible.
    """
    visible = (alpha > VISIBLE).any(0)
    if not bool(visible.any()):
        raise ValueError("All frames are wholly transparent; give masks.")
    rows, columns = (visible.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def prepare_frames(
    rgba: Float[Tensor, "frames 4 height width"], *, padding: float | int = 0.1, min_share: float | int = MIN_SHARE
) -> Float[Tensor, "frames 3 side side"]:
    """Square frames before white, as the image encoder gets them: all are cropped to one box, that of the object over the whole clip.

    The box is padded by int(padding x longer side) on every side, and the shorter side to the middle of a square.

    Args:
        rgba: in [0, 1], with an alpha that is the object's, see :mod:`visiongraft.methods.action_mesh.matting`.
        padding: on each side, as a share of the box's longer side.
        min_share: see :func:`check_foreground`.

    Returns:
        In [0, 1]. The arguments stay as they are.

    Raises:
        ValueError: a frame without object or without background, or a negative padding.

    Source: ActionMesh brief, 2.9.
    """
    if padding < 0:
        raise ValueError(f"The padding is a share of the box's longer side of 0 or more; got {padding}.")
    check_foreground(rgba[:, 3], min_share)
    top, left, bottom, right = union_box(rgba[:, 3])
    cropped = composite_on_white(rgba[..., top:bottom, left:right])
    height, width = bottom - top, right - left
    side = max(height, width) + 2 * int(padding * max(height, width))
    above, before = (side - height) // 2, (side - width) // 2
    return F.pad(cropped, (before, side - width - before, above, side - height - above), value=1.0)


def named_numbers(numbers: Sequence[int], most: int = 5) -> str:
    """``0, 3, 4, 7, 8 and 12 more``."""
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"


def _size(image: Shaped[Tensor, "*batch channels height width"]) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _count(number: int) -> str:
    return "1 frame" if number == 1 else f"{number} frames"
