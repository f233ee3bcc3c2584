"""Triangle meshes as pure functions: normals, volume, boxes, points on the surface.

A mesh is vertices ``(v, 3)`` and faces ``(f, 3)``, counter-clockwise seen from outside; an animation is vertices ``(t, v, 3)`` with the
same faces. Everything here takes leading axes of vertices, and is differentiable in them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_EPS = 1e-20  # of squared lengths: a vertex without faces gets the normal 0, not NaN


class SurfaceSamples(NamedTuple):
    """Points on a surface, and where on it they lie: the same faces and barycentrics move with an animation."""

    points: Float[Tensor, "num 3"]
    face: Int[Tensor, "num"]
    barycentrics: Float[Tensor, "num 3"]
    normals: Float[Tensor, "num 3"]


@dataclass(frozen=True, eq=False)
class BoxFit:
    """A shift and a scale that put a mesh into a box about the origin; ``apply`` and its inverse ``undo``.

    Args:
        center: of the mesh's bounding box.
        scale: factor after the shift.
    """

    center: Float[Tensor, "3"]
    scale: float

    def apply(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """From the mesh's own coordinates into the box."""
        return (points - self.center.to(points)) * self.scale

    def undo(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """From the box back to the mesh's own coordinates."""
        return points / self.scale + self.center.to(points)


def face_vectors(vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "*batch f 3"]:
    """Cross product of two edges of every face: its outward normal, twice its area long."""
    a, b, c = (vertices[..., faces[:, corner], :] for corner in range(3))
    return torch.linalg.cross(b - a, c - a)


def face_areas(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "f"]:
    """Area of every triangle, square units.

    Raises:
        ValueError: faces that name vertices the mesh does not have.
    """
    _check_faces(vertices, faces)
    return 0.5 * face_vectors(vertices, faces).norm(dim=-1)


def face_normals(vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "*batch f 3"]:
    """Unit normals of faces; zero where a face has no area.

    Raises:
        ValueError: faces that name vertices the mesh does not have.
    """
    _check_faces(vertices, faces)
    return _unit(face_vectors(vertices, faces))


def vertex_normals(vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "*batch v 3"]:
    """Unit normals of vertices: the mean of the faces around each, weighted by area; zero for a vertex without faces.

    Vertices at the same place with an index each (seams) are different vertices: merge them first, or the normals differ there.

    Raises:
        ValueError: faces that name vertices the mesh does not have.

    Source: ActionMesh brief, 2.6 and section 10 (pitfall 11).
    """
    _check_faces(vertices, faces)
    vectors = face_vectors(vertices, faces)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(-2, faces[:, corner], vectors)
    return _unit(total)


def signed_volume(vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "*batch"]:
    """Volume inside a closed mesh, cubic units; negative where the faces are wound the wrong way round.

    Raises:
        ValueError: faces that name vertices the mesh does not have.
    """
    _check_faces(vertices, faces)
    # about the middle: far from the origin the terms would cancel
    vertices = vertices - vertices.detach().mean(-2, keepdim=True)
    return (vertices[..., faces[:, 0], :] * face_vectors(vertices, faces)).sum((-2, -1)) / 6


def bounding_box(vertices: Float[Tensor, "*batch v 3"]) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Least and greatest corner of the vertices.

    Raises:
        ValueError: no vertices.
    """
    if not vertices.shape[-2]:
        raise ValueError("A mesh without vertices has no bounding box.")
    return vertices.amin(-2), vertices.amax(-2)


def fit_to_box(vertices: Float[Tensor, "*batch v 3"], half_extent: float | int = 1.0) -> tuple[Float[Tensor, "*batch v 3"], BoxFit]:
    """Centres a mesh and scales it so that its longest side reaches from ``-half_extent`` to ``half_extent``.

    An animation is fitted as a whole: one box around all of its frames.

    Args:
        vertices: of a mesh or an animation; not changed.
        half_extent: 1 fills the box [-1, 1]; less leaves room for motion outward.

    Returns:
        The fitted vertices, and the fit that made them.

    Raises:
        ValueError: no vertices, vertices that are not finite or all in one place, or a half extent that is not positive.

    Source: ActionMesh brief, 2.9 (user mesh) and section 10 (pitfall 9).
    """
    if not half_extent > 0:
        raise ValueError(f"half_extent must be positive; got {half_extent}.")
    if not bool(vertices.isfinite().all()):
        raise ValueError("A mesh with vertices that are not finite cannot be fitted to a box.")
    low, high = bounding_box(vertices.reshape(-1, 3))
    longest = float((high - low).max())
    if not longest > 0:
        raise ValueError("All vertices of the mesh are in one place: it has no extent that could be scaled.")
    fit = BoxFit((low + high) / 2, 2 * half_extent / longest)
    return fit.apply(vertices), fit


def surface_samples(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], num: int, generator: torch.Generator) -> SurfaceSamples:
    """Random points on a mesh, uniform by area, with face normals; differentiable in the vertices.

    To follow the points through an animation, sample one frame and call :func:`points_on_faces` with the vertices of all.

    Args:
        vertices: of one mesh.
        faces: of it.
        num: how many points.
        generator: of the randomness; on any device.

    Returns:
        Points, the face of each, barycentrics that sum to 1, and unit normals of the faces.

    Raises:
        ValueError: a mesh without area, or faces that name vertices it does not have.

    Source: ActionMesh brief, 2.2 and section 7 (synchronised points).
    """
    total = face_areas(vertices, faces).detach().double().cumsum(0)
    if not len(faces) or not float(total[-1]) > 0:
        raise ValueError(f"The mesh has {len(faces)} faces and no area, so that no point can lie on it.")
    dice = torch.rand(num, 3, dtype=torch.float64, generator=generator, device=generator.device).to(vertices.device)
    face = torch.searchsorted(total, dice[:, 0] * total[-1], right=True).clamp(max=len(faces) - 1)
    root, along = dice[:, 1].sqrt(), dice[:, 2]  # the root makes strips parallel to an edge equally likely by area
    barycentrics = torch.stack([1 - root, root * (1 - along), root * along], -1).to(vertices)
    normals = _unit(face_vectors(vertices, faces[face]))
    return SurfaceSamples(points_on_faces(vertices, faces, face, barycentrics), face, barycentrics, normals)


def points_on_faces(
    vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"], face: Int[Tensor, "num"], barycentrics: Float[Tensor, "num 3"]
) -> Float[Tensor, "*batch num 3"]:
    """Points at given places on the surface, of one mesh or of every frame of an animation."""
    corners = vertices[..., faces[face], :]
    return (corners * barycentrics[..., None].to(vertices)).sum(-2)


def _unit(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    # scaled first: the square of a small face's normal would underflow in float32
    size = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(size > 0, size, 1.0)
    return scaled * (scaled.square().sum(-1, keepdim=True) + _EPS).rsqrt()


def _check_faces(vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"]) -> None:
    if faces.numel() and not (int(faces.min()) >= 0 and int(faces.max()) < vertices.shape[-2]):
        raise ValueError(f"The faces name vertices {int(faces.min())} to {int(faces.max())}, but the mesh has {vertices.shape[-2]}.")
