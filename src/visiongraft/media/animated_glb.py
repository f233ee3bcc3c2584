"""Animated meshes as GLB files with morph targets, written and read without other programs.

The first frame is the mesh; every other frame is a morph target, a displacement of each vertex; one animation blends from one target to
the next. Any glTF viewer plays it, Blender shows the targets as shape keys. With a textured template the animation goes into the
template's own meshes, and its materials, pictures and texture coordinates stay as they are.
"""

import copy
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.meshes import vertex_normals
from visiongraft.media.glb import (
    Glb,
    Placement,
    accessor_array,
    is_triangles,
    other_modes,
    placements,
    primitive_faces,
    read_glb,
    triangle_primitives,
    write_glb,
)
from visiongraft.media.glb_building import GlbBuilder, compacted

_GENERATOR = "visiongraft"


class AnimatedMesh(NamedTuple):
    """One topology, vertices for each time in seconds."""

    vertices: Float[Tensor, "t v 3"]
    faces: Int[Tensor, "f 3"]
    times: Float[Tensor, "t"]


class _Part(NamedTuple):
    """A triangle primitive of a scene: where it hangs, and which stretch of the scene's vertices it has."""

    placement: Placement
    primitive: dict[str, Any]
    start: int
    count: int
    faces: Int[np.ndarray, "f 3"]


def write_animated_glb(
    path: str | Path,
    vertices: Float[Tensor, "t v 3"],
    faces: Int[Tensor, "f 3"],
    fps: float | int = 8.0,
    template: str | Path | None = None,
    *,
    times: Sequence[float] | None = None,
    normals: bool = True,
    color: tuple[float, float, float] = (0.74, 0.76, 0.8),
) -> Path:
    """Writes an animation as GLB, atomically. A single frame gives a mesh that does not move.

    Args:
        path: file to create or replace.
        vertices: world coordinates, Y up.
        faces: of all frames, counter-clockwise seen from outside.
        fps: frames per second; frame k is at k / fps.
        template: a GLB whose materials, pictures and texture coordinates are kept. ``vertices`` and ``faces`` must be in its order, as
            :func:`read_animated_glb` and :func:`visiongraft.media.meshes.read_mesh` give them. Its own animations and skeletons go.
        times: of the frames in seconds, increasing, in place of ``fps``.
        normals: writes smooth normals and how they turn; without, viewers shade each face flat, and the file is half as large.
        color: of the surface without a template, linear RGB in [0, 1].

    Raises:
        FileNotFoundError: no such template.
        ValueError: no frames or faces, values that are not finite, faces beyond the vertices, times that do not increase, a corrupt
            template, or one with another number of vertices or other faces.

    Warns of animations, skeletons, points and lines of the template that go.

    Source: ActionMesh brief, section 6 (export).
    """
    seconds = _checked_times(vertices, faces, fps, times)
    frames = vertices.detach().cpu().double().numpy()
    index = faces.detach().cpu().long().numpy()
    if template is None:
        builder = GlbBuilder(_plain_scene(color))
        parts = [_Part(Placement(0, 0, np.eye(4)), builder.gltf["meshes"][0]["primitives"][0], 0, frames.shape[1], index)]
        parts[0].primitive["indices"] = builder.add_indices(index.reshape(-1), frames.shape[1])
        shared = np.arange(frames.shape[1])
    else:
        source = read_glb(template)
        scene = Glb(_without_motion(source), source.binary, source.name)
        builder = GlbBuilder(scene.gltf, scene.binary)
        scene = Glb(builder.gltf, scene.binary, source.name)  # parts point into the description that grows
        parts = _parts(scene)
        _check_template(parts, frames.shape[1], index, source.name)
        shared = _shared_corners(scene, parts)
    turned = _normals(frames, shared[index])[:, shared] if normals else None
    for part in parts:
        _write_part(builder, part, frames, turned)
    if len(frames) > 1:
        _write_animation(builder, sorted({part.placement.node for part in parts}), len(frames), seconds)
    gltf, binary = builder.finish()
    finished = compacted(Glb(gltf, binary, str(path)))
    return write_glb(path, finished.gltf, finished.binary)


def read_animated_glb(path: str | Path) -> AnimatedMesh:
    """Reads a GLB with one morph animation, or none, as one mesh in world coordinates.

    The triangles (also of strips and fans) of all meshes follow each other in the order of the scene's nodes. Vertices are as stored:
    what a seam doubles stays double. A mesh that does not move has one frame, at time 0. Skeletons, points and lines are left out with
    a warning: the mesh is as it is stored.

    Returns:
        Vertices at the animation's key times (the middle values where it is cubic), faces, and times in seconds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a corrupt file, one without triangles, or with morph animations whose times differ.

    Source: ActionMesh brief, 2.9 (topology must be that of the file) and section 6.
    """
    glb = read_glb(path)
    try:
        return _read_animation(glb)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{glb.name} is corrupt: its description is not glTF 2.0 ({error!r}). Copy or export it again.") from error


def _read_animation(glb: Glb) -> AnimatedMesh:
    parts = _parts(glb)
    shown = {placement.mesh for placement in placements(glb)}
    if others := other_modes(itertools.chain(*(glb.gltf["meshes"][mesh].get("primitives", []) for mesh in shown))):
        warnings.warn(f"{glb.name} has primitives beside its triangles, which are left out: {others}.", stacklevel=3)
    if any("skin" in glb.gltf["nodes"][part.placement.node] for part in parts):
        warnings.warn(f"{glb.name} has a skeleton, which is left out; the mesh is as it is stored.", stacklevel=3)
    times, weights = _morph_weights(glb)
    vertices = [_moved(glb, part, weights.get(part.placement.node), len(times)) for part in parts]
    faces = [part.faces + part.start for part in parts]
    return AnimatedMesh(
        torch.from_numpy(np.concatenate(vertices, 1).astype(np.float32)),
        torch.from_numpy(np.concatenate(faces)),
        torch.from_numpy(times.astype(np.float32)),
    )


def _parts(glb: Glb) -> list[_Part]:
    parts, start = [], 0
    for placement in placements(glb):
        for primitive in triangle_primitives(glb, placement.mesh):
            count = len(accessor_array(glb, primitive["attributes"]["POSITION"]))
            faces = primitive_faces(glb, primitive, count)
            if np.linalg.det(placement.matrix[:3, :3]) < 0:  # a mirror turns the winding round
                faces = faces[:, [0, 2, 1]]
            parts.append(_Part(placement, primitive, start, count, faces))
            start += count
    if not parts:
        modes = {primitive.get("mode") for mesh in glb.gltf.get("meshes", []) for primitive in mesh.get("primitives", [])}
        if 0 in modes:
            raise ValueError(f"{glb.name} is a point cloud, not a mesh: it has points but no faces. Reconstruct a surface first.")
        raise ValueError(f"{glb.name} has no faces: a mesh of triangles is needed (points and lines are not read).")
    return parts


def _moved(glb: Glb, part: _Part, weights: Float[np.ndarray, "t k"] | None, num_frames: int) -> Float[np.ndarray, "t v 3"]:
    """World positions of a primitive's vertices at every time."""
    base = _positions(glb, part.primitive["attributes"]["POSITION"])
    deltas = [_positions(glb, target["POSITION"]) if "POSITION" in target else 0 * base for target in part.primitive.get("targets", [])]
    if weights is None:
        rest = glb.gltf["meshes"][part.placement.mesh].get("weights", [0.0] * len(deltas))
        weights = np.broadcast_to(np.array(rest, np.float64), (num_frames, len(rest)))
    if weights.shape[1] != len(deltas):
        raise ValueError(f"{glb.name} is corrupt: {weights.shape[1]} weights for {len(deltas)} morph targets.")
    moved = np.broadcast_to(base, (num_frames, *base.shape))
    if deltas:
        moved = moved + np.einsum("tk,kvc->tvc", weights, np.stack(deltas))
    return moved @ part.placement.matrix[:3, :3].T + part.placement.matrix[:3, 3]


def _positions(glb: Glb, index: int) -> Float[np.ndarray, "v 3"]:
    values = accessor_array(glb, index)
    if values.shape[1] != 3:
        raise ValueError(f"{glb.name} is corrupt: accessor {index} has {values.shape[1]} values a vertex where positions have 3.")
    return values.astype(np.float64)


def _morph_weights(glb: Glb) -> tuple[Float[np.ndarray, "t"], dict[int, Float[np.ndarray, "t k"]]]:
    """Times in seconds, and for each node that has them the weights of its targets."""
    times, weights = None, {}
    for animation in glb.gltf.get("animations", []):
        for channel in animation.get("channels", []):
            target = channel["target"]
            if target.get("path") != "weights" or target.get("node") in weights:
                continue
            sampler = animation["samplers"][channel["sampler"]]
            keys = accessor_array(glb, sampler["input"])[:, 0].astype(np.float64)
            if times is not None and (len(times) != len(keys) or not np.allclose(times, keys)):
                raise ValueError(f"{glb.name} has morph animations with different times; bake them to common key frames first.")
            values = accessor_array(glb, sampler["output"]).astype(np.float64)
            cubic = sampler.get("interpolation") == "CUBICSPLINE"
            values = values.reshape(len(keys), 3, -1)[:, 1] if cubic else values.reshape(len(keys), -1)
            times, weights[target["node"]] = keys, values
    return (np.zeros(1) if times is None else times), weights


def _plain_scene(color: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "asset": {"version": "2.0", "generator": _GENERATOR},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "mesh"}],
        "meshes": [{"name": "mesh", "primitives": [{"attributes": {}, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": [*color, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.8}}],
    }


def _without_motion(glb: Glb) -> dict[str, Any]:
    """The template's description without skeletons, animations and morph targets, and with a mesh of its own for every node."""
    gltf = copy.deepcopy(glb.gltf)
    if gltf.pop("animations", None) or gltf.get("skins"):
        warnings.warn(f"{glb.name}: its own animations and skeletons are left out of the new file.", stacklevel=4)
    gltf.pop("skins", None)
    mixed = [mesh["primitives"] for mesh in gltf.get("meshes", []) if any(map(is_triangles, mesh["primitives"]))]
    if others := other_modes(itertools.chain(*mixed)):
        warnings.warn(f"{glb.name}: primitives beside its triangles are left out of the new file: {others}.", stacklevel=3)
    used = set()
    for node in gltf.get("nodes", []):
        node.pop("skin", None)
        node.pop("weights", None)
        mesh = node.get("mesh")
        if mesh in used:  # the deltas of two nodes differ, as they are in the coordinates of the node
            gltf["meshes"].append(copy.deepcopy(gltf["meshes"][mesh]))
            node["mesh"] = len(gltf["meshes"]) - 1
        used.add(node.get("mesh"))
    for mesh in gltf.get("meshes", []):
        mesh.pop("weights", None)
        if isinstance(mesh.get("extras"), dict):
            mesh["extras"].pop("targetNames", None)
        # all primitives of a mesh must have the same number of targets, and lines get none
        mesh["primitives"] = [part for part in mesh["primitives"] if is_triangles(part)] or mesh["primitives"]
        for primitive in mesh["primitives"]:
            primitive.pop("targets", None)
            kept = primitive["attributes"].items()
            primitive["attributes"] = {name: index for name, index in kept if not name.startswith(("JOINTS_", "WEIGHTS_"))}
    return gltf


def _check_template(parts: list[_Part], num_vertices: int, faces: Int[np.ndarray, "f 3"], name: str) -> None:
    own = np.concatenate([part.faces + part.start for part in parts])
    count = sum(part.count for part in parts)
    if count != num_vertices:
        raise ValueError(
            f"The animation has {num_vertices:,} vertices, but the template {name} has {count:,}; the topology of a template cannot "
            "change. Expand the vertices to the file's own (UserMesh.restore), or write without a template."
        )
    if own.shape != faces.shape or not np.array_equal(own, faces):
        raise ValueError(f"The faces of the animation are not those of the template {name}; the topology of a template cannot change.")
    flat = [part.placement.node for part in parts if abs(np.linalg.det(part.placement.matrix[:3, :3])) < 1e-30]
    if flat:
        raise ValueError(f"{name}: node {flat[0]} scales its mesh to nothing, so that it cannot be moved from there.")


def _shared_corners(glb: Glb, parts: list[_Part]) -> Int[np.ndarray, "v"]:
    """For each vertex the first one at the same place with the same normal, so that seams of a texture do not show in the shading."""
    rows = []
    for number, part in enumerate(parts):
        attributes = part.primitive["attributes"]
        normal = _positions(glb, attributes["NORMAL"]) if "NORMAL" in attributes else np.zeros((part.count, 3))
        places = _positions(glb, attributes["POSITION"])
        rows.append(np.concatenate([np.full((part.count, 1), number), places, normal.round(3) + 0.0], 1))
    _, first, inverse = np.unique(np.concatenate(rows), axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _normals(frames: Float[np.ndarray, "t v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "t v 3"]:
    """Unit normals of all frames; vertices without faces point up, as glTF allows no zero."""
    index = torch.from_numpy(faces)
    turned = torch.stack([vertex_normals(torch.from_numpy(frame).float(), index) for frame in frames])
    missing = turned.square().sum(-1, keepdim=True) < 0.5
    return torch.where(missing, torch.tensor([0.0, 1.0, 0.0]), turned).numpy()


def _write_part(builder: GlbBuilder, part: _Part, frames: Float[np.ndarray, "t v 3"], normals: Float[np.ndarray, "t v 3"] | None) -> None:
    """Puts the first frame and the differences to it into a primitive, in the coordinates of its node."""
    stretch = slice(part.start, part.start + part.count)
    linear = part.placement.matrix[:3, :3]
    local = (frames[:, stretch] - part.placement.matrix[:3, 3]) @ np.linalg.inv(linear).T
    base = local[0].astype(np.float32)
    attributes = part.primitive["attributes"]
    # a tangent stands on the old normal; without one, viewers make their own
    for name in ("NORMAL", "TANGENT"):
        attributes.pop(name, None)
    attributes["POSITION"] = builder.add_vectors(base)
    targets = [{"POSITION": builder.add_vectors(frame - base)} for frame in local[1:]]
    if normals is not None:
        turned = normals[:, stretch] @ linear  # viewers apply the inverse transposed
        turned = turned / np.linalg.norm(turned, axis=-1, keepdims=True)
        attributes["NORMAL"] = builder.add_vectors(turned[0])
        for target, normal in zip(targets, turned[1:], strict=True):
            target["NORMAL"] = builder.add_vectors(normal - turned[0])
    if targets:
        part.primitive["targets"] = targets
        mesh = builder.gltf["meshes"][part.placement.mesh]
        mesh["weights"] = [0.0] * len(targets)
        mesh["extras"] = {**(mesh.get("extras") or {}), "targetNames": [f"frame_{k:04d}" for k in range(1, len(frames))]}


def _write_animation(builder: GlbBuilder, nodes: list[int], num_frames: int, seconds: Float[np.ndarray, "t"]) -> None:
    """One animation that shows target k - 1 alone at frame k, and none at frame 0."""
    weights = np.eye(num_frames, num_frames - 1, -1)
    sampler = {"input": builder.add_scalars(seconds), "output": builder.add_scalars(weights.reshape(-1)), "interpolation": "LINEAR"}
    channels = [{"sampler": 0, "target": {"node": node, "path": "weights"}} for node in nodes]
    builder.gltf["animations"] = [{"name": "animation", "samplers": [sampler], "channels": channels}]


def _checked_times(
    vertices: Float[Tensor, "t v 3"], faces: Int[Tensor, "f 3"], fps: float | int, times: Sequence[float] | None
) -> Float[np.ndarray, "t"]:
    num_frames, num_vertices, _ = vertices.shape
    if not (num_frames and num_vertices and len(faces)):
        raise ValueError(f"An animated GLB needs frames, vertices and faces; got {num_frames}, {num_vertices} and {len(faces)}.")
    bad = (~vertices.isfinite()).flatten(1).any(1)
    if bool(bad.any()):
        raise ValueError(f"Frame {int(bad.float().argmax())} of the animation has vertices that are not finite.")
    if not (int(faces.min()) >= 0 and int(faces.max()) < num_vertices):
        raise ValueError(f"The faces name vertices {int(faces.min())} to {int(faces.max())}, but the mesh has {num_vertices}.")
    if times is None:
        if not 0 < fps < np.inf:
            raise ValueError(f"fps must be positive; got {fps}.")
        return np.arange(num_frames) / fps
    seconds = np.array([float(time) for time in times])
    if len(seconds) != num_frames or not (np.isfinite(seconds).all() and (np.diff(seconds) > 0).all() and seconds[0] >= 0):
        raise ValueError(f"times must be {num_frames} increasing numbers of seconds from 0 on; got {list(times)[:6]}.")
    return seconds
