"""Which way a user's mesh faces. Latents live in the base's frame with Y up; which horizontal direction is its front is not documented."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visiongraft.media.images import resize
from visiongraft.worlds.mesh_rasteriser import silhouette

YAWS_DEG = (0.0, 90.0, 180.0, 270.0)
_SIDE = 64
_NOT_WHITE = 0.02


def turn(vertices: Float[Tensor, "*batch 3"], yaw_deg: float | int) -> Float[Tensor, "*batch 3"]:
    """Points turned about Y, counter-clockwise seen from above: at 90 degrees +z goes to +x."""
    if yaw_deg % 360 == 0:
        return vertices
    angle = math.radians(yaw_deg)
    x, y, z = vertices.unbind(-1)
    return torch.stack([math.cos(angle) * x + math.sin(angle) * z, y, math.cos(angle) * z - math.sin(angle) * x], -1)


def search_yaw(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], frame: Float[Tensor, "3 height width"]
) -> tuple[float, dict[float, float]]:
    """The one of four turns whose outline from the front (+z) is most like the object in a frame.

    Outlines are compared in their own boxes, so that place and size do not matter. A mesh from the front and from behind has mirrored
    outlines: of a symmetric one both are the same, and the smaller angle is taken.

    Args:
        vertices, faces: of the mesh, Y up.
        frame: prepared, the object before white.

    Returns:
        The turn in degrees, and the overlap (intersection over union) for each.

    Raises:
        ValueError: a frame that is all white, or a mesh without extent.

    Source: ActionMesh brief, pitfall 17 (our choice).
    """
    wanted = _in_own_box((1 - frame.amin(0)) > _NOT_WHITE)
    center = (vertices.amax(0) + vertices.amin(0)) / 2
    radius = float((vertices - center).norm(dim=-1).max())
    if not radius > 0:
        raise ValueError("The mesh has zero extent, so that it has no outline; give another mesh or the angle (mesh_yaw=0).")
    overlaps = {}
    for yaw in YAWS_DEG:
        turned = turn((vertices - center) / radius, yaw)
        seen = _in_own_box(silhouette(turned.cpu(), faces.cpu(), size=2 * _SIDE, supersample=2) > 0.5)
        overlaps[yaw] = float((seen & wanted).sum() / (seen | wanted).sum())
    best = max(overlaps.values())
    return next(yaw for yaw, overlap in overlaps.items() if overlap >= best - 1e-3), overlaps


def _in_own_box(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "side side"]:
    """The mask cut to its box and scaled to one size, its proportions kept."""
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        raise ValueError("The frame has no object before white to compare the mesh with; give the angle (mesh_yaw=0) instead.")
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float().cpu()
    scale = _SIDE / max(cut.shape)
    size = (max(1, round(cut.shape[0] * scale)), max(1, round(cut.shape[1] * scale)))
    square = torch.zeros(_SIDE, _SIDE)
    top, left = (_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2
    square[top : top + size[0], left : left + size[1]] = resize(cut[None], size)[0]
    return square > 0.5
