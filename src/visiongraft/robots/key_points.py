"""Key points of the gripper: the robot's part of the points that stand for a scene. Needs no simulator, so that real robots have them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from visiongraft.robots.poses import transform_points

_PANDA = (
    (0.0, 0.04, 0.0),
    (0.0, -0.04, 0.0),
    (0.0, 0.0, -0.08),
    (0.0, 0.05, -0.08),
    (0.0, -0.05, -0.08),
    (0.0, 0.0, -0.04),
    (0.0, 0.05, -0.04),
    (0.0, -0.05, -0.04),
)
_PANDA_CLOSED = ((0, (0.0, 0.015, 0.0)), (1, (0.0, -0.015, 0.0)))


@dataclass(frozen=True)
class GripperKeyPoints:
    """Key points of a gripper in its own frame (z approach, y finger axis), metres. The default is the hand of Panda and FR3.

    Args:
        opened: one point a row.
        closed: index and place of the points that move when the gripper command is above 0.

    Raises:
        ValueError: rows that are not three finite numbers, or a closed point that is none of them.

    Source: Point Bridge brief, 2.6.
    """

    opened: tuple[tuple[float, ...], ...] = _PANDA
    closed: tuple[tuple[int, tuple[float, ...]], ...] = _PANDA_CLOSED

    def __post_init__(self) -> None:
        rows = [*self.opened, *(point for _, point in self.closed)]
        if not self.opened or any(len(row) != 3 or not np.isfinite(row).all() for row in rows):
            raise ValueError("Key points of a gripper are rows of three finite numbers (x, y, z) in metres.")
        wrong = [index for index, _ in self.closed if not 0 <= index < len(self.opened)]
        if wrong:
            raise ValueError(f"Closed key points {wrong} are none of the {len(self.opened)} key points, which count from 0.")

    def table(self) -> Float[np.ndarray, "2 points 3"]:
        """All points, first of the open and then of the closed gripper."""
        table = np.array([self.opened, self.opened], np.float64)
        for index, point in self.closed:
            table[1, index] = point
        return table


def robot_key_points(
    gripper_pose: Shaped[np.ndarray, "*batch 4 4"],
    gripper: float | Shaped[np.ndarray, "*batch"],
    key_points: GripperKeyPoints = GripperKeyPoints(),
) -> Float[np.ndarray, "*batch points 3"]:
    """Key points of the gripper in the base frame, float32.

    Args:
        gripper_pose: ``gripper_to_base``.
        gripper: last command, -1 open to +1 closed; the fingers count as closed above 0.
        key_points: of the gripper.

    Source: Point Bridge brief, 2.6.
    """
    points = key_points.table()[(np.asarray(gripper) > 0).astype(np.int64)]
    return transform_points(np.asarray(gripper_pose, np.float64), points).astype(np.float32)
