"""Writing robomimic's HDF5 files so that a kill leaves every whole demonstration readable.

HDF5 itself may lose a file that is cut off while it grows. Here each demonstration is a file of its own under ``<name>.parts``, put
there whole; the file that one asked for is meanwhile a small index of links to them, also replaced whole. Any HDF5 reader can open
that index at any time. It may lack the newest parts (writing it takes longer the longer it is, so that it is not written each time);
resuming takes them in. Closing the writer copies the parts into one file and removes them.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from visiongraft.media.files import atomic_write
from visiongraft.robots.demonstration_reading import DemonstrationFile
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.episodes import Demonstration, to_arrays

_INDEX_SHARE = 0.05
"""Largest share of the time that goes into writing the index."""
_GYMNASIUM_TYPE = 2
"""Number of Gymnasium environments in robomimic's ``EnvType``."""


class DemonstrationWriter:
    """Appends demonstrations to a file, one at a time.

    Use as a context manager: leaving it without an exception makes one file of the parts; an exception or a kill leaves the index,
    which is read like any other file and which ``resume`` continues.

    Args:
        path: of the HDF5 file.
        environment_args: robomimic's ``env_args``, see :func:`describe_environment`.
        resume: continues a file that exists, finished or not.
        attributes: more attributes of the file; a resumed file must have the same.

    Raises:
        FileExistsError: the file exists and ``resume`` is off.
        ValueError: the file belongs to another environment or has other attributes.

    Example:
        >>> with DemonstrationWriter("plate.hdf5", environment_args) as writer:
        ...     writer.append(demonstration)
    """

    def __init__(
        self,
        path: str | Path,
        environment_args: Mapping[str, Any],
        *,
        resume: bool = False,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        self.path = Path(path)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.environment_args = json.loads(json.dumps(environment_args))  # as it will be read
        self.attributes = dict(attributes or {})
        self._places: list[tuple[str, str]] = []
        self._lengths: list[int] = []
        self._masks: dict[str, list[int]] = {}
        self._indexed, self._index_due = 0, 0.0
        self._instruction = ""
        if self.path.exists():
            self._resume(resume)
        elif self.parts.exists():
            shutil.rmtree(self.parts)  # a first part without its index: nothing that was promised

    def __len__(self) -> int:
        return len(self._places)

    def append(self, demonstration: Demonstration) -> str:
        """Adds a demonstration; when this returns, no kill can take it from a writer that resumes.

        Returns:
            Its name in the file, such as ``demo_12``.
        """
        key = f"demo_{len(self)}"
        part = self.parts / f"{key}.hdf5"
        with atomic_write(part) as temporary, h5py.File(temporary, "w") as file:
            _write_group(file.create_group(f"data/{key}"), demonstration)
            file["data"].attrs["total"] = len(demonstration)
            file["data"].attrs["env_args"] = json.dumps(self.environment_args, indent=4)
        self._instruction = self._instruction or demonstration.instruction
        self._places.append((part.name, key))
        self._lengths.append(len(demonstration))
        if time.monotonic() >= self._index_due:
            self._write_index()
        return key

    def close(self, masks: Mapping[str, Sequence[int]] | None = None) -> None:
        """Makes one file of the parts.

        Args:
            masks: demonstrations of filter keys such as ``train`` and ``valid``, by index; a resumed file keeps those that it had.
        """
        if not self._places:
            return
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            self._write_attributes(data)
            for number, (part, key) in enumerate(self._places):
                with h5py.File(self.parts / part, "r") as source:
                    source.copy(f"data/{key}", data, name=f"demo_{number}")
            for name, indices in {**self._masks, **(masks or {})}.items():
                file[f"mask/{name}"] = np.array([f"demo_{i}" for i in indices], "S")
        shutil.rmtree(self.parts)

    def __enter__(self) -> "DemonstrationWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        elif self._indexed < len(self):
            self._write_index()

    def _resume(self, allowed: bool) -> None:
        if not allowed:
            raise FileExistsError(f"{self.path} exists; pass resume=True to continue it, or choose another file.")
        with DemonstrationFile(self.path, datagen_info=False) as existing:
            _refuse_other(self.path, "environment", existing.environment_args, self.environment_args)
            for name, value in self.attributes.items():
                _refuse_other(self.path, name, _plain(existing.attributes.get(name, "none")), value)
            self._masks = {name: existing.mask(name) for name in existing.mask_names()}
            self._lengths, self._instruction = existing.lengths(), existing.instruction
            linked: list[Any] = [existing._data().get(key, getlink=True) for key in existing.keys]
            whole = not any(isinstance(link, h5py.ExternalLink) for link in linked)
            keys = list(existing.keys)
            places = [] if whole else [(Path(link.filename).name, link.path.rsplit("/")[-1]) for link in linked]
        self._places = self._take_apart(keys) if whole else places
        if not whole:
            self._adopt()

    def _take_apart(self, keys: list[str]) -> list[tuple[str, str]]:
        """Makes a finished file the first part of a new index: a second name for it, since it is replaced whole and never changed."""
        shutil.rmtree(self.parts, ignore_errors=True)  # left by a kill between the last two lines of close
        self.parts.mkdir()
        base = self.parts / "base.hdf5"
        try:
            os.link(self.path, base)
        except OSError:  # file systems without hard links
            shutil.copyfile(self.path, base)
        return [(base.name, key) for key in keys]

    def _adopt(self) -> None:
        """Takes in parts that are newer than the index."""
        while (part := self.parts / f"demo_{len(self)}.hdf5").exists():
            key = f"demo_{len(self)}"
            with h5py.File(part, "r") as file:
                self._lengths.append(file[f"data/{key}/actions"].shape[0])
            self._places.append((part.name, key))
        self._write_index()

    def _write_index(self) -> None:
        started = time.monotonic()
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            self._write_attributes(data)
            for number, (part, key) in enumerate(self._places):
                data[f"demo_{number}"] = h5py.ExternalLink(f"{self.parts.name}/{part}", f"/data/{key}")
        now = time.monotonic()
        self._indexed, self._index_due = len(self), now + (now - started) / _INDEX_SHARE

    def _write_attributes(self, data: h5py.Group) -> None:
        data.attrs["total"] = sum(self._lengths)
        data.attrs["num_demos"] = len(self)
        data.attrs["env_args"] = json.dumps(self.environment_args, indent=4)
        # LIBERO's tools look for the instruction here
        problem = {"problem_name": self.environment_args.get("env_name", ""), "language_instruction": self._instruction}
        data.attrs["problem_info"] = json.dumps(problem)
        for name, value in self.attributes.items():
            data.attrs[name] = value


def write_demonstrations(
    path: str | Path,
    demonstrations: Iterable[Demonstration],
    *,
    environment_args: Mapping[str, Any],
    valid_fraction: float = 0.0,
    seed: int = 0,
) -> Path:
    """Writes a file of demonstrations.

    Args:
        path: of the HDF5 file; it must not exist.
        demonstrations: any number, taken one at a time.
        environment_args: robomimic's ``env_args``, see :func:`describe_environment`.
        valid_fraction: share of the filter key ``valid``; the rest is ``train``. 0 writes no filter keys.
        seed: of that choice.

    Raises:
        FileExistsError: the file exists.
        ValueError: no demonstrations, or a share outside [0, 1).
    """
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"valid_fraction must be at least 0 and below 1, got {valid_fraction}.")
    writer = DemonstrationWriter(path, environment_args)
    for demonstration in demonstrations:
        writer.append(demonstration)
    if not len(writer):
        raise ValueError(f"There are no demonstrations to write to {path}.")
    order = np.random.default_rng(seed).permutation(len(writer))
    valid = order[: round(valid_fraction * len(writer))]
    train = np.setdiff1d(order, valid)
    writer.close({"train": train.tolist(), "valid": np.sort(valid).tolist()} if valid_fraction else None)
    return writer.path


def describe_environment(environment: RobotEnvironment, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """robomimic's ``env_args`` of an environment.

    Args:
        environment: names the task and says what an action of 1 means.
        options: those that the environment was made with, plain values.
    """
    scale = {"position": environment.scale.position, "rotation": environment.scale.rotation}
    extra = {"action_convention": "delta", "action_scale": scale, "control_frequency": environment.control_frequency}
    return {"env_name": environment.task, "type": _GYMNASIUM_TYPE, "env_kwargs": dict(options or {}), "visiongraft": extra}


def _write_group(group: h5py.Group, demonstration: Demonstration) -> None:
    for path, array in to_arrays(demonstration).items():
        is_image = array.ndim >= 3 and path.startswith("obs/")
        group.create_dataset(path, data=array, compression="gzip" if is_image else None)
    ends = np.zeros(len(demonstration))
    ends[-1] = 1
    group.create_dataset("rewards", data=ends)
    group.create_dataset("dones", data=ends.astype(np.int64))
    if "datagen_info" in group:
        group["datagen_info"].attrs["object_order"] = json.dumps(list(demonstration.object_poses))
        group["datagen_info"].attrs["subtask_order"] = json.dumps(list(demonstration.signals))
    for name, value in demonstration.attributes.items():
        group.attrs[name] = value
    group.attrs["num_samples"] = len(demonstration)
    group.attrs["model_file"] = demonstration.model_xml
    group.attrs["seed"] = demonstration.seed
    group.attrs["instruction"] = demonstration.instruction


def _refuse_other(path: Path, what: str, there: object, here: object) -> None:
    if there != here:
        raise ValueError(
            f"{path} was begun with another {what} ({_shorten(there)}) than now ({_shorten(here)}); use the same, or choose another file."
        )


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
