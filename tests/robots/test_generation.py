import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kinematic_cell import KinematicCell, KinematicExpert, make_expert

from visiongraft.robots.attempts import attempt, plan_segment, prepare_sources
from visiongraft.robots.demonstrations import describe_environment, read_demonstrations, record, replay, write_demonstrations
from visiongraft.robots.environments import make_environment
from visiongraft.robots.gathering import recipe_json
from visiongraft.robots.generation import collect, generate
from visiongraft.robots.observers import UnseenError
from visiongraft.robots.subtasks import Settings, default_subtasks, make_subtasks

SUBTASKS = make_subtasks(("cube", "goal"), ("grasped", "a_placed"), offset_range=(2, 5))
QUIET = {"progress": False, "offset_range": (2, 5)}


@pytest.fixture(scope="module")
def cell():
    return KinematicCell()


@pytest.fixture(scope="module")
def sources(cell):
    return [record(cell, KinematicExpert(), seed) for seed in range(4)]


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("fixed", [0, 3])
@pytest.mark.parametrize("first_pose", [False, True])
def test_a_plan_has_as_many_steps_as_the_formula_says(cell, sources, fixed, first_pose):
    """n interpolated, m repeated, and the segment itself, with the robot's pose before it on the first subtask or always."""
    prepared = prepare_sources(sources, SUBTASKS)
    settings = Settings(transform_first_robot_pose=first_pose)
    for i, bounds in enumerate(((0, 16), (16, 42))):
        subtask = replace(SUBTASKS[i], fixed_steps=fixed)
        pose, last = np.eye(4), None if i == 0 else np.diag([1.0, -1, -1, 1])
        plan = plan_segment(
            prepared.demonstrations[0], subtask, settings, bounds, object_pose=pose, gripper_pose=np.eye(4), last_target=last
        )
        segment = bounds[1] - bounds[0] + (i == 0 or first_pose)
        assert len(plan.poses) == len(plan.commands) == len(plan.noise) == 5 + fixed + segment
        # the way is quiet, and its end P'[0] belongs to the noisy segment
        assert (plan.noise[: 5 + fixed] == 0).all() and (plan.noise[5 + fixed :] == 0.01).all()
        assert (plan.poses[5 : 6 + fixed] == plan.poses[5 + fixed]).all()
        # P' keeps its place relative to the object
        source = prepared.demonstrations[0]
        name = subtask.reference
        expected = np.linalg.inv(source.object_poses[name][bounds[0]]) @ source.target_poses[bounds[1] - 1]
        assert np.allclose(plan.poses[-1], expected)
        # the command lags one step where no pose was put before the segment
        lag = 0 if i == 0 or first_pose else 1
        steps = len(plan.commands) - 5 - fixed
        assert np.array_equal(plan.commands[-steps + (1 - lag) :], source.commands[bounds[0] : bounds[1]][: steps - 1 + lag]) or lag
        if lag:
            assert np.array_equal(plan.commands[-steps:][1:], source.commands[bounds[0] : bounds[1] - 1])


def test_the_way_begins_where_it_is_told(cell, sources):
    source = prepare_sources(sources, SUBTASKS).demonstrations[0]
    here, last = cell.gripper_pose(), np.diag([1.0, -1, -1, 1])
    last[:3, 3] = [0.3, 0.1, 0.2]
    plan = partial(plan_segment, source, SUBTASKS[1], bounds=(16, 42), object_pose=np.eye(4), gripper_pose=here)
    from_target = plan(settings=Settings(), last_target=last).poses
    from_gripper = plan(settings=Settings(interpolate_from_last_target=False), last_target=last).poses
    end = from_target[5, :3, 3]
    assert np.allclose(from_target[0, :3, 3], last[:3, 3] + (end - last[:3, 3]) / 6)
    assert np.allclose(from_gripper[0, :3, 3], here[:3, 3] + (end - here[:3, 3]) / 6)


def test_an_attempt_executes_every_waypoint(cell, sources):
    quiet = [replace(subtask, action_noise=0.0, offset_range=(0, 0)) for subtask in SUBTASKS]
    prepared = prepare_sources(sources[:1], quiet)
    made = attempt(cell, prepared, quiet, Settings(), np.random.default_rng(0))
    assert made is not None and len(made) == 5 + 1 + 13 + 5 + (42 - 13)
    # without noise and without offsets, the grasp happens at the same place on the cube as in the source
    t, s = (int(np.argmax(d.signals["grasped"])) for d in (made, sources[0]))
    relative = lambda d, k: np.linalg.inv(d.object_poses["cube"][k]) @ d.gripper_poses[k]
    assert np.allclose(relative(made, t), relative(sources[0], s), atol=2e-3)


def test_noise_is_on_the_arm_alone_and_is_what_is_stored(cell, sources):
    noisy = [replace(subtask, action_noise=0.3, noise_during_interpolation=True) for subtask in SUBTASKS]
    prepared = prepare_sources(sources, noisy)
    made = [attempt(cell, prepared, noisy, Settings(), np.random.default_rng(i)) for i in range(4)]
    made = [one for one in made if one is not None]
    assert made and all(set(np.unique(one.actions[:, 6])) <= {-1.0, 1.0} for one in made)
    assert all(np.abs(one.actions).max() <= 1 for one in made)
    assert replay(cell, made[0], "actions").success
    turns = np.concatenate([one.actions[:, 3:5] for one in made])  # the expert never tilts
    assert turns.std() == pytest.approx(0.3 * np.sqrt(2), rel=0.35)


def test_trimming_makes_short_demonstrations_that_move_at_most_a_step(cell, sources):
    prepared = prepare_sources(sources, SUBTASKS)
    lengths = {}
    for trim in (False, True):
        settings = Settings(trim_approach=trim, step_distance=0.02)
        made = [attempt(cell, prepared, SUBTASKS, settings, np.random.default_rng(i)) for i in range(3)]
        assert all(one is not None for one in made)
        lengths[trim] = np.mean([len(one) for one in made])
        replies = [replay(cell, one, "actions") for one in made]
        assert all(reply.success and reply.position_error < 1e-9 for reply in replies)
    assert lengths[True] < 0.8 * lengths[False]


def test_one_source_for_all_subtasks_or_one_for_each(cell, sources):
    prepared = prepare_sources(sources, SUBTASKS)
    for per_subtask in (False, True):
        settings = Settings(select_per_subtask=per_subtask)
        made = [attempt(cell, prepared, SUBTASKS, settings, np.random.default_rng(i)) for i in range(4)]
        mixed = [len(set(one.attributes["sources"].split(","))) > 1 for one in made]
        assert any(mixed) == per_subtask


def test_sources_that_do_not_fit_are_named(cell, sources):
    with pytest.raises(ValueError, match="needs at least one source demonstration"):
        prepare_sources([], SUBTASKS)
    with pytest.raises(ValueError, match="Source demonstration 0 has no poses of 'bowl'; it has: cube, goal"):
        prepare_sources(sources, make_subtasks(("bowl", "goal"), ("grasped", "a_placed")))
    bare = replace(sources[1], gripper_poses=np.zeros((0, 4, 4)), target_poses=np.zeros((0, 4, 4)), object_poses={})
    with pytest.raises(ValueError, match="Source demonstration 1 has no datagen_info, which generate"):
        prepare_sources([sources[0], bare], SUBTASKS)
    with pytest.raises(ValueError, match="Every subtask but the last needs a signal"):
        prepare_sources(sources, SUBTASKS[:1])
    with pytest.raises(ValueError, match=r"Source demonstration 0: subtask 1 may become empty"):
        prepare_sources(sources, make_subtasks(("cube", "goal"), ("grasped", "a_placed"), offset_range=(10, 40)))


def test_default_subtasks_pair_signals_with_objects(cell):
    cell.reset(seed=0)
    first, last = default_subtasks(cell, "mimicgen")
    assert (first.reference, first.signal, last.reference, last.signal) == ("cube", "grasped", "goal", None)
    lonely = KinematicCell()
    lonely.object_names = ("cube",)
    with pytest.raises(ValueError, match="signals grasped, a_placed and objects cube; their numbers differ"):
        default_subtasks(lonely)


def test_the_same_seed_gives_the_same_file_for_any_workers(tmp_path, sources):
    """A third of the scenes fail, so that successes come out of order."""
    options = {"stubborn": 0.35}
    made = {}
    for name, kwargs in (("one", {}), ("two", {"workers": 2})):
        made[name] = generate(KinematicCell, sources, tmp_path / f"{name}.hdf5", num=5, options=options, **QUIET, **kwargs)
    assert content(tmp_path / "one.hdf5") == content(tmp_path / "two.hdf5")
    assert made["one"].attempts == made["two"].attempts > made["one"].successes == 5
    numbers = [one.attributes["attempt"] for one in read_demonstrations(tmp_path / "one.hdf5")]
    assert numbers == sorted(set(numbers)) and numbers[-1] + 1 == made["one"].attempts
    other = generate(KinematicCell, sources, tmp_path / "other.hdf5", num=1, options=options, seed=1, **QUIET)
    assert not np.array_equal(read_demonstrations(other.path)[0].states[0], read_demonstrations(tmp_path / "one.hdf5")[0].states[0])
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*.jsonl"))


CALLS: list[int] = []


class Interrupted(KinematicCell):
    """Counts its attempts and is interrupted in one of them."""

    interrupt_at: int | None = None

    def _reset(self, seed, options) -> None:
        CALLS.append(seed)
        if len(CALLS) == self.interrupt_at:
            raise KeyboardInterrupt
        super()._reset(seed, options)


def test_an_interrupted_run_goes_on_and_repeats_nothing(tmp_path, sources):
    whole = generate(Interrupted, sources, tmp_path / "whole.hdf5", num=4, options={"stubborn": 0.5}, **QUIET)
    seeds = CALLS.copy()
    CALLS.clear()
    path = tmp_path / "parted.hdf5"
    for stop in (3, 5):
        Interrupted.interrupt_at = stop
        with pytest.raises(KeyboardInterrupt):
            generate(Interrupted, sources, path, num=4, options={"stubborn": 0.5}, **QUIET)
        Interrupted.interrupt_at = None
        made = len(CALLS)
        CALLS.clear()
        assert made == stop
    assert path.exists() and len(read_demonstrations(path)) < 4
    again = generate(Interrupted, sources, path, num=4, options={"stubborn": 0.5}, **QUIET)
    assert again.attempts == whole.attempts and content(path) == content(whole.path)
    # every start begins with two resets that look at the environment
    assert len(CALLS) - 2 < len(seeds) - 2
    CALLS.clear()


CHILD = """
import sys
sys.path.insert(0, {folder!r})
from kinematic_cell import KinematicCell
from visiongraft.robots.environments import make_environment
from visiongraft.robots.generation import generate
generate(KinematicCell, {sources!r}, {path!r}, num=1000, options={{"stubborn": 0.3}}, offset_range=(2, 5), progress=False)
"""


def test_a_killed_run_goes_on_and_gives_the_same_data(tmp_path, cell, sources):
    five = write_demonstrations(tmp_path / "five.hdf5", sources, environment_args=describe_environment(cell))
    path, log = tmp_path / "killed.hdf5", tmp_path / "killed.hdf5.attempts.jsonl"
    source = CHILD.format(folder=str(Path(__file__).parent), sources=str(five), path=str(path))
    child = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.DEVNULL)
    while not log.exists() or log.read_bytes().count(b"\n") < 5:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    rows = log.read_bytes().count(b"\n") - 1
    num = rows + 2
    again = generate(KinematicCell, five, path, num=num, options={"stubborn": 0.3}, **QUIET)
    whole = generate(KinematicCell, five, tmp_path / "whole.hdf5", num=num, options={"stubborn": 0.3}, **QUIET)
    assert again.attempts == whole.attempts and content(path) == content(whole.path)


def test_a_finished_file_grows_to_what_a_longer_run_gives(tmp_path, sources):
    short = generate(KinematicCell, sources, tmp_path / "a.hdf5", num=1, options={"stubborn": 0.5}, **QUIET)
    assert generate(KinematicCell, sources, short.path, num=1, options={"stubborn": 0.5}, **QUIET).attempts == short.attempts
    long = generate(KinematicCell, sources, short.path, num=3, options={"stubborn": 0.5}, **QUIET)
    whole = generate(KinematicCell, sources, tmp_path / "b.hdf5", num=3, options={"stubborn": 0.5}, **QUIET)
    assert long.attempts == whole.attempts
    for a, b in zip(read_demonstrations(long.path), read_demonstrations(whole.path), strict=True):
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.states, b.states) and a.attributes == b.attributes


def test_runs_with_other_settings_do_not_mix(tmp_path, sources):
    path = tmp_path / "a.hdf5"
    generate(KinematicCell, sources, path, num=1, **QUIET)
    with pytest.raises(ValueError, match="was begun with another recipe"):
        generate(KinematicCell, sources, path, num=2, seed=1, **QUIET)
    with pytest.raises(ValueError, match="was begun with another recipe"):
        generate(KinematicCell, sources[:2], path, num=2, **QUIET)
    with pytest.raises(ValueError, match="was begun with another recipe"):
        generate(KinematicCell, sources, path, num=2, make_observer=partial(_HalfBlind), **QUIET)
    with pytest.raises(FileExistsError, match="pass resume=True"):
        generate(KinematicCell, sources, path, num=2, resume=False, **QUIET)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        generate(KinematicCell, sources, path, num=0, **QUIET)


def test_arguments_that_an_observer_is_bound_to_belong_to_the_recipe():
    texts = [recipe_json({"observer": partial(make_expert, eyes)}) for eyes in (Settings(), Settings(step_angle=0.1), 3)]
    texts += [recipe_json({"observer": partial(make_expert, side=side)}) for side in (1, 2)]
    assert len(set(texts)) == 5 and all("kinematic_cell.make_expert" in text for text in texts)


def test_a_task_that_never_succeeds_ends_with_a_reason(tmp_path, sources):
    path = tmp_path / "never.hdf5"
    with pytest.raises(RuntimeError, match=r"The last 4 of 4 attempts failed, 0 of 3 demonstrations are in .*never.hdf5"):
        generate(KinematicCell, sources, path, num=3, options={"stubborn": 1.0}, patience=4, **QUIET)
    rows = (tmp_path / "never.hdf5.attempts.jsonl").read_text().splitlines()
    assert len(rows) == 5 and json.loads(rows[-1]) == {"attempt": 3, "success": False}
    with pytest.raises(ValueError, match=r"never.hdf5.attempts.jsonl belongs to another run"):
        generate(KinematicCell, sources, path, num=3, options={"stubborn": 0.0}, **QUIET)


class _HalfBlind:
    """Sees cubes on one side of the table only."""

    error: type[ValueError] = UnseenError

    def __init__(self, environment):
        self.environment = environment

    def reset(self, observation):
        if observation["object_poses"]["cube"][1, 3] < 0:
            raise self.error("the cube is hidden")

    def __call__(self, observation):
        return observation


class _Broken(_HalfBlind):
    error = ValueError


def test_a_scene_that_cannot_be_seen_is_a_failed_attempt_and_other_errors_are_errors(tmp_path, sources):
    made = generate(KinematicCell, sources, tmp_path / "seen.hdf5", num=6, subtasks=SUBTASKS, make_observer=_HalfBlind, **QUIET)
    everything = generate(KinematicCell, sources, tmp_path / "all.hdf5", num=6, subtasks=SUBTASKS, **QUIET)
    with read_demonstrations(made.path) as file:
        assert len(file) == 6 and all(demonstration.object_poses["cube"][0, 1, 3] >= 0 for demonstration in file)
    assert made.attempts > everything.attempts
    with pytest.raises(ValueError, match="the cube is hidden"):
        generate(KinematicCell, sources, tmp_path / "broken.hdf5", num=6, subtasks=SUBTASKS, make_observer=_Broken, **QUIET)


def test_collecting_records_an_expert_from_numbered_starts(tmp_path):
    done = collect(KinematicCell, tmp_path / "a.hdf5", num=2, options={"stubborn": 0.5}, make_expert=make_expert, progress=False)
    two = collect(KinematicCell, tmp_path / "b.hdf5", num=2, options={"stubborn": 0.5}, make_expert=make_expert, progress=False, workers=2)
    assert content(done.path) == content(two.path) and done.attempts >= 2
    assert all(replay(KinematicCell(0.5), one).success for one in read_demonstrations(done.path))
    made = generate(KinematicCell, done.path, tmp_path / "c.hdf5", num=1, **QUIET)
    assert made.successes == 1 and made.success_rate == 1


def test_ray_gives_what_this_process_gives(tmp_path, sources, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'visiongraft[distributed]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        made = generate(KinematicCell, sources, tmp_path / "ray.hdf5", num=3, options={"stubborn": 0.5}, engine="ray", **QUIET)
        generate(KinematicCell, sources, tmp_path / "local.hdf5", num=3, options={"stubborn": 0.5}, **QUIET)
        assert content(made.path) == content(tmp_path / "local.hdf5")
    finally:
        ray.shutdown()


def test_the_tabletop_end_to_end(tmp_path):
    """Two recorded demonstrations make three, which do the task again when their actions are taken."""
    task, options = "tabletop/put_on_plate", {"pair": 1}
    recorded = collect(task, tmp_path / "two.hdf5", num=2, options=options, progress=False)
    settings = Settings(trim_approach=True)
    made = generate(task, recorded.path, tmp_path / "three.hdf5", num=3, options=options, settings=settings, workers=2, **QUIET)
    generate(task, recorded.path, tmp_path / "again.hdf5", num=3, options=options, settings=settings, **QUIET)
    assert content(made.path) == content(tmp_path / "again.hdf5")
    file = read_demonstrations(made.path)
    assert file.environment_args["env_name"] == task and file.environment_args["env_kwargs"] == options
    environment = make_environment(task, **options)
    for one in file:
        result = replay(environment, one, "actions")
        assert result.success and result.object_error < 1e-6
        assert replay(environment, one).success
    longest = max(read_demonstrations(recorded.path).lengths())
    assert all(length < longest + 10 for length in file.lengths())
