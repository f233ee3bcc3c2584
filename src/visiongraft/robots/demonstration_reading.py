"""Reading robomimic's HDF5 files lazily, with checks that name what is wrong.

Files of robomimic, robosuite, MimicGen and LIBERO are read; what they lack stays empty.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visiongraft.robots.episodes import NEEDS_DATAGEN_INFO, Attribute, Demonstration, check_shapes, check_values
from visiongraft.robots.extras import require

require("h5py")  # before it is imported, so that a missing one is named with its command
import h5py  # noqa: E402

_STEPWISE = ("actions", "states", "rewards", "dones", "obs", "next_obs", "datagen_info")
_OWN_ATTRIBUTES = ("num_samples", "model_file", "seed", "instruction", "ep_meta", "init_state")


class DemonstrationFile:
    """Demonstrations of a file: a sequence that reads each when it is asked for.

    The shapes of all are checked when the file is opened, the values of one when it is read. May be pickled into other processes.

    Args:
        path: of the HDF5 file.
        datagen_info: whether demonstrations must have poses (MimicGen's ``datagen_info``).

    Attributes:
        path: of the file.
        keys: names of the demonstrations, by number.
        environment_args: robomimic's ``env_args``: env_name, type and env_kwargs.
        instruction: of the first demonstration; empty where the file has none.
        attributes: other attributes of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no HDF5, cut off, no demonstrations, or arrays that do not fit; the sentence names the demonstration.
    """

    def __init__(self, path: str | Path, *, datagen_info: bool = True) -> None:
        self.path = Path(path)
        self._datagen_info = datagen_info
        self._file: h5py.File | None = None
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no demonstration file {self.path}; collect or generate one first.")
        data = self._data()
        self.keys = self._numbered_keys(data)
        self.environment_args = _json(data, "env_args", self.path)
        self.attributes = {name: data.attrs[name] for name in data.attrs if name != "env_args"}
        _refuse_absolute_controller(self.environment_args, self.path)
        for key in self.keys:
            self._check(key)
        self.instruction = self._instruction(self._group(self.keys[0]))

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Demonstration]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Demonstration:
        """Reads a demonstration.

        Raises:
            IndexError: no such demonstration.
            ValueError: values that are not finite or do not fit, or a file that is cut off.
        """
        key = self.keys[index]
        group = self._group(key)
        name = f"{self.path}: {key}"
        arrays = {path: self._read(group, path) for path in _shapes(group)}
        arrays = {path: array.astype(np.float64) if path in ("actions", "states") else array for path, array in arrays.items()}
        check_values(name, arrays)
        return self._assemble(group, arrays)

    def lengths(self) -> list[int]:
        """Steps of every demonstration, without reading them."""
        return [self._group(key)["actions"].shape[0] for key in self.keys]

    def mask_names(self) -> list[str]:
        """Names of the filter keys."""
        masks: Any = self._open().get("mask", {})
        return list(masks)

    def mask(self, name: str) -> list[int]:
        """Indices of the demonstrations of a filter key, such as ``train`` or ``valid``.

        Raises:
            ValueError: no such filter key, or one that names missing demonstrations.
        """
        if name not in self.mask_names():
            raise ValueError(f"{self.path} has no filter key {name!r}; there are: {', '.join(self.mask_names()) or 'none'}.")
        names: Any = self._open()[f"mask/{name}"]
        wanted = [key.decode() for key in names[:]]
        missing = [key for key in wanted if key not in self.keys]
        if missing:
            raise ValueError(f"{self.path}: filter key {name!r} names {missing[0]}, which the file does not hold.")
        return [self.keys.index(key) for key in wanted]

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "DemonstrationFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _open(self) -> h5py.File:
        if self._file is None:
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                reason = str(error).replace("\n", " ")
                raise ValueError(f"{self.path} is cut off or no HDF5 file ({reason}); copy it again or record it anew.") from error
        return self._file

    def _data(self) -> h5py.Group:
        data: Any = self._open().get("data")
        if not isinstance(data, h5py.Group):
            raise ValueError(f"{self.path} has no group 'data'; it is no demonstration file in robomimic's layout.")
        return data

    def _numbered_keys(self, data: Any) -> list[str]:
        keys = [key for key in data if key.startswith("demo_") and key[5:].isdigit()]
        if not keys:
            raise ValueError(f"{self.path} holds no demonstrations (groups data/demo_0, data/demo_1, …); the recording found none.")
        return sorted(keys, key=lambda key: int(key[5:]))

    def _group(self, key: str) -> Any:
        try:
            group: Any = self._data()[key]
            group.keys()
            return group
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path}: {key} cannot be read ({_reason(error)}); the file, or a part beside it, is damaged.") from error

    def _read(self, group: Any, path: str) -> np.ndarray:
        try:
            return group[path][()]
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path}: {group.name[6:]}/{path} cannot be read ({_reason(error)}); the file is damaged.") from error

    def _check(self, key: str) -> None:
        group, name = self._group(key), f"{self.path}: {key}"
        try:
            shapes = _shapes(group)
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{name} cannot be read ({_reason(error)}); the file is damaged.") from error
        check_shapes(name, shapes)
        claimed = int(group.attrs.get("num_samples", shapes["actions"][0]))
        if claimed != shapes["actions"][0]:
            raise ValueError(f"{name} has {shapes['actions'][0]} actions but its num_samples says {claimed}; it was cut off or edited.")
        missing = [path for path in ("eef_pose", "target_pose", "object_poses") if f"datagen_info/{path}" not in group]
        if self._datagen_info and missing:
            raise ValueError(
                f"{name} has no datagen_info ({', '.join(missing)}), which {NEEDS_DATAGEN_INFO} need; read the file with "
                "datagen_info=False and pass its demonstrations through annotate(environment, demonstration)."
            )

    def _instruction(self, group: Any) -> str:
        if "instruction" in group.attrs:
            return str(group.attrs["instruction"])
        if "ep_meta" in group.attrs:
            return str(json.loads(group.attrs["ep_meta"]).get("lang", ""))
        words = _json(self._data(), "problem_info", self.path).get("language_instruction", "")
        return "".join(words).strip('"')  # LIBERO stores a list of one, or a quoted string

    def _assemble(self, group: Any, arrays: dict[str, np.ndarray]) -> Demonstration:
        steps = len(arrays["actions"])
        none = np.zeros((0, 4, 4))
        signals = _ordered(arrays, "datagen_info/subtask_term_signals/", group, "subtask_order")
        attributes: dict[str, Attribute] = {}
        for name, value in group.attrs.items():
            if name not in _OWN_ATTRIBUTES and np.ndim(value) == 0:
                attributes[name] = value.item() if isinstance(value, np.generic) else value
        return Demonstration(
            actions=arrays["actions"],
            states=arrays["states"],
            observations={path[4:]: array for path, array in arrays.items() if path.startswith("obs/") and len(array) == steps},
            gripper_poses=arrays.get("datagen_info/eef_pose", none),
            target_poses=arrays.get("datagen_info/target_pose", none),
            object_poses=_ordered(arrays, "datagen_info/object_poses/", group, "object_order"),
            signals={name: signal.reshape(-1).astype(bool) for name, signal in signals.items()},
            instruction=self._instruction(group),
            seed=int(group.attrs.get("seed", 0)),
            model_xml=str(group.attrs.get("model_file", "")),
            attributes=attributes,
        )


def read_demonstrations(path: str | Path, *, datagen_info: bool = True) -> DemonstrationFile:
    """Opens a file of demonstrations; see :class:`DemonstrationFile`."""
    return DemonstrationFile(path, datagen_info=datagen_info)


def _shapes(group: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays that have one entry a step."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and path.split("/")[0] in _STEPWISE:
            shapes[path] = item.shape

    group.visititems(note)
    return shapes


def _ordered(arrays: dict[str, np.ndarray], prefix: str, group: Any, order: str) -> dict[str, np.ndarray]:
    """Arrays below a group, in the order that the writer noted; HDF5 itself sorts by name."""
    found = {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}
    names = json.loads(group["datagen_info"].attrs.get(order, "[]")) if "datagen_info" in group else []
    return {name: found[name] for name in [*names, *(name for name in found if name not in names)]}


def _json(group: Any, name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(group.attrs.get(name, "{}"))
    except ValueError as error:
        raise ValueError(f"{path}: the attribute {name} of 'data' is not JSON ({error}); the file is damaged.") from error
    return value if isinstance(value, dict) else {}


def _refuse_absolute_controller(environment_args: dict[str, Any], path: Path) -> None:
    """robosuite 1.4 marks absolute targets by ``control_delta: false``, 1.5 by ``input_type: absolute``; both have 7 numbers too."""
    text = json.dumps(environment_args)
    marks = ('"control_delta": false', '"input_type": "absolute"', '"action_convention": "absolute"')
    if any(mark in text for mark in marks):
        raise ValueError(
            f"{path} was recorded with a controller of absolute targets; demonstrations hold delta actions, and the two do not mix. "
            "Convert it with robomimic's conversion script, or record it with a delta controller."
        )


def _reason(error: Exception) -> str:
    return " ".join(str(error).strip("'\"").split())
