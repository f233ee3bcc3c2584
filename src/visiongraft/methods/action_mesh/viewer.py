"""An animated mesh to look at from all sides: one HTML page or a piece of one, drawn by WebGL, that needs no network."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.meshes import bounding_box
from visiongraft.media.files import atomic_write

MAX_EMBEDDED_BYTES = 64 << 20
_STEPS = 32_767  # of 16-bit positions

Colors = Literal["place", "clay"] | Float[Tensor, "v 3"]
Vertices = Float[Tensor, "t v 3"] | Sequence[Float[Tensor, "_ 3"]]
Faces = Int[Tensor, "f 3"] | Sequence[Int[Tensor, "_ 3"]]


def write_viewer(
    path: str | Path,
    vertices: Vertices,
    faces: Faces,
    *,
    title: str = "Animated mesh",
    note: str = "",
    fps: float | int = 8.0,
    colors: Colors | None = None,
    yaw_deg: float | int = 30.0,
    pitch_deg: float | int = 15.0,
    frame: float | int = 0.0,
    play: bool = True,
) -> Path:
    """Writes a page that shows an animated mesh to turn, zoom and play, by mouse, touch or keyboard.

    Args:
        path: the page.
        vertices: of every frame, Y up. With a list, every frame is a mesh of its own, and is shown without blending.
        faces: of all frames, or a list with those of each.
        title: heading.
        note: a sentence or two below the picture.
        fps: frames per second.
        colors: ``"place"`` gives every vertex a colour by its place in the first frame, which it keeps, so that one sees where each
            part goes; ``"clay"`` is plain; or RGB in [0, 1] for each vertex. By default "place" for one topology and "clay" for lists.
        yaw_deg: where the camera stands at the start, to the right of the front (+Z).
        pitch_deg: where the camera stands, above the middle.
        frame: shown first.
        play: whether the animation runs at once; where a person has asked for less motion, it waits.

    Raises:
        ValueError: no frames, frames that are no meshes, colours of another number, angles or a frame out of range, or a page that
            would be too large.
    """
    path = Path(path)
    content = _content(vertices, faces, fps, colors, yaw_deg, pitch_deg, frame, play)
    page = _rendered("mesh_viewer.html.j2", content, title=title, note=note, embedded=False)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def viewer_snippet(
    vertices: Vertices,
    faces: Faces,
    *,
    title: str = "Animated mesh",
    note: str = "",
    fps: float | int = 8.0,
    colors: Colors | None = None,
    yaw_deg: float | int = 30.0,
    pitch_deg: float | int = 15.0,
    frame: float | int = 0.0,
    play: bool = True,
) -> str:
    """The viewer as markup to be placed in a longer page, as often as one likes; arguments as in :func:`write_viewer`.

    It takes the colours of the page's custom properties ``--card``, ``--ink``, ``--soft``, ``--line`` and ``--accent``, and plays only
    while it can be seen. Browsers draw about 16 viewers on one page.

    Raises:
        ValueError: see :func:`write_viewer`.
    """
    content = _content(vertices, faces, fps, colors, yaw_deg, pitch_deg, frame, play)
    return _rendered("mesh_snippet.html.j2", content, title=title, note=note, embedded=True)


def _rendered(template: str, content: dict[str, Any], **texts: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("visiongraft.methods.action_mesh")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**content, **texts)


def _content(
    vertices: Vertices,
    faces: Faces,
    fps: float | int,
    colors: Colors | None,
    yaw_deg: float | int,
    pitch_deg: float | int,
    frame: float | int,
    play: bool,
) -> dict[str, Any]:
    one_topology = isinstance(faces, Tensor)
    frames = [part.detach().cpu().float() for part in vertices]
    indices = [part.cpu().long() for part in ([faces] if one_topology else faces)]
    _check(frames, indices, one_topology)
    if not fps > 0:
        raise ValueError(f"fps must be positive; got {fps}.")
    if not (abs(yaw_deg) <= 360 and abs(pitch_deg) <= 90):
        raise ValueError(f"yaw_deg must be in [-360, 360] and pitch_deg in [-90, 90]; got {yaw_deg} and {pitch_deg}.")
    if not 0 <= frame <= len(frames) - 1:
        raise ValueError(f"The animation has frames 0 to {len(frames) - 1}; got frame {frame}.")
    everything = torch.cat(frames)
    low, high = bounding_box(everything)
    center, half = (low + high) / 2, float((high - low).max() / 2)
    if not half > 0:
        raise ValueError("All vertices of the animation are in one place; there is nothing to look at.")
    tint = _tint(frames, one_topology, colors, low, high)
    blocks = [
        ((everything - center) / half * _STEPS).round().numpy().astype("<i2"),
        torch.cat(indices).numpy().astype("<u4"),
        (tint * 255).round().byte().numpy() if tint is not None else np.zeros((0, 3), np.uint8),
    ]
    size = sum(block.nbytes for block in blocks)
    if size > MAX_EMBEDDED_BYTES:
        raise ValueError(
            f"The animation has {size:,} bytes, more than the {MAX_EMBEDDED_BYTES:,} of a page; decimate it or take fewer frames."
        )
    layout = {
        "vertices": [len(part) for part in frames],
        "faces": [len(part) for part in indices],
        "colors": len(blocks[2]),
        "center": center.tolist(),
        "half": half,
        "low": float(low[1]),
        "radius": float((everything - center).norm(dim=-1).max()),
    }
    # the widest numbers first, so that each kind begins at a multiple of its size
    data = blocks[1].tobytes() + blocks[0].tobytes() + blocks[2].tobytes()
    return {
        "layout": json.dumps(layout),
        "data": base64.b64encode(data).decode(),
        "fps": float(fps),
        "yaw_deg": float(yaw_deg),
        "pitch_deg": float(pitch_deg),
        "frame": float(frame),
        "play": play,
        "last": len(frames) - 1,
    }


def _check(frames: list[Tensor], indices: list[Tensor], one_topology: bool) -> None:
    if not frames or (not one_topology and len(indices) != len(frames)):
        raise ValueError(
            f"A viewer needs at least one frame, and faces for all or for each; got {len(frames)} frames, {len(indices)} faces."
        )
    for number, part in enumerate(frames):
        index = indices[0 if one_topology else number]
        if not (len(part) and len(index)) or not bool(part.isfinite().all()):
            raise ValueError(f"Frame {number} has {len(part)} vertices and {len(index)} faces; it needs both, and finite vertices.")
        if not (int(index.min()) >= 0 and int(index.max()) < len(part)):
            raise ValueError(f"Frame {number} has {len(part)} vertices, but its faces name {int(index.min())} to {int(index.max())}.")


def _tint(
    frames: list[Tensor], one_topology: bool, colors: Colors | None, low: Float[Tensor, "3"], high: Float[Tensor, "3"]
) -> Float[Tensor, "v 3"] | None:
    """Colours of the vertices of the first frame, or of all frames where each has its own; None is clay."""
    if colors is None:
        colors = "place" if one_topology else "clay"
    num = len(frames[0]) if one_topology else sum(map(len, frames))
    if isinstance(colors, Tensor):
        tint = colors.detach().cpu().float()
        if tint.shape != (num, 3) or not bool(((tint >= 0) & (tint <= 1)).all()):
            raise ValueError(f"colors must be RGB in [0, 1] for each of {num} vertices; got shape {tuple(tint.shape)}.")
        return tint
    if colors == "clay":
        return None
    places = frames[0] if one_topology else torch.cat(frames)
    first_low, first_high = bounding_box(frames[0]) if one_topology else (low, high)
    return 0.2 + 0.75 * (places - first_low) / (first_high - first_low).clamp(min=1e-12)
