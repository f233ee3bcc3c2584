"""A user's own mesh: merged and scaled into the box for the models, and the way back to the file's vertices, so that textures survive."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from visiongraft.geometry.meshes import BoxFit, fit_to_box
from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.meshes import check_mesh, merge_vertices
from visiongraft.methods.action_mesh.mesh_yaw import turn

_MERGE_DISTANCE = 1e-6


@dataclass(frozen=True, eq=False)
class UserMesh:
    """A mesh in the models' box, and what leads back.

    Args:
        vertices: in the box, turned by the yaw, without duplicates.
        faces: of these.
        original: the mesh as it was given.
        merged: for each original vertex its number in ``vertices``; -1 where no face uses it.
        fit: into the box, after the turn.
        yaw_deg: turn about the vertical axis before the models saw it.
        path: of the file, for its textures; ``None`` for a mesh in memory.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    original: Mesh
    merged: Int[Tensor, "w"]
    fit: BoxFit
    yaw_deg: float
    path: Path | None = None

    def restore(self, vertices: Float[Tensor, "t v 3"]) -> Float[Tensor, "t w 3"]:
        """An animation of ``vertices`` in the coordinates and the order of the original, whose faces fit it.

        Original vertices that no face uses stay where they were.

        Raises:
            ValueError: another number of vertices.

        Source: ActionMesh brief, 2.9 (undo scale and centre, expand to the original indexing).
        """
        if vertices.shape[1] != len(self.vertices):
            raise ValueError(f"The mesh has {len(self.vertices)} merged vertices; got an animation of {vertices.shape[1]}.")
        used = (self.merged >= 0).to(vertices.device)
        moved = turn(self.fit.undo(vertices), -self.yaw_deg)
        expanded = self.original.vertices.to(vertices).repeat(len(vertices), 1, 1)
        expanded[:, used] = moved[:, self.merged.to(vertices.device)[used]]
        return expanded


def prepare_user_mesh(
    vertices: Float[Tensor, "w 3"],
    faces: Int[Tensor, "f 3"],
    fit_scale: float | int = 1.0,
    yaw_deg: float | int = 0.0,
    *,
    path: Path | None = None,
) -> UserMesh:
    """Merges duplicate vertices and puts the mesh into the box [-fit_scale, fit_scale]^3; the mesh that is given is not changed.

    Args:
        vertices: in any unit, Y up.
        faces: counter-clockwise seen from outside.
        fit_scale: 1 fills the models' box, and motion outward is then cut off at its sides; 0.8 leaves room.
        yaw_deg: turns the mesh about the vertical axis first, see :mod:`visiongraft.methods.action_mesh.mesh_yaw`, which can also
            search for the turn with which it looks as in the video.
        path: of the file, remembered for its textures.

    Raises:
        ValueError: what :func:`visiongraft.media.meshes.check_mesh` refuses, vertices that cannot be told apart after merging, or a
            fit scale outside (0, 1].

    Source: ActionMesh brief, 2.9 (user mesh) and section 10 (pitfalls 7, 9, 11, 17).
    """
    if not 0 < fit_scale <= 1:
        raise ValueError(f"fit_scale must be above 0 and at most 1, the half side of the models' box; got {fit_scale}.")
    check_mesh(vertices, faces, warn=False)
    places, index = merge_vertices(vertices, faces)
    # faces that merging made degenerate have no side and would give their corners no normal
    a, b, c = index.unbind(-1)
    index = index[(a != b) & (b != c) & (c != a)]
    merged = _merge_map(vertices, faces, places)
    turned, fit = fit_to_box(turn(places.float(), yaw_deg), fit_scale)
    return UserMesh(turned, index, Mesh(vertices, faces), merged, fit, float(yaw_deg), path)


def _merge_map(vertices: Float[Tensor, "w 3"], faces: Int[Tensor, "f 3"], places: Float[Tensor, "v 3"]) -> Int[Tensor, "w"]:
    """For each vertex the number of the merged one, by position; -1 where no face uses it."""
    extent = float((places.amax(0) - places.amin(0)).max())
    used = torch.zeros(len(vertices), dtype=torch.bool)
    used[faces.reshape(-1).cpu()] = True
    distance, nearest = cKDTree(places.double().cpu().numpy()).query(vertices.double().cpu().numpy())
    merged = torch.where(used, torch.from_numpy(nearest), -1)
    worst = float((torch.from_numpy(distance)[used]).max()) / extent
    if worst >= _MERGE_DISTANCE:
        raise ValueError(
            f"Vertices moved by {worst:.1e} of the mesh's extent while they were merged; at most {_MERGE_DISTANCE} is allowed."
        )
    return merged
