"""Meta-World's tasks as environments: objects, goals, control, states and experts. Runs without OpenGL."""

import mujoco
import numpy as np
import pytest

from visiongraft.robots.actions import delta_to_target
from visiongraft.robots.environment import View
from visiongraft.robots.environments import list_tasks, make_environment
from visiongraft.robots.experts import scripted_expert
from visiongraft.robots.metaworld_scenes import find_objects
from visiongraft.robots.poses import invert_pose, make_pose, transform_points

pytest.importorskip("metaworld")
from metaworld.env_dict import ENV_CLS_MAP


@pytest.fixture(scope="module")
def place():
    return make_environment("metaworld/pick-place-v3")


@pytest.fixture(scope="module")
def drawer():
    return make_environment("metaworld/drawer-open-v3")


def run_expert(environment, seed: int) -> int:
    environment.reset(seed=seed)
    expert = scripted_expert(environment)
    for step in range(1, environment.max_steps + 1):
        if environment.step(expert.act(environment))[2]:
            return step
    raise AssertionError(f"the expert failed at {environment.task}, seed {seed}")


def test_there_are_the_benchmarks_fifty_tasks():
    assert {name.partition("/")[2] for name in list_tasks("metaworld")} == set(ENV_CLS_MAP)


def test_objects_are_what_is_neither_robot_nor_table(place, drawer):
    assert place.object_bodies == {"obj": ("obj",), "goal": ("goal",)}
    assert drawer.object_names == ("drawer_link", "drawer", "goal")
    assert set(drawer.object_bodies["drawer_link"]).isdisjoint(drawer.object_bodies["drawer"])


def test_objects_of_a_model_split_at_joints():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><body name="arm"><geom size=".1"/><body name="hand"><joint/><geom size=".1"/></body></body>
        <body name="tablelink"><geom size=".1"/></body><body name="handle" mocap="true"><geom size=".1"/></body>
        <body name="chest"><geom size=".1"/><body name="lid"><joint/><geom size=".1"/></body></body>
        <body name="puck"><freejoint/><geom size=".1"/></body><body name="hidden"><geom size=".1" group="4"/></body>
        </worldbody></mujoco>"""
    )
    assert find_objects(model) == ({"lid": ("lid",), "puck": ("puck",), "chest": ("chest",)}, ("puck",))


def test_the_goal_is_seen_where_the_benchmark_has_it(place):
    goals = set()
    for seed in range(3):
        observation, _ = place.reset(seed=seed)
        np.testing.assert_allclose(observation["object_poses"]["goal"][:3, 3], place.simulator._target_pos, atol=1e-12)
        np.testing.assert_allclose(place.native_observation[-3:], place.simulator._target_pos, atol=1e-12)
        goals.add(tuple(place.simulator._target_pos))
    assert len(goals) == 3
    assert not place.model.geom_contype[place.model.body("goal").geomadr[0]]


def test_the_gripper_frame_points_down_between_the_fingers(place):
    observation, _ = place.reset(seed=0)
    pose = observation["gripper_pose"]
    np.testing.assert_allclose(pose[:3, :3], np.diag([-1.0, 1.0, -1.0]), atol=0.06)
    ends = np.stack([place.data.site(name).xpos for name in ("rightEndEffector", "leftEndEffector")])
    local = transform_points(invert_pose(pose), ends)
    np.testing.assert_allclose(local[:, 1], [-0.05, 0.05], atol=5e-3)
    np.testing.assert_allclose(local[:, [0, 2]], 0, atol=5e-3)


def test_the_same_seed_gives_the_same_start_whatever_happened_before(place, drawer):
    for environment in (place, drawer):
        first, _ = environment.reset(seed=3)
        state = environment.get_state()
        for seed in (4, 3):
            environment.reset(seed=seed)
            for _ in range(5):
                environment.step(np.random.default_rng(seed).uniform(-1, 1, 7))
        again, _ = environment.reset(seed=3)
        np.testing.assert_array_equal(environment.get_state(), state)
        for name, pose in first["object_poses"].items():
            np.testing.assert_array_equal(again["object_poses"][name], pose)
        other = environment.reset(seed=5)[0]["object_poses"][environment.object_names[0]]
        assert not np.array_equal(other, first["object_poses"][environment.object_names[0]])


def test_two_environments_with_one_seed_start_and_go_on_alike(place):
    other = make_environment("metaworld/pick-place-v3")
    for environment in (place, other):
        environment.reset(seed=9)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 7)):
            environment.step(action)
    np.testing.assert_array_equal(place.get_state(), other.get_state())


def test_a_state_comes_back_and_goes_on_to_the_bit(place):
    place.reset(seed=1)
    expert = scripted_expert(place)
    actions, states = [], []
    for _ in range(14):
        states.append(place.get_state())
        actions.append(expert.act(place))
        place.step(actions[-1])
    end = place.get_state()
    place.reset(seed=1)
    place.set_state(states[6])
    np.testing.assert_array_equal(place.get_state(), states[6])
    np.testing.assert_array_equal(scripted_expert(place).act(place), actions[6])
    for action in actions[6:]:
        place.step(action)
    np.testing.assert_array_equal(place.get_state(), end)
    with pytest.raises(ValueError, match="A state of this scene has"):
        place.set_state(np.zeros(50))


@pytest.mark.parametrize("task", ["reach-v3", "door-open-v3", "button-press-v3", "window-close-v3"])
def test_experts_solve_their_tasks(task):
    assert run_expert(make_environment(f"metaworld/{task}"), seed=0) < 60


def test_the_expert_of_pick_and_place_grasps_before_it_is_done(place):
    place.reset(seed=0)
    expert = scripted_expert(place)
    grasped = []
    for _ in range(place.max_steps):
        done = place.step(expert.act(place))[2]
        grasped.append(place.subtask_signals()["grasped"])
        if done:
            break
    assert done
    assert place.subtask_signals()["done"]
    assert not grasped[0]
    assert True in grasped


def test_tasks_without_a_free_object_have_no_grasp_signal(drawer):
    drawer.reset(seed=0)
    assert drawer.subtask_signals() == {"done": False}


def test_native_actions_survive_the_way_there_and_back():
    native, ours = (make_environment("metaworld/push-v3", repeat=1) for _ in range(2))
    for environment in (native, ours):
        environment.reset(seed=2)
    rng = np.random.default_rng(1)
    for _ in range(25):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        native.simulator.step(action)
        ours.step(ours.delta_of_native(action))
    np.testing.assert_allclose(ours.data.qpos, native.data.qpos, atol=1e-5)


def test_a_target_is_reached_and_held(place):
    place.reset(seed=0)
    target = make_pose(place.gripper_pose()[:3, :3], place.gripper_pose()[:3, 3] + [0.05, 0.05, 0.03])
    for _ in range(30):
        place.step(delta_to_target(target, -1.0, place.gripper_pose(), place.scale))
    np.testing.assert_allclose(place.gripper_pose()[:3, 3], target[:3, 3], atol=5e-3)


def test_rays_show_the_scene_and_its_objects():
    environment = make_environment(
        "metaworld/pick-place-v3",
        view=View(cameras=("corner",), modalities=("images", "depth", "segmentation"), size=(60, 80), renderer="raycast"),
    )
    observation, _ = environment.reset(seed=0)
    assert environment.camera_names() == ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
    segmentation, depth = observation["segmentation"]["corner"], observation["depth"]["corner"]
    camera = observation["cameras"]["corner"]
    for index, name in enumerate(environment.object_names):
        rows, columns = np.nonzero(segmentation == index)
        assert len(rows) > 0
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))]) * depth[rows, columns]
        points = transform_points(camera.camera_to_base, (np.linalg.inv(camera.intrinsics) @ pixels).T)
        assert np.linalg.norm(points - observation["object_poses"][name][:3, 3], axis=-1).max() < 0.06
    assert observation["images"]["corner"].std() > 20


def test_bad_input_is_refused(place):
    for repeat in (0, 21, True):
        with pytest.raises(ValueError, match="repeat must be an integer from 1 to 20"):
            make_environment("metaworld/reach-v3", repeat=repeat)
    with pytest.raises(ValueError, match="no camera 'left'; there are topview"):
        make_environment("metaworld/reach-v3", view=View(cameras=("left",)))
    fresh = make_environment("metaworld/reach-v3")
    with pytest.raises(ValueError, match="has not been reset"):
        fresh.step(np.zeros(7))
    with pytest.raises(ValueError, match="has not been reset"):
        fresh.set_state(np.zeros(7))
    place.reset(seed=0)
    with pytest.raises(ValueError, match="no object 'puck'; it has obj, goal"):
        place.object_pose("puck")
    with pytest.raises(ValueError, match="not finite"):
        place.step(np.full(7, np.nan))
    with pytest.raises(ValueError, match="takes its options when it is made"):
        place.reset(seed=0, options={"repeat": 2})
