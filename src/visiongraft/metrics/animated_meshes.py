"""How good an animated mesh is: ActionBench's CD-3D, CD-4D and CD-M, and flicker.

    scores = score_animation(truth, animation_frames(vertices, faces), "light")
    print(scores.cd_3d, scores.cd_4d, scores.cd_motion)

CD-3D aligns every frame by itself: is each shape right? CD-4D aligns the first frame and keeps the pose: does the shape stay in place?
CD-M follows points that start together: does the surface move as it should? It needs one topology for all frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from visiongraft.geometry.meshes import face_areas
from visiongraft.geometry.surfaces import Mesh
from visiongraft.metrics.chamfer import (
    chamfer_distance,
    check_cloud,
    motion_chamfer_distance,
    subsample_clouds,
)
from visiongraft.metrics.registration import LIGHT, PAPER, RELEASED, Alignment, IcpOptions, register

_MAX_FACES = 1 << 24  # that torch.multinomial draws from


@dataclass(frozen=True, kw_only=True)
class AnimationProtocol:
    """Everything that the three distances depend on besides the meshes.

    Args:
        points: drawn on every predicted mesh.
        icp_points: of each cloud that are aligned.
        queries: of each cloud that look for the nearest point of the other.
        icp: how clouds are aligned.
        squared: average squared distances.
        seed: of everything that is drawn; frame k is sampled with ``seed + k``.

    Source: ActionMesh brief, 7.
    """

    points: int = 100_000
    icp_points: int = 10_000
    queries: int = 10_000
    icp: IcpOptions = RELEASED
    squared: bool = False
    seed: int = 44


VARIANTS = {
    "released": AnimationProtocol(),
    "paper": AnimationProtocol(icp=PAPER, squared=True),
    "light": AnimationProtocol(points=600, icp_points=150, queries=600, icp=LIGHT),
}
"""``released``: as coded, what all published numbers are. ``paper``: as worded, squared distances and a rigid pose. ``light``: for small
studies, comparable with itself only."""


class AnimationScores(NamedTuple):
    """The distances of one animation, in units of the truth; lower is better.

    ``cd_motion`` is ``None`` where it was not asked for. ``pose`` maps the prediction onto the truth as the first frame says.
    """

    cd_3d: float
    cd_4d: float
    cd_motion: float | None
    pose: Alignment


def animation_frames(vertices: Float[Tensor, "frames v 3"], faces: Int[Tensor, "f 3"]) -> list[Mesh]:
    """An animation of one topology as a list of meshes."""
    return [Mesh(frame, faces) for frame in vertices]


def score_animation(
    truth: Float[Tensor, "frames q 3"],
    meshes: Sequence[Mesh],
    variant: str | AnimationProtocol = "released",
    *,
    motion: bool = True,
    device: torch.device | str = "cpu",
    search: str = "auto",
    progress: bool = False,
) -> AnimationScores:
    """CD-3D, CD-4D and CD-M of a predicted animation.

    With the released protocol one core of a CPU takes about four minutes a frame, nearly all of them for the alignment (by brute force
    it would be more than an hour); it uses as many threads as PyTorch may. On a GPU the alignment is brute force.

    Args:
        truth: tracked surface points: point i is the same piece of surface in every frame.
        meshes: one a frame, in any pose and scale.
        variant: ``released``, ``paper``, ``light`` or a protocol of your own; see :data:`VARIANTS`.
        motion: measure CD-M too. Meshes made frame by frame have no common faces and no CD-M.
        device: where clouds are aligned.
        search: how nearest points are found; see :func:`visiongraft.metrics.chamfer.nearest_points`.
        progress: show a bar over the steps of the alignment.

    Raises:
        ValueError: an unknown variant, another number of meshes than frames, a mesh without faces or area, values that are not
            finite, or with ``motion`` faces that differ between frames.

    Source: ActionMesh brief, 7.
    """
    protocol = find_variant(variant)
    if len(truth) != len(meshes) or not meshes:
        raise ValueError(f"The truth has {len(truth)} frames and the prediction {len(meshes)} meshes; give one mesh a frame.")
    check_cloud(truth, "truth")
    if motion:
        check_one_topology(meshes)
    truth = truth.float()
    clouds = sample_frames(meshes, protocol.points, protocol.seed)
    with tqdm(total=protocol.icp.steps, desc="aligning", disable=not progress, leave=False) as bar:

        def told(step: int, steps: int) -> None:
            bar.update(step - bar.n)

        poses = register(
            subsample_clouds(clouds, protocol.icp_points, protocol.seed).to(device),
            subsample_clouds(truth, protocol.icp_points, protocol.seed).to(device),
            protocol.icp,
            search=search,
            progress=told,
        ).to("cpu")
    pose = poses.frame(0)

    def mean_distance(aligned: Tensor) -> float:
        pairs = zip(aligned, truth, strict=True)
        return float(
            np.mean([chamfer_distance(a, t, protocol.queries, protocol.seed, squared=protocol.squared, search=search) for a, t in pairs])
        )

    cd_motion = None
    if motion:
        tracked = pose.apply(sample_tracked(meshes, protocol.points, protocol.seed))
        cd_motion = motion_chamfer_distance(tracked, truth, squared=protocol.squared, search=search)
    return AnimationScores(mean_distance(poses.apply(clouds)), mean_distance(pose.apply(clouds)), cd_motion, pose)


def find_variant(variant: str | AnimationProtocol) -> AnimationProtocol:
    """A protocol by name.

    Raises:
        ValueError: no such name.
    """
    if isinstance(variant, AnimationProtocol):
        return variant
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    return VARIANTS[variant]


def check_one_topology(meshes: Sequence[Mesh]) -> None:
    """Refuses meshes whose faces are not the same in all frames.

    Raises:
        ValueError: the first frame that differs.
    """
    first = meshes[0]
    for k, mesh in enumerate(meshes):
        if mesh.vertices.shape != first.vertices.shape or not torch.equal(mesh.faces, first.faces):
            raise ValueError(
                f"Frame {k} has {len(mesh.vertices)} vertices and {len(mesh.faces)} faces that are not those of frame 0 "
                f"({len(first.vertices)} and {len(first.faces)}): CD-M needs one topology. Leave it out with motion=False for meshes that "
                "were made frame by frame."
            )


def sample_frames(meshes: Sequence[Mesh], num: int, seed: int = 44) -> Float[Tensor, "frames num 3"]:
    """Random points on every mesh, uniform by area; frame k has its own, drawn with ``seed + k``.

    They are trimesh's, so that the points are those of the released benchmark.

    Raises:
        ValueError: a mesh without faces or area, or with vertices that are not finite.
    """
    clouds = []
    for k, mesh in enumerate(meshes):
        _check_mesh(mesh, k)
        shape = trimesh.Trimesh(mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy(), process=False)
        points = trimesh.sample.sample_surface(shape, num, seed=seed + k)[0]
        clouds.append(torch.from_numpy(np.asarray(points)).float())
    return torch.stack(clouds)


def sample_tracked(meshes: Sequence[Mesh], num: int, seed: int = 44) -> Float[Tensor, "frames num 3"]:
    """Random points on the first mesh, uniform by area, and the same points of the surface in all other frames.

    Raises:
        ValueError: faces that differ between frames, or a first mesh without area.
    """
    check_one_topology(meshes)
    for k, mesh in enumerate(meshes):
        _check_mesh(mesh, k)
    faces = meshes[0].faces.cpu()
    if len(faces) > _MAX_FACES:
        raise ValueError(f"The mesh has {len(faces):,} faces, more than the {_MAX_FACES:,} that can be sampled; decimate it first.")
    generator = torch.Generator().manual_seed(seed)
    face = face_areas(meshes[0].vertices.detach().cpu().float(), faces).multinomial(num, replacement=True, generator=generator)
    u, v = torch.rand(2, 1, num, generator=generator)[:, 0]
    root = u.sqrt()
    weights = torch.stack([1 - root, root * (1 - v), root * v], -1)
    corners = faces[face]
    return torch.stack([(weights[..., None] * mesh.vertices.detach().cpu().float()[corners]).sum(1) for mesh in meshes])


def _check_mesh(mesh: Mesh, frame: int) -> None:
    if not len(mesh.faces):
        raise ValueError(f"The mesh of frame {frame} has no faces.")
    if not bool(mesh.vertices.isfinite().all()):
        raise ValueError(f"The mesh of frame {frame} has vertices that are not finite.")
    if not mesh.area > 0:
        raise ValueError(f"The mesh of frame {frame} has {len(mesh.faces)} faces but no area.")


def vertex_flicker(points: Float[Tensor, "frames v 3"]) -> float:
    """Mean length of the second difference ``x[k+1] - 2 x[k] + x[k-1]`` of tracked points, in world units.

    It is 0 for uniform motion and 4a for points that jump between +a and -a. True motion accelerates too: compare with the truth's own.

    Raises:
        ValueError: fewer than 3 frames.
    """
    if len(points) < 3:
        raise ValueError(f"Flicker needs at least 3 frames; got {len(points)}.")
    return float((points[2:] - 2 * points[1:-1] + points[:-2]).norm(dim=-1).double().mean())


class CloudFlicker(NamedTuple):
    """Flicker of shapes without tracked points.

    ``change`` is the mean chamfer distance between neighbouring frames, ``detour`` the mean of :func:`cloud_flicker`.
    """

    change: float
    detour: float


def cloud_flicker(clouds: Float[Tensor, "frames n 3"], num: int = 10_000, seed: int = 44, *, search: str = "auto") -> CloudFlicker:
    """Flicker of a sequence of surfaces, which need not have anything in common: how far each frame lies off the way between its
    neighbours.

    With c(i, j) the (unsquared, symmetric) chamfer distance of frames i and j, the detour of frame k is
    ``c(k-1, k) + c(k, k+1) - c(k-1, k+1)``, the counterpart of the second difference of tracked points: near 0 where the shape goes
    steadily on, twice the jump where it jumps away and back. Points drawn anew in each frame add the distance c of two samplings of
    one surface to ``change`` and to ``detour``; compare at equal numbers of points only.

    Args:
        clouds: points on the surface of each frame, all in one pose.
        num: queries drawn from each cloud; 0 asks from all.
        seed: draws the queries.
        search: see :func:`visiongraft.metrics.chamfer.nearest_points`.

    Raises:
        ValueError: fewer than 3 frames, or as :func:`visiongraft.metrics.chamfer.chamfer_distance`.
    """
    if len(clouds) < 3:
        raise ValueError(f"Flicker needs at least 3 frames; got {len(clouds)}.")

    def distances(gap: int) -> np.ndarray:
        return np.array([chamfer_distance(a, b, num, seed, search=search) for a, b in zip(clouds[gap:], clouds[:-gap], strict=True)])

    near, far = distances(1), distances(2)
    return CloudFlicker(float(near.mean()), float((near[:-1] + near[1:] - far).mean()))
