"""The tabletop: starts, control, signals, success, twins and the expert."""

import itertools

import numpy as np
import pytest

from visiongraft.robots.actions import delta_to_target, target_of_delta
from visiongraft.robots.environment import View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.experts import scripted_expert
from visiongraft.robots.poses import invert_pose, make_pose, transform_points
from visiongraft.robots.tabletop.environment import START_GAP, START_HIGH, START_LOW, START_YAW
from visiongraft.robots.tabletop.expert import TabletopExpert
from visiongraft.robots.tabletop.gripper import GantryGripper
from visiongraft.robots.tabletop.objects import TableObject
from visiongraft.robots.tabletop.tasks import TASKS

OPEN, CLOSED = -1.0, 1.0


def run_expert(environment, seed: int) -> tuple[int, dict[str, list[bool]]]:
    """Steps until success, and the signals on the way."""
    environment.reset(seed=seed)
    expert = scripted_expert(environment)
    signals: dict[str, list[bool]] = {name: [] for name in environment.subtask_signals()}
    for step in range(1, environment.max_steps + 1):
        _, reward, success, truncated, info = environment.step(expert.act(environment))
        for name, value in environment.subtask_signals().items():
            signals[name].append(value)
        assert (reward == 1) == success == info["success"]
        assert not truncated
        if success:
            return step, signals
    raise AssertionError(f"the expert failed at {environment.instruction!r}, seed {seed}")


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("twin", [False, True])
def test_the_expert_solves_every_pair_shortly(task, twin):
    for pair in (1, 4) if twin else range(5):
        environment = make_environment(f"tabletop/{task}", pair=pair, twin=twin)
        steps, signals = run_expert(environment, seed=pair)
        assert steps < 65
        grasped, done = signals.values()
        assert not grasped[0]
        assert True in grasped
        assert grasped.index(True) > 5
        assert sum(done) == 1
        assert done[-1]
        assert not grasped[-1]


def test_a_half_speed_expert_takes_longer_than_a_full_speed_one():
    steps = []
    for speed in (0.5, 1.0):
        environment = make_environment("tabletop/put_on_plate")
        environment.reset(seed=0)
        expert = TabletopExpert(speed)
        steps.append(next(count for count in range(1, 100) if environment.step(expert.act(environment))[2]))
    assert steps[1] < 0.7 * steps[0]


@pytest.mark.parametrize("options", [{}, {"twin": True}, {"distractors": True, "pair": 3}, {"camera_error": 0.02}])
def test_the_same_seed_gives_the_same_start_to_the_bit_whatever_happened_before(options):
    view = View(cameras=("left",), modalities=("images", "depth", "segmentation"), size=(24, 32), renderer="raycast")
    environment = make_environment("tabletop/put_on_plate", view=view, **options)
    first, _ = environment.reset(seed=7)
    state, xml = environment.get_state(), environment.model_xml
    rng = np.random.default_rng(0)
    for seed in (1, 7, 3):
        environment.reset(seed=seed)
        for _ in range(4):
            environment.step(rng.uniform(-1, 1, 7))
    for again in (environment, make_environment("tabletop/put_on_plate", view=view, **options)):
        observation, _ = again.reset(seed=7)
        np.testing.assert_array_equal(again.get_state(), state)
        assert again.model_xml == xml
        np.testing.assert_array_equal(observation["proprioception"], first["proprioception"])
        for name, pose in first["object_poses"].items():
            np.testing.assert_array_equal(observation["object_poses"][name], pose)
        for modality in view.modalities:
            np.testing.assert_array_equal(observation[modality]["left"], first[modality]["left"])
        np.testing.assert_array_equal(observation["cameras"]["left"].camera_to_base, first["cameras"]["left"].camera_to_base)


def test_a_state_comes_back_and_goes_on_to_the_bit():
    environment = make_environment("tabletop/stack", pair=1, twin=True)
    environment.reset(seed=5)
    expert = scripted_expert(environment)
    actions, states = [], []
    for _ in range(30):
        states.append(environment.get_state())
        actions.append(expert.act(environment))
        environment.step(actions[-1])
    end = environment.get_state()
    for start in (0, 13, 22):
        environment.reset(seed=5)
        environment.set_state(states[start])
        np.testing.assert_array_equal(environment.get_state(), states[start])
        for action in actions[start:]:
            environment.step(action)
        np.testing.assert_array_equal(environment.get_state(), end)
    with pytest.raises(ValueError, match=r"A state of this scene has .* numbers, got 2"):
        environment.set_state(np.zeros(3))


def test_starts_lie_where_the_brief_says():
    environment = make_environment("tabletop/put_on_plate")
    yaws = []
    for seed in range(40):
        observation, _ = environment.reset(seed=seed)
        held, target = (observation["object_poses"][name] for name in environment.object_names)
        for pose in (held, target):
            assert (pose[:2, 3] > np.array(START_LOW) - 2e-3).all()
            assert (pose[:2, 3] < np.array(START_HIGH) + 2e-3).all()
        assert np.linalg.norm(held[:2, 3] - target[:2, 3]) > START_GAP - 2e-3
        yaws.append(np.arctan2(held[1, 0], held[0, 0]))
        assert observation["proprioception"][9] == OPEN
        assert not environment.is_success()
    assert np.abs(yaws).max() < START_YAW + 1e-2
    assert np.std(yaws) > 0.2


def test_the_gripper_frame_points_down_with_the_fingers_along_y():
    environment = make_environment("tabletop/stack")
    environment.reset(seed=0)
    pose = environment.gripper_pose()
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-6)
    np.testing.assert_allclose(pose[:3, 3], GantryGripper().home, atol=1e-4)
    pads = [environment.data.geom_xpos[geoms[0]] for geoms in environment._fingers]
    local = transform_points(invert_pose(pose), np.stack(pads))
    np.testing.assert_allclose(local[:, 1], [0.046, -0.046], atol=1e-3)  # open pads at 4 cm, plus half a finger
    environment.step(np.array([0, 0, 0, 0, 0, 1.0, OPEN]))
    turned = environment.gripper_pose()
    assert 0.12 < np.arctan2(turned[1, 0], turned[0, 0]) < 0.22


def test_a_delta_action_moves_the_gripper_as_far_as_its_scale_says():
    environment = make_environment("tabletop/stack")
    for action in (np.array([1, 0, 0, 0, 0, 0, OPEN]), np.array([-0.5, 1, 0.3, 0, 0, -0.5, OPEN])):
        environment.reset(seed=1)
        for _ in range(3):
            target = target_of_delta(action, environment.gripper_pose(), environment.scale)
            environment.step(action)
            reached = environment.gripper_pose()
            np.testing.assert_allclose(reached[:3, 3], target[:3, 3], atol=3e-3)
            np.testing.assert_allclose(reached[:3, :3], target[:3, :3], atol=3e-2)


def test_a_target_is_reached_and_held_with_an_object_in_the_hand():
    environment = make_environment("tabletop/stack")
    environment.reset(seed=2)
    expert = scripted_expert(environment)
    while not environment.is_grasped():
        environment.step(expert.act(environment))
    target = make_pose(environment.gripper_pose()[:3, :3], np.array([0.5, 0.1, 0.2]))
    for _ in range(30):
        environment.step(delta_to_target(target, CLOSED, environment.gripper_pose(), environment.scale))
    np.testing.assert_allclose(environment.gripper_pose()[:3, 3], target[:3, 3], atol=1e-3)
    assert environment.is_grasped()
    assert environment.object_pose(environment.object_names[0])[2, 3] > 0.15


def test_the_gripper_stays_in_its_workspace():
    environment = make_environment("tabletop/stack")
    environment.reset(seed=2)
    for _ in range(40):
        environment.step(np.array([0, -1, -1, 0, 0, 0, OPEN]))
    assert environment.gripper_pose()[2, 3] > 0.0
    assert environment.gripper_pose()[1, 3] > -0.46


def test_success_needs_rest_on_the_target_release_and_distance():
    environment = make_environment("tabletop/put_on_plate")
    run_expert(environment, seed=0)
    assert environment.is_success()
    environment.step(np.array([0, 0, 0, 0, 0, 0, CLOSED]))
    assert not environment.is_success()  # a closing gripper has not let go
    environment.step(np.array([0, 0, 0, 0, 0, 0, OPEN]))
    assert environment.is_success()
    address = environment._addresses["red_box"]
    where = environment.data.qpos[address : address + 3].copy()
    environment.data.qpos[address + 2] += 0.1
    environment.step(np.zeros(7))
    assert not environment.is_success()  # it falls
    environment.data.qpos[address : address + 3] = where + [0.3, 0.0, 0.0]
    for _ in range(10):
        environment.step(np.zeros(7))
    assert not environment.is_success()  # beside the plate


def test_a_twin_keeps_the_places_and_changes_looks_drives_and_cameras():
    nominal, twin = (make_environment("tabletop/put_in_bin", twin=flag) for flag in (False, True))
    looks = set()
    for seed in range(4):
        start, shifted = nominal.reset(seed=seed)[0], twin.reset(seed=seed)[0]
        for name in nominal.object_names:
            np.testing.assert_allclose(start["object_poses"][name], shifted["object_poses"][name], atol=1e-3)
        assert 49 <= twin.look.fovy_deg <= 55
        assert len(twin.look.distractors) == 3
        offset = np.subtract(twin.look.camera_position, nominal.look.camera_position)
        assert 0 < np.linalg.norm(offset) < 0.12
        seen = twin.camera("left", (64, 64))
        np.testing.assert_allclose(seen.camera_to_base[:3, 3], twin.look.camera_position, atol=1e-9)
        target = transform_points(seen.base_to_camera, np.array([[0.5, 0.0, 0.02]]))[0]
        np.testing.assert_allclose(target[:2], 0, atol=1e-9)  # aimed anew
        assert twin.model.geom_friction[twin._geoms["red_box"][0], 0] == pytest.approx(twin.look.friction)
        looks.add((twin.look.table, twin.look.light_position, twin.look.gain))
    assert len(looks) == 4
    assert nominal.look.distractors == ()
    bare = make_environment("tabletop/put_in_bin", twin=True, distractors=False)
    bare.reset(seed=0)
    assert bare.look.distractors == ()


def test_colours_of_a_twin_still_go_by_their_names():
    environment = make_environment("tabletop/put_on_plate", twin=True)  # red box, white plate
    for seed in range(20):
        environment.reset(seed=seed)
        red, green, blue = environment.look.manipulated
        assert red > 1.7 * max(green, blue)
        assert min(environment.look.target) > 0.6


def test_distractors_keep_away_from_the_starts_and_from_each_other():
    environment = make_environment("tabletop/stack", distractors=True)
    for seed in range(10):
        environment.reset(seed=seed)
        places = [np.array(place[:2]) for _, _, place in environment.look.distractors]
        for place in places:
            outside = np.maximum(0, np.maximum(np.subtract(START_LOW, place), np.subtract(place, START_HIGH)))
            assert np.linalg.norm(outside) > 0.08
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > 0.08


def test_stereo_cameras_are_six_centimetres_apart_along_x():
    environment = make_environment("tabletop/stack")
    environment.reset(seed=0)
    left, right = (environment.camera(name, (48, 64)) for name in ("left", "right"))
    between = left.base_to_camera @ right.camera_to_base
    np.testing.assert_allclose(between, make_pose(np.eye(3), np.array([0.06, 0.0, 0.0])), atol=1e-9)
    np.testing.assert_allclose(left.camera_to_base[:3, 3], [-0.05, 0.38, 0.66], atol=1e-12)


def test_the_released_calibration_is_a_camera():
    environment = make_environment("tabletop/stack")
    pose = environment.camera("cam_8_left", (72, 128)).camera_to_base
    np.testing.assert_allclose(pose[:3, 3], [-0.01391, 0.35517, 0.65610], atol=1e-9)
    np.testing.assert_allclose(pose[0, :3], [-0.43887, -0.41534, 0.79680], atol=1e-4)
    intrinsics = environment.camera("cam_8_left", (720, 1280)).intrinsics
    assert intrinsics[1, 1] == pytest.approx(532.2, abs=0.5)


def test_a_camera_error_moves_what_is_reported_and_not_what_is_seen():
    views = [make_environment("tabletop/stack", camera_error=error, view=View(renderer="raycast")) for error in (0.0, 0.05)]
    for environment in views:
        environment.reset(seed=3)
    true, wrong = (environment.camera("left", (8, 8)).camera_to_base for environment in views)
    assert np.linalg.norm(true[:3, 3] - wrong[:3, 3]) == pytest.approx(0.05)
    images = [environment.render_view("left", ("depth",), (8, 8))["depth"] for environment in views]
    np.testing.assert_array_equal(*images)


def test_rendered_depth_lifts_onto_the_objects():
    view = View(cameras=("left", "cam_8_left"), modalities=("depth", "segmentation"), size=(96, 128), renderer="raycast")
    environment = make_environment("tabletop/put_on_plate", twin=True, view=view)
    observation, _ = environment.reset(seed=11)
    for camera, (index, name) in itertools.product(view.cameras, enumerate(environment.object_names)):
        rows, columns = np.nonzero(observation["segmentation"][camera] == index)
        assert len(rows) > 5
        depth = observation["depth"][camera][rows, columns]
        calibration = observation["cameras"][camera]
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))]) * depth
        points = transform_points(calibration.camera_to_base, (np.linalg.inv(calibration.intrinsics) @ pixels).T)
        local = transform_points(invert_pose(observation["object_poses"][name]), points)
        half = {"red_box": [0.022, 0.022, 0.025], "white_plate": [0.075, 0.075, 0.006]}[name]
        assert (np.abs(local) < np.array(half) + 1e-4).all()


@pytest.mark.parametrize("task", list(TASKS))
def test_instructions_name_both_objects_and_pairs_differ(task):
    seen = set()
    for pair in range(5):
        environment = make_environment(f"tabletop/{task}", pair=pair)
        for name in environment.object_names:
            assert name.replace("_", " ") in environment.instruction
            assert environment.object_bodies[name] == (name,)
        seen.add(environment.object_names)
    assert len(seen) == 5


def test_another_gripper_is_other_data():
    gripper = GantryGripper(opening=0.05, hand_size=(0.08, 0.2, 0.06), home=(0.4, 0.05, 0.25))
    environment = make_environment("tabletop/put_on_plate", gripper=gripper)
    observation, _ = environment.reset(seed=0)
    np.testing.assert_allclose(observation["proprioception"][:3], gripper.home, atol=1e-4)
    run_expert(environment, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": 5}, r"pair must be an integer from 0 to 4 .* got 5"),
        ({"pair": True}, "pair must be an integer"),
        ({"camera_error": -0.1}, "camera_error must be a distance"),
        ({"camera_error": float("nan")}, "camera_error must be a distance"),
        ({"view": View(cameras=("front",))}, "no camera 'front'; there are left, right, cam_8_left, overview"),
        ({"view": View(cameras=("left",), size=(0, 3))}, "size of a view"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_environment("tabletop/stack", **options)


def test_bad_seeds_actions_and_calls_are_refused():
    environment = make_environment("tabletop/stack")
    with pytest.raises(ValueError, match="has not been reset"):
        environment.step(np.zeros(7))
    with pytest.raises(ValueError, match="has not been reset"):
        environment.set_state(np.zeros(3))
    for seed in (-1, True):
        with pytest.raises(ValueError, match="seed of a reset is an integer of at least 0"):
            environment.reset(seed=seed)
    with pytest.raises(ValueError, match="takes its options when it is made"):
        environment.reset(seed=0, options={"pair": 1})
    environment.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        environment.step(np.array([np.nan] + [0] * 6))
    with pytest.raises(ValueError, match="no object 'blue_mug'; it has red_box, blue_block"):
        environment.object_pose("blue_mug")
    with pytest.raises(ValueError, match="no camera 'front'"):
        environment.camera("front", (8, 8))


def test_half_heights_are_those_of_resting_objects():
    assert TableObject("red", "sphere", (0.03,)).half_height == 0.03
    assert TableObject("red", "capsule", (0.02, 0.03)).half_height == pytest.approx(0.05)
    assert TableObject("red", "mug", (0.02, 0.03)).half_height == 0.03
