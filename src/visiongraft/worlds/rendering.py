"""Pictures of a scene: panoramas and perspective views with depth, normals and instance masks."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.cameras import camera_rays
from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.worlds.raycaster import cast
from visiongraft.worlds.scenes import Scene


@dataclass(frozen=True)
class Rendering:
    """A picture of a scene, or one for each frame.

    Args:
        color: in [0, 1], as screens show it (sRGB).
        depth: along the ray through the middle of the pixel in metres, infinity for the sky; see :func:`z_depth`.
        normal: in world axes, facing the camera; 0 for the sky.
        instance: index of ``scene.names``, -1 for the sky.
    """

    color: Float[Tensor, "*frames 3 height width"]
    depth: Float[Tensor, "*frames height width"]
    normal: Float[Tensor, "*frames 3 height width"]
    instance: Int[Tensor, "*frames height width"]


def render_panorama(
    scene: Scene,
    position: Float[Tensor, "*#frames 3"],
    height: int,
    rotation: Float[Tensor, "*#frames 3 3"] | None = None,
    time: float | Float[Tensor, "*#frames"] = 0.0,
    samples: int = 2,
    shadows: bool = True,
) -> Rendering:
    """Equirectangular panorama of ``height`` x ``2 height``.

    Args:
        scene: what is there.
        position: of the camera, metres; with a leading dimension, one for each frame.
        height: pixels.
        rotation: camera to world; level and towards +z by default.
        time: seconds, one or one for each frame.
        samples: rays a side of a pixel for the colours.
        shadows: whether surfaces hide others from the light.

    Raises:
        ValueError: a size or a number of samples below 1, or a pose that is not finite.
    """
    _check_size(height, 2 * height, samples)

    def rays(factor: int) -> Tensor:
        return panorama_rays(height * factor, 2 * height * factor, scene.position.dtype, scene.position.device)

    return _render(scene, rays, math.pi / height, position, rotation, time, samples, shadows)


def render_perspective(
    scene: Scene,
    position: Float[Tensor, "*#frames 3"],
    rotation: Float[Tensor, "*#frames 3 3"] | None,
    hfov: float | Float[Tensor, ""],
    size: tuple[int, int],
    time: float | Float[Tensor, "*#frames"] = 0.0,
    samples: int = 2,
    shadows: bool = True,
) -> Rendering:
    """Perspective view.

    Args:
        scene: what is there.
        position: of the camera, metres; with a leading dimension, one for each frame.
        rotation: camera to world; level and towards +z if None.
        hfov: horizontal field of view in radians.
        size: (height, width) in pixels.
        time: seconds, one or one for each frame.
        samples: rays a side of a pixel for the colours.
        shadows: whether surfaces hide others from the light.

    Raises:
        ValueError: a size or a number of samples below 1, a field of view outside (0, pi), or a pose that is not finite.
    """
    _check_size(*size, samples)
    angle = float(hfov)
    if not 0 < angle < math.pi:
        hint = "; did you pass degrees?" if angle >= math.pi else ""
        raise ValueError(f"hfov must be in (0, pi) radians; got {angle:g}{hint}.")

    def rays(factor: int) -> Tensor:
        return camera_rays(torch.as_tensor(angle).to(scene.position), size[0] * factor, size[1] * factor)

    return _render(scene, rays, angle / size[1], position, rotation, time, samples, shadows)


def z_depth(depth: Float[Tensor, "*frames height width"], hfov: float) -> Float[Tensor, "*frames height width"]:
    """Depth along the optical axis from the depth along the rays of a perspective view; ``hfov`` in radians."""
    rays = camera_rays(torch.as_tensor(hfov).to(depth), *depth.shape[-2:])
    return depth / rays.norm(dim=-1)


def to_screen(linear: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Linear light to sRGB in [0, 1]."""
    clamped = linear.clamp(0, 1)
    return torch.where(clamped <= 0.0031308, 12.92 * clamped, 1.055 * clamped.clamp(min=1e-4) ** (1 / 2.4) - 0.055)


def _render(scene, rays, pixel_angle, position, rotation, time, samples, shadows) -> Rendering:
    positions = position.to(scene.position)
    eye = torch.eye(3, dtype=positions.dtype, device=positions.device)
    rotations = eye if rotation is None else rotation.to(positions)
    times = torch.as_tensor(time, dtype=torch.float64)
    lead = torch.broadcast_shapes(positions.shape[:-1], rotations.shape[:-2], times.shape)
    positions, rotations, times = positions.expand(*lead, 3), rotations.expand(*lead, 3, 3), times.expand(lead)
    fine, coarse = rays(samples), rays(1)
    frames = [
        _frame(scene, fine, coarse, pixel_angle, p, r, float(t), samples, shadows)
        for p, r, t in zip(positions.reshape(-1, 3), rotations.reshape(-1, 3, 3), times.reshape(-1), strict=True)
    ]
    return Rendering(*(torch.stack(values).view(*lead, *values[0].shape) for values in zip(*frames, strict=True)))


def _frame(scene, fine, coarse, pixel_angle, position, rotation, time, samples, shadows):
    hits = cast(scene, position, coarse @ rotation.T, time, footprint=pixel_angle, color=samples == 1, shadows=shadows)
    if samples == 1:
        color = hits.color.movedim(-1, 0)
    else:
        linear = cast(scene, position, fine @ rotation.T, time, footprint=pixel_angle / samples, shadows=shadows).color
        color = F.avg_pool2d(linear.clamp(0, 1).movedim(-1, 0), samples)
    return to_screen(color), hits.distance, hits.normal.movedim(-1, 0), hits.instance


def _check_size(height: int, width: int, samples: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"a picture needs at least 1x1 pixels; got {height}x{width} (height x width).")
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}.")
