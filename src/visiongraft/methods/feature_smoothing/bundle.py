"""A trained graft in one folder: ``feature_smoothing/{config.json, purifier.safetensors, mapper.safetensors}``."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors.torch import save_file

from visiongraft.media.files import atomic_write, ensure_writable_folder

PARTS = ("purifier", "mapper")
_FORMAT, _VERSION = "feature_smoothing", 1


def save(folder: str | Path, purifier: ModelMixin | None = None, mapper: ModelMixin | None = None) -> Path:
    """Writes a purifier, a mapper or both into one new folder, whole or not at all.

    ``released.load(folder, "purifier")`` and ``released.load(folder, "mapper")`` read them back.

    Args:
        folder: created; may exist if it is empty.
        purifier: a ``UNetPurifier`` or ``DiffusionPurifier``.
        mapper: a ``SmoothnessMapper``.

    Returns:
        The folder.

    Raises:
        ValueError: neither part given.
        FileExistsError: a folder with something in it.
        PermissionError: a place that cannot be written.
    """
    folder = Path(folder)
    modules = {name: module for name, module in zip(PARTS, (purifier, mapper), strict=True) if module is not None}
    if not modules:
        raise ValueError("There is nothing to save; give a purifier, a mapper or both.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose a new folder, so that parts of two trainings never mix.")
    ensure_writable_folder(folder.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        config: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
        for name, module in modules.items():
            config[name] = _settings(module)
            tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
            with atomic_write(staging / f"{name}.safetensors") as file:
                save_file(tensors, file, metadata={"format": "pt"})
        with atomic_write(staging / "config.json") as file:
            file.write_text(json.dumps(config, indent=2) + "\n")
        folder.mkdir(exist_ok=True)
        staging.chmod(folder.stat().st_mode & 0o777)  # mkdtemp makes folders private
        folder.rmdir()  # fails if someone else has filled it meanwhile
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def read_part(folder: str | Path, part: str | None = None) -> tuple[str, dict[str, Any], Path] | None:
    """Where a part lies in a folder that :func:`save` wrote; ``None`` for a folder of another kind.

    Args:
        folder: any folder.
        part: ``purifier`` or ``mapper``; ``None`` if there is only one.

    Returns:
        (part, its configuration, its safetensors file).

    Raises:
        ValueError: a part that the folder lacks, two parts and none chosen, or a newer version of the format.
    """
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        return None
    if config.get("version") != _VERSION:
        raise ValueError(f"{file} has version {config.get('version')} of the format; this release reads version {_VERSION}.")
    held = [name for name in PARTS if isinstance(config.get(name), dict)]
    names = " and ".join(held) or "no part"
    if part is None and len(held) != 1:
        raise ValueError(f"{folder} holds {names}; choose one with component=.")
    chosen = held[0] if part is None else part
    if chosen not in held:
        raise ValueError(f"{folder} holds {names}; it has no {chosen}.")
    return chosen, config[chosen], Path(folder) / f"{chosen}.safetensors"


def _settings(module: ModelMixin) -> dict[str, Any]:
    """Constructor arguments and the class; no paths or versions."""
    settings = json.loads(module.to_json_string())
    return {key: value for key, value in settings.items() if key == "_class_name" or not key.startswith("_")}
