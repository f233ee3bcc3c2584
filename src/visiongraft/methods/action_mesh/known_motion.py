"""An animation from a file as one that a longer clip can go on from: its meshes become latents and stay as they are."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.meshes import face_normals, points_on_faces, surface_samples
from visiongraft.methods.action_mesh.animation import Animation
from visiongraft.methods.action_mesh.grouped_sampling import encode_clips
from visiongraft.methods.action_mesh.mesh_yaw import turn
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.methods.action_mesh.shape_latents import SURFACE_POINTS
from visiongraft.methods.action_mesh.user_mesh import UserMesh, prepare_user_mesh

_PARTED = 1e-4  # of the extent


def known_animation(
    pipeline: ActionMeshPipeline,
    vertices: Float[Tensor, "t v 3"],
    faces: Int[Tensor, "f 3"],
    *,
    fit_scale: float | int = 1.0,
    yaw_deg: float | int = 0.0,
    num_tokens: int | None = None,
    num_points: int = SURFACE_POINTS,
    seed: int = 44,
    path: Path | None = None,
) -> Animation:
    """Encodes the meshes of a clip's first frames, with the same points of the surface in every frame.

    Args:
        pipeline: whose VAE encodes.
        vertices: one set a frame, from frame 0 on, Y up, in any unit.
        faces: of all.
        fit_scale: half the longest extent of the first mesh in the box.
        yaw_deg: turn about Y with which the mesh looks as in the first frame.
        num_tokens: of a frame's latents; default: what the denoiser was trained for.
        num_points: of the surface.
        seed: of the points, their subset and the latents.
        path: of the GLB that has its textures.

    Raises:
        ValueError: a mesh that cannot be used, motion that leaves the box, or vertices of one place in the first mesh that part later.

    Source: ActionMesh brief, 2.7 (the same points), 2.11 (extrapolation; several known meshes).
    """
    user = prepare_user_mesh(vertices[0], faces, fit_scale, yaw_deg, path=path)
    box = _in_box(user, vertices, yaw_deg)
    reach = float(box.abs().max())
    if reach > 1 + 1e-5:
        room = int(100 * fit_scale / reach) / 100
        raise ValueError(
            f"The known motion leaves the models' box, which the first mesh alone fills (by {reach:.2f} of its half side); "
            f"give fit_scale {room:g} or less."
        )
    with pipeline.working("vae") as vae:
        device = next(vae.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        samples = surface_samples(box[0], user.faces, num_points, generator)
        places = points_on_faces(box, user.faces, samples.face, samples.barycentrics)
        points = torch.cat([places, face_normals(box, user.faces)[:, samples.face]], -1)
        tokens = pipeline.denoiser.config.num_tokens_nominal if num_tokens is None else num_tokens
        with torch.autocast(device.type, enabled=False):
            latents = encode_clips(vae, points[None].to(device), tokens, generator)[0].float().cpu()
    return Animation(
        vertices=vertices,
        faces=faces,
        times=tuple(float(k) for k in range(len(vertices))),
        anchor=0,
        latents=latents,
        box_vertices=box,
        user_mesh=user,
    )


def _in_box(user: UserMesh, vertices: Float[Tensor, "t v 3"], yaw_deg: float | int) -> Float[Tensor, "t w 3"]:
    """All frames as the first was merged, turned and scaled."""
    used = (user.merged >= 0).nonzero()[:, 0]
    representative = torch.zeros(len(user.vertices), dtype=torch.long)
    representative[user.merged[used]] = used
    box = user.fit.apply(turn(vertices[:, representative].float(), yaw_deg))
    extent = float((vertices[0, used].amax(0) - vertices[0, used].amin(0)).max())
    parted = float((user.restore(box)[:, used] - vertices[:, used]).abs().max())
    if parted > _PARTED * extent:
        raise ValueError(
            f"Vertices that are in one place in the first mesh are up to {parted:.2g} apart later; "
            "the seams of an animation must stay closed."
        )
    return box
