"""What robosuite's environments and those built on it (LIBERO) have in common, as an environment of this package.

robosuite cannot be installed on the machine that this was written on: the names and calls follow its public documentation and code
(1.5: ``gripper0_right_grip_site``, ``robot0_base``, ``sim.model._model``; 1.4: ``gripper0_grip_site``), and the tests run them against
a stand-in of the same interface.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Shaped

from visiongraft.robots.actions import ActionScale
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.environment import Modality, RobotEnvironment, View
from visiongraft.robots.mujoco_bodies import (
    bodies_below,
    body_id,
    body_pose,
    camera_pose,
    geom_objects,
    geoms_of,
    site_pose,
    touching,
    update_positions,
)
from visiongraft.robots.poses import invert_pose, make_pose
from visiongraft.robots.rendering import check_view, make_renderer

BASE_BODY = "robot0_base"
GRIP_SITES = ("gripper0_right_grip_site", "gripper0_grip_site")
"""Of robosuite 1.5 and 1.4."""
SITE_TO_FR3 = make_pose(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.zeros(3))
"""The FR3's gripper frame in robosuite's grip site: +90 degrees about z, so that y is the finger axis. Source: brief, 2.6."""
_VISUAL_GROUP = (1,)


class RobosuiteCell(RobotEnvironment):
    """A robosuite environment with one Panda under OSC_POSE, which takes delta actions as this package does.

    Args:
        simulator: robosuite's environment.
        task: with its suite.
        instruction: what to do, in words.
        object_words: for every object of interest what its bodies' names contain.
        view: what is rendered into observations.
        max_steps: an episode's length.

    Source: brief, sections 2.3 (bodies), 2.6 (gripper frame) and 6 (controller).
    """

    def __init__(self, simulator: Any, task: str, instruction: str, object_words: dict[str, str], view: View, max_steps: int = 300) -> None:
        self.simulator, self.task, self.instruction = simulator, task, instruction
        self.object_names = tuple(object_words)
        self._words = object_words
        self.scale = ActionScale(position=0.05, rotation=0.5)
        self.control_frequency, self.max_steps, self.view = 20.0, max_steps, view
        self._command, self._started = -1.0, False
        self._adopt()
        check_view(view, self.camera_names())
        self._renderer = make_renderer(view.renderer, _VISUAL_GROUP) if view.cameras else None

    def _adopt(self) -> None:
        """Takes over MuJoCo's model, which robosuite makes anew at every hard reset."""
        self.model, self.data = self.simulator.sim.model._model, self.simulator.sim.data._data
        self.object_bodies = {name: bodies_containing(self.model, word) for name, word in self._words.items()}
        self._owners = geom_objects(self.model, self.object_names, self.object_bodies)
        sites = [mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, name) for name in GRIP_SITES]
        if max(sites) < 0:
            raise ValueError(
                f"The robosuite model has none of the grip sites {', '.join(GRIP_SITES)}; only one-armed robots are supported."
            )
        self._site = max(sites)
        self._base = body_id(self.model, BASE_BODY)
        self._fingers = [geoms_of(self.model, bodies_below(self.model, _named(self.model, word))) for word in ("leftfinger", "rightfinger")]
        self._movable = [geoms_of(self.model, [body_id(self.model, body) for body in bodies]) for bodies in self.object_bodies.values()]

    @property
    def model_xml(self) -> str:
        """MJCF of the present scene."""
        return self.simulator.sim.model.get_xml()

    def _reset(self, seed: int, options: dict[str, Any]) -> None:
        if options:
            raise ValueError(f"{self.task} takes its options when it is made, not at reset; got {', '.join(map(str, options))}.")
        self.simulator.rng = np.random.default_rng(seed)  # of 1.5; earlier versions draw from NumPy's global generator
        with numpy_seed(seed):
            self.simulator.reset()
        self._adopt()
        self._command, self._started = -1.0, True

    def _step(self, action: Float[np.ndarray, "7"]) -> None:
        if not self._started:
            raise ValueError("The environment has not been reset; call reset(seed=...) before the first step.")
        self._command = float(action[6])
        self.simulator.step(action)
        update_positions(self.model, self.data)  # robosuite leaves poses one physics step behind the joints

    def gripper_pose(self) -> Float[np.ndarray, "4 4"]:
        return self._world_to_base @ site_pose(self.data, self._site) @ SITE_TO_FR3

    @property
    def _world_to_base(self) -> Float[np.ndarray, "4 4"]:
        return invert_pose(body_pose(self.data, self._base))

    @property
    def gripper_command(self) -> float:
        return self._command

    def base_to_world(self) -> Float[np.ndarray, "4 4"]:
        return body_pose(self.data, self._base)

    def object_pose(self, name: str) -> Float[np.ndarray, "4 4"]:
        if name not in self.object_bodies:
            raise ValueError(f"The scene has no object {name!r}; it has {', '.join(self.object_names)}.")
        return self._world_to_base @ body_pose(self.data, body_id(self.model, self.object_bodies[name][0]))

    def is_success(self) -> bool:
        return bool(self.simulator._check_success())

    def subtask_signals(self) -> dict[str, bool]:
        held = any(all(touching(self.data, finger, geoms) for finger in self._fingers) for geoms in self._movable)
        return {"grasped": held and self._command > 0, "done": self.is_success()}

    def get_state(self) -> Float[np.ndarray, "state"]:
        return np.append(self.simulator.sim.get_state().flatten(), self._command)

    def set_state(self, state: Shaped[np.ndarray, "state"]) -> None:
        if not self._started:
            raise ValueError("The environment has not been reset; call reset with the episode's seed before set_state.")
        size = len(self.simulator.sim.get_state().flatten())
        if state.shape not in ((size,), (size + 1,)):
            raise ValueError(
                f"A state of this scene has {size} numbers (robomimic's) or {size + 1} (with the gripper's command), got {state.size}."
            )
        self.simulator.sim.set_state_from_flattened(np.asarray(state[:size], np.float64))
        self.simulator.sim.forward()
        self._command = float(state[size]) if len(state) > size else -1.0

    def camera_names(self) -> tuple[str, ...]:
        return tuple(self.model.camera(index).name for index in range(self.model.ncam))

    def camera(self, name: str, size: tuple[int, int]) -> Camera:
        index = self._camera_index(name)
        pose = self._world_to_base @ camera_pose(self.data, index)
        return Camera(intrinsics_from_fovy(np.deg2rad(self.model.cam_fovy[index]), size), pose, size)

    def _camera_index(self, name: str) -> int:
        names = self.camera_names()
        if name not in names:
            raise ValueError(f"There is no camera {name!r}; there are {', '.join(names)}.")
        return names.index(name)

    def render_view(self, camera: str, modalities: Sequence[Modality], size: tuple[int, int]) -> dict[str, np.ndarray]:
        check_view(View(cameras=(camera,), modalities=tuple(modalities), size=size, renderer=self.view.renderer), self.camera_names())
        if self._renderer is None:
            self._renderer = make_renderer(self.view.renderer, _VISUAL_GROUP)
        return self._renderer.render(self.model, self.data, self._camera_index(camera), modalities, size, self._owners)

    def close(self) -> None:
        """Closes robosuite's environment and frees the renderer's buffers."""
        if self._renderer is not None:
            self._renderer.close()
        self.simulator.close()


def bodies_containing(model: mujoco.MjModel, word: str) -> tuple[str, ...]:
    """Bodies whose name contains a word, in the model's order: the first gives the object's pose. Those without geoms follow no surface
    and are left out, but for the first.

    Raises:
        ValueError: no such body.

    Source: brief, section 2.3.
    """
    found = _named(model, word)
    if not found:
        raise ValueError(
            f"No body's name contains {word!r}; the bodies are {', '.join(model.body(i).name for i in range(1, model.nbody))}."
        )
    return tuple(model.body(body).name for index, body in enumerate(found) if index == 0 or model.body_geomnum[body])


def _named(model: mujoco.MjModel, word: str) -> list[int]:
    return [body for body in range(1, model.nbody) if word in model.body(body).name]


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """NumPy's global generator seeded within the block, and as it was after it: older simulators draw from nothing else."""
    kept = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(kept)
