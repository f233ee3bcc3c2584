"""Building the arrays of a GLB: a block of bytes that grows, and its accessors; and dropping those that nothing uses any more."""

import copy
from typing import Any

import numpy as np
from jaxtyping import Shaped

from visiongraft.media.glb import Glb, view_bytes

VERTEX_TARGET, INDEX_TARGET = 34962, 34963
_FLOAT, _UNSIGNED_SHORT, _UNSIGNED_INT = 5126, 5123, 5125
_WIDTHS = {1: "SCALAR", 3: "VEC3"}


class GlbBuilder:
    """A description and its block of bytes, to which arrays are added.

    Args:
        gltf: description whose accessors and bufferViews already lie in ``binary``; not changed.
        binary: what is there.
    """

    def __init__(self, gltf: dict[str, Any], binary: bytes = b"") -> None:
        self.gltf = copy.deepcopy(gltf)
        self._parts, self._length = [], 0
        self._append(binary)

    @property
    def binary(self) -> bytes:
        return b"".join(self._parts)

    def add_vectors(self, values: Shaped[np.ndarray, "count 3"]) -> int:
        """Accessor of a vertex attribute, float32, with the bounds that glTF requires for positions."""
        values = np.ascontiguousarray(values, "<f4")
        bounds = {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        return self._accessor(values, _FLOAT, VERTEX_TARGET, bounds)

    def add_scalars(self, values: Shaped[np.ndarray, "count"]) -> int:
        """Accessor of numbers of an animation, float32, with bounds."""
        values = np.ascontiguousarray(values, "<f4")[:, None]
        bounds = {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        return self._accessor(values, _FLOAT, None, bounds)

    def add_indices(self, values: Shaped[np.ndarray, "count"], num_vertices: int) -> int:
        """Accessor of vertex indices; 16 bits where they suffice (65,535 itself is reserved)."""
        small = num_vertices <= 65_535
        values = np.ascontiguousarray(values, "<u2" if small else "<u4")[:, None]
        return self._accessor(values, _UNSIGNED_SHORT if small else _UNSIGNED_INT, INDEX_TARGET, {})

    def _accessor(self, values: Shaped[np.ndarray, "count width"], kind: int, target: int | None, bounds: dict[str, Any]) -> int:
        view = {"buffer": 0, "byteOffset": self._length, "byteLength": values.nbytes}
        if target is not None:
            view["target"] = target
        views = self.gltf.setdefault("bufferViews", [])
        views.append(view)
        self._append(values.tobytes())
        accessors = self.gltf.setdefault("accessors", [])
        count, width = values.shape
        accessors.append({"bufferView": len(views) - 1, "componentType": kind, "count": count, "type": _WIDTHS[width], **bounds})
        return len(accessors) - 1

    def _append(self, block: bytes) -> None:
        padding = b"\0" * (-len(block) % 4)  # every array begins at a multiple of four
        self._parts += [block, padding]
        self._length += len(block) + len(padding)

    def finish(self) -> tuple[dict[str, Any], bytes]:
        """The description with its one buffer, and the block."""
        self.gltf["buffers"] = [{"byteLength": self._length}]
        return self.gltf, self.binary


def compacted(glb: Glb) -> Glb:
    """The same scene without accessors and bufferViews that nothing names, in one buffer.

    Raises:
        ValueError: a bufferView that cannot be read.
    """
    gltf = copy.deepcopy(glb.gltf)
    accessors = _renumbered(gltf, "accessors", _accessor_places(gltf))
    views = _renumbered(gltf, "bufferViews", _view_places(gltf))
    builder = GlbBuilder({})
    for view, old in zip(gltf.get("bufferViews", []), views, strict=True):
        block = view_bytes(glb, old)
        view |= {"buffer": 0, "byteOffset": builder._length, "byteLength": len(block)}
        builder._append(block)
    for kind, kept in (("accessors", accessors), ("bufferViews", views)):
        if not kept:
            gltf.pop(kind, None)
    gltf["buffers"] = [{"byteLength": builder._length}]
    return Glb(gltf, builder.binary, glb.name)


Places = list[tuple[dict[str, Any], str]]


def _accessor_places(gltf: dict[str, Any]) -> Places:
    """Everything that names an accessor: the dictionary and the key."""
    places: Places = []
    for mesh in gltf.get("meshes", []):
        for primitive in mesh.get("primitives", []):
            for attributes in (primitive.get("attributes", {}), *primitive.get("targets", [])):
                places += [(attributes, name) for name in attributes]
            places.append((primitive, "indices"))
    for animation in gltf.get("animations", []):
        places += [(sampler, key) for sampler in animation.get("samplers", []) for key in ("input", "output")]
    places += [(skin, "inverseBindMatrices") for skin in gltf.get("skins", [])]
    for node in gltf.get("nodes", []):
        instancing = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {})
        places += [(instancing, name) for name in instancing]
    return [(holder, key) for holder, key in places if key in holder]


def _view_places(gltf: dict[str, Any]) -> Places:
    """Everything that names a bufferView: the dictionary and the key."""
    holders = list(gltf.get("images", []))
    for accessor in gltf.get("accessors", []):
        holders += [accessor, *(accessor.get("sparse", {}).get(part, {}) for part in ("indices", "values"))]
    return [(holder, "bufferView") for holder in holders if "bufferView" in holder]


def _renumbered(gltf: dict[str, Any], kind: str, places: Places) -> list[int]:
    """Leaves only the entries that are named, with new numbers; gives the old numbers of those that stay."""
    kept = sorted({holder[key] for holder, key in places})
    number = {old: new for new, old in enumerate(kept)}
    for holder, key in places:
        holder[key] = number[holder[key]]
    gltf[kind] = [gltf[kind][old] for old in kept]
    return kept
