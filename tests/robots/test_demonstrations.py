import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from kinematic_cell import KinematicCell, KinematicExpert

from visiongraft.robots.demonstrations import (
    Demonstration,
    DemonstrationWriter,
    annotate,
    describe_environment,
    read_demonstrations,
    record,
    replay,
    write_demonstrations,
)


@pytest.fixture(scope="module")
def cell():
    return KinematicCell()


@pytest.fixture(scope="module")
def demonstrations(cell):
    return [record(cell, KinematicExpert(), seed) for seed in range(4)]


@pytest.fixture
def path(tmp_path, cell, demonstrations):
    return write_demonstrations(tmp_path / "cube.hdf5", demonstrations, environment_args=describe_environment(cell, {"stubborn": 0.0}))


def equal(a: Demonstration, b: Demonstration) -> bool:
    same = [np.array_equal(getattr(a, name), getattr(b, name)) for name in ("actions", "states", "gripper_poses", "target_poses")]
    for name in ("observations", "object_poses", "signals"):
        x, y = getattr(a, name), getattr(b, name)
        same.append(sorted(x) == sorted(y) and (name == "observations" or list(x) == list(y)))
        same += [np.array_equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x]
    return all(same) and (a.instruction, a.seed, a.model_xml, a.attributes) == (b.instruction, b.seed, b.model_xml, b.attributes)


def test_a_recording_holds_what_was_seen_before_each_action(cell, demonstrations):
    one = demonstrations[0]
    cell.reset(seed=0)
    assert np.array_equal(one.states[0], cell.get_state()) and np.array_equal(one.gripper_poses[0], cell.gripper_pose())
    cell.step(one.actions[0])
    assert np.array_equal(one.states[1], cell.get_state())
    # nothing was clipped, so the target is what was reached
    assert np.allclose(one.target_poses[:-1], one.gripper_poses[1:], atol=1e-9)
    # the observed gripper command is the last one, -1 at first
    assert one.observations["proprioception"][0, 9] == -1
    assert np.array_equal(one.observations["proprioception"][1:, 9], np.sign(one.actions[:-1, 6]).astype(np.float32))


class Halving:
    """An observer that adds one point: half of the gripper's position."""

    def reset(self, observation) -> None:
        self.started = True

    def __call__(self, observation):
        assert self.started
        return {**observation, "object_points": (0.5 * observation["gripper_pose"][:3, 3]).astype(np.float32)[None, None]}


def test_what_an_observer_adds_is_stored(cell):
    one = record(cell, KinematicExpert(), 0, observe=Halving())
    assert np.allclose(one.observations["object_points"][:, 0, 0], 0.5 * one.gripper_poses[:, :3, 3])
    assert record(cell, KinematicExpert(), 0, max_steps=10) is None, "an expert that is not done in time has failed"


def test_files_give_back_what_was_written(path, demonstrations):
    file = read_demonstrations(path)
    assert len(file) == 4 and file.lengths() == [len(one) for one in demonstrations]
    assert all(equal(a, b) for a, b in zip(file, demonstrations, strict=True))
    assert list(file[0].signals) == ["grasped", "a_placed"], "HDF5 sorts by name; the order of the subtasks must survive"
    assert file.instruction == "put the cube on the goal" and file.environment_args["env_name"] == "tests/kinematic"
    assert equal(pickle.loads(pickle.dumps(file))[1], demonstrations[1])


def test_attributes_and_images_survive(tmp_path, cell, demonstrations):
    images = np.random.default_rng(0).integers(0, 255, (len(demonstrations[0]), 6, 8, 3), dtype=np.uint8)
    depth = np.full((len(demonstrations[0]), 6, 8), np.inf, np.float32)
    one = replace(
        demonstrations[0], observations={"left_image": images, "left_depth": depth}, attributes={"pair": 3, "note": "é", "error": 0.02}
    )
    write_demonstrations(tmp_path / "a.hdf5", [one], environment_args=describe_environment(cell))
    assert equal(read_demonstrations(tmp_path / "a.hdf5")[0], one)


def test_layout_is_robomimics(path, demonstrations):
    """What robomimic's SequenceDataset, MimicGen's parser and LIBERO's tools look at."""
    with h5py.File(path) as file:
        data = file["data"]
        environment = json.loads(data.attrs["env_args"])
        assert set(environment) >= {"env_name", "type", "env_kwargs"} and environment["env_kwargs"] == {"stubborn": 0.0}
        assert data.attrs["total"] == sum(len(one) for one in demonstrations) and data.attrs["num_demos"] == 4
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "put the cube on the goal"
        demo = data["demo_2"]
        steps = len(demonstrations[2])
        assert demo.attrs["num_samples"] == steps and demo.attrs["model_file"].strip().startswith("<mujoco>")
        assert demo["actions"].shape == (steps, 7) and demo["rewards"].shape == demo["dones"].shape == (steps,)
        assert demo["dones"][-1] == 1 and demo["dones"][:-1].sum() == 0
        info = demo["datagen_info"]
        assert info["gripper_action"].shape == (steps, 1) and info["object_poses/cube"].shape == (steps, 4, 4)
        signal = info["subtask_term_signals/grasped"][:]
        assert set(np.diff(signal)) == {-1, 0, 1}, "MimicGen subtracts signals, which bool and unsigned numbers do not survive"


def test_filter_keys_part_the_demonstrations(tmp_path, cell, demonstrations):
    args = describe_environment(cell)
    file = read_demonstrations(write_demonstrations(tmp_path / "a.hdf5", demonstrations, environment_args=args, valid_fraction=0.25))
    assert sorted(file.mask("train") + file.mask("valid")) == [0, 1, 2, 3] and len(file.mask("valid")) == 1
    with DemonstrationWriter(tmp_path / "a.hdf5", args, resume=True) as writer:
        writer.append(demonstrations[0])
    again = read_demonstrations(tmp_path / "a.hdf5")
    assert len(again) == 5 and again.mask("valid") == file.mask("valid")
    with pytest.raises(ValueError, match="no filter key 'test'; there are: train, valid"):
        again.mask("test")


@pytest.mark.parametrize("mode", ["states", "actions"])
def test_replay_succeeds_and_stays_on_the_path(path, cell, mode):
    result = replay(cell, read_demonstrations(path)[1], mode)
    assert result.success and result.position_error < 1e-9 and result.object_error < 1e-9


def test_replay_notices_a_demonstration_that_does_not_do_the_task(cell, demonstrations):
    one = demonstrations[0]
    half = 20
    short = Demonstration(
        one.actions[:half], one.states[:half], {}, one.gripper_poses[:half], one.target_poses[:half],
        {name: poses[:half] for name, poses in one.object_poses.items()}, {name: s[:half] for name, s in one.signals.items()},
        one.instruction, one.seed,
    )  # fmt: skip
    assert not replay(cell, short).success
    moved = replace(one, gripper_poses=one.gripper_poses + np.pad([[0.01]], ((0, 3), (3, 0))))
    assert replay(cell, moved).position_error == pytest.approx(0.01)
    with pytest.raises(ValueError, match="states have 51 numbers, those of tests/kinematic have 52"):
        replay(cell, replace(one, states=one.states[:, :-1]))
    with pytest.raises(ValueError, match="Unknown replay mode 'slow'; there are states and actions"):
        replay(cell, one, "slow")


def strip(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["datagen_info"]


def test_poses_that_a_file_lacks_can_be_filled_in(path, cell, demonstrations):
    strip(path)
    with pytest.raises(ValueError, match=r"demo_0 has no datagen_info .* which generate\(\) and Point Bridge's target poses need; .*annot"):
        read_demonstrations(path)
    bare = read_demonstrations(path, datagen_info=False)[2]
    assert not bare.has_datagen_info and np.isnan(replay(cell, bare).position_error)
    assert equal(annotate(cell, bare), demonstrations[2])


def test_files_recorded_elsewhere_are_read(tmp_path, demonstrations):
    """MimicGen's layout: no seeds, no orders, float32, LIBERO's instruction, other things of other lengths beside."""
    one = demonstrations[0]
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Stack_D0", "type": 1, "env_kwargs": {"control_freq": 20}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["stack the blocks"]})
        for k in (10, 2):  # robosuite counts from 1 and HDF5 sorts demo_10 before demo_2
            demo = data.create_group(f"demo_{k}")
            demo["actions"], demo["states"] = one.actions.astype(np.float32), one.states
            demo["obs/robot0_eef_pos"] = np.full((len(one), 3), k)
            demo["datagen_info/eef_pose"], demo["datagen_info/target_pose"] = one.gripper_poses, one.target_poses
            demo["datagen_info/gripper_action"] = one.actions[:, -1:]
            demo["datagen_info/object_poses/cubeA"] = one.object_poses["cube"]
            demo["datagen_info/subtask_term_signals/grasp"] = one.signals["grasped"].astype(np.int64)
            demo["src_demo_inds"] = [0, 1]
    file = read_demonstrations(tmp_path / "theirs.hdf5")
    assert file.keys == ["demo_2", "demo_10"] and file[1].observations["robot0_eef_pos"][0, 0] == 10
    assert file.instruction == "stack the blocks" and file[0].signals["grasp"].dtype == bool
    assert np.allclose(file[0].actions, one.actions, atol=1e-6)


def damaged(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file["data/demo_1"])


def shorten(name: str):
    def change(demo) -> None:
        short = demo[name][:-3]
        del demo[name]
        demo[name] = short

    return change


def put(name: str, value):
    def change(demo) -> None:
        del demo[name]
        demo[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten("obs/proprioception"), r"demo_1 has 42 actions but 39 observations \(proprioception\)"),
        (shorten("states"), "demo_1 has 42 actions but 39 states"),
        (shorten("datagen_info/object_poses/cube"), "demo_1 has 42 actions but 39 entries of datagen_info/object_poses/cube"),
        (put("actions", np.zeros((42, 10))), "demo_1 cannot be used. Actions of the 'delta' convention have 7 numbers, got 10; 10 numbers"),
        (put("actions", np.zeros((42, 8))), "have 7 numbers, got 8"),
        (put("actions", np.zeros(42)), r"demo_1 has actions of shape \(42,\)"),
        (put("datagen_info/eef_pose", np.zeros((42, 7))), r"datagen_info/eef_pose of shape \(42, 7\); poses are 4x4"),
        (lambda demo: demo.attrs.modify("num_samples", 50), "demo_1 has 42 actions but its num_samples says 50"),
        (lambda demo: demo.pop("states"), "demo_1 has no states"),
        (lambda demo: demo["datagen_info"].pop("target_pose"), r"demo_1 has no datagen_info \(target_pose\)"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_when_it_is_opened(path, change, message):
    damaged(path, change)
    with pytest.raises(ValueError, match=message):
        read_demonstrations(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("actions", np.nan, "demo_1 has actions that are not finite, first at step 5"),
        ("actions", 3.0, r"demo_1 has actions up to 3; delta actions lie in \[-1, 1\]"),
        ("obs/proprioception", np.inf, "demo_1 has obs/proprioception that are not finite, first at step 5"),
        ("datagen_info/eef_pose", 2.0, "demo_1 has datagen_info/eef_pose that are no poses"),
    ],
)
def test_values_that_cannot_be_are_refused_when_they_are_read(path, name, value, message):
    def change(demo) -> None:
        demo[name][5] = value

    damaged(path, change)
    file = read_demonstrations(path)
    assert len(file[0]) == 42
    with pytest.raises(ValueError, match=message):
        file[1]


def test_cut_off_empty_and_foreign_files_are_refused(path, tmp_path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is cut off or no HDF5 file .*copy it again or record it anew"):
        read_demonstrations(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="is cut off or no HDF5 file"):
        read_demonstrations(path)
    with pytest.raises(FileNotFoundError, match=r"no demonstration file .*none.hdf5"):
        read_demonstrations(tmp_path / "none.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["images"] = [1]
    with pytest.raises(ValueError, match="no group 'data'"):
        read_demonstrations(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="holds no demonstrations"):
        read_demonstrations(tmp_path / "b.hdf5")


def test_damage_within_an_array_is_named(tmp_path, cell, demonstrations):
    images = np.random.default_rng(0).integers(0, 255, (len(demonstrations[0]), 32, 32, 3), dtype=np.uint8)
    one = replace(demonstrations[0], observations={"left_image": images})
    path = write_demonstrations(tmp_path / "a.hdf5", [one], environment_args=describe_environment(cell))
    with h5py.File(path) as file:
        chunk = file["data/demo_0/obs/left_image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="demo_0/obs/left_image cannot be read"):
        read_demonstrations(path)[0]


@pytest.mark.parametrize("kwargs", [{"controller_configs": {"control_delta": False}}, {"right": {"input_type": "absolute"}}])
def test_files_of_absolute_controllers_are_refused(tmp_path, demonstrations, kwargs):
    args = {"env_name": "Lift", "type": 1, "env_kwargs": kwargs}
    path = write_demonstrations(tmp_path / "a.hdf5", demonstrations[:1], environment_args=args)
    with pytest.raises(ValueError, match="controller of absolute targets; demonstrations hold delta actions, and the two do not mix"):
        read_demonstrations(path)


def test_a_demonstration_checks_itself(demonstrations):
    one = demonstrations[0]
    with pytest.raises(ValueError, match=r"The demonstration has 42 actions but 40 observations \(proprioception\)"):
        replace(one, observations={"proprioception": one.observations["proprioception"][:40]})
    with pytest.raises(ValueError, match="the two do not mix"):
        replace(one, actions=np.zeros((42, 10)))
    with pytest.raises(ValueError, match="The demonstration has no steps"):
        replace(one, actions=np.zeros((0, 7)))


def test_writing_refuses_to_replace_or_mix(path, tmp_path, cell, demonstrations):
    args = describe_environment(cell)
    with pytest.raises(FileExistsError, match=r"cube.hdf5 exists; pass resume=True to continue it"):
        DemonstrationWriter(path, args)
    with pytest.raises(ValueError, match="was begun with another environment"):
        DemonstrationWriter(path, {**args, "env_name": "tests/other"}, resume=True)
    with pytest.raises(ValueError, match="no demonstrations to write"):
        write_demonstrations(tmp_path / "b.hdf5", [], environment_args=args)
    with pytest.raises(ValueError, match="valid_fraction must be at least 0 and below 1"):
        write_demonstrations(tmp_path / "b.hdf5", demonstrations, environment_args=args, valid_fraction=1.5)


CHILD = """
import sys
sys.path.insert(0, {folder!r})
from kinematic_cell import KinematicCell, KinematicExpert
from visiongraft.robots.demonstrations import DemonstrationWriter, describe_environment, record
cell = KinematicCell()
writer = DemonstrationWriter({path!r}, describe_environment(cell))
for seed in range(100000):
    writer.append(record(cell, KinematicExpert(), seed))
"""


def test_a_kill_leaves_whole_demonstrations_and_the_file_goes_on(tmp_path, cell):
    path = tmp_path / "killed.hdf5"
    source = CHILD.format(folder=str(Path(__file__).parent), path=str(path))
    child = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while (not path.exists() or len(list((tmp_path / "killed.hdf5.parts").glob("demo_*"))) < 4) and time.monotonic() < deadline:
        time.sleep(0.003)
    time.sleep(np.random.default_rng(os.getpid()).uniform(0, 0.05))  # anywhere within a write
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL

    done = len(read_demonstrations(path))
    assert done >= 1
    assert all(one.seed == seed for seed, one in enumerate(read_demonstrations(path)))
    with DemonstrationWriter(path, describe_environment(cell), resume=True) as writer:
        assert len(writer) >= done, "parts that are newer than the index are taken in"
        done = len(writer)
        assert all(one.seed == seed for seed, one in enumerate(read_demonstrations(path)))
        for seed in range(done, done + 2):
            writer.append(record(cell, KinematicExpert(), seed))
    expected = [record(cell, KinematicExpert(), seed) for seed in range(done + 2)]
    write_demonstrations(tmp_path / "whole.hdf5", expected, environment_args=describe_environment(cell))
    assert path.read_bytes() == (tmp_path / "whole.hdf5").read_bytes()
    assert not (tmp_path / "killed.hdf5.parts").exists()


def test_an_exception_keeps_what_is_done(tmp_path, cell, demonstrations):
    path = tmp_path / "a.hdf5"
    with pytest.raises(KeyboardInterrupt), DemonstrationWriter(path, describe_environment(cell)) as writer:
        writer.append(demonstrations[0])
        writer.append(demonstrations[1])
        raise KeyboardInterrupt
    assert len(read_demonstrations(path)) == 2
    (tmp_path / "a.hdf5.parts" / "demo_1.hdf5").unlink()
    with pytest.raises(ValueError, match=r"demo_1 cannot be read .*a part beside it, is damaged"):
        read_demonstrations(path)
