import numpy as np
import pytest

from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.key_points import robot_key_points
from visiongraft.robots.observers import Observer, camera_depth
from visiongraft.robots.poses import look_at, transform_points
from visiongraft.robots.scene_clouds import SceneCloud, scene_cloud

SIZE = (40, 60)
CAMERA = Camera(intrinsics_from_fovy(np.deg2rad(55), SIZE), look_at(np.array([-0.1, 0.3, 0.7]), np.array([0.5, 0.0, 0.0])), SIZE)


def table_depth(height=0.1):
    """Depth of a horizontal plane, computed in float64 from the rays."""
    rows, columns = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5, indexing="ij")
    rays = np.stack([columns, rows, np.ones(SIZE)], -1) @ np.linalg.inv(CAMERA.intrinsics).T
    down = (rays @ CAMERA.camera_to_base[:3, :3].T)[..., 2]
    with np.errstate(divide="ignore"):
        depth = (height - CAMERA.camera_to_base[2, 3]) / down
    return np.where(depth > 0, depth, np.inf).astype(np.float32)


def observation(depth):
    return {
        "depth": {"left": depth},
        "cameras": {"left": CAMERA},
        "gripper_pose": np.eye(4),
        "proprioception": np.full(10, 1.0, np.float32),
    }


def test_cloud_of_a_table_lies_on_the_table_and_within_reach():
    depth = table_depth()
    depth[0, :5] = np.nan
    cloud = scene_cloud(depth, CAMERA, 200)
    assert cloud.shape == (200, 3) and cloud.dtype == np.float32 and np.allclose(cloud[:, 2], 0.1, atol=1e-5)
    in_camera = transform_points(CAMERA.base_to_camera, cloud.astype(np.float64))
    assert in_camera[:, 2].max() < 2 and len(np.unique(cloud, axis=0)) == 200


def test_bounds_are_open_and_few_points_are_padded_with_zeros():
    depth = table_depth()
    assert not scene_cloud(table_depth(height=-0.01), CAMERA, 50).any()  # below z = 0 is left out
    bounds = ((0.4, 0.5), (-0.25, 0.25), (0.0, 1.0))
    cloud = scene_cloud(depth, CAMERA, 4096, bounds=bounds)
    count = int(cloud.any(1).sum())
    assert 10 < count < 2400 and not cloud[count:].any()
    inside = cloud[:count]
    assert inside[:, 0].min() > 0.4 and inside[:, 0].max() < 0.5 and np.abs(inside[:, 1]).max() < 0.25
    assert not scene_cloud(np.full(SIZE, np.inf, np.float32), CAMERA, 5).any()
    with pytest.raises(ValueError, match="at least 1 point; num is 0"):
        scene_cloud(depth, CAMERA, 0)


def test_observer_adds_the_cloud_and_the_gripper_and_changes_nothing():
    seen = observation(table_depth())
    keys = set(seen)
    observer = SceneCloud("left", 64)
    assert isinstance(observer, Observer)
    observer.reset(seen)
    found = observer(seen)
    assert set(seen) == keys and np.array_equal(found["scene_points"], scene_cloud(seen["depth"]["left"], CAMERA, 64))
    assert np.array_equal(found["robot_points"], robot_key_points(np.eye(4), 1.0))


def test_a_camera_without_depth_is_named_with_what_there_is():
    seen = observation(table_depth())
    with pytest.raises(
        ValueError, match=r"no depth of camera 'wrist'; it has depth of: left\. Make the environment with View\(cameras=\('wrist',\)"
    ):
        SceneCloud("wrist").reset(seen)
    with pytest.raises(ValueError, match="it has depth of: none"):
        SceneCloud("left")({"instruction": "images only"})
    with pytest.raises(ValueError, match=r"has \(20, 60\) pixels and its camera \(40, 60\)"):
        camera_depth(observation(table_depth()[:20]), "left")
