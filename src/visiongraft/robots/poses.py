"""Rigid transforms as 4x4 NumPy matrices, for code that runs once a control step.

``a_to_b`` maps coordinates in frame a to coordinates in frame b; a *pose* of X in B is ``x_to_b``. Quaternions are wxyz.
The 6D rotation of this package is the first two **rows** of the matrix, as Point Bridge writes it; Zhou et al. use columns.
"""

import numpy as np
from jaxtyping import Float, Shaped
from scipy.spatial.transform import Rotation


def make_pose(rotation: Shaped[np.ndarray, "*#batch 3 3"], position: Shaped[np.ndarray, "*#batch 3"]) -> Float[np.ndarray, "... 4 4"]:
    """Pose from a rotation matrix and a position in metres; leading axes broadcast."""
    rotation, position = np.asarray(rotation, np.float64), np.asarray(position, np.float64)
    pose = np.zeros((*np.broadcast_shapes(rotation.shape[:-2], position.shape[:-1]), 4, 4))
    pose[..., :3, :3], pose[..., :3, 3], pose[..., 3, 3] = rotation, position, 1
    return pose


def invert_pose(pose: Shaped[np.ndarray, "*batch 4 4"]) -> Float[np.ndarray, "*batch 4 4"]:
    """Inverse of rigid transforms."""
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    return make_pose(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def transform_points(pose: Shaped[np.ndarray, "*batch 4 4"], points: Shaped[np.ndarray, "*batch n 3"]) -> Float[np.ndarray, "*batch n 3"]:
    """Points mapped by rigid transforms."""
    return points @ np.swapaxes(pose[..., :3, :3], -1, -2) + pose[..., None, :3, 3]


def rotation_vector(rotation: Shaped[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3"]:
    """Axis times angle (radians, at most pi) of rotation matrices: the logarithm."""
    flat = Rotation.from_matrix(np.reshape(rotation, (-1, 3, 3))).as_rotvec()
    return flat.reshape(*rotation.shape[:-2], 3)


def rotation_from_vector(vector: Shaped[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices from axis times angle (radians): the exponential."""
    flat = Rotation.from_rotvec(np.reshape(vector, (-1, 3))).as_matrix()
    return flat.reshape(*np.shape(vector)[:-1], 3, 3)


def rotation_from_quaternion(quaternion: Shaped[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices from wxyz quaternions of any length but zero."""
    flat = Rotation.from_quat(np.reshape(quaternion, (-1, 4)), scalar_first=True).as_matrix()
    return flat.reshape(*np.shape(quaternion)[:-1], 3, 3)


def quaternion_from_rotation(rotation: Shaped[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 4"]:
    """Unit wxyz quaternions with w >= 0."""
    flat = Rotation.from_matrix(np.reshape(rotation, (-1, 3, 3))).as_quat(canonical=True, scalar_first=True)
    return flat.reshape(*rotation.shape[:-2], 4)


def rotation_6d(rotation: Shaped[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 6"]:
    """First two rows of rotation matrices."""
    return np.reshape(rotation[..., :2, :], (*rotation.shape[:-2], 6))


def rotation_from_6d(rows: Shaped[np.ndarray, "*batch 6"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices from their first two rows, made orthonormal by Gram-Schmidt.

    Raises:
        ValueError: rows that are zero, parallel or not finite.
    """
    pair = np.reshape(np.asarray(rows, np.float64), (*np.shape(rows)[:-1], 2, 3))
    first, second = pair[..., 0, :], pair[..., 1, :]
    length = np.linalg.norm(first, axis=-1, keepdims=True)
    first = first / np.where(length > 1e-8, length, np.nan)
    second = second - np.sum(first * second, axis=-1, keepdims=True) * first
    length = np.linalg.norm(second, axis=-1, keepdims=True)
    second = second / np.where(length > 1e-8, length, np.nan)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("A 6D rotation has rows that are zero, parallel or not finite; the policy that made it is untrained or broken.")
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def look_at(position: Shaped[np.ndarray, "3"], target: Shaped[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """Pose of a camera (OpenCV axes) at ``position`` that looks at ``target``, with z up in the frame of both.

    Raises:
        ValueError: the target lies straight above or below.
    """
    forward = np.subtract(target, position).astype(np.float64)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) < 1e-9:
        raise ValueError("The camera looks straight up or down, so that its right side is not defined; move it sideways a little.")
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    return make_pose(np.stack([right, np.cross(forward, right), forward], axis=-1), np.asarray(position, np.float64))
