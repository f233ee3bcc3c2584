"""Laying the input back into its panorama, for those who need its very pixels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.cameras import focal_length
from visiongraft.geometry.panoramas import check_panorama, panorama_from_perspective, panorama_rays
from visiongraft.methods.panorama.camera import CameraEstimates


def composite(
    panorama: Float[Tensor, "batch 3 height width"],
    image: Float[Tensor, "batch 3 h w"],
    camera: CameraEstimates,
    feather_deg: float = 3.0,
) -> Float[Tensor, "batch 3 height width"]:
    """The panorama with the image laid over it where its camera looks, blended in along the image's border.

    Args:
        panorama: in [0, 1], H x 2H.
        image: the perspective input in [0, 1].
        camera: of each image, see :func:`visiongraft.methods.panorama.camera.estimate_cameras`.
        feather_deg: width of the blend inside the image's border, as an angle; 0 cuts hard.

    Raises:
        ValueError: a panorama that is not H x 2H, or a negative feather.

    Source: ours; the paper leaves the input to the model.
    """
    height, width = check_panorama(panorama).shape[-2:]
    if not feather_deg >= 0:
        raise ValueError(f"feather_deg is an angle of at least 0; got {feather_deg}.")
    hfov, rotation = camera.hfov.to(panorama), camera.rotation.to(panorama)
    seen, mask = panorama_from_perspective(_as_coarse_as_panorama(image, hfov, width), hfov, rotation, height)
    rays = torch.einsum("bji,hwj->bhwi", rotation, panorama_rays(height, width, panorama.dtype, panorama.device))
    depth = border_distance(rays, hfov, image.shape[-2] / image.shape[-1]).unsqueeze(1)
    ramp = (depth / math.radians(feather_deg)).clamp(0, 1) if feather_deg > 0 else torch.ones_like(depth)
    weight = ramp.square() * (3 - 2 * ramp) * mask
    return panorama + weight * (seen - panorama)


def border_distance(rays: Float[Tensor, "batch *grid 3"], hfov: Float[Tensor, " batch"], aspect: float) -> Float[Tensor, "batch *grid"]:
    """Angle in radians from unit rays in camera axes to the nearest side of the camera's pyramid; negative outside of it.

    Args:
        rays: unit directions.
        hfov: horizontal fields of view in radians.
        aspect: height / width of the image.
    """
    half = (hfov / 2).reshape(-1, *[1] * (rays.dim() - 2))
    half_vertical = (half.tan() * aspect).atan()
    x, y, z = rays.unbind(-1)
    sides = (z * half.sin() - x.abs() * half.cos(), z * half_vertical.sin() - y.abs() * half_vertical.cos())
    return torch.minimum(*sides).clamp(-1, 1).asin()


def _as_coarse_as_panorama(image: Tensor, hfov: Tensor, width: int) -> Tensor:
    """The image without details finer than the panorama's pixels."""
    excess = float(focal_length(hfov, image.shape[-1]).max()) * 2 * math.pi / width
    if excess <= 1:
        return image
    size = [max(1, round(side / excess)) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
