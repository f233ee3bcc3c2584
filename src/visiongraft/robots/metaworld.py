"""Meta-World's 50 tasks as environments, headless and without OpenGL.

Frames: the base frame is that of the Sawyer's body ``base``, which stands in the origin of MuJoCo's world with its axes (the table
lies along +y). The gripper frame lies between the fingers' ends; z points down, y from the right to the left finger.

Actions: Meta-World moves the target of a weld by up to 1 cm an axis and step, and the hand follows about four steps behind; it never
turns. Here, as everywhere in this package, an action is relative to where the hand *is*: the target is led to hand + action * scale.
The rotation of an action is not carried out, since the weld's orientation is fixed. One control step is ``repeat`` steps of Meta-World.
"""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Shaped

from visiongraft.robots.actions import ActionScale
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.environment import Modality, RobotEnvironment, View
from visiongraft.robots.extras import require
from visiongraft.robots.metaworld_scenes import find_objects, load_simulator
from visiongraft.robots.metaworld_tasks import INSTRUCTIONS
from visiongraft.robots.mujoco_bodies import (
    body_id,
    body_pose,
    camera_pose,
    geom_objects,
    geoms_of,
    read_state,
    touching,
    write_state,
)
from visiongraft.robots.poses import invert_pose, make_pose
from visiongraft.robots.rendering import check_view, make_renderer

NATIVE_STEP = 0.01
"""Metres that Meta-World's target moves in one of its steps under an action of 1."""
_LAG = 0.04
"""Metres by which the hand stays behind the target at full speed (measured)."""
_HORIZON = 500
_NATIVE_FREQUENCY = 80.0
_HAND_TO_GRIPPER = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Axes of the gripper frame in the frame of the body ``hand``, whose x points along the approach."""
_PADS = ("leftpad", "rightpad")


def metaworld_tasks() -> tuple[str, ...]:
    """Names of the tasks, without the suite."""
    return tuple(INSTRUCTIONS)


class MetaworldEnvironment(RobotEnvironment):
    """One task of Meta-World v3 with random starts and goals.

    Objects of interest are the model's bodies that are neither robot nor table, parts that a joint moves apart from those that
    stand; where the model marks its goal with a site, the goal is an object as well (``goal``, a ball that touches nothing).
    ``model_xml`` is the scene before the reset has moved things.

    Args:
        task: such as ``reach-v3``.
        view: what is rendered into observations.
        repeat: Meta-World's steps in one control step; 4 gives 20 Hz, 1 the benchmark's own 80 Hz.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: a repeat, camera, modality, renderer or size that cannot be.

    Source: brief, section 9 (the benchmark that others know); Yu et al., Meta-World, CoRL 2019; McLean et al., Meta-World+, 2025.
    """

    def __init__(self, task: str, *, view: View = View(), repeat: int = 4) -> None:  # noqa: B008
        require("metaworld")
        if isinstance(repeat, bool) or not isinstance(repeat, int) or not 1 <= repeat <= 20:
            raise ValueError(f"repeat must be an integer from 1 to 20 (Meta-World's steps in one control step), got {repeat!r}.")
        self.simulator, self.model_xml = load_simulator(task)
        self.model, self.data = self.simulator.model, self.simulator.data
        self.task, self.repeat, self.view = f"metaworld/{task}", repeat, view
        self.instruction = INSTRUCTIONS[task]
        self.object_bodies, self._moving = find_objects(self.model)
        self.object_names = tuple(self.object_bodies)
        self.scale = ActionScale(position=_LAG + NATIVE_STEP * repeat, rotation=0.2)
        self.control_frequency = _NATIVE_FREQUENCY / repeat
        self.max_steps = _HORIZON // repeat
        self._cameras = tuple(self.model.camera(index).name for index in range(self.model.ncam))
        check_view(view, self._cameras)
        self._renderer = make_renderer(view.renderer) if view.cameras else None
        self._owners = geom_objects(self.model, self.object_names, self.object_bodies)
        self._hand = body_id(self.model, "hand")
        self._base_to_world = body_pose(self.data, body_id(self.model, "base"))
        self._pads = [geoms_of(self.model, [body_id(self.model, name)]) for name in _PADS]
        self._free = [geoms_of(self.model, [body_id(self.model, body) for body in self.object_bodies[name]]) for name in self._moving]
        self._started = False
        self._command, self._success = -1.0, False
        self.native_observation = np.zeros(39)

    def _reset(self, seed: int, options: dict[str, Any]) -> None:
        if options:
            raise ValueError(f"Meta-World takes its options when it is made, not at reset; got {', '.join(map(str, options))}.")
        mujoco.mj_resetData(self.model, self.data)
        self.simulator.seed(seed)
        self.native_observation, _ = self.simulator.reset()
        self._place_goal()
        self._command, self._success, self._started = -1.0, False, True

    def _place_goal(self) -> None:
        if "goal" in self.object_names:
            self.model.body_pos[body_id(self.model, "goal")] = self.simulator._target_pos
            mujoco.mj_forward(self.model, self.data)

    def _step(self, action: Float[np.ndarray, "7"]) -> None:
        if not self._started:
            raise ValueError("The environment has not been reset; call reset(seed=...) before the first step.")
        self._command = float(action[6])
        target = self.data.xpos[self._hand] + self._base_to_world[:3, :3] @ (action[:3] * self.scale.position)
        self._success = False
        for _ in range(self.repeat):
            move = np.clip((target - self.data.mocap_pos[0]) / NATIVE_STEP, -1, 1)
            self.simulator.curr_path_length = 0  # the length of an episode is the roll-out's
            self.native_observation, _, _, _, info = self.simulator.step(np.append(move, self._command).astype(np.float32))
            self._success = self._success or bool(info["success"])

    def delta_of_native(self, action: Shaped[np.ndarray, "4"]) -> Float[np.ndarray, "7"]:
        """Delta action that moves the weld's target as ``repeat`` steps of one of Meta-World's own actions do."""
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        target = self.data.mocap_pos[0] + self.repeat * NATIVE_STEP * action[:3]
        move = self._base_to_world[:3, :3].T @ (target - self.data.xpos[self._hand]) / self.scale.position
        return np.clip(np.concatenate([move, np.zeros(3), action[3:]]), -1, 1)

    def gripper_pose(self) -> Float[np.ndarray, "4 4"]:
        rotation = self.data.xmat[self._hand].reshape(3, 3) @ _HAND_TO_GRIPPER
        return self._world_to_base @ make_pose(rotation, self.simulator.tcp_center)

    @property
    def _world_to_base(self) -> Float[np.ndarray, "4 4"]:
        return invert_pose(self._base_to_world)

    @property
    def gripper_command(self) -> float:
        return self._command

    def base_to_world(self) -> Float[np.ndarray, "4 4"]:
        return self._base_to_world.copy()

    def object_pose(self, name: str) -> Float[np.ndarray, "4 4"]:
        if name not in self.object_bodies:
            raise ValueError(f"The scene has no object {name!r}; it has {', '.join(self.object_names)}.")
        return self._world_to_base @ body_pose(self.data, body_id(self.model, self.object_bodies[name][0]))

    def is_success(self) -> bool:
        return self._success

    def subtask_signals(self) -> dict[str, bool]:
        if not self._moving:
            return {"done": self._success}
        held = any(all(touching(self.data, pad, geoms) for pad in self._pads) for geoms in self._free)
        return {"grasped": held and self._command > 0, "done": self._success}

    def get_state(self) -> Float[np.ndarray, "state"]:
        return np.concatenate(
            [read_state(self.model, self.data, mocap=True), self.native_observation, [self._command, float(self._success)]]
        )

    def set_state(self, state: Shaped[np.ndarray, "state"]) -> None:
        if not self._started:
            raise ValueError("The environment has not been reset; call reset with the episode's seed before set_state.")
        state = np.asarray(state, np.float64)
        split = len(state) - len(self.native_observation) - 2
        write_state(self.model, self.data, state[: max(split, 0)], mocap=True)
        self.native_observation = state[split:-2].copy()
        self.simulator._prev_obs = self.native_observation[:18].copy()
        self._command, self._success = float(state[-2]), bool(state[-1])

    def camera_names(self) -> tuple[str, ...]:
        return self._cameras

    def camera(self, name: str, size: tuple[int, int]) -> Camera:
        index = self._camera_index(name)
        pose = self._world_to_base @ camera_pose(self.data, index)
        return Camera(intrinsics_from_fovy(np.deg2rad(self.model.cam_fovy[index]), size), pose, size)

    def _camera_index(self, name: str) -> int:
        if name not in self._cameras:
            raise ValueError(f"There is no camera {name!r}; there are {', '.join(self._cameras)}.")
        return self._cameras.index(name)

    def render_view(self, camera: str, modalities: Sequence[Modality], size: tuple[int, int]) -> dict[str, np.ndarray]:
        check_view(View(cameras=(camera,), modalities=tuple(modalities), size=size, renderer=self.view.renderer), self._cameras)
        if self._renderer is None:
            self._renderer = make_renderer(self.view.renderer)
        return self._renderer.render(self.model, self.data, self._camera_index(camera), modalities, size, self._owners)

    def close(self) -> None:
        """Frees the renderer's buffers."""
        if self._renderer is not None:
            self._renderer.close()
