"""Choice of the source demonstration for a subtask. Source: MimicGen, selection strategies."""

import numpy as np
from jaxtyping import Float

from visiongraft.robots.poses import invert_pose
from visiongraft.robots.subtasks import Subtask


def pose_distance(
    poses: Float[np.ndarray, "n 4 4"], pose: Float[np.ndarray, "4 4"], position_weight: float = 1.0, rotation_weight: float = 1.0
) -> Float[np.ndarray, "n"]:
    """Weighted sum of the distance (metres) and the angle (radians) between poses and a pose."""
    cosine = (np.trace(poses[:, :3, :3] @ pose[:3, :3].T, axis1=-2, axis2=-1) - 1) / 2
    return position_weight * np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1) + rotation_weight * np.arccos(np.clip(cosine, -1, 1))


def select_source(
    subtask: Subtask,
    object_pose: Float[np.ndarray, "4 4"] | None,
    gripper_pose: Float[np.ndarray, "4 4"],
    source_object_poses: Float[np.ndarray, "n 4 4"] | None,
    source_gripper_poses: Float[np.ndarray, "n 4 4"],
    generator: np.random.Generator,
) -> int:
    """Chooses the source demonstration of a subtask.

    ``random``: any. ``nearest_neighbor_object``: among those whose object lay nearest to where it lies now.
    ``nearest_neighbor_robot_distance``: among those whose first pose, moved to the present object, is nearest to the gripper.

    Args:
        subtask: says how.
        object_pose: of the reference object now; None without one.
        gripper_pose: now.
        source_object_poses: of the reference object at the segments' starts.
        source_gripper_poses: at the segments' starts.
        generator: of the choice.
    """
    if subtask.strategy == "random" or object_pose is None or source_object_poses is None:
        return int(generator.integers(len(source_gripper_poses)))
    weights = subtask.position_weight, subtask.rotation_weight
    if subtask.strategy == "nearest_neighbor_object":
        distance = pose_distance(source_object_poses, object_pose, *weights)
    else:
        moved = object_pose @ invert_pose(source_object_poses) @ source_gripper_poses
        distance = pose_distance(moved, gripper_pose, *weights)
    nearest = np.argsort(distance, kind="stable")[: subtask.neighbors]
    return int(nearest[generator.integers(len(nearest))])
