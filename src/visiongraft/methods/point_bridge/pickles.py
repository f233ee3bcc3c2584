"""The authors' pickles, read without running what is in them.

A pickle can call any function when it is loaded. These readers know a short list of functions that rebuild tensors and arrays,
put an empty object in the place of classes nobody needs (timers, optimisers), and refuse everything else before it is called.
"""

import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NUMPY = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": np._core.multiarray._reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": np._core.multiarray.scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": np._core.numeric._frombuffer for core in ("core", "_core")},
}


def _plain_dict(*factory: Any) -> dict[Any, Any]:
    """In the place of the default dictionaries that states of optimisers are kept in."""
    return {}


_CONTAINERS: dict[str, Any] = {
    "collections.defaultdict": _plain_dict,
    **{f"{builtins}.{kind.__name__}": kind for builtins in ("builtins", "__builtin__") for kind in (dict, list, set)},
}
# pickles of protocol 2, which torch.save writes, name Python's own modules as Python 2 did
_PYTHONS_OWN = {*sys.stdlib_module_names, "nt", *(name.partition(".")[0] for name in IMPORT_MAPPING)}


class Empty:
    """Stands for an object of a class that is not known; keeps nothing of it."""

    def __new__(cls, *arguments: Any, **options: Any) -> "Empty":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes whatever the class took."""

    def __setstate__(self, state: Any) -> None:
        """Drops the object's attributes."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Contents of a checkpoint that the authors' code wrote with ``torch.save``: tensors, NumPy statistics, ``Empty`` for the rest.

    Args:
        path: in the zip format that PyTorch has written since 1.6.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another kind of file, a damaged one, or one that asks for a function that does not rebuild tensors or arrays.
    """
    path = _existing(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint of torch.save (a zip file), or is cut off.")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        rebuilding = {**_NUMPY, **_CONTAINERS}
        known: list[Any] = [(rebuilding[name], name) for name in names if name in rebuilding]
        known += [(Empty, _harmless(name, path)) for name in names if name not in rebuilding]
        # dtypes of arrays are classes that the file does not name
        known += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "bool")]
        with torch.serialization.safe_globals(known):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise ValueError(f"{path} is damaged, or is no checkpoint that can be read safely: {reason}") from error
    return _dictionary(contents, path)


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Contents of the authors' data pickle: plain values and NumPy arrays only.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a damaged file, or one that asks for anything that does not rebuild arrays.
    """
    path = _existing(path)
    with path.open("rb") as file:
        try:
            contents = _ArrayUnpickler(file, path).load()
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is no pickle, or is damaged ({error}).") from error
    return _dictionary(contents, path)


class _ArrayUnpickler(pickle.Unpickler):
    """Finds the functions that rebuild arrays and nothing else."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "_codecs.encode":  # bytes in old protocols
            return _latin1
        if full not in _NUMPY:
            raise ValueError(_refusal(full, self._path))
        return _NUMPY[full]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"A pickle asks for the encoding {encoding!r}; arrays need latin1 only.")
    return text.encode("latin1")


def _harmless(name: str, path: Path) -> str:
    """The name, if it is a class (by its capital) of no module of Python's own; such an object is replaced by an empty one.

    Raises:
        ValueError: it is anything else.
    """
    module, _, last = name.rpartition(".")
    if not module or module.partition(".")[0] in _PYTHONS_OWN or not last[:1].isupper():
        raise ValueError(_refusal(name, path))
    return name


def _refusal(name: str, path: Path) -> str:
    return f"{path} asks for {name}, which is not needed to rebuild tensors or arrays; it is refused, and nothing of it was run."


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return path


def _dictionary(contents: Any, path: Path) -> dict[str, Any]:
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__}; the authors' files hold a dictionary.")
    return contents
