"""The perspective views that an evaluation renders from a panorama, and the part of a panorama that a camera has seen."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visiongraft.geometry.cameras import check_hfov_deg, rotation_from_angles
from visiongraft.geometry.panoramas import panorama_from_perspective, perspective_from_panorama
from visiongraft.methods.panorama.protocols import EvaluationProtocol


def view_azimuths(protocol: EvaluationProtocol, panoramas: int) -> Float[Tensor, "panoramas views"]:
    """Yaw of every view in radians; those of the i-th panorama do not depend on how many there are."""
    if protocol.azimuths == "even":
        return (torch.arange(protocol.views) * (2 * math.pi / protocol.views)).expand(panoramas, -1)
    generator = torch.Generator().manual_seed(protocol.azimuth_seed)
    rows = [torch.rand(protocol.views, generator=generator) for _ in range(panoramas)]
    return torch.stack(rows) * (2 * math.pi)


def render_views(
    panorama: Float[Tensor, "3 height width"], azimuths: Float[Tensor, " views"], protocol: EvaluationProtocol
) -> Float[Tensor, "views 3 size size"]:
    """The protocol's perspective views of one panorama in [0, 1]."""
    count, like = len(azimuths), panorama
    elevation = like.new_full((count,), math.radians(protocol.view_elevation_deg))
    rotation = rotation_from_angles(azimuths.to(like), elevation, torch.zeros_like(elevation))
    hfov = like.new_full((count,), math.radians(protocol.view_hfov_deg))
    size = (protocol.view_size, protocol.view_size)
    # one at a time: a batch would hold as many supersampled views at once
    views = [perspective_from_panorama(panorama[None], hfov[i : i + 1], rotation[i : i + 1], size) for i in range(count)]
    return torch.cat(views).clamp(0, 1)


def visibility_mask(cameras_deg: Float[Tensor, "batch 4"], height: int, aspect: float = 1.0) -> Bool[Tensor, "batch 1 height 2*height"]:
    """Where a panorama of ``height`` x ``2 height`` shows what a camera has seen.

    Args:
        cameras_deg: horizontal field of view, yaw, pitch, roll of each camera in degrees.
        height: of the panorama in pixels.
        aspect: width over height of the cameras' images.

    Raises:
        ValueError: a field of view that cannot be one.
    """
    check_hfov_deg(cameras_deg[:, 0])
    hfov, yaw, pitch, roll = torch.deg2rad(cameras_deg.float()).unbind(-1)
    rows = 64
    seen = torch.ones(len(cameras_deg), 1, rows, round(rows * aspect), device=cameras_deg.device)
    return panorama_from_perspective(seen, hfov, rotation_from_angles(yaw, pitch, roll), height)[1]
