"""The folder a policy is kept in: ``model/`` (Diffusers' layout), ``statistics.json`` and ``policy.json``."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiongraft.media.files import ensure_writable_folder
from visiongraft.methods.point_bridge.model import PointBridgeModel
from visiongraft.robots.normalisation import MinMax

_FORMAT = "point_bridge-policy-1"


@dataclass(frozen=True, kw_only=True)
class PolicyCard:
    """What a policy was trained on; saved beside its weights.

    Args:
        tasks: names of the tasks.
        object_counts: numbers of objects that a task of the training data has; empty: not known, and not checked.
        cameras: whose images it sees, in order.
        text_encoder: name of the encoder of instructions, see ``load_text_encoder``.
    """

    tasks: tuple[str, ...] = ()
    object_counts: tuple[int, ...] = ()
    cameras: tuple[str, ...] = ()
    text_encoder: str = "hashed"

    def require_tasks(self, tasks: Sequence[str]) -> None:
        """Refuses tasks that the policy was not trained on.

        Raises:
            ValueError: names them, and those it was trained on.
        """
        others = [task for task in tasks if task not in self.tasks]
        if others:
            known = ", ".join(self.tasks) or "tasks that it does not name"
            raise ValueError(
                f"The policy was trained on {known}, not on {', '.join(others)}; choose one of its tasks, or train it on these."
            )


def write_policy(folder: str | Path, model: PointBridgeModel, statistics: dict[str, MinMax], card: PolicyCard) -> Path:
    """Writes a policy's folder, whole or not at all; an earlier policy there is replaced.

    Raises:
        FileExistsError: a folder with something else in it.
        PermissionError: a place that cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "policy.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds no policy; choose a new folder.")
    ensure_writable_folder(folder.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(staging / "model")
        limits = {name: values.to_dict() for name, values in statistics.items()}
        (staging / "statistics.json").write_text(json.dumps(limits, indent=1) + "\n")
        (staging / "policy.json").write_text(json.dumps({"format": _FORMAT, **vars(card)}, indent=1) + "\n")
        for path in (staging, *staging.rglob("*")):  # mkdtemp makes folders private, and safetensors its files
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def read_policy(folder: str | Path, tasks: Sequence[str] | None = None) -> tuple[PointBridgeModel, dict[str, MinMax], PolicyCard]:
    """Model, statistics and card of a policy's folder.

    Args:
        folder: local.
        tasks: refused where the policy was not trained on them. None: no check.

    Raises:
        FileNotFoundError: no such folder, or no policy in it.
        ValueError: damaged files, or a policy of other tasks.
    """
    folder = Path(folder)
    card = read_card(folder)
    if tasks is not None:
        card.require_tasks(tasks)
    statistics = _read_json(folder / "statistics.json")
    try:
        limits = {name: MinMax.from_dict(values) for name, values in statistics.items()}
        model, report = PointBridgeModel.from_pretrained(
            folder / "model", use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # whatever Diffusers, safetensors or a foreign JSON raise
        raise ValueError(f"The policy in {folder} is damaged: {str(error).splitlines()[0]}") from error
    # Diffusers fills what is missing with random weights and a warning
    problems = [f"{kind} {key}" for kind in ("missing", "unexpected") for key in report[f"{kind}_keys"]]
    if problems:
        raise ValueError(f"The policy in {folder} is damaged: its weights have {'; '.join(problems[:4])}.")
    return model, limits, card


def read_card(folder: str | Path) -> PolicyCard:
    """What a saved policy was trained on.

    Raises:
        FileNotFoundError: no policy there.
        ValueError: another format, or a damaged file.
    """
    file = Path(folder) / "policy.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no policy (policy.json, statistics.json, model/); give the folder that save_pretrained wrote."
        )
    values = _read_json(file)
    if values.pop("format", None) != _FORMAT:
        raise ValueError(f"{file} is of another format; this release reads {_FORMAT}.")
    try:
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return PolicyCard(**fields)
    except TypeError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged or missing ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(values).__name__} instead of an object.")
    return values
