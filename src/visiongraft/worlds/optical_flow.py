"""Optical flow from geometry: where the point that a pixel shows lies in another picture, of another time and another camera."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visiongraft.geometry.cameras import camera_rays, project
from visiongraft.geometry.panoramas import panorama_rays, pixel_from_direction
from visiongraft.worlds.raycaster import Hits, cast
from visiongraft.worlds.scenes import Scene, poses_at


@dataclass(frozen=True)
class Flow:
    """Motion of the picture.

    Args:
        pixels: to the right and down, from the first picture to the second.
        visible: whether the second picture shows the same point: inside it, and not behind something else.
    """

    pixels: Float[Tensor, "2 height width"]
    visible: Bool[Tensor, "height width"]


@dataclass(frozen=True)
class Pose:
    """A camera at a time.

    Args:
        position: metres.
        rotation: camera to world.
        time: seconds.
    """

    position: Float[Tensor, "3"]
    rotation: Float[Tensor, "3 3"]
    time: float = 0.0


@torch.no_grad()
def panorama_flow(scene: Scene, first: Pose, second: Pose, height: int) -> Flow:
    """Flow between two panoramas of ``height`` x ``2 height``; horizontal motion takes the short way around.

    Args:
        scene: what is there.
        first: camera of the picture whose pixels move.
        second: camera of the other picture.
        height: pixels.

    Raises:
        ValueError: fewer than one pixel, or a pose that is not finite.
    """
    if height < 1:
        raise ValueError(f"a panorama needs at least 1 pixel of height; got {height}.")
    rays = panorama_rays(height, 2 * height, scene.position.dtype, scene.position.device)
    direction, visible = _seen_again(scene, first, second, rays)
    u, v = pixel_from_direction(direction, height, 2 * height)
    grid_v, grid_u = torch.meshgrid(torch.arange(height).to(u), torch.arange(2 * height).to(u), indexing="ij")
    du = torch.remainder(u - grid_u + height, 2 * height) - height
    return Flow(torch.stack([du, v - grid_v]), visible)


@torch.no_grad()
def perspective_flow(scene: Scene, first: Pose, second: Pose, hfov: float, size: tuple[int, int]) -> Flow:
    """Flow between two perspective views of the same field of view.

    Args:
        scene: what is there.
        first: camera of the picture whose pixels move.
        second: camera of the other picture.
        hfov: horizontal field of view in radians.
        size: (height, width) in pixels.

    Raises:
        ValueError: fewer than one pixel, a field of view outside (0, pi), or a pose that is not finite.
    """
    if min(size) < 1:
        raise ValueError(f"a picture needs at least 1x1 pixels; got {size[0]}x{size[1]} (height x width).")
    if not 0 < hfov < math.pi:
        raise ValueError(f"hfov must be in (0, pi) radians; got {hfov:g}.")
    angle = torch.as_tensor(hfov).to(scene.position)
    direction, visible = _seen_again(scene, first, second, camera_rays(angle, *size))
    pixel, inside = project(direction.reshape(-1, 3), angle, *size)
    x, y = torch.meshgrid(torch.arange(size[1]).to(pixel) + 0.5, torch.arange(size[0]).to(pixel) + 0.5, indexing="xy")
    moved = pixel.view(*size, 2)
    return Flow(torch.stack([moved[..., 0] - x, moved[..., 1] - y]), visible & inside.view(size))


def _seen_again(scene: Scene, first: Pose, second: Pose, rays: Tensor) -> tuple[Float[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """Directions, in the axes of the second camera, of the points that the first one sees, and whether the second sees them too."""
    rotation, other = first.rotation.to(rays), second.rotation.to(rays)
    position, target = first.position.to(rays), second.position.to(rays)
    directions = rays @ rotation.T
    directions = directions / directions.norm(dim=-1, keepdim=True)
    hits = cast(scene, position, directions, first.time, color=False)
    sky = hits.solid < 0
    points = moved_points(scene, hits, position + directions * hits.distance.masked_fill(sky, 0)[..., None], first.time, second.time)
    offset = torch.where(sky[..., None], directions, points - target)
    length = offset.norm(dim=-1)
    again = cast(scene, target, offset, second.time, color=False).distance
    # what is seen at a slant is found at a slightly different distance
    clear = torch.where(sky, again.isinf(), again >= length * (1 - 1e-3) - 1e-3)
    return offset @ other, clear


def moved_points(scene: Scene, hits: Hits, points: Float[Tensor, "*rays 3"], time: float, later: float) -> Float[Tensor, "*rays 3"]:
    """Points on solids at one time, at another time; points of the sky stay.

    Args:
        scene: what is there.
        hits: which solids the points lie on.
        points: metres.
        time: of the points, seconds.
        later: seconds.
    """
    if time == later or not scene.moving:
        return points
    (position, rotation), (new_position, new_rotation) = poses_at(scene, time), poses_at(scene, later)
    solid = hits.solid.clamp(min=0)
    turn = (new_rotation @ rotation.mT)[solid]
    moved = new_position[solid] + torch.einsum("...ij,...j->...i", turn, points - position[solid])
    return torch.where((hits.solid < 0)[..., None], points, moved)
