"""What is read out of the study's results: shapes, their distances and overlaps, the side of the tail, and stage II's motion."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visiongraft.geometry.isosurfaces import extract_isosurface
from visiongraft.geometry.surfaces import Mesh
from visiongraft.methods.action_mesh.study_clips import Clips, overlap_points
from visiongraft.metrics.animated_meshes import VARIANTS, AnimationProtocol, cloud_flicker, sample_frames, score_animation, vertex_flicker
from visiongraft.metrics.chamfer import nearest_points
from visiongraft.metrics.occupancy import occupancy_iou

CLEAR_ANGLE = 0.35
"""Radians from which a tail is clearly on one side. Source: ActionMesh brief, 9."""
_NOTHING = 1e-3


def light_protocol(points: int, icp_steps: int) -> AnimationProtocol:
    """The light distances of small studies with a number of points on every mesh, and of steps of the alignment."""
    light = VARIANTS["light"]
    # starts are weeded out after a fifth of the steps, as in the light preset
    icp = replace(light.icp, steps=icp_steps, prune_after=icp_steps // 5)
    return replace(light, points=points, icp_points=min(light.icp_points, points), queries=points, icp=icp)


@torch.no_grad()
def decoded_meshes(vae: Any, latents: Float[Tensor, "frames tokens channels"], resolution: int) -> tuple[list[Mesh], int]:
    """The mesh of every frame, and how many frames have no surface: those get :func:`nothing`, and are measured as bad as it is."""
    meshes, empty = [], 0
    for latent in latents:
        context = vae.decode_context(latent[None])
        mesh = surface(lambda points, context=context: vae.query(context, points[None])[0], resolution)
        empty += mesh is None
        meshes.append(nothing() if mesh is None else mesh)
    return meshes, empty


def surface(field: Any, resolution: int) -> Mesh | None:
    """Where a field, positive inside, is zero; None where it never is positive.

    Raises:
        ValueError: values that are not finite.
    """
    try:
        found = extract_isosurface(field, resolution, levels=1)
    except ValueError as error:
        if "no zero crossing" in str(error):
            return None
        raise
    return Mesh(found.vertices, found.faces)


def nothing() -> Mesh:
    """A tetrahedron of a thousandth about the origin."""
    vertices = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return Mesh(_NOTHING * vertices, torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]))


def measure_meshes(meshes: Sequence[Mesh], clips: Clips, index: int, protocol: AnimationProtocol, tracked: bool) -> dict[str, float]:
    """Distances, flicker and the side of the tail of one clip.

    Args:
        meshes: of every frame.
        clips, index: the truth.
        protocol: of the distances; see :func:`light_protocol`.
        tracked: the meshes have one topology: CD-M and the flicker of vertices are measured, too.

    Returns:
        ``cd_3d``, ``cd_4d`` (and ``cd_m``) in world units; ``change`` and ``detour`` of :func:`cloud_flicker` (and ``jitter`` of
        :func:`vertex_flicker`); ``agree`` of ``counted`` frames by :func:`side_agreement`.
    """
    scores = score_animation(clips.truth[index, ..., :3], meshes, protocol, motion=tracked)
    clouds = sample_frames(meshes, protocol.points, protocol.seed)
    flicker = cloud_flicker(clouds, protocol.points)
    agree, counted = side_agreement(right_sides(clouds, clips.tail()[index]), clips.creatures.angles[index])
    row = {"cd_3d": scores.cd_3d, "cd_4d": scores.cd_4d, "change": flicker.change, "detour": flicker.detour}
    row |= {"agree": agree, "counted": counted}
    if scores.cd_motion is not None:
        row |= {"cd_m": scores.cd_motion, "jitter": vertex_flicker(torch.stack([mesh.vertices for mesh in meshes]))}
    return row


@torch.no_grad()
def measure_overlap(vae: Any, latents: Float[Tensor, "frames tokens channels"], clips: Clips, index: int) -> dict[str, float]:
    """``iou_3d`` and ``iou_4d`` of one clip; see :func:`overlaps`."""
    points = overlap_points(clips.grid)
    logits = vae.query(vae.decode_context(latents), points.expand(len(latents), -1, -1))
    each, together = overlaps(logits > 0, clips.inside[index], clips.grid)
    return {"iou_3d": each, "iou_4d": together}


def overlaps(prediction: Bool[Tensor, "frames points"], truth: Bool[Tensor, "frames points"], grid: int) -> tuple[float, float]:
    """Intersection over union, mean over frames, of shapes that may be turned by half a turn about x.

    The animals' silhouettes cannot tell the two. Every frame takes the better one (IoU-3D), or all take that of frame 0 (IoU-4D).

    Args:
        prediction, truth: which of :func:`overlap_points` are inside.
        grid: points a side of the grid that those are of.
    """
    cells = prediction.unflatten(-1, (grid, -1, grid))
    both = torch.stack([occupancy_iou(one.flatten(1), truth) for one in (cells, cells.flip(2, 3))])
    return float(both.amax(0).mean()), float(both[both[:, 0].argmax()].mean())


def right_sides(clouds: Float[Tensor, "frames n 3"], tail: Float[Tensor, "_frames places 3"]) -> Bool[Tensor, " frames"]:
    """Whether each frame's surface is nearer to the tail's true place than to its mirror image in depth."""
    mirrored = tail * torch.tensor([1.0, 1.0, -1.0])
    near = lambda places, cloud: float(nearest_points(places, cloud)[0].mean())
    pairs = zip(clouds, tail, mirrored, strict=True)
    return torch.tensor([near(here, cloud) < near(there, cloud) for cloud, here, there in pairs])


def side_agreement(right: Bool[Tensor, " frames"], angles: Float[Tensor, " frames"]) -> tuple[int, int]:
    """Frames whose tail is on the side that frame 0 makes one expect, and frames that were counted.

    Where frame 0 is right the others should be, where it is turned about they should be, too: chance is one half. Frames count whose
    true tail is clearly on one side, of clips where it is in frame 0.

    Source: ActionMesh brief, 9 (side agreement).
    """
    clear = angles.abs() > CLEAR_ANGLE
    if not bool(clear[0]):
        return 0, 0
    return int((right[1:] == right[0])[clear[1:]].sum()), int(clear[1:].sum())


def motion_errors(
    predicted: Float[Tensor, "frames v 3"], truth: Float[Tensor, "frames v 3"], seen: Bool[Tensor, "frames v"], source: int
) -> dict[str, float]:
    """Mean distance of vertices from where they truly are, over the target frames and the vertices that are seen there and at the source.

    Returns:
        ``error``; that of two answers that know less: ``still`` (the position at the source) and ``nearest`` (the nearest vertex of the
        true target mesh, which knows the shape and not who is who).
    """
    rows: dict[str, list[float]] = {"error": [], "still": [], "nearest": []}
    for frame in range(len(truth)):
        if frame == source:
            continue
        both = seen[source] & seen[frame]
        start, end = truth[source][both], truth[frame][both]
        snapped = truth[frame][seen[frame]][nearest_points(start, truth[frame][seen[frame]])[1]]
        for name, guess in (("error", predicted[frame][both]), ("still", start), ("nearest", snapped)):
            rows[name].append(float((guess - end).norm(dim=-1).mean()))
    return {name: sum(values) / len(values) for name, values in rows.items()}


def true_meshes(clips: Clips, index: int, resolution: int) -> list[Mesh]:
    """Meshes of the true shapes by the same extraction: what a perfect result would be measured as."""
    animal = clips.animal(index)
    frames = range(len(clips.times))

    def inside(points: Tensor, frame: int) -> Tensor:
        return -animal.frames(torch.tensor([[frame]])).sdf(points[None, None])[0, 0]

    found = [surface(lambda points, frame=frame: inside(points, frame), resolution) for frame in frames]
    return [mesh for mesh in found if mesh is not None]
