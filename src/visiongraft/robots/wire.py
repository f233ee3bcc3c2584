"""Messages between policies, perception and robots on different machines: msgpack with plain arrays, and a version.

A message is a dictionary of text, numbers, lists, dictionaries and NumPy arrays. An array travels as ``{dtype, shape, bytes}``,
little-endian and row-major, with a dtype of a short list; nothing that arrives is ever executed or unpickled.

Needs NumPy and msgpack only. Cameras travel as their three arrays; :mod:`visiongraft.robots.server` makes cameras of them again.
"""

import math
from typing import Any

import numpy as np

from visiongraft.robots.extras import require

msgpack = require("msgpack")

SCHEMA = 1
MAX_MESSAGE_BYTES = 32 * 2**20
DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
CAMERA_KEYS = ("intrinsics", "camera_to_base", "size")
_ARRAY_KEYS = {"dtype", "shape", "bytes"}
_MAX_DIMENSIONS = 8


class WireError(ValueError):
    """Bytes that are no message of ours, or something that cannot become one."""


def encode(message: dict[str, Any], max_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    """A message as bytes, with the schema's version. Tuples become lists, NumPy scalars numbers, cameras dictionaries of arrays.

    Raises:
        WireError: something that has no place in a message, or a message that is too large.
    """
    try:
        data = msgpack.packb({**message, "schema": SCHEMA}, default=_plain)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"The message cannot be sent: {error}.") from error
    check_size(data, max_bytes)
    return data


def decode(data: bytes | str, max_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """The message of :func:`encode`, without the version; lists come back as tuples, arrays as writable arrays.

    Raises:
        WireError: bytes that are no message, too many of them, another schema, or an array whose parts do not fit.
    """
    if not isinstance(data, bytes):
        raise WireError(f"Messages are binary msgpack; got {type(data).__name__}.")
    check_size(data, max_bytes)
    try:
        message = msgpack.unpackb(
            data, use_list=False, raw=False, strict_map_key=True, object_hook=_array, ext_hook=_refuse_extension, timestamp=0
        )
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"These bytes are no msgpack message ({type(error).__name__}: {error}).") from error
    if not isinstance(message, dict):
        raise WireError(f"A message is a dictionary; got {type(message).__name__}.")
    schema = message.pop("schema", None)
    if type(schema) is not int or schema != SCHEMA:
        given = "no schema" if schema is None else f"schema {schema!r}"
        raise WireError(f"The message has {given}, and this side speaks schema {SCHEMA}; install the same visiongraft on both sides.")
    return message


def check_size(data: bytes, max_bytes: int) -> None:
    """Refuses messages that the other side would not take.

    Raises:
        WireError: too many bytes.
    """
    if len(data) > max_bytes:
        raise WireError(
            f"The message has {len(data) / 2**20:.1f} MiB, and at most {max_bytes / 2**20:.1f} MiB are taken; "
            "send smaller or fewer images, or raise the limit on both sides."
        )


def _plain(value: Any) -> Any:
    """What msgpack does not know, as what it knows."""
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES:
            raise WireError(f"Arrays of dtype {value.dtype} are not sent; convert it to one of {', '.join(DTYPES)}.")
        if value.ndim > _MAX_DIMENSIONS:
            raise WireError(f"Arrays of at most {_MAX_DIMENSIONS} dimensions are sent; got {value.ndim}.")
        data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        return {"dtype": value.dtype.name, "shape": list(value.shape), "bytes": data}
    if isinstance(value, np.generic):
        return value.item()
    if all(hasattr(value, key) for key in CAMERA_KEYS):  # not isinstance: cameras bring SciPy, which a robot's client does without
        return {key: getattr(value, key) for key in CAMERA_KEYS}
    raise WireError(f"A {type(value).__name__} cannot be sent; messages hold text, numbers, lists, dictionaries and NumPy arrays.")


def _array(entry: dict[str, Any]) -> Any:
    """The array that a dictionary stands for, or the dictionary."""
    if entry.keys() != _ARRAY_KEYS:
        return entry
    name, shape, data = entry["dtype"], entry["shape"], entry["bytes"]
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"The message holds an array of dtype {name!r}; taken are {', '.join(DTYPES)}.")
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or not all(type(side) is int and 0 <= side < 2**40 for side in shape):
        raise WireError(f"The message holds an array of shape {shape!r}; a shape is a list of at most {_MAX_DIMENSIONS} lengths.")
    dtype = np.dtype(name).newbyteorder("<")
    # Python's integers do not overflow, whatever the shape claims
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else 0
        raise WireError(f"The message holds an array of shape {shape} and dtype {name} with {size} bytes; these do not fit.")
    if name == "bool":
        return np.asarray(np.ndarray(shape, np.uint8, data) != 0)
    return np.ndarray(shape, dtype, data).astype(name)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"The message holds msgpack's extension type {code}; messages have none.")
