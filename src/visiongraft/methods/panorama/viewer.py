"""A panorama to look around in: one HTML page or a piece of one, drawn by WebGL, that needs no network."""

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import check_hfov_deg
from visiongraft.geometry.panoramas import check_panorama
from visiongraft.media.files import atomic_write
from visiongraft.media.images import encode_image, read_image
from visiongraft.media.video import probe_video

MAX_EMBEDDED_BYTES = 256 << 20
_IMAGES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_VIDEOS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}


def write_viewer(
    panorama: str | Path | Float[Tensor, "3 height width"],
    path: str | Path,
    title: str = "Panorama",
    note: str = "",
    hfov_deg: float | int = 90.0,
    yaw_deg: float | int = 0.0,
    pitch_deg: float | int = 0.0,
    embed: bool = True,
) -> Path:
    """Writes a page that shows a panorama to look around in, by mouse, touch or keyboard; the middle of the picture is seen first.

    Args:
        panorama: an equirectangular image file (JPEG, PNG, WebP) or video file (MP4, WebM), or an image tensor in [0, 1].
        path: the page.
        title: heading.
        note: a sentence or two below the picture.
        hfov_deg: horizontal field of view at the start (on a screen that is higher than wide, the vertical one).
        yaw_deg: where to look at the start, right of the middle.
        pitch_deg: where to look at the start, above the horizon.
        embed: put the picture into the page. ``False`` links the file by its path relative to the page, for large videos; browsers
            then show it only when a web server delivers both.

    Raises:
        FileNotFoundError: no such panorama.
        ValueError: not H x 2H, a file of another kind, one that is too large to embed, or angles out of range.
    """
    path = Path(path)
    source = _source(panorama, path if not embed else None)
    page = _rendered("viewer.html.j2", source | _start(hfov_deg, yaw_deg, pitch_deg), title=title, note=note, embedded=False)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def viewer_snippet(
    panorama: str | Path | Float[Tensor, "3 height width"],
    title: str = "Panorama",
    note: str = "",
    hfov_deg: float | int = 90.0,
    yaw_deg: float | int = 0.0,
    pitch_deg: float | int = 0.0,
) -> str:
    """The viewer as markup to be placed in a longer page, as often as one likes; arguments as in :func:`write_viewer`.

    It takes the colours of the page's custom properties ``--card``, ``--ink``, ``--soft``, ``--line`` and ``--accent``.

    Raises:
        FileNotFoundError, ValueError: see :func:`write_viewer`.
    """
    content = _source(panorama, None) | _start(hfov_deg, yaw_deg, pitch_deg)
    return _rendered("snippet.html.j2", content, title=title, note=note, embedded=True)


def _rendered(template: str, content: dict[str, Any], **texts: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("visiongraft.methods.panorama")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**content, **texts)


def _start(hfov_deg: float | int, yaw_deg: float | int, pitch_deg: float | int) -> dict[str, float]:
    """The view at the start."""
    check_hfov_deg(hfov_deg)
    if not 20 <= hfov_deg <= 130:
        raise ValueError(f"The viewer shows fields of view from 20 to 130 degrees; got hfov_deg {hfov_deg:g}.")
    if not (abs(yaw_deg) <= 180 and abs(pitch_deg) <= 90):
        raise ValueError(f"yaw_deg must be in [-180, 180] and pitch_deg in [-90, 90]; got {yaw_deg} and {pitch_deg}.")
    return {"hfov_deg": float(hfov_deg), "yaw_deg": float(yaw_deg), "pitch_deg": float(pitch_deg)}


def _source(panorama: str | Path | Tensor, page: Path | None) -> dict[str, Any]:
    """What the page shows: the address of the picture (relative to the page, or with the picture in it), and whether it is a video."""
    if isinstance(panorama, Tensor):
        if page is not None:
            raise ValueError("Only a file can be linked; give the panorama's path, or embed it.")
        return {"source": _data_url("image/png", encode_image(check_panorama(panorama))), "is_video": False}
    file = Path(panorama)
    kind, is_video = _kind(file)
    if page is not None:
        return {"source": quote(Path(os.path.relpath(file.resolve(), page.resolve().parent)).as_posix()), "is_video": is_video}
    size = file.stat().st_size
    if size > MAX_EMBEDDED_BYTES:
        raise ValueError(f"{file} has {size:,} bytes, more than the {MAX_EMBEDDED_BYTES:,} that are embedded; pass embed=False.")
    return {"source": _data_url(kind, file.read_bytes()), "is_video": is_video}


def _kind(file: Path) -> tuple[str, bool]:
    """Media type of a panorama file, which is read to see that it is one."""
    suffix = file.suffix.lower()
    if not file.is_file():
        raise FileNotFoundError(f"There is no panorama {file}.")
    if suffix in _IMAGES:
        height, width = read_image(file).shape[-2:]
    elif suffix in _VIDEOS:
        info = probe_video(file)
        height, width = info.height, info.width
    else:
        raise ValueError(f"A viewer shows {', '.join([*_IMAGES, *_VIDEOS])}; got {file.name!r}.")
    if width != 2 * height:
        raise ValueError(f"{file}: ERP must have W = 2H; got {height}x{width} (height x width).")
    return (_IMAGES | _VIDEOS)[suffix], suffix in _VIDEOS


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
