"""Checkpoints: folders of safetensors and one JSON file, whole or not there, the last N kept."""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visiongraft.media.files import ensure_writable_folder

_PREFIX = "step-"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Writes ``folder/step-XXXXXXXX`` by way of a temporary folder and removes older checkpoints beyond ``keep``.

    Args:
        folder: folder of all checkpoints.
        step: finished steps.
        tensors: file name (without ending) to named tensors.
        state: JSON-able rest.
        keep: checkpoints that stay.
    """
    ensure_writable_folder(folder)
    for leftover in folder.glob(f".{_PREFIX}*"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover)
    final = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".{final.name}"
    temporary.mkdir()
    for name, named in tensors.items():
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in named.items()}, temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _flush(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*"))


def load_latest(folder: Path) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint that can be read: (path, tensors, state); damaged ones are skipped with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            state = json.loads((path / "state.json").read_text())
            return path, {file.stem: load_file(file) for file in path.glob("*.safetensors")}, state
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"The checkpoint {path} is damaged ({error}) and is skipped.", stacklevel=2)
    return None
