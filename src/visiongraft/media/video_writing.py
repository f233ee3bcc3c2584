"""Writing video files: H.264 in MP4, whole or not there."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from jaxtyping import Shaped
from torch import Tensor

from visiongraft.media.files import atomic_write
from visiongraft.media.images import check_unit_range
from visiongraft.media.spherical import SphericalVideo, tag_spherical
from visiongraft.media.video_frames import SCALING

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}


def write_video(
    frames: Iterable[Shaped[Tensor, "3 height width"]] | Shaped[Tensor, "frames 3 height width"],
    path: str | Path,
    fps: float | int | Fraction,
    crf: int = 18,
    preset: str = "medium",
    spherical: SphericalVideo | None = None,
) -> Path:
    """Writes a video file, atomically; see :func:`video_writer` for the arguments.

    Args:
        frames: floating point in [0, 1], or uint8; a generator is written as it comes.

    Raises:
        ValueError: see :func:`video_writer` and :meth:`VideoWriter.write`.
    """
    with video_writer(path, fps, crf, preset, spherical) as writer:
        for frame in frames:
            writer.write(frame)
    return Path(path)


@contextmanager
def video_writer(
    path: str | Path, fps: float | int | Fraction, crf: int = 18, preset: str = "medium", spherical: SphericalVideo | None = None
) -> Iterator["VideoWriter"]:
    """A video file to be written frame by frame; it appears when the block ends, and not at all when it raises.

    H.264 with 4:2:0 colour in limited-range BT.709, tagged so, its index at the front; MPEG-4 where FFmpeg lacks x264::

        with video_writer("panorama.mp4", fps=16, spherical=SphericalVideo()) as writer:
            for frame in frames:
                writer.write(frame)

    Args:
        path: ends in .mp4, .m4v or .mov.
        fps: frames a second.
        crf: from 0 (nothing is lost but chroma resolution) to 51; 18 can hardly be told from the source.
        preset: of x264, from ultrafast to veryslow.
        spherical: tags the video as a panorama.

    Raises:
        ValueError: another suffix, an fps or crf that cannot be, or no frames.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"Videos are written as {', '.join(_FORMATS)}; got {path.name!r}.")
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive; got {fps}.")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be 0 (best) to 51; got {crf}.")
    codec, options = _encoder(crf, preset)
    with atomic_write(path) as temporary:
        with av.open(str(temporary), "w", format=_FORMATS[path.suffix.lower()], options={"movflags": "faststart"}) as container:
            writer = VideoWriter(container, Fraction(fps).limit_denominator(1001), codec, options)
            yield writer
            writer.finish()
        if spherical is not None:
            tag_spherical(temporary, spherical)


class VideoWriter:
    """Encodes frames of one size into an open container; made by :func:`video_writer`."""

    def __init__(self, container: OutputContainer, rate: Fraction, codec: str, options: dict[str, str]) -> None:
        self.num_frames = 0
        self._container, self._rate, self._codec, self._options = container, rate, codec, options
        self._stream: VideoStream | None = None

    def write(self, frame: Shaped[Tensor, "3 height width"]) -> None:
        """Appends one frame, floating point in [0, 1] or uint8.

        Raises:
            ValueError: an odd height or width, another size than the first frame's, or pixels outside [0, 1].
        """
        height, width = frame.shape[-2:]
        if frame.dtype != torch.uint8:
            frame = (check_unit_range(frame.detach()) * 255).round().byte()
        if self._stream is None:
            self._stream = self._add_stream(height, width)
        if (self._stream.height, self._stream.width) != (height, width):
            raise ValueError(f"All frames of a video have one size; got {height}x{width} after {self._stream.height}x{self._stream.width}.")
        rgb = VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().cpu().numpy(), format="rgb24")
        limited = ColorRange.MPEG
        encoded = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=limited, interpolation=SCALING)
        encoded.pts, encoded.time_base = self.num_frames, 1 / self._rate
        self._container.mux(self._stream.encode(encoded))
        self.num_frames += 1

    def finish(self) -> None:
        """Encodes what the encoder holds back.

        Raises:
            ValueError: no frames were written.
        """
        if self._stream is None:
            raise ValueError("A video needs at least one frame; none was written.")
        self._container.mux(self._stream.encode(None))

    def _add_stream(self, height: int, width: int) -> VideoStream:
        if height % 2 or width % 2:
            raise ValueError(f"Video frames need an even height and width (4:2:0 chroma); got {height}x{width}; crop or resize them first.")
        stream = self._container.add_stream(self._codec, rate=self._rate, options=self._options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._rate
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return stream


def _encoder(crf: int, preset: str) -> tuple[str, dict[str, str]]:
    """FFmpeg's name of the encoder and its options."""
    if "libx264" in av.codecs_available:
        return "libx264", {"crf": str(crf), "preset": preset}
    # the quantiser of MPEG-4 runs from 1 to 31
    quantiser = str(max(1, round(crf * 31 / 51)))
    return "mpeg4", {"qmin": quantiser, "qmax": quantiser}
