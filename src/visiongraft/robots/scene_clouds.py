"""The whole scene as one cloud of points, unfiltered: what a depth camera gives without knowing any object."""

import numpy as np
import torch
from jaxtyping import Float

from visiongraft.geometry.lifting import lift_depth
from visiongraft.geometry.point_sets import farthest_points
from visiongraft.robots.cameras import Camera
from visiongraft.robots.key_points import GripperKeyPoints, robot_key_points
from visiongraft.robots.observers import camera_depth
from visiongraft.robots.policy import Observation

Bounds = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
ABOVE_TABLE: Bounds = ((-np.inf, np.inf), (-np.inf, np.inf), (0.0, np.inf))


def scene_cloud(
    depth: Float[np.ndarray, "height width"],
    camera: Camera,
    num: int = 512,
    *,
    max_depth: float = 2.0,
    bounds: Bounds = ABOVE_TABLE,
) -> Float[np.ndarray, "num 3"]:
    """Points of a depth image in the base frame, spread out by farthest point sampling; rows of zeros where there are fewer.

    Args:
        depth: metres; pixels that are not finite, not above 0 or not below ``max_depth`` are left out.
        camera: of the depth image.
        num: points in the cloud.
        max_depth: metres.
        bounds: open intervals of x, y and z in the base frame, metres.

    Raises:
        ValueError: num below 1.

    Source: Point Bridge brief, section 7 (BAKU-PCD).
    """
    if num < 1:
        raise ValueError(f"A scene cloud has at least 1 point; num is {num}.")
    with np.errstate(invalid="ignore"):
        near = (depth > 0) & (depth < max_depth)
    matrices = torch.from_numpy(camera.intrinsics), torch.from_numpy(camera.camera_to_base)
    points = lift_depth(torch.from_numpy(np.where(near, depth, 1.0)), *matrices).float().numpy()[near]
    low, high = np.array(bounds, np.float32).T
    points = points[((points > low) & (points < high)).all(-1)]
    cloud = np.zeros((num, 3), np.float32)
    count = min(num, len(points))
    if count:
        cloud[:count] = points[farthest_points(torch.from_numpy(points)[None], count)[0].numpy()]
    return cloud


class SceneCloud:
    """Observer that adds ``scene_points`` (num, 3) from the depth of one camera, and ``robot_points``.

    Args:
        camera: its name.
        num: points.
        max_depth: metres.
        bounds: of the base frame, metres; real scenes of the paper have ``|y| <= 0.25``.
        key_points: of the gripper.

    Source: Point Bridge brief, section 7 (BAKU-PCD).
    """

    def __init__(
        self,
        camera: str,
        num: int = 512,
        *,
        max_depth: float = 2.0,
        bounds: Bounds = ABOVE_TABLE,
        key_points: GripperKeyPoints = GripperKeyPoints(),  # noqa: B008
    ) -> None:
        self.camera, self.num, self.max_depth, self.bounds, self.key_points = camera, num, max_depth, bounds, key_points

    def reset(self, observation: Observation) -> None:
        """Checks that the first observation has the camera's depth; nothing is kept from one to the next."""
        camera_depth(observation, self.camera)

    def __call__(self, observation: Observation) -> Observation:
        """The observation with ``scene_points`` and ``robot_points``.

        Raises:
            ValueError: no depth of the camera.
        """
        cloud = scene_cloud(*camera_depth(observation, self.camera), self.num, max_depth=self.max_depth, bounds=self.bounds)
        robot = robot_key_points(observation["gripper_pose"], float(observation["proprioception"][-1]), self.key_points)
        return {**observation, "scene_points": cloud, "robot_points": robot}
