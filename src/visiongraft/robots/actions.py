"""Action conventions, by name, and the way between them.

``delta`` (7): position and rotation-vector change in the base frame, each divided by the environment's :class:`ActionScale` and
clipped to [-1, 1], then the gripper command (-1 open, +1 closed). Environments take this; robomimic, LIBERO and robosuite's
OSC_POSE use it.

``absolute`` (10): target position in the base frame (metres), 6D rotation (first two rows), gripper command. Point Bridge's
policies speak it.

A delta is relative to the *current* pose of the gripper, and its rotation multiplies from the left.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from visiongraft.robots.poses import make_pose, rotation_6d, rotation_from_6d, rotation_from_vector, rotation_vector

ACTION_SIZES: dict[str, int] = {"delta": 7, "absolute": 10}


@dataclass(frozen=True)
class ActionScale:
    """What a delta action of 1 means.

    Args:
        position: metres along an axis.
        rotation: radians about an axis.
    """

    position: float
    rotation: float


def target_of_delta(
    action: Shaped[np.ndarray, "7"], gripper_pose: Shaped[np.ndarray, "4 4"], scale: ActionScale
) -> Float[np.ndarray, "4 4"]:
    """Pose that a delta action asks for. Source: robosuite's OSC_POSE; MimicGen, target_pose."""
    rotation = rotation_from_vector(np.asarray(action[3:6], np.float64) * scale.rotation) @ gripper_pose[:3, :3]
    return make_pose(rotation, gripper_pose[:3, 3] + np.asarray(action[:3], np.float64) * scale.position)


def delta_to_target(
    target_pose: Shaped[np.ndarray, "4 4"], gripper: float, gripper_pose: Shaped[np.ndarray, "4 4"], scale: ActionScale
) -> Float[np.ndarray, "7"]:
    """Delta action towards a pose: the inverse of :func:`target_of_delta` where nothing is clipped."""
    position = (target_pose[:3, 3] - gripper_pose[:3, 3]) / scale.position
    turn = rotation_vector(target_pose[:3, :3] @ gripper_pose[:3, :3].T) / scale.rotation
    return np.clip(np.concatenate([position, turn, [gripper]]), -1.0, 1.0)


def absolute_action(pose: Shaped[np.ndarray, "*batch 4 4"], gripper: Shaped[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch 10"]:
    """Absolute actions from target poses in the base frame and gripper commands."""
    return np.concatenate([pose[..., :3, 3], rotation_6d(pose[..., :3, :3]), np.asarray(gripper, np.float64)[..., None]], axis=-1)


def pose_of_absolute(action: Shaped[np.ndarray, "*batch 10"]) -> Float[np.ndarray, "*batch 4 4"]:
    """Target poses of absolute actions; :func:`rotation_from_6d` says what is refused."""
    return make_pose(rotation_from_6d(action[..., 3:9]), action[..., :3])


def to_delta(
    action: Shaped[np.ndarray, "size"], convention: str, gripper_pose: Shaped[np.ndarray, "4 4"], scale: ActionScale
) -> Float[np.ndarray, "7"]:
    """An action of either convention as the delta that environments take.

    Raises:
        ValueError: an unknown convention, a wrong size, or numbers that are not finite.
    """
    check_actions(action, convention)
    if convention == "delta":
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    return delta_to_target(pose_of_absolute(action), float(action[9]), gripper_pose, scale)


def check_actions(actions: Shaped[np.ndarray, "*batch size"], convention: str) -> None:
    """Refuses actions that are not of the convention.

    Raises:
        ValueError: an unknown convention, a wrong size, or numbers that are not finite.
    """
    if convention not in ACTION_SIZES:
        raise ValueError(f"Unknown action convention {convention!r}; there are {', '.join(ACTION_SIZES)}.")
    size = np.shape(actions)[-1]
    if size != ACTION_SIZES[convention]:
        others = [name for name, n in ACTION_SIZES.items() if n == size]
        hint = f"; {size} numbers are the {others[0]!r} convention, and the two do not mix" if others else ""
        raise ValueError(f"Actions of the {convention!r} convention have {ACTION_SIZES[convention]} numbers, got {size}{hint}.")
    if not np.isfinite(actions).all():
        raise ValueError("An action holds numbers that are not finite; the policy or the demonstration that made it is broken.")
