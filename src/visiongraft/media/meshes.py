"""Mesh files: reading, checking and cleaning. Vertices keep the order and the seams of the file until they are merged on purpose."""

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.meshes import face_vectors
from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.animated_glb import read_animated_glb, write_animated_glb
from visiongraft.media.files import atomic_write

__all__ = ["MESH_SUFFIXES", "Mesh", "check_mesh", "clean_mesh", "is_watertight", "merge_vertices", "num_parts", "read_mesh", "write_mesh"]

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
_WRITTEN = (".glb", ".obj", ".ply", ".stl", ".off")
HUGE_FACES = 1_000_000


def read_mesh(path: str | Path, *, warn: bool = True) -> Mesh:
    """Reads a mesh file as one mesh in world coordinates; all parts of a scene follow each other.

    The vertices are those of the file, in its order: where a texture has a seam, two vertices stand in one place. That order is the
    one in which :func:`visiongraft.media.animated_glb.write_animated_glb` puts an animation back into the file.

    Args:
        path: GLB, glTF, OBJ, PLY, STL or OFF. Of an animated GLB the first frame is taken.
        warn: whether to warn of what makes a mesh hard to work with, see :func:`check_mesh`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, one that cannot be read, and what :func:`check_mesh` refuses.

    Source: ActionMesh brief, 2.9 and section 10 (pitfall 12, bad input).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no mesh file {path}.")
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise ValueError(f"{path}: a mesh file is one of {', '.join(MESH_SUFFIXES)}; got {path.suffix or 'no suffix'!r}.")
    if suffix == ".glb":
        animated = read_animated_glb(path)
        mesh = Mesh(animated.vertices[0], animated.faces)
    else:
        mesh = _read_with_trimesh(path)
    check_mesh(mesh.vertices, mesh.faces, str(path), warn=warn)
    return mesh


def _read_with_trimesh(path: Path) -> Mesh:
    import trimesh

    try:
        scene = trimesh.load_scene(path, process=False, maintain_order=True)
    except Exception as error:  # each of its readers raises what it likes
        raise ValueError(f"{path} cannot be read as a mesh ({type(error).__name__}: {error}). Export it again, best as GLB.") from error
    vertices, faces, start, points = [], [], 0, 0
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        shape = scene.geometry[name]
        if not isinstance(shape, trimesh.Trimesh):
            points += len(getattr(shape, "vertices", ())) if isinstance(shape, trimesh.PointCloud) else 0
            continue
        own = np.asarray(shape.faces, np.int64)
        vertices.append(np.asarray(shape.vertices) @ matrix[:3, :3].T + matrix[:3, 3])
        faces.append((own[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else own) + start)
        start += len(shape.vertices)
    if not sum(map(len, faces)) and points:
        raise ValueError(f"{path} is a point cloud, not a mesh: it has {points:,} points but no faces. Reconstruct a surface first.")
    if not sum(map(len, faces)):
        raise ValueError(f"{path} has no faces: a mesh of triangles is needed.")
    return Mesh(torch.from_numpy(np.concatenate(vertices).astype(np.float32)), torch.from_numpy(np.concatenate(faces)))


def check_mesh(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], name: str = "The mesh", *, warn: bool = True) -> None:
    """Refuses what is no mesh, and warns of meshes that are hard to work with: open, of several parts, or huge.

    Raises:
        ValueError: no faces, vertices that are not finite, faces beyond the vertices, no extent, or no face with an area.

    Source: ActionMesh brief, section 10 (bad input; pitfall 18).
    """
    if not len(faces):
        raise ValueError(f"{name} has no faces: a mesh of triangles is needed.")
    bad = int((~vertices.isfinite().all(-1)).sum())
    if bad:
        raise ValueError(f"{name} has {bad} of {len(vertices)} vertices that are not finite (NaN or infinity); repair it first.")
    if not (int(faces.min()) >= 0 and int(faces.max()) < len(vertices)):
        raise ValueError(f"{name} has faces that name vertices {int(faces.min())} to {int(faces.max())}, but {len(vertices)} vertices.")
    used = vertices[faces.reshape(-1)]
    if not float((used.amax(0) - used.amin(0)).max()) > 0:
        raise ValueError(f"{name} has no extent: all of its vertices are in one place.")
    if not bool((face_vectors(vertices.double(), faces) != 0).any()):
        raise ValueError(f"{name} is degenerate: none of its {len(faces)} faces has an area.")
    if not warn:
        return
    if len(faces) > HUGE_FACES:
        warnings.warn(f"{name} is huge ({len(faces):,} faces); decimate it first, e.g. with clean_mesh.", stacklevel=3)
    merged, index = merge_vertices(vertices, faces)
    if not is_watertight(index):
        warnings.warn(f"{name} is not watertight; open shells and thin sheets are encoded badly. Close its holes first.", stacklevel=3)
    parts = num_parts(index, len(merged))
    if parts > 1:
        warnings.warn(f"{name} has {parts} parts that are not connected; they may move apart.", stacklevel=3)


def merge_vertices(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> tuple[Float[Tensor, "w 3"], Int[Tensor, "f 3"]]:
    """Vertices in exactly one place become one; those that no face names go. Faces keep their order, and may become degenerate."""
    # adding zero makes -0 and 0 the same; unique compares bytes
    used, inverse = np.unique(faces.cpu().numpy(), return_inverse=True)
    places, index = np.unique(vertices.detach().cpu().numpy()[used] + 0.0, axis=0, return_inverse=True)
    merged = torch.from_numpy(places).to(vertices)
    return merged, torch.from_numpy(index.reshape(-1)[inverse.reshape(-1)].reshape(-1, 3)).to(faces)


def is_watertight(faces: Int[Tensor, "f 3"]) -> bool:
    """Whether every edge is shared by two faces that run along it in opposite directions; merge the vertices first."""
    index = _proper(faces).cpu().numpy().astype(np.int64)
    edges = np.concatenate([index[:, [0, 1]], index[:, [1, 2]], index[:, [2, 0]]])
    if not len(edges):
        return False
    size = int(edges.max()) + 1
    forward, back = np.sort(edges[:, 0] * size + edges[:, 1]), np.sort(edges[:, 1] * size + edges[:, 0])
    return bool((forward[1:] != forward[:-1]).all() and np.array_equal(forward, back))


def num_parts(faces: Int[Tensor, "f 3"], num_vertices: int) -> int:
    """Connected parts of a mesh; merge the vertices first."""
    return len(np.unique(_part_of_faces(faces.cpu().numpy(), num_vertices)))


def clean_mesh(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], max_faces: int | None = 40_000, min_part: float | int = 0.02
) -> Mesh:
    """A tidy mesh: vertices merged, degenerate and double faces gone, decimated, without small parts and unused vertices.

    Args:
        vertices: of any mesh; not changed.
        faces: of it.
        max_faces: more are decimated to this number by quadrics; ``None`` keeps all.
        min_part: connected parts with a smaller share of the faces of the largest part are dropped; 0 keeps all.

    Returns:
        The cleaned mesh, float32, on the CPU.

    Raises:
        ValueError: what :func:`check_mesh` refuses, or ``max_faces`` below 4.

    Source: ActionMesh brief, 2.9 (anchor mesh clean-up).
    """
    if max_faces is not None and max_faces < 4:
        raise ValueError(f"max_faces must be at least 4, the faces of a tetrahedron; got {max_faces}.")
    check_mesh(vertices, faces, warn=False)
    mesh = _tidy(vertices.detach().cpu().float(), faces.cpu().long())
    if max_faces is not None and len(mesh.faces) > max_faces:
        mesh = _decimated(mesh, max_faces)
    parts = _part_of_faces(mesh.faces.numpy(), len(mesh.vertices))
    _, part, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    keep = sizes[part.reshape(-1)] >= min_part * sizes.max()
    return _tidy(mesh.vertices, mesh.faces[torch.from_numpy(keep)])


def _tidy(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Mesh:
    merged, index = merge_vertices(vertices, faces)
    index = _proper(index)
    index = index[(face_vectors(merged.double(), index) != 0).any(-1)]
    # of double faces the first stays; which corner comes first does not matter
    _, first = np.unique(index.sort(-1).values.numpy(), axis=0, return_index=True)
    return Mesh(*merge_vertices(merged, index[torch.from_numpy(np.sort(first))]))


def _proper(faces: Int[Tensor, "f 3"]) -> Int[Tensor, "g 3"]:
    """Faces with three different corners."""
    a, b, c = faces.unbind(-1)
    return faces[(a != b) & (b != c) & (c != a)]


def _decimated(mesh: Mesh, max_faces: int) -> Mesh:
    import fast_simplification

    simplified = fast_simplification.simplify(mesh.vertices.numpy(), mesh.faces.numpy().astype(np.int32), target_count=max_faces)
    vertices, faces = simplified[:2]
    return _tidy(torch.from_numpy(np.asarray(vertices, np.float32)), torch.from_numpy(np.asarray(faces, np.int64)))


def _part_of_faces(faces: Int[np.ndarray, "f 3"], num_vertices: int) -> Int[np.ndarray, "f"]:
    """For each face a number of the connected part that it belongs to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start = np.concatenate([faces[:, 0], faces[:, 1]])
    end = np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), (num_vertices, num_vertices))
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def write_mesh(path: str | Path, vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Path:
    """Writes one mesh as GLB, OBJ, PLY, STL or OFF, atomically.

    Raises:
        ValueError: another suffix, or what :func:`check_mesh` refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITTEN:
        raise ValueError(f"{path}: a mesh is written as one of {', '.join(_WRITTEN)}; got {path.suffix or 'no suffix'!r}.")
    check_mesh(vertices, faces, warn=False)
    if suffix == ".glb":
        return write_animated_glb(path, vertices[None], faces)
    import trimesh

    mesh = trimesh.Trimesh(vertices.detach().cpu().numpy(), faces.cpu().numpy(), process=False)
    with atomic_write(path) as temporary:
        mesh.export(temporary, file_type=suffix[1:])
    return path
