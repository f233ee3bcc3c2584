"""An own reading of the glTF 2.0 specification: what is wrong with a GLB, as a list of sentences. Shares no code with the library."""

import json
import math
import struct
from pathlib import Path

import numpy as np

SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
KINDS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def problems(path: Path) -> list[str]:
    data, found = path.read_bytes(), []
    magic, version, length = struct.unpack("<4sII", data[:12])
    if (magic, version, length) != (b"glTF", 2, len(data)) or len(data) % 4:
        found.append(f"header {magic} {version} {length} of {len(data)}")
    size, kind = struct.unpack("<I4s", data[12:20])
    text, rest = data[20 : 20 + size], data[20 + size :]
    if kind != b"JSON" or size % 4 or text.rstrip(b" ") != text.strip():
        found.append("the JSON chunk comes first, padded with spaces to four bytes")
    gltf = json.loads(text)
    binary = b""
    if rest:
        size, kind = struct.unpack("<I4s", rest[:8])
        binary = rest[8:]
        if kind != b"BIN\0" or size % 4 or size != len(binary):
            found.append("the BIN chunk follows, padded to four bytes, and nothing after it")
        block = gltf["buffers"][0]["byteLength"]
        if not block <= len(binary) <= block + 3 or binary[block:].strip(b"\0"):
            found.append(f"buffer of {block} bytes in a chunk of {len(binary)}")
    if gltf["asset"]["version"] != "2.0":
        found.append("asset version")
    found += _views(gltf, len(binary))
    arrays = [_array(gltf, binary, i, found) for i in range(len(gltf.get("accessors", [])))]
    found += _meshes(gltf, arrays) + _animations(gltf, arrays) + _unused(gltf)
    return found


def _views(gltf, length):
    found = []
    for i, view in enumerate(gltf.get("bufferViews", [])):
        start = view.get("byteOffset", 0)
        if view["buffer"] != 0 or view["byteLength"] < 1 or start + view["byteLength"] > length:
            found.append(f"bufferView {i} leaves the buffer")
        if view.get("target") not in (None, 34962, 34963):
            found.append(f"bufferView {i} has target {view['target']}")
    return found


def _array(gltf, binary, i, found):
    accessor = gltf["accessors"][i]
    view = gltf["bufferViews"][accessor["bufferView"]]
    size, width = SIZES[accessor["componentType"]], COMPONENTS[accessor["type"]]
    offset, stride = accessor.get("byteOffset", 0), view.get("byteStride", size * width)
    if (offset + view.get("byteOffset", 0)) % size or stride % size:
        found.append(f"accessor {i} is not aligned")
    if offset + stride * (accessor["count"] - 1) + size * width > view["byteLength"]:
        found.append(f"accessor {i} leaves its bufferView")
    start = offset + view.get("byteOffset", 0)
    kind = KINDS[accessor["componentType"]]
    values = np.array([np.frombuffer(binary, kind, width, start + k * stride) for k in range(accessor["count"])])
    if kind == "<f4" and not np.isfinite(values).all():
        found.append(f"accessor {i} has values that are not finite")
    for name, bound in (("min", values.min(0)), ("max", values.max(0))):
        if name in accessor and not np.array_equal(np.float32(accessor[name]), bound.astype(np.float32)):
            found.append(f"accessor {i}: {name} {accessor[name]} is {bound}")
    return values


def _meshes(gltf, arrays):
    found = []
    for m, mesh in enumerate(gltf.get("meshes", [])):
        counts = set()
        for primitive in mesh["primitives"]:
            attributes, targets = primitive["attributes"], primitive.get("targets", [])
            counts.add(len(targets))
            places = arrays[attributes["POSITION"]]
            for names in (attributes, *targets):
                for name, index in names.items():
                    accessor = gltf["accessors"][index]
                    if len(arrays[index]) != len(places) or gltf["bufferViews"][accessor["bufferView"]].get("target") == 34963:
                        found.append(f"mesh {m}: {name} has another length or is an index buffer")
                    if name == "POSITION" and not {"min", "max"} <= accessor.keys():
                        found.append(f"mesh {m}: positions without bounds")
            if "NORMAL" in attributes and abs(np.linalg.norm(arrays[attributes["NORMAL"]], axis=1) - 1).max() > 1e-3:
                found.append(f"mesh {m}: normals are not unit")
            indices = arrays[primitive["indices"]]
            kind = gltf["accessors"][primitive["indices"]]["componentType"]
            if (
                len(indices) % 3
                or indices.max() >= len(places)
                or indices.max() == 2 ** (8 * SIZES[kind]) - 1
                or kind not in (5121, 5123, 5125)
            ):
                found.append(f"mesh {m}: bad indices")
            if any(name in target and name not in attributes for target in targets for name in target):
                found.append(f"mesh {m}: a target moves what the mesh does not have")
        if len(counts) != 1 or ("weights" in mesh and len(mesh["weights"]) not in counts):
            found.append(f"mesh {m}: numbers of targets {counts}")
        names = (mesh.get("extras") or {}).get("targetNames")
        if names is not None and len(names) not in counts:
            found.append(f"mesh {m}: {len(names)} names of targets")
    return found


def _animations(gltf, arrays):
    found = []
    for animation in gltf.get("animations", []):
        driven = []
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            times, values = arrays[sampler["input"]][:, 0], arrays[sampler["output"]]
            if not {"min", "max"} <= gltf["accessors"][sampler["input"]].keys() or times[0] < 0 or (np.diff(times) <= 0).any():
                found.append("times need bounds and must increase from 0 on")
            node = channel["target"]["node"]
            driven.append(node)
            mesh = gltf["meshes"][gltf["nodes"][node]["mesh"]]
            if channel["target"]["path"] == "weights" and len(values) != len(times) * len(mesh["primitives"][0]["targets"]):
                found.append("one weight for each time and target")
        if len(set(driven)) != len(driven):
            found.append("two channels move the same thing")
    return found


def _unused(gltf):
    text = json.dumps(gltf)
    named = {kind: text.count(f'"{kind}": ') for kind in ("bufferView", "mesh")}
    found = []
    if named["bufferView"] < len(gltf.get("bufferViews", [])):
        found.append("a bufferView that nothing uses")
    if named["mesh"] < len(gltf.get("meshes", [])):
        found.append("a mesh that nothing uses")
    return found


def morph_frames(path: Path) -> list[np.ndarray]:
    """World positions of the first primitive of every mesh node at every key time, for files whose nodes have no parents."""
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    gltf, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    arrays = [_array(gltf, binary, i, []) for i in range(len(gltf["accessors"]))]
    clouds = []
    for channel in gltf["animations"][0]["channels"]:
        node = gltf["nodes"][channel["target"]["node"]]
        primitive = gltf["meshes"][node["mesh"]]["primitives"][0]
        sampler = gltf["animations"][0]["samplers"][channel["sampler"]]
        weights = arrays[sampler["output"]].reshape(len(arrays[sampler["input"]]), -1)
        base = arrays[primitive["attributes"]["POSITION"]].astype(float)
        matrix = np.array(node.get("matrix", np.eye(4).T.reshape(-1))).reshape(4, 4).T
        frames = [base + sum(w * arrays[t["POSITION"]] for w, t in zip(row, primitive["targets"], strict=True)) for row in weights]
        clouds.append(np.stack([frame @ matrix[:3, :3].T + matrix[:3, 3] for frame in frames]))
    assert math.prod(clouds[0].shape)
    return clouds
