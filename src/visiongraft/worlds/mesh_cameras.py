"""Cameras that look at meshes: the world has y up, the camera OpenCV's axes (x right, y down, z forward).

At azimuth 0 a camera stands on +z and looks along -z, so that x is to the right on the picture and y up.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import check_hfov_deg, focal_length

DISTANCE = 3.2
HALF_WIDTH = 1.1


@dataclass(frozen=True, eq=False)
class MeshCamera:
    """An orthographic or a pinhole camera with square pixels.

    Args:
        world_to_camera: rigid, into OpenCV axes.
        hfov: horizontal field of view in radians; None: orthographic.
        half_width: of what an orthographic camera sees, world units; not used in perspective.
    """

    world_to_camera: Float[Tensor, "4 4"]
    hfov: float | None = None
    half_width: float | int = HALF_WIDTH

    @property
    def is_perspective(self) -> bool:
        return self.hfov is not None

    @property
    def position(self) -> Float[Tensor, "3"]:
        """Where it stands, in the world."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]

    def project(
        self, points: Float[Tensor, "*batch 3"], height: int, width: int
    ) -> tuple[Float[Tensor, "*batch 2"], Float[Tensor, "*batch"]]:
        """Pixels (x, y) of world points, and their depth along the camera's axis; points behind a pinhole give meaningless pixels."""
        transform = self.world_to_camera.to(points)
        inside = points @ transform[:3, :3].T + transform[:3, 3]
        depth = inside[..., 2]
        if self.hfov is None:
            scale = width / (2 * self.half_width)
        else:
            safe = torch.where(depth > 1e-9, depth, torch.ones_like(depth))
            scale = focal_length(torch.tensor(self.hfov, dtype=points.dtype), width) / safe[..., None]
        middle = torch.tensor([width / 2, height / 2], dtype=points.dtype)
        return inside[..., :2] * scale + middle, depth


def orbit_camera(
    azimuth_deg: float | int = 0.0,
    elevation_deg: float | int = 0.0,
    *,
    distance: float | int = DISTANCE,
    hfov_deg: float | int | None = None,
    half_width: float | int = HALF_WIDTH,
    target: Float[Tensor, "3"] | None = None,
) -> MeshCamera:
    """A camera on a sphere about a point, level with the horizon.

    Args:
        azimuth_deg: 0 stands on +z (the front), 90 on +x.
        elevation_deg: above the horizon; from -90 to 90.
        distance: from the target, world units.
        hfov_deg: horizontal field of view; None: orthographic.
        half_width: of what an orthographic camera sees.
        target: what it looks at; the origin by default.

    Raises:
        ValueError: a distance or width that is not positive, an elevation or a field of view that cannot be.
    """
    if not distance > 0 or not half_width > 0 or not -90 <= elevation_deg <= 90:
        raise ValueError(
            f"A camera needs distance > 0, half_width > 0 and an elevation from -90 to 90 degrees; "
            f"got {distance:g}, {half_width:g} and {elevation_deg:g}."
        )
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    sine, cosine, up, out = math.sin(azimuth), math.cos(azimuth), math.sin(elevation), math.cos(elevation)
    # rows are the camera's axes in the world: right, down, forward
    rotation = torch.tensor([[cosine, 0.0, -sine], [sine * up, -out, cosine * up], [-sine * out, -up, -cosine * out]], dtype=torch.float64)
    center = torch.zeros(3, dtype=torch.float64) if target is None else target.double()
    transform = torch.eye(4, dtype=torch.float64)
    transform[:3, :3] = rotation
    transform[:3, 3] = torch.tensor([0.0, 0.0, distance], dtype=torch.float64) - rotation @ center
    return MeshCamera(transform, None if hfov_deg is None else math.radians(float(check_hfov_deg(hfov_deg))), half_width)
