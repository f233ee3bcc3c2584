"""The tabletop as an environment: starts, control, signals and success."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Shaped

from visiongraft.robots.actions import ActionScale
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.environment import Modality, RobotEnvironment, View
from visiongraft.robots.mujoco_bodies import (
    body_id,
    body_pose,
    camera_pose,
    geom_objects,
    geoms_of,
    read_state,
    site_pose,
    touching,
    update_positions,
    write_state,
)
from visiongraft.robots.rendering import check_view, make_renderer
from visiongraft.robots.tabletop.gripper import ARM_JOINTS, FINGER_BODIES, GRIPPER_SITE, HIGHEST, LOWEST, GantryGripper
from visiongraft.robots.tabletop.looks import Look, draw_twin, nominal_look, with_distractors
from visiongraft.robots.tabletop.objects import WALL
from visiongraft.robots.tabletop.scene import CAMERA_NAMES, PHYSICS_STEP, scene_xml
from visiongraft.robots.tabletop.tasks import TASKS, TabletopTask

PHYSICS_STEPS = 10
"""Of one control step."""
START_LOW, START_HIGH, START_GAP, START_YAW = (0.38, -0.2), (0.62, 0.2), 0.14, 0.6
"""Where objects start (metres), how far apart at least (metres), and how far the manipulated one is turned (radians)."""
_SETTLING_STEPS = 20
_AT_REST = 0.05
_AWAY = 0.05


class TabletopEnvironment(RobotEnvironment):
    """A gantry gripper over a table; the base frame is the world frame.

    The gripper only yaws: the tilt that an action asks for is not carried out. Its command closes above 0 and opens below, as
    robosuite's does. The scene is written anew for every episode of a twin, so that ``model`` and ``data`` change with ``reset``.

    Args:
        task: name without the suite.
        view: what is rendered into observations.
        pair: index of the objects; 4 is the pair that training leaves out.
        twin: whether every episode draws new looks, drives and cameras (a "real twin").
        distractors: whether objects that the task does not name lie at the table's edge; as ``twin`` when None.
        camera_error: distance in metres, in a random direction, between the stereo cameras' reported and true positions.
        gripper: shape and drives.

    Raises:
        ValueError: an unknown task, pair, camera, renderer or modality, or an impossible size.

    Source: brief, section 9.
    """

    def __init__(
        self,
        task: str,
        *,
        view: View = View(),  # noqa: B008
        pair: int = 0,
        twin: bool = False,
        distractors: bool | None = None,
        camera_error: float = 0.0,
        gripper: GantryGripper = GantryGripper(),  # noqa: B008
    ) -> None:
        self._task: TabletopTask = TASKS[task]
        if isinstance(pair, bool) or not isinstance(pair, int) or not 0 <= pair < len(self._task.pairs):
            raise ValueError(
                f"pair must be an integer from 0 to {len(self._task.pairs) - 1} (the last is the held-out pair), got {pair!r}."
            )
        if not (np.isfinite(camera_error) and camera_error >= 0):
            raise ValueError(f"camera_error must be a distance in metres, at least 0, got {camera_error!r}.")
        self.manipulated, self.target = self._task.pairs[pair]
        self.task, self.pair, self.twin = f"tabletop/{task}", pair, twin
        self.distractors = twin if distractors is None else distractors
        self.camera_error, self.gripper, self.view = camera_error, gripper, view
        self.instruction = self._task.instruction(pair)
        self.object_names = (self.manipulated.name, self.target.name)
        self.object_bodies = {name: (name,) for name in self.object_names}
        self.scale = ActionScale(position=0.03, rotation=0.2)
        self.control_frequency = 1 / (PHYSICS_STEP * PHYSICS_STEPS)
        self.max_steps = 120
        check_view(view, CAMERA_NAMES)
        self._renderer = make_renderer(view.renderer) if view.cameras else None
        self._started = False
        self._xml = ""
        self._camera_offset = np.zeros(3)
        self._command = -1.0
        self._build(nominal_look(self.manipulated, self.target))

    def _build(self, look: Look) -> None:
        """Compiles the scene, unless it is the one that stands."""
        self.look = look
        xml = scene_xml(self.manipulated, self.target, look, self.gripper)
        if xml == self._xml:
            return
        self._xml = xml
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        update_positions(self.model, self.data)  # cameras can be asked for before the first reset
        self._site = self.model.site(GRIPPER_SITE).id
        self._bodies = {name: body_id(self.model, name) for name in self.object_names}
        self._geoms = {name: geoms_of(self.model, [body]) for name, body in self._bodies.items()}
        self._fingers = [geoms_of(self.model, [body_id(self.model, name)]) for name in FINGER_BODIES]
        self._table = [self.model.geom("table").id]
        self._addresses = {name: int(self.model.jnt_qposadr[self.model.body_jntadr[body]]) for name, body in self._bodies.items()}
        self._arm = np.array([self.model.jnt_qposadr[self.model.joint(name).id] for name in ARM_JOINTS])
        self._lead = 2 / self.gripper.stiffness  # nominal: a twin's drives are not known exactly
        self._owners = geom_objects(self.model, self.object_names, self.object_bodies)

    @property
    def model_xml(self) -> str:
        """MJCF of the present episode's scene, whole in itself."""
        return self._xml

    def _reset(self, seed: int, options: dict[str, Any]) -> None:
        if options:
            raise ValueError(f"The tabletop takes its options when it is made, not at reset; got {', '.join(map(str, options))}.")
        # separate streams: a twin starts from the same places as its nominal scene
        places, looks, clutter, calibration = (np.random.default_rng([seed, stream]) for stream in range(4))
        look = draw_twin(self.manipulated, self.target, looks) if self.twin else nominal_look(self.manipulated, self.target)
        self._build(with_distractors(look, clutter) if self.distractors else look)
        direction = calibration.normal(size=3)
        self._camera_offset = self.camera_error * direction / np.linalg.norm(direction)
        self._place(places)
        self._command, self._started = -1.0, True

    def _place(self, rng: np.random.Generator) -> None:
        """Puts the objects on the table and the gripper at home, and lets the contacts settle."""
        while True:
            manipulated, target = rng.uniform(START_LOW, START_HIGH, (2, 2))
            if np.linalg.norm(manipulated - target) >= START_GAP:
                break
        yaw = 0.0 if self.manipulated.is_round else rng.uniform(-START_YAW, START_YAW)
        mujoco.mj_resetData(self.model, self.data)
        for item, place, angle in ((self.manipulated, manipulated, yaw), (self.target, target, 0.0)):
            address = self._addresses[item.name]
            self.data.qpos[address : address + 7] = [*place, item.half_height, np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
        self.data.qpos[self._arm[:3]] = self.gripper.home
        self.data.ctrl[:3] = self.gripper.home
        self._drive_fingers(-1.0)
        fingers = [self.model.jnt_qposadr[self.model.body_jntadr[body_id(self.model, name)]] for name in FINGER_BODIES]
        self.data.qpos[fingers] = self.gripper.opening
        mujoco.mj_step(self.model, self.data, _SETTLING_STEPS)
        self.data.time = 0.0
        update_positions(self.model, self.data)

    def _drive_fingers(self, command: float) -> None:
        self.data.ctrl[len(ARM_JOINTS) :] = 0.0 if command > 0 else self.gripper.opening

    def _step(self, action: Float[np.ndarray, "7"]) -> None:
        if not self._started:
            raise ValueError("The environment has not been reset; call reset(seed=...) before the first step.")
        start = self.data.qpos[self._arm].copy()
        end = start + np.append(action[:3] * self.scale.position, action[5] * self.scale.rotation)
        end[:3] = np.clip(end[:3], LOWEST, HIGHEST)
        self._command = float(action[6])
        self._drive_fingers(self._command)
        velocity = (end - start) / (PHYSICS_STEP * PHYSICS_STEPS)
        for count in range(1, PHYSICS_STEPS + 1):
            # the drives damp velocity itself; leading the target by damping/stiffness makes the gripper arrive in time
            self.data.ctrl[: len(ARM_JOINTS)] = start + (count / PHYSICS_STEPS) * (end - start) + self._lead * velocity
            mujoco.mj_step(self.model, self.data)
        update_positions(self.model, self.data)

    def gripper_pose(self) -> Float[np.ndarray, "4 4"]:
        return site_pose(self.data, self._site)

    @property
    def gripper_command(self) -> float:
        return self._command

    def base_to_world(self) -> Float[np.ndarray, "4 4"]:
        return np.eye(4)

    def object_pose(self, name: str) -> Float[np.ndarray, "4 4"]:
        if name not in self._bodies:
            raise ValueError(f"The scene has no object {name!r}; it has {', '.join(self.object_names)}.")
        return body_pose(self.data, self._bodies[name])

    def is_grasped(self) -> bool:
        """Whether both closing fingers touch the manipulated object."""
        geoms = self._geoms[self.manipulated.name]
        return self._command > 0 and all(touching(self.data, finger, geoms) for finger in self._fingers)

    def is_success(self) -> bool:
        if self._command > 0 or not self._is_placed():
            return False
        geoms = self._geoms[self.manipulated.name]
        if not touching(self.data, geoms, self._geoms[self.target.name]) or touching(self.data, geoms, self._table):
            return False
        away = np.linalg.norm(self.data.site_xpos[self._site] - self.data.xpos[self._bodies[self.manipulated.name]]) > _AWAY
        velocity = np.empty(6)
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_BODY, self._bodies[self.manipulated.name], velocity, 0)
        still = np.linalg.norm(velocity[3:]) < _AT_REST
        return bool(away and still and not any(touching(self.data, finger, geoms) for finger in self._fingers))

    def _is_placed(self) -> bool:
        """Whether the manipulated object's centre is over the target, and low enough inside a bin."""
        target = self.object_pose(self.target.name)
        x, y, z = target[:3, :3].T @ (self.data.xpos[self._bodies[self.manipulated.name]] - target[:3, 3])
        size = self.target.size
        if self.target.shape == "plate":
            return bool(np.hypot(x, y) < size[0] and z > 0)
        inside = abs(x) < size[0] - WALL and abs(y) < size[1] - WALL
        if self.target.shape == "bin":
            return bool(inside and z < self.manipulated.half_height + 0.01)
        return bool(inside and z > size[2])

    def subtask_signals(self) -> dict[str, bool]:
        return {"grasped": self.is_grasped(), self._task.done: self.is_success()}

    def get_state(self) -> Float[np.ndarray, "state"]:
        return np.append(read_state(self.model, self.data), self._command)

    def set_state(self, state: Shaped[np.ndarray, "state"]) -> None:
        if not self._started:
            raise ValueError("The environment has not been reset; call reset with the episode's seed before set_state.")
        state = np.asarray(state, np.float64)
        write_state(self.model, self.data, state[:-1])
        self._command = float(state[-1])

    def camera_names(self) -> tuple[str, ...]:
        return CAMERA_NAMES

    def camera(self, name: str, size: tuple[int, int]) -> Camera:
        index = self._camera_index(name)
        pose = camera_pose(self.data, index)
        if name in ("left", "right"):
            pose[:3, 3] += self._camera_offset
        return Camera(intrinsics_from_fovy(np.deg2rad(self.model.cam_fovy[index]), size), pose, size)

    def _camera_index(self, name: str) -> int:
        if name not in CAMERA_NAMES:
            raise ValueError(f"There is no camera {name!r}; there are {', '.join(CAMERA_NAMES)}.")
        return self.model.camera(name).id

    def render_view(self, camera: str, modalities: Sequence[Modality], size: tuple[int, int]) -> dict[str, np.ndarray]:
        check_view(View(cameras=(camera,), modalities=tuple(modalities), size=size, renderer=self.view.renderer), CAMERA_NAMES)
        if self._renderer is None:
            self._renderer = make_renderer(self.view.renderer)
        return self._renderer.render(self.model, self.data, self._camera_index(camera), modalities, size, self._owners)

    def close(self) -> None:
        """Frees the renderer's buffers."""
        if self._renderer is not None:
            self._renderer.close()
