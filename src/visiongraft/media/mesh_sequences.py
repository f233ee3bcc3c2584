"""Animated meshes as folders of mesh files, as OBJ sequences and as NPZ; files are in natural order (mesh_2 before mesh_10)."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.media.animated_glb import AnimatedMesh, read_animated_glb
from visiongraft.media.files import atomic_write, ensure_writable_folder
from visiongraft.media.meshes import MESH_SUFFIXES, Mesh, check_mesh, read_mesh, write_mesh

_KEYS = ("vertices", "faces", "times")


def natural_sorted(paths: Sequence[Path]) -> list[Path]:
    """Paths by name, with numbers by their value."""
    return sorted(paths, key=lambda path: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)])


def mesh_files(folder: str | Path) -> list[Path]:
    """Mesh files of a folder, in natural order.

    Raises:
        FileNotFoundError: no such folder, or no mesh file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = [path for path in folder.iterdir() if path.suffix.lower() in MESH_SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"{folder} has no mesh files ({', '.join(MESH_SUFFIXES)}).")
    return natural_sorted(files)


def read_mesh_folder(folder: str | Path) -> list[Mesh]:
    """The meshes of a folder in natural order; their topologies may differ.

    Raises:
        FileNotFoundError, ValueError: see :func:`mesh_files` and :func:`visiongraft.media.meshes.read_mesh`.
    """
    return [read_mesh(path, warn=False) for path in mesh_files(folder)]


def stack_meshes(meshes: Sequence[Mesh]) -> tuple[Float[Tensor, "t v 3"], Int[Tensor, "f 3"]]:
    """Meshes with the same faces as one animation.

    Raises:
        ValueError: no meshes, or one whose topology differs from the first.

    Source: ActionMesh brief, section 10 (pitfall 12).
    """
    if not meshes:
        raise ValueError("An animation needs at least one mesh.")
    first = meshes[0]
    for number, mesh in enumerate(meshes):
        if len(mesh.vertices) != len(first.vertices) or not torch.equal(mesh.faces, first.faces):
            raise ValueError(
                f"Mesh {number} has {len(mesh.vertices)} vertices and {len(mesh.faces)} faces that are not those of the first mesh "
                f"({len(first.vertices)} and {len(first.faces)}); an animation has one topology."
            )
    return torch.stack([mesh.vertices for mesh in meshes]), first.faces


def read_animation(path: str | Path, fps: float | int = 8.0) -> AnimatedMesh:
    """An animation from a GLB, an NPZ, or a folder of meshes with the same faces.

    Args:
        path: file or folder.
        fps: frames per second of a folder, whose files have no times.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another kind of file, or a bad one.
    """
    path = Path(path)
    if path.is_dir():
        vertices, faces = stack_meshes(read_mesh_folder(path))
        return AnimatedMesh(vertices, faces, torch.arange(len(vertices)) / fps)
    if not path.is_file():
        raise FileNotFoundError(f"There is no animation {path}; give a GLB, an NPZ or a folder of meshes.")
    if path.suffix.lower() == ".glb":
        return read_animated_glb(path)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    raise ValueError(f"{path}: an animation is a .glb, a .npz or a folder of meshes; got {path.suffix or 'no suffix'!r}.")


def write_obj_sequence(folder: str | Path, vertices: Float[Tensor, "t v 3"], faces: Int[Tensor, "f 3"], suffix: str = ".obj") -> list[Path]:
    """Writes a file a frame, ``frame_0000.obj`` and so on; mesh files of the same name are replaced.

    Args:
        folder: is created.
        vertices: of all frames.
        faces: of all frames.
        suffix: another kind of mesh file, such as ``.glb`` or ``.ply``.

    Raises:
        ValueError: no frames, or frames that are no meshes.
    """
    if not len(vertices):
        raise ValueError("An animation needs at least one frame.")
    folder = ensure_writable_folder(folder)
    return [write_mesh(folder / f"frame_{k:04d}{suffix}", frame, faces) for k, frame in enumerate(vertices)]


def write_npz(
    path: str | Path, vertices: Float[Tensor, "t v 3"], faces: Int[Tensor, "f 3"], times: Float[Tensor, "t"] | None = None
) -> Path:
    """Writes ``vertices`` (t, v, 3) float32, ``faces`` (f, 3) int32 and ``times`` (t) float32 in seconds, atomically.

    Args:
        path: file to create or replace, ``.npz``.
        vertices: of all frames.
        faces: of all frames.
        times: in seconds; frame numbers by default.

    Raises:
        ValueError: another suffix, no frames, or a first frame that is no mesh.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz" or not len(vertices):
        raise ValueError(f"An animation of at least one frame is written to a .npz file; got {len(vertices)} frames and {path.name!r}.")
    check_mesh(vertices[0], faces, warn=False)
    seconds = torch.arange(len(vertices)) if times is None else times
    content = {"vertices": vertices.cpu().numpy().astype(np.float32), "faces": faces.cpu().numpy().astype(np.int32)}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, times=seconds.cpu().numpy().astype(np.float32), **content)
    return path


def read_npz(path: str | Path) -> AnimatedMesh:
    """Reads what :func:`write_npz` writes; files without ``times`` get frame numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an NPZ, arrays that are missing or of other shapes, or a mesh that :func:`check_mesh` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no animation {path}.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in _KEYS if key in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an NPZ file of arrays ({error}).") from error
    if "vertices" not in arrays or "faces" not in arrays:
        raise ValueError(f"{path} needs the arrays 'vertices' (t, v, 3) and 'faces' (f, 3); it has {sorted(arrays) or 'neither'}.")
    vertices, faces = arrays["vertices"], arrays["faces"]
    if vertices.ndim != 3 or vertices.shape[-1] != 3 or not len(vertices) or faces.ndim != 2 or faces.shape[-1] != 3:
        raise ValueError(f"{path}: vertices must be (t, v, 3) and faces (f, 3); got {vertices.shape} and {faces.shape}.")
    times = arrays.get("times", np.arange(len(vertices)))
    if times.shape != (len(vertices),):
        raise ValueError(f"{path}: times must be one for each of {len(vertices)} frames; got shape {times.shape}.")
    animated = AnimatedMesh(
        torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int64)), torch.from_numpy(times.astype(np.float32))
    )
    for frame in animated.vertices:
        check_mesh(frame, animated.faces, str(path), warn=False)
    return animated
