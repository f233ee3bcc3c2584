"""Decoding video files through FFmpeg: opening them with care, frames with their times, upright RGB."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream
from jaxtyping import UInt8

from visiongraft.media.orientation import UPRIGHT, Orientation, orientation_from_matrix, turn_upright

# exact rounding, and chroma interpolated before it becomes RGB
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
# containers that hold frames and their times: no playlists, which name other files, no images, no text, no bare streams
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,mxf,nut,rm"
_UNSPECIFIED_COLOURS = 2


class TimedFrame(NamedTuple):
    """A decoded frame, when it is shown and how long (seconds from the first frame), and the width of a pixel over its height."""

    time: float
    duration: float
    frame: VideoFrame
    pixel_aspect: float


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container of a video file and its first stream of pictures.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: the file may not be read.
        ValueError: not a video, no pictures in it, or a file shorter than its index says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no video file {path}.")
    limits = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path), mode="r", container_options=limits, metadata_errors="replace")
    except PermissionError as error:
        raise PermissionError(f"The video {path} may not be read; change its permissions.") from error
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read; give an MP4, MOV, MKV, WebM or AVI file.") from error
    with container:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            raise ValueError(f"{path} has no video stream; give a file with moving pictures.")
        stream = streams[0]
        size = path.stat().st_size
        missing = sum(entry.pos + entry.size > size for entry in stream.index_entries)
        if missing:
            raise ValueError(f"{path} is truncated: {missing} of its {len(stream.index_entries)} frames are missing; copy it again.")
        stream.thread_type = "AUTO"  # with threads by slice alone, FFmpeg does not mark damaged frames
        yield container, stream


def decode(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames from where the container stands.

    Raises:
        ValueError: a damaged frame; nothing is concealed.
    """
    with damage_named(path):
        for frame in container.decode(stream):
            if frame.is_corrupt:
                at = "" if frame.time is None else f" at {frame.time:.2f} s"
                raise ValueError(f"{path} is damaged{at}; get a whole copy, or cut it before.")
            yield frame


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns FFmpeg's errors into one sentence that names the file."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"{path} is damaged and cannot be decoded ({error.strerror}).") from error


def first_frame(path: Path, frames: Iterator[VideoFrame]) -> VideoFrame:
    """The next frame.

    Raises:
        ValueError: there is none.
    """
    frame = next(frames, None)
    if frame is None:
        raise ValueError(f"{path} has no frames.")
    return frame


def frame_rate(path: Path, stream: VideoStream) -> Fraction:
    """Nominal frames a second.

    Raises:
        ValueError: the file does not say.
    """
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise ValueError(f"{path} does not say its frame rate; convert it to MP4 first.")
    return rate


def timed_frames(path: Path, start: float | int) -> Iterator[TimedFrame]:
    """Frames in the order they are shown, from the beginning or, where the file can be sought, from shortly before ``start``.

    Raises:
        FileNotFoundError, PermissionError: see :func:`open_video`.
        ValueError: see :func:`open_video` and :func:`decode`; also a file that does not say when its frames are shown.
    """
    # a second's margin: key frames are sought by when they are decoded, which is not when they are shown
    for seek in [True, False] if start > 1 else [False]:
        with open_video(path) as (container, stream):
            nominal, aspect = 1 / float(frame_rate(path, stream)), pixel_aspect(stream)
            frames = decode(path, container, stream)
            first = first_frame(path, frames)
            origin = _time(path, first)
            if seek:
                if not _seek(container, stream, origin + start - 1):
                    continue
                frames = decode(path, container, stream)
                first = next(frames, None)
                if first is None or _time(path, first) > origin + start:
                    continue
            for frame in chain([first], frames):
                duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else nominal
                yield TimedFrame(_time(path, frame) - origin, duration, frame, aspect)
            return


def _time(path: Path, frame: VideoFrame) -> float:
    if frame.time is None:
        raise ValueError(f"{path} does not say when its frames are shown; convert it to MP4 first.")
    return frame.time


def _seek(container: InputContainer, stream: VideoStream, time: float) -> bool:
    try:
        container.seek(int(time / (stream.time_base or 1)), stream=stream)
    except av.FFmpegError:
        return False
    return True


def pixel_aspect(stream: VideoStream) -> float:
    """Width of a pixel over its height; 1 where the file does not say."""
    return float(stream.sample_aspect_ratio or 1)


def upright_size(frame: VideoFrame, aspect: float) -> tuple[int, int]:
    """(height, width) of :func:`upright_rgb`."""
    height, width = frame.height, _square_width(frame, aspect)
    return (width, height) if _orientation(frame).exchange else (height, width)


def upright_rgb(frame: VideoFrame, aspect: float) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of a frame whose pixels are ``aspect`` times as wide as high, made square and turned as the display matrix says.

    Colours follow the tags of the stream; without tags BT.709 is taken for pictures larger than standard definition, BT.601 for
    others, as players do. HLG and PQ are converted to BT.709 with highlights clipped.
    """
    high_definition = frame.height > 576 or frame.width >= 1280
    assumed = Colorspace.ITU709 if high_definition else Colorspace.ITU601
    is_hdr = frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
    rgb = frame.reformat(
        width=_square_width(frame, aspect),
        format="rgb24",
        src_colorspace=assumed if frame.colorspace == _UNSPECIFIED_COLOURS else None,
        dst_color_range=ColorRange.JPEG,
        interpolation=SCALING,
        dst_color_trc=ColorTrc.BT709 if is_hdr else None,
        dst_color_primaries=ColorPrimaries.BT709 if is_hdr else None,
    )
    return np.ascontiguousarray(turn_upright(rgb.to_ndarray(), _orientation(frame)))


def _square_width(frame: VideoFrame, aspect: float) -> int:
    return max(1, round(frame.width * aspect))


def _orientation(frame: VideoFrame) -> Orientation:
    side_data: Any = frame.side_data  # PyAV's stubs know one kind of it
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    return UPRIGHT if matrix is None else orientation_from_matrix(bytes(matrix))
