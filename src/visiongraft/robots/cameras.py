"""A calibrated camera of a robot cell."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from visiongraft.robots.poses import invert_pose


@dataclass(frozen=True, eq=False)
class Camera:
    """Pinhole camera with OpenCV axes (x right, y down, z forward) and pixel centres at +0.5.

    Args:
        intrinsics: (3, 3), in pixels.
        camera_to_base: (4, 4), pose of the camera in the robot's base frame, metres.
        size: height and width in pixels.

    Raises:
        ValueError: wrong shapes, numbers that are not finite, or a rotation that is none.
    """

    intrinsics: Float[np.ndarray, "3 3"]
    camera_to_base: Float[np.ndarray, "4 4"]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        for name, shape in (("intrinsics", (3, 3)), ("camera_to_base", (4, 4))):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != shape:
                raise ValueError(f"{name} of a camera must be {shape[0]}x{shape[1]}, got {'x'.join(map(str, value.shape)) or 'a number'}.")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} of a camera holds numbers that are not finite.")
            object.__setattr__(self, name, value)
        if self.intrinsics[0, 0] <= 0 or self.intrinsics[1, 1] <= 0 or not np.allclose(self.intrinsics[2], [0, 0, 1]):
            raise ValueError("intrinsics must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths in pixels.")
        rotation = self.camera_to_base[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
            raise ValueError("camera_to_base has no rotation in its upper left 3x3: its columns must be orthonormal and right-handed.")

    @property
    def base_to_camera(self) -> Float[np.ndarray, "4 4"]:
        """Maps base coordinates to camera coordinates."""
        return invert_pose(self.camera_to_base)


def intrinsics_from_fovy(fovy: float, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
    """Intrinsics of a camera with square pixels and a centred axis; ``fovy`` in radians, ``size`` is height and width."""
    height, width = size
    focal = 0.5 * height / np.tan(0.5 * fovy)
    return np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1.0]])
