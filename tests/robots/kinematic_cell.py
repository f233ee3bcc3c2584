"""A robot cell without dynamics for tests: a gripper that goes where it is told, a cube that follows it when held, a goal."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from visiongraft.robots.actions import ActionScale, delta_to_target, target_of_delta
from visiongraft.robots.cameras import Camera
from visiongraft.robots.environment import RobotEnvironment, View
from visiongraft.robots.poses import invert_pose, make_pose, rotation_from_vector

XML = """
<mujoco>
  <worldbody>
    <body name="gripper" mocap="true"><geom type="box" size=".02 .02 .02" contype="0" conaffinity="0"/></body>
    <body name="cube" mocap="true"><geom type="box" size=".02 .02 .02" contype="0" conaffinity="0"/></body>
    <body name="goal" mocap="true"><geom type="cylinder" size=".05 .005" contype="0" conaffinity="0"/></body>
  </worldbody>
</mujoco>
"""
DOWN = np.diag([1.0, -1.0, -1.0])
REACH = 0.025


class KinematicCell(RobotEnvironment):
    """Put the cube on the goal and stay open for three steps. In the share ``stubborn`` of all starts the cube cannot be grasped."""

    task = "tests/kinematic"
    instruction = "put the cube on the goal"
    object_names = ("cube", "goal")
    object_bodies = {"cube": ("cube",), "goal": ("goal",)}
    scale = ActionScale(position=0.03, rotation=0.2)
    control_frequency = 20.0
    max_steps = 50
    model_xml = XML

    def __init__(self, stubborn: float = 0.0, broken: bool = False) -> None:
        if broken:
            raise ValueError("This cell is broken.")
        self.view = View()
        self.stubborn = stubborn
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)
        self._held = self._refuses = False
        self._command, self._open = -1.0, 0
        self._poses = dict.fromkeys(("gripper", "cube", "goal"), np.eye(4))

    def _place(self, name: str, pose: np.ndarray) -> None:
        self._poses[name] = pose

    def object_pose(self, name: str) -> np.ndarray:
        return self._poses[name].copy()

    def gripper_pose(self) -> np.ndarray:
        return self.object_pose("gripper")

    @property
    def gripper_command(self) -> float:
        return self._command

    def base_to_world(self) -> np.ndarray:
        return np.eye(4)

    def is_success(self) -> bool:
        offset = self.object_pose("cube")[:3, 3] - self.object_pose("goal")[:3, 3]
        return self._open >= 3 and bool(np.linalg.norm(offset[:2]) < 0.03) and bool(abs(offset[2] - 0.02) < 0.02)

    def subtask_signals(self) -> dict[str, bool]:
        return {"grasped": self._held, "a_placed": self.is_success()}

    def get_state(self) -> np.ndarray:
        flags = [self._held, self._refuses, self._command, self._open]
        return np.concatenate([*(pose.ravel() for pose in self._poses.values()), flags])

    def set_state(self, state: np.ndarray) -> None:
        self._poses = dict(zip(self._poses, state[:48].reshape(3, 4, 4).copy(), strict=True))
        self._held, self._refuses, self._command, self._open = bool(state[48]), bool(state[49]), float(state[50]), int(state[51])

    def camera(self, name: str, size: tuple[int, int]) -> Camera:
        raise ValueError(f"There is no camera {name!r}.")

    def camera_names(self) -> tuple[str, ...]:
        return ()

    def render_view(self, camera: str, modalities: Sequence[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
        raise ValueError("This cell renders nothing.")

    def _reset(self, seed: int, options: dict[str, Any]) -> None:
        dice = np.random.default_rng(seed)
        cube, goal = [0.4, dice.uniform(-0.15, 0.15), 0.02], [0.6, dice.uniform(-0.15, 0.15), 0.0]
        self._place("gripper", make_pose(DOWN, np.array([0.5, 0.0, 0.3])))
        self._place("cube", make_pose(rotation_from_vector(np.array([0, 0, dice.uniform(-0.6, 0.6)])), np.array(cube)))
        self._place("goal", make_pose(np.eye(3), np.array(goal)))
        self._held, self._command, self._open, self._refuses = False, -1.0, 0, bool(dice.random() < self.stubborn)

    def _step(self, action: np.ndarray) -> None:
        grasp = invert_pose(self.gripper_pose()) @ self.object_pose("cube")
        self._place("gripper", target_of_delta(action, self.gripper_pose(), self.scale))
        self._command = float(np.sign(action[6]))
        if self._command > 0 and not self._held and not self._refuses:
            self._held = bool(np.linalg.norm(grasp[:3, 3]) < REACH)
        elif self._held and self._command > 0:
            self._place("cube", self.gripper_pose() @ grasp)
        else:
            self._held = False
        self._open = 0 if self._command > 0 else self._open + 1


class KinematicExpert:
    """Above the cube, down, close, up, above the goal, down, open."""

    def reset(self) -> None:
        self.stage, self.wait = 0, 0

    def act(self, environment: RobotEnvironment) -> np.ndarray:
        cube, goal = environment.object_pose("cube"), environment.object_pose("goal")
        over = lambda pose, height: make_pose(pose[:3, :3] @ DOWN, pose[:3, 3] + [0, 0, height])
        level = make_pose(environment.gripper_pose()[:3, :3], environment.gripper_pose()[:3, 3])
        level[2, 3] = 0.25
        plan = [(over(cube, 0.2), -1), (over(cube, 0.0), -1), (over(cube, 0.0), 1), (level, 1), (over(goal, 0.25), 1)]
        plan += [(over(goal, 0.02), 1), (over(goal, 0.02), -1)]
        target, command = plan[self.stage]
        if self.stage in (2, 6):
            target = environment.gripper_pose()
        action = delta_to_target(target, float(command), environment.gripper_pose(), environment.scale)
        self.wait += 1
        arrived = np.abs(action[:6]).max() < 1 and self.stage not in (2, 6)
        if arrived or (self.stage == 2 and self.wait >= 3):
            self.stage, self.wait = min(self.stage + 1, len(plan) - 1), 0
        return action


def make_expert(environment: RobotEnvironment) -> KinematicExpert:
    return KinematicExpert()
