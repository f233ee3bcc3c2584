import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from visiongraft.robots.poses import make_pose, rotation_from_vector, rotation_vector
from visiongraft.robots.segments import (
    contact_start,
    draw_boundaries,
    gripper_commands,
    interpolate_poses,
    needed_interpolation_steps,
    segment_ends,
    transform_segment,
)
from visiongraft.robots.selection import pose_distance, select_source
from visiongraft.robots.subtasks import PRESETS, Settings, Subtask, make_subtasks, preset

vectors = st.lists(st.floats(-1.5, 1.5), min_size=6, max_size=6).map(
    lambda v: make_pose(rotation_from_vector(np.array(v[:3])), np.array(v[3:]))
)
TWO = make_subtasks(("a", "b"), ("grasp", "place"), offset_range=(2, 5))


def upright(positions: np.ndarray) -> np.ndarray:
    return make_pose(np.broadcast_to(np.eye(3), (len(positions), 3, 3)), positions)


def signal(steps: int, *true: tuple[int, int]) -> np.ndarray:
    values = np.zeros(steps, bool)
    for start, stop in true:
        values[start:stop] = True
    return values


def test_a_segment_ends_two_steps_after_the_last_zero():
    assert segment_ends({"grasp": signal(60, (31, 60))}, 60, TWO, "x") == [32, 60]


def test_ends_look_only_behind_the_subtask_before():
    three = make_subtasks(("a", "b", "c"), ("s", "t", "u"), offset_range=(0, 0))
    # t flickers before s is done; a signal that is true from the start has no rise
    signals = {"s": signal(50, (20, 50)), "t": signal(50, (5, 8), (30, 50)), "u": signal(50, (40, 50))}
    assert segment_ends(signals, 50, three, "x") == [21, 31, 50]
    assert segment_ends({"s": signal(50, (0, 10), (20, 50)), "t": signals["t"]}, 50, three, "x") == [21, 31, 50]


def test_demonstrations_that_cannot_be_cut_are_named():
    with pytest.raises(ValueError, match="demo_3: subtask 0 never ends, its signal 'grasp' does not become true"):
        segment_ends({"grasp": signal(50)}, 50, TWO, "demo_3")
    with pytest.raises(ValueError, match="demo_3 has no signal 'grasp' for subtask 0; it has: lift"):
        segment_ends({"lift": signal(50, (3, 4))}, 50, TWO, "demo_3")
    with pytest.raises(
        ValueError, match="demo_3: subtask 1 may become empty: subtask 0 ends at step 45 plus up to 5, subtask 1 at step 50"
    ):
        segment_ends({"grasp": signal(50, (44, 50))}, 50, TWO, "demo_3")
    assert segment_ends({"grasp": signal(50, (43, 50))}, 50, TWO, "demo_3") == [44, 50]


def test_boundaries_move_by_offsets_of_the_whole_range_and_stay_joined():
    ends = np.array([[20, 60]] * 4000)
    drawn = draw_boundaries(ends, TWO, np.random.default_rng(0))
    assert (drawn[:, 0, 0] == 0).all() and (drawn[:, 1, 1] == 60).all() and (drawn[:, 0, 1] == drawn[:, 1, 0]).all()
    counts = np.bincount(drawn[:, 0, 1] - 20, minlength=6)
    assert (counts[:2] == 0).all() and np.allclose(counts[2:] / 4000, 0.25, atol=0.03)
    with pytest.raises(ValueError, match="A segment is empty"):
        draw_boundaries(np.array([[59, 60]]), TWO, np.random.default_rng(0))


@settings(max_examples=30, deadline=None)
@given(vectors, vectors, vectors, vectors)
def test_transforming_keeps_what_the_gripper_did_relative_to_the_object(source_object, new_object, first, second):
    poses = np.stack([first, second])
    moved = transform_segment(poses, new_object, source_object)
    assert np.allclose(np.linalg.inv(new_object) @ moved, np.linalg.inv(source_object) @ poses)
    assert np.allclose(transform_segment(poses, source_object, source_object), poses)
    assert np.allclose(transform_segment(moved, source_object, new_object), poses)


def test_a_turned_object_turns_the_path():
    """Object at the origin in the source, at (1, 0, 0) and a quarter turn to the left now: one step ahead becomes one step to the left."""
    new = make_pose(rotation_from_vector(np.array([0, 0, np.pi / 2])), np.array([1.0, 0, 0]))
    moved = transform_segment(upright(np.array([[0.1, 0, 0.2]])), new, np.eye(4))
    assert np.allclose(moved[0, :3, 3], [1.0, 0.1, 0.2])


@settings(max_examples=30, deadline=None)
@given(vectors, vectors, st.integers(0, 8))
def test_interpolation_is_even_and_ends_exactly(start, end, num):
    way = interpolate_poses(start, end, num)
    assert way.shape == (num + 1, 4, 4) and np.array_equal(way[-1], end)
    for k, pose in enumerate(way, 1):
        share = k / (num + 1)
        assert np.allclose(pose[:3, 3], (1 - share) * start[:3, 3] + share * end[:3, 3])
        turn = Rotation.from_matrix(end[:3, :3] @ start[:3, :3].T).as_rotvec()
        if np.linalg.norm(turn) >= 0.05:
            expected = (Rotation.from_rotvec(share * turn) * Rotation.from_matrix(start[:3, :3])).as_matrix()
            assert np.allclose(pose[:3, :3], expected, atol=1e-9)


def test_small_turns_are_taken_at_once():
    for angle, at_once in ((0.049, True), (0.051, False)):
        end = make_pose(rotation_from_vector(np.array([0, 0, angle])), np.array([0.1, 0, 0]))
        first = interpolate_poses(np.eye(4), end, 5)[0]
        assert np.array_equal(first[:3, :3], end[:3, :3]) == at_once
        assert first[0, 3] == pytest.approx(0.1 / 6)
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        interpolate_poses(np.eye(4), np.eye(4), -1)


@settings(max_examples=30, deadline=None)
@given(vectors, vectors)
def test_needed_steps_are_the_fewest_that_keep_to_the_limits(start, end):
    num = needed_interpolation_steps(start, end, 0.03, 0.2)
    way = np.concatenate([start[None], interpolate_poses(start, end, num)])
    distance = np.linalg.norm(np.diff(way[:, :3, 3], axis=0), axis=1).max()
    angle = np.linalg.norm(rotation_vector(way[1:, :3, :3] @ np.swapaxes(way[:-1, :3, :3], -1, -2)), axis=1).max()
    assert distance <= 0.03 + 1e-6 and (angle <= 0.2 + 1e-6)
    if num:
        total_angle = np.linalg.norm(rotation_vector(end[:3, :3] @ start[:3, :3].T))
        assert max(np.linalg.norm(end[:3, 3] - start[:3, 3]) / 0.03, total_angle / 0.2) > num
    assert needed_interpolation_steps(np.eye(4), make_pose(np.eye(3), np.array([0.3, 0, 0])), 0.03) == 9


def test_the_grippers_first_command_is_doubled():
    commands = np.array([-1.0, -1, 1, 1, -1])
    assert gripper_commands(commands, 1, 5).tolist() == [-1, -1, 1, 1, -1]
    assert gripper_commands(commands, 2, 4).tolist() == [1, 1, 1]


def falling(steps: int, height: float = 0.5) -> np.ndarray:
    """A gripper that comes down from a height to 0 in equal steps."""
    return upright(np.stack([np.zeros(steps), np.zeros(steps), np.linspace(height, 0, steps)], axis=1))


def test_the_approach_ends_within_the_radius_of_the_grasp():
    poses = np.concatenate([falling(51), np.repeat(falling(51)[-1:], 5, axis=0)])
    commands = np.where(np.arange(56) < 53, -1.0, 1.0)
    assert contact_start(poses, None, commands, 0, 56, 0.0801) == 42  # z <= 8 cm from step 42 on
    assert contact_start(poses, None, commands, 45, 56, 0.0801) == 45
    # without a change of the command, the segment's end is the place
    assert contact_start(poses, None, commands, 0, 31, 0.0501) == 25


def test_the_approach_is_measured_from_the_object():
    """Gripper and object move together: there is no approach, however far they go."""
    moving = upright(np.linspace([0, 0, 0], [1, 0, 0], 20))
    commands = np.ones(20)
    assert contact_start(moving, moving, commands, 0, 20, 0.05) == 0
    assert contact_start(moving, None, commands, 0, 20, 0.06) == 18


def test_distance_adds_metres_and_radians():
    turned = make_pose(rotation_from_vector(np.array([0, 0, 0.5])), np.array([3.0, 4.0, 0]))
    poses = np.stack([turned, np.eye(4)])
    assert np.allclose(pose_distance(poses, np.eye(4)), [5.5, 0])
    assert np.allclose(pose_distance(poses, np.eye(4), 2.0, 4.0), [12, 0])
    assert np.allclose(pose_distance(np.diag([1.0, -1, -1, 1])[None], np.eye(4)), [np.pi])


def at(*x: float) -> np.ndarray:
    return np.stack([make_pose(np.eye(3), np.array([value, 0, 0])) for value in x])


def picks(subtask: Subtask, object_pose, gripper, objects, grippers, draws: int = 600) -> dict[int, float]:
    dice = np.random.default_rng(0)
    chosen = [select_source(subtask, object_pose, gripper, objects, grippers, dice) for _ in range(draws)]
    return {int(k): chosen.count(k) / draws for k in set(chosen)}


def test_nearest_objects_are_chosen_evenly():
    subtask = Subtask(reference="a", signal=None, offset_range=(0, 0))
    found = picks(subtask, np.eye(4), np.eye(4), at(5, 0.1, 0.3, 4, 0.2), at(0, 0, 0, 0, 0))
    assert set(found) == {1, 2, 4} and np.allclose(list(found.values()), 1 / 3, atol=0.07)
    # more neighbours than demonstrations: all
    assert set(picks(subtask, np.eye(4), np.eye(4), at(5, 1), at(0, 0))) == {0, 1}


def test_robot_distance_moves_the_sources_first():
    """The source object lay at 5 and the gripper at 5.2; the object is at 0 now, so that the moved gripper begins at 0.2."""
    subtask = Subtask(reference="a", signal=None, offset_range=(0, 0), strategy="nearest_neighbor_robot_distance", neighbors=1)
    assert set(picks(subtask, np.eye(4), at(0.2)[0], at(5, 0), at(5.2, 0.9))) == {0}
    assert set(picks(subtask, np.eye(4), at(0.9)[0], at(5, 0), at(5.2, 0.9))) == {1}


def test_random_choice_needs_no_object():
    subtask = Subtask(reference=None, signal=None, offset_range=(0, 0), strategy="random")
    assert np.allclose(list(picks(subtask, None, np.eye(4), None, at(0, 1, 2)).values()), 1 / 3, atol=0.07)


def test_presets_are_those_of_the_papers():
    core, labs = PRESETS["mimicgen"], PRESETS["mimiclabs"]
    assert (core.action_noise, labs.action_noise) == (0.05, 0.01)
    assert not core.settings.select_per_subtask and labs.settings.select_per_subtask
    for each in (core, labs):
        assert each.settings.interpolate_from_last_target and not each.settings.transform_first_robot_pose
        assert not each.settings.trim_approach
    first, last = make_subtasks(("bowl", "plate"), ("grasp", "on"))
    assert (first.offset_range, last.offset_range, first.signal, last.signal) == ((10, 20), (0, 0), "grasp", None)
    assert (first.strategy, first.neighbors, first.interpolation_steps, first.fixed_steps) == ("nearest_neighbor_object", 3, 5, 0)
    assert not first.noise_during_interpolation and first.action_noise == 0.01
    assert make_subtasks((None,), ("done",), "mimicgen")[0].strategy == "random"
    with pytest.raises(ValueError, match="Unknown preset 'core'; there are mimicgen, mimiclabs"):
        preset("core")
    with pytest.raises(ValueError, match="got 1 references and 2 signals"):
        make_subtasks(("bowl",), ("grasp", "on"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reference": None}, "A subtask without a reference object cannot use 'nearest_neighbor_object'"),
        ({"signal": None}, r"its offset_range must be \(0, 0\), got \(10, 20\)"),
        ({"offset_range": (5, 2)}, r"offset_range must be \(lowest, highest\), got \(5, 2\)"),
        ({"neighbors": 0}, "neighbors must be at least 1"),
        ({"fixed_steps": -1}, "at least 0"),
    ],
)
def test_subtasks_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Subtask(**{"reference": "a", "signal": "grasp", **values})
    with pytest.raises(ValueError, match="must be above 0"):
        Settings(step_distance=0.0)
