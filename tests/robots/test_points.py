import mujoco
import numpy as np
import pytest

from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.environment import RobotEnvironment, View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.key_points import robot_key_points
from visiongraft.robots.mujoco_bodies import camera_pose
from visiongraft.robots.observers import Observer
from visiongraft.robots.points import SimulatorPoints, align_to_depth
from visiongraft.robots.poses import invert_pose, look_at, make_pose, rotation_from_vector, transform_points
from visiongraft.robots.raycasting import cast_rays

SCENE = """
<mujoco>
  <worldbody>
    <camera name="above" pos="0.1 0.05 1.0" fovy="50"/>
    <body name="drawer" pos="0.3 0 0.2"><freejoint/>
      <geom type="box" size="0.1 0.05 0.02"/>
      <body name="drawer_handle" pos="0.14 0 0"><joint type="slide" axis="1 0 0"/><geom type="sphere" size="0.03"/></body>
    </body>
    <body name="frame"/>
    <body name="can" pos="-0.2 0.1 0.3" euler="0 30 0"><freejoint/><geom type="cylinder" size="0.04 0.08"/></body>
  </worldbody>
</mujoco>
"""


class Cell(RobotEnvironment):
    """Two objects, one of two bodies, and a base that is turned and moved against the world."""

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        self.task, self.instruction, self.view = "test/cell", "open the drawer", View(size=(60, 80))
        self.object_names = ("drawer", "can")
        self.object_bodies = {"drawer": ("drawer", "drawer_handle"), "can": ("can",)}
        self.base = make_pose(rotation_from_vector(np.array([0.0, 0.0, 0.5])), np.array([0.2, -0.1, 0.05]))
        self.command, self.rendered = -1.0, 0

    def gripper_pose(self):
        return make_pose(np.eye(3), np.array([0.0, 0.0, 0.5]))

    @property
    def gripper_command(self):
        return self.command

    def base_to_world(self):
        return self.base

    def object_pose(self, name):
        body = self.data.body(name)
        return invert_pose(self.base) @ make_pose(body.xmat.reshape(3, 3), body.xpos)

    def is_success(self):
        return False

    def subtask_signals(self):
        return {}

    def get_state(self):
        return self.data.qpos.copy()

    def set_state(self, state):
        self.data.qpos[:] = state
        mujoco.mj_forward(self.model, self.data)

    def camera_names(self):
        return ("above",)

    def camera(self, name, size):
        pose = invert_pose(self.base) @ camera_pose(self.data, 0)
        return Camera(intrinsics_from_fovy(np.deg2rad(50), size), pose, size)

    def render_view(self, camera, modalities, size):
        self.rendered += 1
        return {"depth": np.full(size, 0.7, np.float32)}

    def _reset(self, seed, options):
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] += 0.02 * rng.normal(size=self.model.nq)
        mujoco.mj_forward(self.model, self.data)

    def _step(self, action):
        self.data.qpos[:] += 0.01
        mujoco.mj_forward(self.model, self.data)


def points_of(environment, observation, **options):
    observer = SimulatorPoints(environment, **options)
    observer.reset(observation)
    return observer, observer(observation)


def in_body(environment, body, points):
    """Points of the base frame in the frame of a body."""
    found = environment.data.body(body)
    pose = invert_pose(environment.base) @ make_pose(found.xmat.reshape(3, 3), found.xpos)
    return transform_points(invert_pose(pose), points.astype(np.float64))


def test_points_lie_on_their_bodies_and_stay_there():
    cell = Cell()
    observation, _ = cell.reset(seed=0)
    observer, first = points_of(cell, observation, per_object=31)
    assert isinstance(observer, Observer) and first["object_points"].dtype == np.float32
    observations = [first]
    for _ in range(2):
        observation, *_ = cell.step(np.zeros(7))
        observations.append(observer(observation))
        points = observations[-1]["object_points"]
        assert points.shape == (2, 31, 3)
        box = np.abs(in_body(cell, "drawer", points[0, :15]))  # bodies share evenly, the last one takes the remainder
        assert np.abs((box / [0.1, 0.05, 0.02]).max(1) - 1).max() < 1e-4
        assert np.allclose(np.linalg.norm(in_body(cell, "drawer_handle", points[0, 15:]), axis=1), 0.03, atol=1e-6)
        can = in_body(cell, "can", points[1])
        distance = np.linalg.norm(can[:, :2], axis=1)
        assert (np.isclose(distance, 0.04, atol=1e-6) | (np.isclose(np.abs(can[:, 2]), 0.08, atol=1e-6) & (distance < 0.04))).all()
    in_first = in_body(cell, "can", observations[2]["object_points"][1])
    assert not np.allclose(observations[0]["object_points"], observations[2]["object_points"], atol=1e-3)
    observer_again, _ = points_of(cell, cell.reset(seed=0)[0], per_object=31)
    assert np.allclose(in_body(cell, "can", observer_again(cell.observe())["object_points"][1]), in_first, atol=1e-6)


def test_bodies_that_only_hold_others_get_no_points():
    cell = Cell()
    observation, _ = cell.reset(seed=0)
    plain = points_of(cell, observation)[1]["object_points"]
    cell.object_bodies["can"] = ("frame", "can")
    assert np.array_equal(points_of(cell, observation)[1]["object_points"], plain)


def test_points_are_spread_better_than_random_ones():
    cell = Cell()
    observation, _ = cell.reset(seed=0)
    spacing = lambda points: (np.linalg.norm(points[:, None] - points, axis=-1) + np.eye(len(points))).min()
    spread = points_of(cell, observation, per_object=64)[1]["object_points"][1]
    drawn = points_of(cell, observation, per_object=64, candidates=64)[1]["object_points"][1]
    assert spacing(spread) > 3 * spacing(drawn)


def test_points_depend_on_the_seed_and_the_start_and_on_nothing_before():
    cell = Cell()
    observation, _ = cell.reset(seed=5)
    first = points_of(cell, observation, seed=1)[1]["object_points"]
    other_seed = points_of(cell, observation, seed=2)[1]["object_points"]
    used = SimulatorPoints(cell, seed=1)
    used.reset(cell.reset(seed=9)[0])
    other_start = used(cell.observe())["object_points"]
    observation, _ = cell.reset(seed=5)
    used.reset(observation)
    assert np.array_equal(used(observation)["object_points"], first) and not np.array_equal(other_seed, first)
    cell.reset(seed=9)
    can = in_body(cell, "can", other_start[1])
    cell.reset(seed=5)
    assert not np.allclose(can, in_body(cell, "can", first[1]), atol=1e-3)


def test_observers_leave_what_they_are_given_as_it_was():
    cell = Cell()
    observation, _ = cell.reset(seed=0)
    keys, pose = set(observation), observation["gripper_pose"].copy()
    cell.command = 1.0
    found = points_of(cell, observation)[1]
    assert set(observation) == keys and np.array_equal(observation["gripper_pose"], pose)
    assert set(found) == keys | {"robot_points", "object_points"}
    assert np.array_equal(found["robot_points"], robot_key_points(pose, 1.0))


def camera_over(target, size=(48, 64)):
    return Camera(intrinsics_from_fovy(np.deg2rad(60), size), look_at(np.array([0.0, -0.3, 0.9]), np.array(target)), size)


def test_aligned_points_lie_at_the_depth_that_their_pixel_shows():
    camera = camera_over([0.1, 0.0, 0.0])
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.25, 0.25, (2, 60, 3)).astype(np.float32)
    depth = rng.uniform(0.5, 1.0, camera.size).astype(np.float32)
    found = align_to_depth(points, depth, camera)
    assert found.shape == points.shape and found.dtype == np.float32
    before = transform_points(camera.base_to_camera, points.reshape(-1, 3).astype(np.float64)) @ camera.intrinsics.T
    after = transform_points(camera.base_to_camera, found.reshape(-1, 3).astype(np.float64)) @ camera.intrinsics.T
    pixel_before, pixel_after = before[:, :2] / before[:, 2:], after[:, :2] / after[:, 2:]
    assert np.allclose(pixel_after, np.floor(pixel_before) + 0.5, atol=1e-3)  # the centre of the same pixel
    columns, rows = np.floor(pixel_before).astype(int).T
    assert np.allclose(after[:, 2], depth[rows, columns], atol=1e-5)


def test_points_without_a_pixel_or_without_depth_stay():
    camera = camera_over([0.1, 0.0, 0.0])
    points = np.array([[0.1, 0.0, 0.0], [5.0, 0.0, 0.0], [0.1, -0.6, 2.0]])  # seen, beside the image, behind the camera
    for value in (np.inf, np.nan, 0.0, -1.0):
        assert np.array_equal(align_to_depth(points, np.full(camera.size, value), camera), points)
    moved = align_to_depth(points, np.full(camera.size, 0.5), camera)
    assert not np.allclose(moved[0], points[0]) and np.array_equal(moved[1:], points[1:])


def test_alignment_takes_depth_from_the_observation_or_renders_it():
    cell = Cell()
    observation, _ = cell.reset(seed=0)
    observer, found = points_of(cell, observation, align_camera="above")
    assert cell.rendered == 1
    camera = cell.camera("above", (60, 80))
    plain = points_of(cell, observation)[1]["object_points"]
    assert np.allclose(found["object_points"], align_to_depth(plain, np.full((60, 80), 0.7), camera), atol=5e-3)
    seen = {**observation, "depth": {"above": np.full((60, 80), 0.7, np.float32)}, "cameras": {"above": camera}}
    assert np.array_equal(observer(seen)["object_points"], found["object_points"]) and cell.rendered == 1


def test_observer_says_what_is_wrong():
    cell = Cell()
    with pytest.raises(ValueError, match="no camera 'cam_8'; it has above"):
        SimulatorPoints(cell, align_camera="cam_8")
    with pytest.raises(ValueError, match=r"from 1 to the number of candidates \(1000\); got 2000"):
        SimulatorPoints(cell, per_object=2000)
    observation, _ = cell.reset(seed=0)
    with pytest.raises(ValueError, match="call the observer's reset"):
        SimulatorPoints(cell)(observation)
    with pytest.raises(ValueError, match="Object 'drawer' has 2 bodies with a surface for 1 points"):
        SimulatorPoints(cell, per_object=1).reset(observation)
    observer, _ = points_of(cell, observation)
    cell.model = mujoco.MjModel.from_xml_string(SCENE)
    with pytest.raises(ValueError, match="reset to another model"):
        observer(observation)
    cell.object_bodies["can"] = ("frame",)
    with pytest.raises(ValueError, match="Object 'can' has 0 bodies with a surface"):
        SimulatorPoints(cell).reset(observation)
    cell.object_bodies["can"] = ("tin",)
    with pytest.raises(ValueError, match="no body 'tin'; its bodies are: world, drawer"):
        SimulatorPoints(cell).reset(observation)


def test_points_of_the_tabletop_aligned_to_its_camera_are_what_the_camera_sees():
    view = View(cameras=("left",), modalities=("depth", "segmentation"), size=(96, 96), renderer="raycast")
    environment = make_environment("tabletop/put_on_plate", view=view, twin=True)
    observation, _ = environment.reset(seed=1)
    plain, aligned = (points_of(environment, observation, align_camera=name)[1]["object_points"] for name in (None, "left"))
    camera = observation["cameras"]["left"]
    for index in range(2):
        mask = observation["segmentation"]["left"] == index
        rows, columns = np.nonzero(mask)
        z = observation["depth"]["left"][mask].astype(np.float64)
        seen = transform_points(
            camera.camera_to_base,
            (np.stack([columns + 0.5, rows + 0.5, np.ones(len(z))], -1) * z[:, None]) @ np.linalg.inv(camera.intrinsics).T,
        )
        gaps = lambda points: np.linalg.norm(points[:, None] - seen[None], axis=-1).min(1)
        assert np.quantile(gaps(aligned[index]), 0.8) < 1e-4  # outlines fall on pixels of the table
        assert gaps(plain[index]).max() > 0.01  # the far side
        assert (
            np.quantile(np.linalg.norm(seen[:, None] - plain[index][None], axis=-1).min(1), 0.95) < 0.02
        )  # and every place seen has a point near it


def test_a_random_camera_aligns_points_to_what_stands_before_it_and_goes_back():
    view = View(size=(96, 96), renderer="raycast")
    environment = make_environment("tabletop/put_on_plate", view=view)
    at_home = environment.camera("left", (96, 96)).camera_to_base
    places = []
    for seed in (1, 2):
        observation, _ = environment.reset(seed=seed)
        observer, found = points_of(environment, observation, align_camera="left", random_camera=True)
        _, again = points_of(environment, observation, align_camera="left", random_camera=True)
        np.testing.assert_array_equal(again["object_points"], found["object_points"])
        place = observer._camera_to_base[:3, 3]
        ways = found["object_points"].reshape(-1, 3).astype(np.float64) - place
        distance, geoms = cast_rays(environment.model, environment.data, place, ways)
        assert (geoms >= 0).all() and np.quantile(np.abs(distance - 1), 0.95) < 1e-3  # nothing stands between it and the points
        places.append(place)
        np.testing.assert_array_equal(environment.camera("left", (96, 96)).camera_to_base, at_home)
    assert np.linalg.norm(places[0] - places[1]) > 0.05 and np.linalg.norm(places[0] - at_home[:3, 3]) > 0.05
    with pytest.raises(ValueError, match="takes its lens from a camera of the environment"):
        SimulatorPoints(environment, random_camera=True)
