"""What ``view`` does with files: an animated or still mesh in; a page, a turntable or a strip of pictures out."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from visiongraft.media.animated_glb import AnimatedMesh
from visiongraft.media.files import ensure_writable_folder
from visiongraft.media.images import save_image
from visiongraft.media.mesh_sequences import read_animation
from visiongraft.media.meshes import read_mesh
from visiongraft.methods.action_mesh.animation_outputs import frame_rate, write_turntable
from visiongraft.methods.action_mesh.contact_sheets import motion_sheet
from visiongraft.methods.action_mesh.viewer import write_viewer

if TYPE_CHECKING:
    from visiongraft.methods.action_mesh.commands import ViewOptions

_ENDINGS = {"html": ".html", "turntable": ".mp4", "png": ".png"}


def view_files(options: "ViewOptions") -> int:
    """Runs ``view``; prints the files.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is no mesh or animation, or options out of range.
    """
    source = options.input
    output = options.output or source.with_name(f"{source.stem or source.resolve().name}.html")
    named = {suffix: kind for kind, suffix in _ENDINGS.items()}.get(output.suffix.lower())
    formats = [named or "html"] if options.formats is None else list(dict.fromkeys(options.formats))
    if named is None or named not in formats:
        accepted = ", ".join(_ENDINGS[kind] for kind in (formats if named else _ENDINGS))
        raise ValueError(f"The output is one of {accepted}; got {output.name}.")
    if options.size < 16 or not (options.fps is None or options.fps > 0):
        raise ValueError(f"--size must be at least 16 and --fps positive; got {options.size} and {options.fps}.")
    animation = _read(source, options.fps)
    ensure_writable_folder(output.parent)
    title = options.title or source.stem
    fps = frame_rate(animation.times.tolist()) if options.fps is None else options.fps
    for kind in formats:
        path = output.with_suffix(_ENDINGS[kind])
        if kind == "html":
            seen = {"colors": options.colors, "yaw_deg": options.yaw_deg, "pitch_deg": options.pitch_deg}
            write_viewer(path, animation.vertices, animation.faces, title=title, fps=fps, **seen)
        elif kind == "turntable":
            write_turntable(path, animation.vertices, animation.faces, fps, size=options.size, turns=options.turns)
        else:
            save_image(motion_sheet(animation.vertices, animation.faces), path)
        print(path)
    return 0


def _read(path: Path, fps: float | None) -> AnimatedMesh:
    """An animation, or a mesh of any kind as one that does not move."""
    if path.is_file() and path.suffix.lower() not in (".glb", ".npz"):
        mesh = read_mesh(path, warn=False)
        return AnimatedMesh(mesh.vertices[None], mesh.faces, torch.zeros(1))
    return read_animation(path, fps or 8.0)
