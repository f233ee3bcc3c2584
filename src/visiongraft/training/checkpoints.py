"""Checkpoints: folders of safetensors and one JSON file, whole or not there, the last N kept. Nothing is pickled."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visiongraft.media.files import ensure_writable_folder

_STATE = "state.json"


class Checkpoint(NamedTuple):
    """What was read from a checkpoint folder."""

    path: Path
    step: int
    """Finished steps."""
    tensors: dict[str, dict[str, Tensor]]
    """File name without ending to named tensors."""
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Writes ``folder/step-XXXXXXXX`` by way of a hidden folder, then removes the checkpoints it supersedes.

    A process killed at any moment leaves the checkpoints before it as they were, or the new one complete.

    Args:
        folder: folder of all checkpoints.
        step: finished steps.
        tensors: file name (without ending) to named CPU tensors, contiguous and without shared memory.
        state: JSON-able rest.
        keep: checkpoints that stay, this one included; later ones (damaged, since this run did not continue from them) go.

    Returns:
        The checkpoint's folder.
    """
    ensure_writable_folder(folder)
    for leftover in folder.glob(".step-*"):  # of a run that was killed while it wrote or removed
        shutil.rmtree(leftover)
    final = folder / f"step-{step:08d}"
    writing = folder / f".{final.name}"
    writing.mkdir()
    files = {}
    for name, named in tensors.items():
        file = writing / f"{name}.safetensors"
        save_file(named, file)
        files[file.name] = _digest(file)
    (writing / _STATE).write_text(json.dumps({"step": step, "files": files, **state}, indent=1))
    for path in (*writing.iterdir(), writing):
        _flush(path)
    if final.exists():
        _remove(final)
    writing.replace(final)
    _flush(folder)
    good = [path for path in list_checkpoints(folder) if path <= final][-keep:]
    for old in list_checkpoints(folder):
        if old not in good:
            _remove(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 8))


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are skipped with a warning. None where there is none."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return _load(path)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            warnings.warn(f"The checkpoint {path} is damaged ({error}) and is skipped.", stacklevel=2)
    return None


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / _STATE).read_text())
    step, files = state.pop("step"), state.pop("files")
    for name, digest in files.items():
        if _digest(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    return Checkpoint(path, step, {Path(name).stem: load_file(path / name) for name in files}, state)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remove(checkpoint: Path) -> None:
    """Takes a checkpoint away at once, so that a kill leaves no half of it under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}-old")
    checkpoint.replace(hidden)
    shutil.rmtree(hidden)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
