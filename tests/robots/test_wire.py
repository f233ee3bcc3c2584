import math
import os
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visiongraft.robots.cameras import Camera
from visiongraft.robots.hosting import with_cameras
from visiongraft.robots.wire import DTYPES, SCHEMA, WireError, decode, encode

ARRAYS = st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text() | st.binary()
KEYS = st.text().filter(lambda key: key not in ("schema", "dtype", "shape", "bytes"))
NESTED = st.recursive(PLAIN | ARRAYS, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner), max_leaves=8)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and b.flags.writeable
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        KEYS, st.recursive(PLAIN | ARRAYS, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner), max_leaves=8)
    )
)
def test_messages_come_back_bit_for_bit(message):
    assert same(message, decode(encode(message)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_wire_error(data):
    with pytest.raises(WireError):  # random bytes do not hold the schema
        decode(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_are_a_message_or_a_wire_error(draw):
    data = bytearray(encode({"call": "act", "arguments": {"points": np.arange(6.0).reshape(2, 3), "names": ("a", "b")}}))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        came = decode(bytes(data))
    except WireError as error:
        came = error
    assert isinstance(came, dict | WireError)  # and nothing else was raised


def test_layouts_and_byte_orders_do_not_matter():
    image = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    back = decode(encode({"a": image[::-1, :, ::2], "b": np.asfortranarray(image), "c": np.float32(0.1), "d": np.True_}))
    np.testing.assert_array_equal(back["a"], image[::-1, :, ::2])
    np.testing.assert_array_equal(back["b"], image)
    assert back["b"].dtype == np.int32 and back["c"] == float(np.float32(0.1)) and back["d"] is True


def test_special_numbers_survive():
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    back = decode(encode({"a": values, "b": math.inf}))
    assert back["a"].tobytes() == values.tobytes() and back["b"] == math.inf


def test_cameras_travel_as_arrays_and_are_cameras_again():
    camera = Camera(np.diag([100.0, 90.0, 1.0]), np.eye(4), (48, 64))
    observation = {"cameras": {"left": camera}, "instruction": "go", "stale": ("bowl",)}
    plain = decode(encode(observation))
    assert isinstance(plain["cameras"]["left"]["intrinsics"], np.ndarray)
    back = with_cameras(plain)
    assert back["stale"] == ("bowl",) and back["cameras"]["left"].size == (48, 64)
    np.testing.assert_array_equal(back["cameras"]["left"].intrinsics, camera.intrinsics)


def raw(**entries):
    return msgpack.packb({"schema": SCHEMA, **entries})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no msgpack message"),
        (b"\xc1", "no msgpack message"),
        (raw(a=1)[:-1], "no msgpack message"),
        (raw(a=1) + b"\x00", "no msgpack message .ExtraData"),
        ("text", "binary msgpack; got str"),
        (msgpack.packb([1, 2]), "a dictionary; got tuple"),
        (msgpack.packb({"a": 1}), "no schema, and this side speaks schema 1; install the same visiongraft"),
        (msgpack.packb({"schema": 2}), "schema 2, and this side"),
        (msgpack.packb({"schema": True}), "schema True, and this side"),
        (msgpack.packb({1: 2, "schema": SCHEMA}), "no msgpack message .*not allowed for map key"),
        (b"\xdf\xff\xff\xff\xff", "no msgpack message"),
        (b"\x91" * 5000, "no msgpack message"),
        (b"\x82\xa6schema\x01\xa1a\xa1\xff", "no msgpack message .UnicodeDecodeError"),
        (raw(a=msgpack.ExtType(5, b"os.system")), "extension type 5"),
        (raw(a={"dtype": "object", "shape": [1], "bytes": b"12345678"}), "dtype 'object'; taken are bool"),
        (raw(a={"dtype": "V8", "shape": [1], "bytes": b"12345678"}), "dtype 'V8'"),
        (raw(a={"dtype": [["x", "f4"]], "shape": [1], "bytes": b"1234"}), "dtype "),
        (raw(a={"dtype": "float32", "shape": [2], "bytes": b"1234"}), r"shape \(2,\) and dtype float32 with 4 bytes; these do not fit"),
        (raw(a={"dtype": "float32", "shape": [1], "bytes": "1234"}), "do not fit"),
        (raw(a={"dtype": "uint8", "shape": [2**32, 2**32], "bytes": b""}), "do not fit"),
        (raw(a={"dtype": "uint8", "shape": [-1], "bytes": b"1"}), "a shape is a list of at most 8 lengths"),
        (raw(a={"dtype": "uint8", "shape": [1.0], "bytes": b"1"}), "a shape is a list"),
        (raw(a={"dtype": "uint8", "shape": [1] * 40, "bytes": b"1"}), "a shape is a list"),
        (raw(a={"dtype": "uint8", "shape": 1, "bytes": b"1"}), "a shape is a list"),
        (raw(a={"dtype": "uint8", "shape": [0, 2**62], "bytes": b""}), "a shape is a list"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data, message):
    with pytest.raises(WireError, match=message):
        decode(data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([object()]), "dtype object are not sent; convert it to one of bool"),
        (np.array(["text"]), "dtype <U4 are not sent"),
        (np.zeros(1, "f4,f4"), "are not sent"),
        (np.zeros(1, complex), "dtype complex128"),
        (np.zeros([1] * 9), "at most 8 dimensions are sent; got 9"),
        ({1, 2}, "A set cannot be sent; messages hold"),
        (Path("x"), "cannot be sent"),
        (2**64, "cannot be sent"),
        ("\ud800", "cannot be sent"),
    ],
)
def test_what_has_no_place_in_a_message_is_refused(value, message):
    with pytest.raises(WireError, match=message):
        encode({"value": value})


def test_size_has_a_limit_on_both_sides():
    message = {"image": np.zeros(3 * 2**20, np.uint8)}
    data = encode(message)
    with pytest.raises(WireError, match=r"has 3.0 MiB, and at most 1.0 MiB are taken; send smaller"):
        encode(message, 2**20)
    with pytest.raises(WireError, match=r"has 3.0 MiB, and at most 1.0 MiB"):
        decode(data, 2**20)


def test_client_needs_numpy_msgpack_and_websockets_only():
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "mujoco", "gymnasium", "h5py", "scipy", "jaxtyping", "tqdm", "av", "diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import visiongraft.robots.client as client
import visiongraft.robots.wire
standard = set(sys.stdlib_module_names) | {"visiongraft", "numpy", "msgpack", "websockets", "cython_runtime", "__main__"}
print(sorted({name.partition(".")[0] for name in sys.modules if not name.startswith("_")} - standard))
try:
    client.RemotePolicy("ws://127.0.0.1:9", connect_timeout=2)
except ConnectionError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    extra, refused = ran.stdout.splitlines()
    assert extra == "[]"
    assert refused.startswith("No server answers at ws://127.0.0.1:9")
