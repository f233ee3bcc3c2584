import numpy as np
import pytest

from visiongraft.robots.key_points import GripperKeyPoints, robot_key_points
from visiongraft.robots.poses import invert_pose, make_pose, rotation_from_vector, transform_points


def test_key_points_are_those_of_the_brief_in_the_gripper_frame():
    points = robot_key_points(np.eye(4), -1.0)
    expected = [[0, 0.04, 0], [0, -0.04, 0], [0, 0, -0.08], [0, 0.05, -0.08], [0, -0.05, -0.08], [0, 0, -0.04], [0, 0.05, -0.04]]
    assert points.dtype == np.float32 and np.allclose(points, expected + [[0, -0.05, -0.04]])
    closed = robot_key_points(np.eye(4), 0.1)
    assert np.allclose(closed[:2], [[0, 0.015, 0], [0, -0.015, 0]]) and np.array_equal(closed[2:], points[2:])
    assert np.array_equal(robot_key_points(np.eye(4), 0.0), points)


def test_key_points_move_with_the_gripper_one_pose_and_command_each():
    rng = np.random.default_rng(0)
    poses = make_pose(rotation_from_vector(rng.normal(size=(4, 3))), rng.normal(size=(4, 3)))
    points = robot_key_points(poses, np.array([-1.0, 1.0, 0.3, -0.2]))
    for i, command in enumerate((-1.0, 1.0, 0.3, -0.2)):
        assert np.array_equal(points[i], robot_key_points(poses[i], command))
        assert np.allclose(
            transform_points(invert_pose(poses[i]), points[i].astype(np.float64)), robot_key_points(np.eye(4), command), atol=1e-6
        )


def test_another_gripper_is_another_table():
    table = GripperKeyPoints(((0.0, 0.1, 0.0), (0.0, 0.0, 0.2)), ((0, (0.0, 0.0, 0.0)),))
    assert robot_key_points(np.eye(4), 1.0, table).tolist() == [[0, 0, 0], [0, 0, np.float32(0.2)]]
    with pytest.raises(ValueError, match="rows of three finite numbers"):
        GripperKeyPoints(((0.0, 0.1),), ())
    with pytest.raises(ValueError, match=r"Closed key points \[3\] are none of the 1 key points"):
        GripperKeyPoints(((0.0, 0.1, 0.0),), ((3, (0.0, 0.0, 0.0)),))
