"""Reading, checking and writing images as tensors in [0, 1]."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from visiongraft.media.deep_images import read_deep_image
from visiongraft.media.files import atomic_write

MAX_PIXELS = 100_000_000
MAX_JPEG_SIDE = 65_535
Alpha = Literal["white", "black", "refuse", "keep"]
_BACKGROUND = {"white": 1.0, "black": 0.0}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, alpha: Alpha = "white") -> Float[Tensor, "channels height width"]:
    """Reads an image file as RGB, or as RGBA, upright as its EXIF orientation says.

    Grey, palette and CMYK images are converted; 16-bit PNG and TIFF keep their precision. Of an animation the first frame is read.

    Args:
        path: the file.
        max_pixels: larger images are refused from their header, before anything is decoded.
        alpha: what lies behind transparent pixels (``white``, ``black``); ``refuse`` raises where there are any, ``keep`` gives alpha
            as a fourth channel, which is 1 where the file has none.

    Returns:
        float32 in [0, 1]; 3 channels, 4 with ``keep``.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: the file may not be read.
        ValueError: not an image, a damaged one, more than ``max_pixels``, NaN pixels, or transparency that is refused; the message
            names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}.")
    with _decoding(path):
        image = Image.open(path)
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{path} has {width}x{height} pixels, more than the {max_pixels:,} accepted; reduce it first.")
        with _decoding(path):
            # first: Pillow gives 16-bit colour as 8 bits, and forgets a TIFF's orientation once it is decoded
            upright = read_deep_image(image, path)
            if upright is None:
                upright = ImageOps.exif_transpose(image)
    try:
        return to_image_tensor(upright, alpha)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns whatever Pillow raises on a file that it cannot decode into one sentence that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # read_image has a limit of its own
            yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that can be read; give a PNG, JPEG, WebP, TIFF or BMP file.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has more pixels than Pillow decodes ({error}); reduce it first.") from error
    except PermissionError as error:
        raise PermissionError(f"The image {path} may not be read; change its permissions.") from error
    except Exception as error:  # damaged files make decoders raise nearly anything, struct.error among it
        raise ValueError(f"{path} is damaged and cannot be decoded ({error}).") from error


def to_image_tensor(image: Image.Image | np.ndarray | Tensor, alpha: Alpha = "white") -> Float[Tensor, "channels height width"]:
    """One image as an RGB or RGBA tensor in [0, 1].

    Args:
        image: PIL image of any mode; NumPy array (height x width, or height x width x channels; uint8, uint16 or float in
            [0, 1]); or tensor (channels x height x width, uint8 or float in [0, 1]). Channels: 1, 3, or 4 with alpha.
        alpha: see :func:`read_image`.

    Returns:
        3 channels, 4 with ``keep``.

    Raises:
        ValueError: another layout, NaN or infinite pixels, floats outside [0, 1], or transparency that is refused.
    """
    if alpha not in get_args(Alpha):
        raise ValueError(f"alpha must be 'white', 'black', 'refuse' or 'keep'; got {alpha!r}.")
    if isinstance(image, Image.Image):
        image = _pil_to_array(image)
    if isinstance(image, np.ndarray):
        image = np.array(image, dtype=image.dtype.newbyteorder("="))  # a writable copy
        if image.dtype == np.uint16:
            image = image.astype(np.float32) / 65535
        pixels = torch.from_numpy(image)
        if pixels.dim() == 2:
            pixels = pixels.unsqueeze(-1)
        if pixels.dim() == 3:
            pixels = pixels.permute(2, 0, 1)
    else:
        pixels = image.detach()
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(
            f"An image has 1, 3 or 4 channels (arrays: height x width x channels, tensors: channels x height x width); "
            f"got shape {tuple(image.shape)}."
        )
    pixels = check_unit_range(pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels)
    if alpha == "keep":
        opacity = pixels[3:] if pixels.shape[0] == 4 else torch.ones_like(pixels[:1])
        return torch.cat([pixels[:3].expand(3, -1, -1), opacity])
    if pixels.shape[0] == 4:
        colour, opacity = pixels[:3], pixels[3:]
        if alpha == "refuse" and bool((opacity < 1).any()):
            raise ValueError("image has transparency: pass alpha='white' or 'black'")
        pixels = colour * opacity + (1 - opacity) * _BACKGROUND.get(alpha, 0.0)
    return pixels.expand(3, -1, -1).contiguous()


def check_unit_range(pixels: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """float32 pixels clipped to [0, 1], where they are within 0.01 of it.

    Raises:
        ValueError: not floating point, NaN or infinite, or farther outside [0, 1]; the message says what to do.
    """
    if not pixels.is_floating_point():
        raise ValueError(f"Pixels must be uint8, or floating point in [0, 1]; got {pixels.dtype}.")
    if not torch.isfinite(pixels).all():
        raise ValueError("The image contains NaN or infinite pixels.")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -0.01 or high > 1.01:
        hint = "undo the encoder's normalisation" if low < -0.01 else "divide by 255"
        raise ValueError(f"Pixels must lie in [0, 1] but reach {low:.3g} and {high:.3g}; {hint} first.")
    return pixels.float().clamp(0, 1)


def _pil_to_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image, np.uint16)
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float32)
        return values / 65535 if image.mode == "I" else values
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def list_images(path: str | Path) -> list[Path]:
    """The image file itself, or the image files of a folder in natural order (2 before 10), hidden ones left out.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without images.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"There is no image or folder {path}.")
    found = [file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != "." and file.is_file()]
    if not found:
        raise FileNotFoundError(f"The folder {path} has no images ({', '.join(sorted(_SUFFIXES))}).")
    return sorted(found, key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)])


def save_image(image: Float[Tensor, "3 height width"], path: str | Path, quality: int = 95) -> Path:
    """Writes an image in [0, 1] with 8 bits a channel, atomically; the suffix says whether as PNG or JPEG.

    Args:
        image: pixels; values outside [0, 1] are clipped.
        path: ends in .png, .jpg or .jpeg.
        quality: of a JPEG, 1 to 100.

    Raises:
        ValueError: another suffix or quality, or an image that is too large for JPEG.
    """
    path = Path(path)
    content = encode_image(image, image_format(path), quality)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def image_format(path: str | Path) -> Literal["PNG", "JPEG"]:
    """The format that a file's suffix asks for.

    Raises:
        ValueError: neither PNG nor JPEG.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"Images are written as .png, .jpg or .jpeg; got {Path(path).name!r}.")
    return "PNG" if suffix == ".png" else "JPEG"


def encode_image(image: Float[Tensor, "3 height width"], format: Literal["PNG", "JPEG"] = "PNG", quality: int = 95) -> bytes:
    """An image in [0, 1] as the content of a PNG or JPEG file with 8 bits a channel.

    From quality 90 on a JPEG keeps its colour at full resolution.

    Raises:
        ValueError: a quality outside 1 to 100, or an image that is too large for JPEG.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"The quality of a JPEG must be 1 to 100; got {quality}.")
    height, width = image.shape[-2:]
    if format == "JPEG" and max(height, width) > MAX_JPEG_SIDE:
        raise ValueError(f"A JPEG has at most {MAX_JPEG_SIDE:,} pixels a side; got {height}x{width}; write a PNG.")
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    options = {"quality": quality, "subsampling": 0 if quality >= 90 else 2, "optimize": True} if format == "JPEG" else {}
    Image.fromarray(pixels).save(stream, format=format, **options)
    return stream.getvalue()


def resize(image: Float[Tensor, "*batch height width"], size: tuple[int, int]) -> Float[Tensor, "*batch new_height new_width"]:
    """Bicubic resizing with anti-aliasing, clipped to [0, 1]; unchanged if the image has the size already."""
    if tuple(image.shape[-2:]) == size:
        return image
    flat = image.reshape(1, -1, *image.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return resized.reshape(*image.shape[:-2], *size)


def center_square(image: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch side side"]:
    """The middle square of an image."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]
