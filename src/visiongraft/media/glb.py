"""GLB files: the binary form of glTF 2.0. Reading and checking, arrays of accessors, transforms of nodes, writing.

A GLB is a JSON description and one block of bytes. The description names arrays (*accessors*) that lie in stretches (*bufferViews*) of
the block. Axes are those of visiongraft's meshes: Y up, right-handed, counter-clockwise faces.
"""

import base64
import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from visiongraft.media.files import atomic_write

MAGIC, VERSION = 0x46546C67, 2
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_OTHER_MODES = ("points", "lines", "line loops", "line strips")
UNREADABLE = {  # what stores the geometry in another way
    "KHR_draco_mesh_compression": "Draco compression",
    "EXT_meshopt_compression": "meshopt compression",
    "KHR_meshopt_compression": "meshopt compression",
}


@dataclass(frozen=True)
class Glb:
    """A GLB file in memory.

    Args:
        gltf: the JSON description.
        binary: the block of bytes.
        name: of the file, for messages.
    """

    gltf: dict[str, Any]
    binary: bytes
    name: str = "the GLB"


class Placement(NamedTuple):
    """A mesh in the scene: the node that holds it, the mesh's number, and the 4x4 matrix from the node to the world."""

    node: int
    mesh: int
    matrix: Float[np.ndarray, "4 4"]


def read_glb(path: str | Path) -> Glb:
    """Reads a GLB file and checks its frame; what the description says is checked where it is used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GLB, version 1, a file that is cut off, or a description that is not JSON; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no GLB file {path}.")
    content = path.read_bytes()
    if len(content) < 20 or struct.unpack_from("<I", content)[0] != MAGIC:
        raise ValueError(f"{path} is not a GLB file: it does not begin with 'glTF'. Export it as GLB (glTF binary).")
    _, version, length = struct.unpack_from("<III", content)
    if version != VERSION:
        raise ValueError(f"{path} is GLB version {version}; version 2 is read. Export it again as glTF 2.0.")
    if length != len(content):
        raise ValueError(
            f"{path} is corrupt: its header says {length:,} bytes, but the file has {len(content):,}. Copy or export it again."
        )
    chunks = dict(_chunks(path, content))
    try:
        gltf = json.loads(chunks[_JSON_CHUNK])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is corrupt: its description is missing or is not JSON. Copy or export it again.") from error
    if not isinstance(gltf, dict) or not isinstance(gltf.get("asset"), dict):
        raise ValueError(f"{path} is corrupt: its description has no 'asset'. Copy or export it again.")
    return Glb(gltf, chunks.get(_BINARY_CHUNK, b""), str(path))


def _chunks(path: Path, content: bytes) -> Iterator[tuple[int, bytes]]:
    start = 12
    while start < len(content):
        size, kind = struct.unpack_from("<II", content, start) if start + 8 <= len(content) else (len(content), 0)
        if start + 8 + size > len(content):
            raise ValueError(f"{path} is corrupt: a chunk reaches beyond the end of the file. Copy or export it again.")
        yield kind, content[start + 8 : start + 8 + size]
        start += 8 + size


def write_glb(path: str | Path, gltf: dict[str, Any], binary: bytes) -> Path:
    """Writes a GLB file, atomically; the description's one buffer must be ``binary``.

    Raises:
        ValueError: numbers in the description that are not finite.
    """
    path = Path(path)
    text = json.dumps(gltf, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    parts = [struct.pack("<II", len(text), _JSON_CHUNK), text]
    if binary:
        padding = b"\0" * (-len(binary) % 4)
        parts += [struct.pack("<II", len(binary) + len(padding), _BINARY_CHUNK), binary, padding]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<III", MAGIC, VERSION, 12 + sum(map(len, parts))))
        file.writelines(parts)
    return path


def view_bytes(glb: Glb, view: int) -> bytes:
    """The bytes of one bufferView.

    Raises:
        ValueError: a view that is not there or reaches beyond its buffer, a buffer in another file, or one that is not base64.
    """
    entry = _entry(glb, "bufferViews", view)
    index = entry.get("buffer", 0)
    uri = _entry(glb, "buffers", index).get("uri")
    if uri is None:
        block = glb.binary
    elif uri.startswith("data:") and ";base64," in uri:
        block = _decoded(glb, uri.partition(";base64,")[2], f"buffer {index}")
    else:
        raise ValueError(f"{glb.name}: buffer {index} lies in another file ({uri[:60]}); export the scene as one GLB.")
    start, size = entry.get("byteOffset", 0), entry.get("byteLength", 0)
    if start < 0 or size < 0 or start + size > len(block):
        raise ValueError(f"{glb.name} is corrupt: bufferView {view} reaches to byte {start + size:,} of a buffer of {len(block):,}.")
    return block[start : start + size]


def _decoded(glb: Glb, text: str, what: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # some writers break lines
    except ValueError as error:
        raise ValueError(f"{glb.name} is corrupt: its {what} is not base64 ({error}). Copy or export it again.") from error


def accessor_array(glb: Glb, index: int) -> Shaped[np.ndarray, "count width"]:
    """The values of one accessor, as they are meant: normalised integers become floats, sparse values are filled in.

    Raises:
        ValueError: an accessor that is not there, of an unknown type, or that reaches beyond its bufferView.
    """
    accessor = _entry(glb, "accessors", index)
    kind, width, count = _TYPES.get(accessor.get("componentType", 0)), _WIDTHS.get(accessor.get("type", "")), accessor.get("count", 0)
    if kind is None or width is None or not isinstance(count, int) or count < 1:
        raise ValueError(f"{glb.name} is corrupt: accessor {index} has an unknown type or no values.")
    if "bufferView" in accessor:
        values = _strided(glb, accessor["bufferView"], accessor.get("byteOffset", 0), kind, width, count, f"accessor {index}")
    else:
        values = np.zeros((count, width), kind)
    if "sparse" in accessor:
        values = values.copy()
        sparse = accessor["sparse"]
        some, places, content = sparse["count"], sparse["indices"], sparse["values"]
        where = _strided(
            glb, places["bufferView"], places.get("byteOffset", 0), _TYPES[places["componentType"]], 1, some, f"accessor {index}"
        )
        if int(where.max()) >= count:
            raise ValueError(f"{glb.name} is corrupt: a sparse index of accessor {index} is {int(where.max())} of {count} values.")
        values[where[:, 0]] = _strided(glb, content["bufferView"], content.get("byteOffset", 0), kind, width, some, f"accessor {index}")
    if accessor.get("normalized") and values.dtype.kind in "iu":
        return np.maximum(values / np.float32(np.iinfo(values.dtype).max), -1.0).astype(np.float32)
    return values


def _strided(glb: Glb, view: int, offset: int, kind: str, width: int, count: int, what: str) -> Shaped[np.ndarray, "count width"]:
    block = view_bytes(glb, view)
    size = np.dtype(kind).itemsize * width
    stride = glb.gltf["bufferViews"][view].get("byteStride", size)
    if offset < 0 or stride < size or offset + stride * (count - 1) + size > len(block):
        raise ValueError(f"{glb.name} is corrupt: {what} needs more bytes than its bufferView {view} of {len(block):,} has.")
    rows = np.ndarray((count, size), np.uint8, block, offset, (stride, 1))
    return np.ascontiguousarray(rows).view(kind)


def _entry(glb: Glb, kind: str, index: int) -> dict[str, Any]:
    entries = glb.gltf.get(kind, [])
    if not isinstance(index, int) or not 0 <= index < len(entries):
        raise ValueError(f"{glb.name} is corrupt: it names {kind}[{index}], but has {len(entries)}.")
    return entries[index]


def placements(glb: Glb) -> list[Placement]:
    """The meshes of the scene in the order of its nodes, parents before children; a mesh that two nodes share comes twice.

    Raises:
        ValueError: geometry in a form that is not read (the message says which), or nodes in a circle.
    """
    for extension in [*glb.gltf.get("extensionsRequired", []), *glb.gltf.get("extensionsUsed", [])]:
        if extension in UNREADABLE:
            raise ValueError(f"{glb.name} uses {UNREADABLE[extension]}, which is not read; export it without compression.")
    nodes, scenes = glb.gltf.get("nodes", []), glb.gltf.get("scenes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    roots = [i for i in range(len(nodes)) if i not in children]
    if scenes:
        roots = _entry(glb, "scenes", glb.gltf.get("scene", 0)).get("nodes", [])
    found, stack, seen = [], [(root, np.eye(4)) for root in reversed(roots)], set()
    while stack:
        index, parent = stack.pop()
        node = _entry(glb, "nodes", index)
        if index in seen:
            raise ValueError(f"{glb.name} is corrupt: node {index} hangs below two nodes, or below itself.")
        seen.add(index)
        matrix = parent @ local_matrix(node)
        if "mesh" in node:
            found.append(Placement(index, node["mesh"], matrix))
        stack += [(child, matrix) for child in reversed(node.get("children", []))]
    return found


def local_matrix(node: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    """From a node's coordinates to its parent's: its matrix, or its translation, rotation (x, y, z, w) and scale."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def triangle_primitives(glb: Glb, mesh: int) -> list[dict[str, Any]]:
    """Primitives of a mesh that are triangles, strips or fans; points and lines are left out, see :func:`other_modes`."""
    return [primitive for primitive in _entry(glb, "meshes", mesh).get("primitives", []) if is_triangles(primitive)]


def is_triangles(primitive: dict[str, Any]) -> bool:
    """Whether a primitive is triangles, a strip or a fan of them, with positions."""
    return _mode(primitive) in (_TRIANGLES, _STRIP, _FAN) and "POSITION" in primitive.get("attributes", {})


def other_modes(primitives: Iterable[dict[str, Any]]) -> str:
    """How many primitives have no triangles, by mode, such as ``points (1), lines (2)``; empty where all have."""
    modes = Counter(mode for primitive in primitives if (mode := _mode(primitive)) not in (_TRIANGLES, _STRIP, _FAN))
    names = dict(enumerate(_OTHER_MODES))
    return ", ".join(f"{names.get(mode, f'unknown mode {mode}')} ({number})" for mode, number in sorted(modes.items()))


def _mode(primitive: dict[str, Any]) -> int:
    return primitive.get("mode", _TRIANGLES)


def primitive_faces(glb: Glb, primitive: dict[str, Any], count: int) -> Int[np.ndarray, "f 3"]:
    """Faces of a triangle primitive with ``count`` vertices; of strips and fans without the flat ones that stitch their pieces.

    Raises:
        ValueError: indices that are no triangles, or beyond the vertices.

    Source: glTF 2.0 specification, 3.7.2.1 (topology types).
    """
    mode = _mode(primitive)
    if "indices" in primitive:
        indices = accessor_array(glb, primitive["indices"])[:, 0].astype(np.int64)
    else:
        indices = np.arange(count)
    if (mode == _TRIANGLES and len(indices) % 3) or (len(indices) and int(indices.max()) >= count):
        raise ValueError(f"{glb.name} is corrupt: {len(indices)} indices up to {int(indices.max())} for {count} vertices are no triangles.")
    if mode == _TRIANGLES:
        return indices.reshape(-1, 3)
    step = np.arange(len(indices) - 2)
    odd = step % 2  # every other triangle of a strip runs the other way round
    corners = [step, step + 1 + odd, step + 2 - odd] if mode == _STRIP else [step + 1, step + 2, 0 * step]
    faces = indices[np.stack(corners, 1)]
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]
