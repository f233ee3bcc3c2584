"""16-bit colour, which Pillow reduces to 8 bits: PNG and TIFF read through FFmpeg."""

from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt16
from PIL import ExifTags, Image

from visiongraft.media.orientation import EXIF_ORIENTATIONS, UPRIGHT, turn_upright


def read_deep_image(image: Image.Image, path: Path) -> UInt16[np.ndarray, "height width channels"] | None:
    """The pixels of a 16-bit PNG or TIFF in colour or with alpha, upright as its EXIF orientation says.

    Args:
        image: the file, opened by Pillow and not yet decoded.
        path: the same file.

    Returns:
        3 channels, or 4 with alpha; ``None`` for any other image, which Pillow reads without loss.

    Raises:
        av.FFmpegError, ValueError: the file cannot be decoded.
    """
    if not _has_deep_colour(image):
        return None
    orientation = EXIF_ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT)
    with av.open(str(path), container_options={"protocol_whitelist": "file"}) as container:
        frame = next(container.decode(video=0))
    opaque = image.mode == "RGB" and "transparency" not in image.info
    pixels = frame.to_ndarray(format="rgb48le" if opaque else "rgba64le")
    # a TIFF's size is the upright one
    if sorted(pixels.shape[:2]) != sorted(image.size):
        raise ValueError(f"decoded as {pixels.shape[1]}x{pixels.shape[0]} where its header says {image.width}x{image.height}")
    return turn_upright(pixels, orientation)


def _has_deep_colour(image: Image.Image) -> bool:
    if image.format == "TIFF":
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))
        return image.mode in ("RGB", "RGBA") and max(bits) == 16
    # Pillow's raw mode of a 16-bit PNG, such as RGB;16B; grey without alpha it reads as it is
    raw_mode = image.tile[0].args if image.tile else ""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and str(raw_mode).endswith(";16B")
