"""Meshes that a user gives: a file, a mesh in memory, or vertices and faces, brought into the models' box."""

from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.meshes import check_mesh, merge_vertices, read_mesh
from visiongraft.methods.action_mesh.mesh_yaw import search_yaw, turn
from visiongraft.methods.action_mesh.user_mesh import UserMesh, prepare_user_mesh

MeshSource = str | Path | Mesh | tuple[Tensor, Tensor]
"""A file, a mesh, or (vertices, faces)."""


def take_mesh(
    mesh: MeshSource, fit_scale: float | int = 1.0, mesh_yaw: float | int | str = 0.0, frame: Float[Tensor, "3 side side"] | None = None
) -> UserMesh:
    """A mesh in the box [-fit_scale, fit_scale]^3, and the way back; what is given is not changed.

    Args:
        mesh: Y up, in any unit.
        fit_scale: below 1 it leaves room for motion outward.
        mesh_yaw: turn about Y in degrees, or ``search``: the one of four whose outline is most like the object in ``frame``.
        frame: of the anchor, prepared.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a mesh that cannot be used, another word than ``search``, or a search without a frame.

    Source: ActionMesh brief, 2.9 and section 10 (pitfalls 9, 17).
    """
    vertices, faces, path = _read(mesh)
    if isinstance(mesh_yaw, str):
        if mesh_yaw != "search" or frame is None:
            raise ValueError(f"mesh_yaw is an angle in degrees, or 'search' where there is a frame to compare with; got {mesh_yaw!r}.")
        mesh_yaw, _ = search_yaw(vertices, faces, frame)
    return prepare_user_mesh(vertices, faces, fit_scale, mesh_yaw, path=path)


def into_box_of(mesh: MeshSource, first: UserMesh) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """Another mesh in the same coordinates as one that was taken, by the same turn, shift and scale; duplicate vertices are merged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a mesh that cannot be used.
    """
    vertices, faces, _ = _read(mesh)
    places, index = merge_vertices(vertices, faces)
    return first.fit.apply(turn(places.float(), first.yaw_deg)), index


def _read(mesh: MeshSource) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"], Path | None]:
    if isinstance(mesh, str | Path):
        read = read_mesh(mesh)
        return read.vertices, read.faces, Path(mesh)
    vertices, faces = (mesh.vertices, mesh.faces) if isinstance(mesh, Mesh) else mesh
    check_mesh(vertices, faces)
    return vertices.detach().cpu(), faces.cpu(), None
