"""A robot's own computer has no simulator: perception, the policy and its server do without one."""

import subprocess
import sys

BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mujoco", "gymnasium", "h5py", "metaworld"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=120, check=False)


def test_filtered_points_need_no_simulator():
    done = run(
        """
import numpy as np
from visiongraft.methods.point_bridge.filtering import plane_filter
from visiongraft.methods.point_bridge.naming import given_names
from visiongraft.methods.point_bridge.pointing import GivenPoints
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.key_points import robot_key_points
from visiongraft.robots.poses import make_pose

size = (60, 80)
above = make_pose(np.diag([1.0, -1.0, -1.0]), np.array([0.5, 0.0, 1.0]))  # looks down on the table z = 0
depth = np.full(size, 1.0, np.float32)
depth[20:40, 30:50] = 0.9  # a block of 10 cm
observation = {
    "images": {"left": np.zeros((*size, 3), np.uint8)},
    "depth": {"left": depth},
    "cameras": {"left": Camera(intrinsics_from_fovy(1.0, size), above, size)},
    "gripper_pose": make_pose(np.diag([1.0, -1.0, -1.0]), np.array([0.3, 0.0, 0.5])),
    "proprioception": np.array([0.3, 0, 0.5, 1, 0, 0, 0, -1, 0, -1], np.float32),
    "instruction": "lift the block",
}
observer = plane_filter(given_names(["block"]), GivenPoints({"block": (40, 30)}), "left")
observer.reset(observation)
seen = observer(observation)
assert np.allclose(seen["object_points"][..., 2], 0.1, atol=1e-4), seen["object_points"]
assert np.array_equal(seen["robot_points"], robot_key_points(observation["gripper_pose"], -1.0))
assert not {"mujoco", "gymnasium"} & set(sys.modules)
"""
    )
    assert done.returncode == 0, done.stderr


def test_what_needs_no_simulator_opens_without_one():
    names = ("policy", "recipe", "released", "perceive_files", "evaluation", "training_run", "data_files", "observing")
    done = run("\n".join(f"import visiongraft.methods.point_bridge.{name}" for name in names))
    assert done.returncode == 0, done.stderr


def test_verbs_that_need_the_simulator_say_what_to_install(tmp_path):
    (tmp_path / "a.hdf5").touch()
    for words in (["collect", "tabletop/stack"], ["evaluate"], ["train", f"[{tmp_path}]"]):
        done = run(f"from visiongraft.cli import main\nsys.exit(main({['point_bridge', *words]!r}))")
        assert done.returncode == 2 and "pip install 'visiongraft[robots]'" in done.stderr and done.stderr.count("\n") == 1


def test_the_command_line_starts_without_torch():
    code = "import sys, visiongraft.methods.point_bridge.commands\nassert not {'torch', 'mujoco', 'numpy'} & set(sys.modules)"
    assert run(code).returncode == 0
