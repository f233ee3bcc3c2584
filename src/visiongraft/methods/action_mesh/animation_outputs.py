"""Files that an animation is written to: which, where, and writing them, each whole or not at all."""

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.media.animated_glb import write_animated_glb
from visiongraft.media.files import ensure_writable_folder
from visiongraft.media.images import save_image
from visiongraft.media.mesh_sequences import write_npz, write_obj_sequence
from visiongraft.media.video_writing import write_video
from visiongraft.methods.action_mesh.animate_options import SUFFIXES, Format
from visiongraft.methods.action_mesh.contact_sheets import in_unit_box, place_colors
from visiongraft.methods.action_mesh.frames import composite_on_white
from visiongraft.methods.action_mesh.viewer import write_viewer
from visiongraft.worlds.mesh_rasteriser import turntable

TURNTABLE_SIDE = 384
_SHORTEST_TURN = 4.0  # seconds


@dataclass(frozen=True)
class Outputs:
    """Where each format goes, and the contact sheet."""

    files: dict[Format, Path]
    sheet: Path


def plan_outputs(output: Path | None, formats: Sequence[Format] | None, default: Path, inputs: Sequence[Path] = ()) -> Outputs:
    """Decides all paths and checks that they can be written, before any work.

    Args:
        output: a file whose suffix is a format's, a folder, or none.
        formats: that are wanted; default: what the output's suffix says, else GLB.
        default: path without suffix where there is no output.
        inputs: files that must not be overwritten.

    Raises:
        ValueError: a suffix that is no format's or not among the formats, no formats, or a path that is an input.
        PermissionError: a folder that cannot be written.
    """
    stem = default
    named: Format | None = None
    if output is not None and output.suffix and not output.is_dir():
        named = SUFFIXES.get(output.suffix.lower())
        if named is None:
            raise ValueError(f"Animations are written as {', '.join(SUFFIXES)}, or into a folder; got {output.name}.")
        stem = output.with_suffix("")
    elif output is not None:
        stem = output / default.name
    wanted: list[Format] = list(dict.fromkeys(formats)) if formats is not None else [named or "glb"]
    if not wanted or (named is not None and named not in wanted):
        raise ValueError(f"The output {output} is not of the formats {', '.join(wanted) or '(none)'}; name one that is, or a folder.")
    endings: dict[Format, str] = {"obj": "-obj", **{kind: suffix for suffix, kind in SUFFIXES.items()}}
    files: dict[Format, Path] = {kind: stem.with_name(stem.name + endings[kind]) for kind in wanted}
    sheet = stem.with_name(stem.name + ".png")
    taken = {path.resolve() for path in inputs}
    for path in (*files.values(), sheet):
        if path.resolve() in taken:
            raise ValueError(f"{path} would overwrite the input; choose another --output.")
        if path.is_dir() and path != files.get("obj"):
            raise ValueError(f"{path} is a folder, and a file is to be written there; choose another --output.")
    if "obj" in files:
        _check_sequence_folder(files["obj"])
    ensure_writable_folder(stem.parent)
    return Outputs(files, sheet)


def write_outputs(
    outputs: Outputs,
    vertices: Float[Tensor, "t v 3"],
    faces: Int[Tensor, "f 3"],
    seconds: Sequence[float],
    sheet: Float[Tensor, "3 height width"],
    *,
    template: Path | None = None,
    title: str = "Animated mesh",
    note: str = "",
) -> list[Path]:
    """Writes everything that was planned.

    Args:
        outputs: from :func:`plan_outputs`.
        vertices, faces: the animation.
        seconds: time of each frame, increasing.
        sheet: the contact sheet.
        template: a GLB whose textures are kept.
        title, note: of the page.

    Returns:
        The files, the sheet last.
    """
    fps = frame_rate(seconds)
    written = []
    for kind, path in outputs.files.items():
        if kind == "glb":
            write_animated_glb(path, vertices, faces, template=template, times=list(seconds))
        elif kind == "npz":
            write_npz(path, vertices, faces, torch.tensor(seconds))
        elif kind == "obj":
            write_sequence(path, vertices, faces)
        elif kind == "html":
            write_viewer(path, vertices, faces, title=title, note=note, fps=fps)
        else:
            write_turntable(path, vertices, faces, fps)
        written.append(path)
    return [*written, save_image(sheet, outputs.sheet)]


def frame_rate(seconds: Sequence[float]) -> float:
    """Frames a second of evenly spaced times; 8 for a single one."""
    return 8.0 if len(seconds) < 2 else (len(seconds) - 1) / (seconds[-1] - seconds[0])


def write_turntable(
    path: Path,
    vertices: Float[Tensor, "t v 3"],
    faces: Int[Tensor, "f 3"],
    fps: float | int,
    *,
    size: int = TURNTABLE_SIDE,
    turns: float = 1.0,
) -> Path:
    """A video of a camera that circles the animation, which plays as often as it needs for some seconds."""
    loops = max(1, math.ceil(_SHORTEST_TURN * fps / len(vertices)))
    seen = turntable(
        in_unit_box(vertices, radius=True),
        faces,
        loops * len(vertices),
        size + size % 2,
        turns=turns,
        loops=loops,
        color=place_colors(vertices[0]),
    )
    return write_video(composite_on_white(seen).clamp(0, 1), path, fps)


def write_sequence(folder: Path, vertices: Float[Tensor, "t v 3"], faces: Int[Tensor, "f 3"]) -> Path:
    """An OBJ file a frame; the folder takes its place when all are there, and an older sequence in it goes."""
    _check_sequence_folder(folder)
    ensure_writable_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        made = Path(place) / "new"
        write_obj_sequence(made, vertices, faces)
        if folder.exists():
            folder.rename(Path(place) / "old")
        made.rename(folder)
    return folder


def _check_sequence_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or any(not re.fullmatch(r"frame_\d+\.obj", entry.name) for entry in folder.iterdir()):
        raise ValueError(f"{folder} holds other files than an OBJ sequence, which would replace it; choose another --output.")
