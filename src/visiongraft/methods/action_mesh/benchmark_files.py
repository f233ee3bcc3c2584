"""Files of ActionBench: ground truths, predictions of animated meshes, and which of them there are."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.mesh_sequences import natural_sorted, read_animation
from visiongraft.media.meshes import MESH_SUFFIXES, read_mesh
from visiongraft.metrics.animated_meshes import animation_frames

PATTERN = "mesh_*"
TRUTH = "surfaces.npy"


def read_surfaces(path: str | Path) -> Float[Tensor, "frames points 3"]:
    """Tracked points of a ground truth, ``surfaces.npy``; normals are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an array of (frames, points, 3 or 6) finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no ground truth {path}.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an array of NumPy ({error}); download it again.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[-1] not in (3, 6) or not array.size or array.dtype.kind != "f":
        told = getattr(array, "shape", type(array).__name__)
        raise ValueError(f"{path} must hold (frames, points, 6) floating-point numbers, xyz and normal; got {told}.")
    return torch.from_numpy(array[..., :3].astype(np.float32))


def read_prediction(folder: str | Path, num_frames: int, pattern: str = PATTERN) -> list[Mesh]:
    """The first ``num_frames`` meshes of a prediction.

    Args:
        folder: of one mesh a frame whose names match the pattern, or else of one ``.npz``, or else of one animated ``.glb``.
        num_frames: that are needed; more are left out.
        pattern: of the names of frames.

    Raises:
        FileNotFoundError: no such folder, or no mesh in it.
        ValueError: fewer frames than are needed, frames of several kinds, or a mesh that cannot be read.
    """
    folder = Path(folder)
    files = _frame_files(folder, pattern)
    meshes = [] if files else _animated(folder)
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ValueError(f"{folder} has frames of several kinds ({', '.join(kinds)}); choose by a pattern such as '*{kinds[0]}'.")
    found = len(files) or len(meshes)
    if found < num_frames:
        raise ValueError(f"{folder} has {found} frames, but the ground truth has {num_frames}; predict all of them.")
    if meshes:
        return meshes[:num_frames]
    return [read_mesh(file, warn=False) for file in files[:num_frames]]


def find_truth(folder: Path) -> set[str]:
    """Names of the ground truths in a folder.

    Raises:
        FileNotFoundError: none.
    """
    names = {path.parent.name for path in folder.glob(f"*/{TRUTH}")}
    if not names:
        hint = " Give its folder 'data'." if (folder / "data").is_dir() else ""
        raise FileNotFoundError(f"There is no ground truth in {folder}: it must have <uid>/{TRUTH}.{hint}")
    return names


def find_predictions(folder: Path, pattern: str = PATTERN) -> set[str]:
    """Names of the predictions in a folder.

    Raises:
        FileNotFoundError: none.
    """
    inner = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    names = {path.name for path in inner if _frame_files(path, pattern) or _animated_files(path)}
    if not names:
        raise FileNotFoundError(f"There are no predictions in {folder}: it must have <uid>/{pattern}.glb or one animated mesh a uid.")
    return names


def _animated(folder: Path) -> list[Mesh]:
    files = _animated_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} has no mesh; give one mesh a frame (mesh_00.glb, ...), or one .npz or animated .glb.")
    if len(files) > 1:
        raise ValueError(f"{folder} has {len(files)} animated meshes ({', '.join(file.name for file in files)}); leave one.")
    animation = read_animation(files[0])
    return animation_frames(animation.vertices, animation.faces)


def _frame_files(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of a prediction {folder}.")
    return natural_sorted([file for file in folder.glob(pattern) if file.suffix.lower() in MESH_SUFFIXES and file.name[0] != "."])


def _animated_files(folder: Path) -> list[Path]:
    """Arrays, or without any the GLBs: where both are exported, they are the same animation."""
    files = natural_sorted([file for file in folder.iterdir() if file.name[0] != "."])
    arrays, meshes = ([file for file in files if file.suffix.lower() == suffix] for suffix in (".npz", ".glb"))
    return arrays or meshes
