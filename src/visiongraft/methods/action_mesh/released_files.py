"""Files of published checkpoints: where they are, which are missing, and what they hold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def local_folder(path_or_hub_id: str | Path, **hub: Any) -> Path:
    """The folder itself, or the local copy of a repository on the hub (without pickles).

    Raises:
        FileNotFoundError: neither.
        ValueError: a file.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    source, path = str(path_or_hub_id), Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        refused = " A pickle can run any code when it is loaded, and is refused." if path.suffix in _PICKLES else ""
        raise ValueError(f"{path} is a file; give the folder of a published checkpoint.{refused}")
    accepted = "give a folder, or a hub id such as 'facebook/ActionMesh' or 'VAST-AI/TripoSG'"
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no {source}; {accepted}.")
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"], **hub))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"There is no {source} here or on the hub ({reason}); {accepted}.") from error


@dataclass(frozen=True)
class ComponentFiles:
    """One component's configuration and weights, all of them there."""

    folder: Path
    config: Path
    weights: tuple[Path, ...]

    @classmethod
    def all_of(cls, folder: Path, parts: Sequence[str]) -> "dict[str, ComponentFiles]":
        """The files of several components of a repository.

        Raises:
            FileNotFoundError: some are missing; the message lists all of them.
            ValueError: weights that are only there as a pickle.
        """
        missing: list[str] = []
        found = {part: cls._of(folder / part, missing, part) for part in parts}
        if missing:
            raise FileNotFoundError(f"{folder} is incomplete; it lacks {', '.join(missing)}. Download it again, whole.")
        return found

    @classmethod
    def _of(cls, folder: Path, missing: list[str], name: str) -> "ComponentFiles":
        config, weights = folder / "config.json", _weights(folder)
        if not config.is_file():
            missing.append(f"{name}/config.json")
        if not weights:
            pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
            if pickles:
                raise ValueError(f"{folder} has only {', '.join(pickles)}: pickles can run any code when loaded, and are refused.")
            missing.append(f"{name}/{' or '.join(WEIGHTS)}")
        missing.extend(f"{name}/{file.name}" for file in weights if not file.is_file())
        return cls(folder, config, tuple(weights))


def _weights(folder: Path) -> list[Path]:
    """One file, or the pieces that an index names, whether they are there or not."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            pieces = _json(index).get("weight_map")
            if not isinstance(pieces, dict) or not pieces:
                raise ValueError(f"{index} has no weight_map; download it again.")
            return [folder / piece for piece in sorted(set(pieces.values()))]
    return []


def read_config(path: Path) -> dict[str, Any]:
    """A component's configuration.

    Raises:
        ValueError: not a JSON object.
    """
    return _json(path)


def read_tensors(files: ComponentFiles) -> dict[str, Tensor]:
    """All tensors of a component.

    Raises:
        ValueError: a damaged file.
    """
    tensors: dict[str, Tensor] = {}
    for path in files.weights:
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); download it again.") from error
    return tensors


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one JSON object; got a {type(values).__name__}.")
    return values
