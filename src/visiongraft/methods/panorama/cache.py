"""Tensors on disk that are costly to compute again: whole or not there, found by what they were computed from."""

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visiongraft.media.files import atomic_write, ensure_writable_folder
from visiongraft.training.identity import weights_digest

Key = dict[str, Any]


class TensorCache:
    """Named tensors by key, each entry a safetensors file that carries its key and a checksum.

    An interrupted run leaves whole entries only; a damaged one counts as absent. Several processes may share a folder.

    Args:
        folder: of the entries; created.

    Raises:
        PermissionError: a folder that cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = ensure_writable_folder(folder)

    def path(self, key: Key) -> Path:
        """File of an entry; a key is JSON-able, and names everything that the tensors depend on."""
        digest = hashlib.sha256(_text(key).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def read(self, key: Key) -> dict[str, Tensor] | None:
        """The tensors of an entry; None where there is none, or with a warning where it is damaged."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                told = (file.metadata() or {}).get("entry")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if told != _entry(key, tensors):
                raise ValueError("its content is not what was written")
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"The cache entry {path} is damaged ({error}) and is computed again.", stacklevel=2)
            return None
        return tensors

    def write(self, key: Key, tensors: dict[str, Tensor]) -> None:
        """Creates or replaces an entry."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_write(self.path(key)) as path:
            save_file(tensors, path, {"entry": _entry(key, tensors)})

    def get(self, key: Key, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of an entry, computed and written where there is none."""
        tensors = self.read(key)
        if tensors is None:
            tensors = compute()
            self.write(key, tensors)
        return tensors


def file_digest(path: Path) -> str:
    """sha256 of a file's content, so that a moved or renamed file is the same one."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def model_identity(model: nn.Module) -> str:
    """Tells models apart by class, configuration and weights."""
    config = getattr(model, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    values = {name: value for name, value in values.items() if not name.startswith("_") and name != "transformers_version"}
    told = f"{type(model).__name__} {json.dumps(values, sort_keys=True, default=str)} {weights_digest(sorted(model.state_dict().items()))}"
    return hashlib.sha256(told.encode()).hexdigest()


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _entry(key: Key, tensors: dict[str, Tensor]) -> str:
    """Key and checksum as one text: safetensors does not keep the order of several, and the bytes should be the same each time."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().tobytes(), value)
    return f"{value:08x} {_text(key)}"
