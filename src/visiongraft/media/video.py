"""Reading video files: frames as tensors in [0, 1], upright, at any frame rate, one at a time or all at once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from visiongraft.media.images import MAX_PIXELS
from visiongraft.media.video_frames import (
    TimedFrame,
    damage_named,
    decode,
    first_frame,
    frame_rate,
    open_video,
    pixel_aspect,
    timed_frames,
    upright_rgb,
    upright_size,
)

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"})
MAX_BYTES = 8 << 30
_TOLERANCE = 1e-6  # seconds


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds.

    Args:
        num_frames: from the file's index, or counted by reading it through where it has none.
        fps: average frames a second.
        height, width: of an upright frame with square pixels.
        duration: seconds.
        rotation_deg: by which stored frames are turned counter-clockwise to be upright.
        codec: FFmpeg's name, such as h264.
        has_audio: whether there is sound.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    duration: float
    rotation_deg: int
    codec: str
    has_audio: bool


def probe_video(path: str | Path) -> VideoInfo:
    """What a video file holds; its first frame is decoded, so that a file without any is refused.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: the file may not be read.
        ValueError: not a video, no video stream, no frames, a damaged or truncated file; the message names it.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        frame = first_frame(path, decode(path, container, stream))
        height, width = upright_size(frame, pixel_aspect(stream))
        rate = float(frame_rate(path, stream))
        num_frames = stream.frames or _count_frames(path)
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = num_frames / rate
        return VideoInfo(
            num_frames=num_frames,
            fps=rate,
            height=height,
            width=width,
            duration=duration,
            rotation_deg=frame.rotation,
            codec=stream.codec_context.name,
            has_audio=bool(container.streams.audio),
        )


def _count_frames(path: Path) -> int:
    with open_video(path) as (container, stream), damage_named(path):
        return sum(1 for packet in container.demux(stream) if packet.size)


def read_video(
    path: str | Path,
    fps: float | int | None = None,
    start: float | int = 0.0,
    num_frames: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_bytes: int = MAX_BYTES,
) -> Shaped[Tensor, "frames 3 height width"]:
    """Reads a video, or a part of it, into memory.

    Args:
        path, fps, start, num_frames, dtype: see :func:`iter_video`.
        max_bytes: that the frames may take.

    Raises:
        FileNotFoundError, PermissionError, ValueError: see :func:`iter_video`; also frames of more than ``max_bytes``.
    """
    frames: list[Tensor] = []
    for frame in iter_video(path, fps, start, num_frames, dtype):
        needed = frame.nbytes * (num_frames or len(frames) + 1)
        if needed > max_bytes:
            raise ValueError(
                f"{path}: {num_frames or len(frames) + 1} or more frames of {frame.shape[-1]}x{frame.shape[-2]} need "
                f"{needed / 1e9:.3g} GB, more than the {max_bytes / 1e9:.3g} GB accepted; give fewer num_frames or use iter_video."
            )
        frames.append(frame)
    return torch.stack(frames)


def iter_video(
    path: str | Path,
    fps: float | int | None = None,
    start: float | int = 0.0,
    num_frames: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Shaped[Tensor, "3 height width"]]:
    """Reads a video frame by frame, in memory that does not grow with its length.

    Frames are upright as the display matrix says, have square pixels, and follow the colour tags of the stream
    (:func:`visiongraft.media.video_frames.upright_rgb` says what happens without tags and with HDR).

    Args:
        path: the file.
        fps: frames a second; frame k is then the one whose presentation time is nearest to ``start + k / fps``, also where frames
            are not equally spaced. ``None`` gives the frames as they are.
        start: seconds after the first frame.
        num_frames: exactly how many; ``None`` reads to the end.
        dtype: a floating type for values in [0, 1], or uint8 for 0 to 255.
        max_pixels: of one frame.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: the file may not be read.
        ValueError: not a video, no frames, a damaged or truncated file, frames of more than ``max_pixels`` or of several sizes, a
            video that is shorter than asked for, or an fps, start, num_frames or dtype that cannot be; the message names the file.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive; got {fps}.")
    if not 0 <= start < math.inf:
        raise ValueError(f"start must be 0 or more seconds; got {start}.")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames must be 1 or more; got {num_frames}.")
    if not (dtype.is_floating_point or dtype == torch.uint8):
        raise ValueError(f"dtype must be floating point or uint8; got {dtype}.")
    return _iter_tensors(Path(path), fps, start, num_frames, dtype, max_pixels)


def _iter_tensors(
    path: Path, fps: float | int | None, start: float | int, num_frames: int | None, dtype: torch.dtype, max_pixels: int
) -> Iterator[Tensor]:
    count, shape = 0, None
    with damage_named(path):
        for timed in chosen_frames(timed_frames(path, start), start, fps):
            pixels = _checked_rgb(path, timed, max_pixels)
            if shape not in (None, pixels.shape):
                raise ValueError(f"{path} changes its frame size after {count} frames; convert it to one size first.")
            shape = pixels.shape
            yield pixels if dtype == torch.uint8 else (pixels.float() / 255).to(dtype)
            count += 1
            if count == num_frames:
                return
    rate = "" if fps is None else f" at {fps:g} frames a second"
    if count == 0:
        raise ValueError(f"{path} has no frames from {start:g} s on; give an earlier start.")
    if num_frames is not None:
        raise ValueError(f"{path} has {count} frames from {start:g} s on{rate}, but {num_frames} were asked for.")


def chosen_frames(timed: Iterator[TimedFrame], start: float | int, fps: float | int | None) -> Iterator[TimedFrame]:
    """Frames from ``start`` on; with ``fps``, the one nearest to every ``start + k / fps`` until the last has been shown."""
    if fps is None:
        yield from (frame for frame in timed if frame.time >= start - _TOLERANCE)
        return
    index, held = 0, None
    for frame in timed:
        while held is not None and start + index / fps < (held.time + frame.time) / 2 - _TOLERANCE:
            yield held
            index += 1
        held = frame
    while held is not None and start + index / fps < held.time + held.duration - _TOLERANCE:
        yield held
        index += 1


def _checked_rgb(path: Path, timed: TimedFrame, max_pixels: int) -> Tensor:
    height, width = upright_size(timed.frame, timed.pixel_aspect)
    if height * width > max_pixels:
        raise ValueError(f"{path} has frames of {width}x{height}, more than the {max_pixels:,} pixels accepted; reduce it first.")
    return torch.from_numpy(upright_rgb(timed.frame, timed.pixel_aspect)).permute(2, 0, 1).contiguous()
