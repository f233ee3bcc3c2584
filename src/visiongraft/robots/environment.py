"""The environment that all simulators share: one observation dictionary, one action convention, Gymnasium's interface."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Float, Shaped

from visiongraft.robots.actions import ACTION_SIZES, ActionScale, check_actions
from visiongraft.robots.cameras import Camera
from visiongraft.robots.policy import Observation
from visiongraft.robots.poses import rotation_6d
from visiongraft.robots.views import Modality, View

__all__ = ["Modality", "RobotEnvironment", "View"]


class RobotEnvironment(gymnasium.Env):
    """A simulated robot cell with one task.

    Subclasses fill the attributes before ``reset`` and implement the abstract methods. Everything is in the frame of the robot's base.

    Attributes:
        task: name, such as ``tabletop/put_on_plate``.
        instruction: what to do, in words.
        object_names: objects of interest, in the order that every array of points and every segmentation index uses.
        object_bodies: for every object, the MuJoCo bodies that it is made of.
        scale: what a delta action of 1 means.
        control_frequency: control steps a second.
        max_steps: an episode's length.
        view: what is rendered into observations.
        model, data: MuJoCo's, for renderers and point extraction.
    """

    task: str
    instruction: str
    object_names: tuple[str, ...]
    object_bodies: dict[str, tuple[str, ...]]
    scale: ActionScale
    control_frequency: float
    max_steps: int
    view: View
    model: mujoco.MjModel
    data: mujoco.MjData

    @abstractmethod
    def gripper_pose(self) -> Float[np.ndarray, "4 4"]:
        """Pose of the gripper: z is the approach direction, y the finger axis."""

    @property
    @abstractmethod
    def gripper_command(self) -> float:
        """Last gripper command; -1 before the first."""

    @abstractmethod
    def base_to_world(self) -> Float[np.ndarray, "4 4"]:
        """Pose of the robot's base in MuJoCo's world."""

    @abstractmethod
    def object_pose(self, name: str) -> Float[np.ndarray, "4 4"]:
        """Pose of an object of interest."""

    @abstractmethod
    def is_success(self) -> bool:
        """Whether the task is done in the present state."""

    @abstractmethod
    def subtask_signals(self) -> dict[str, bool]:
        """Whether each subtask is done in the present state, in the order of the subtasks (the generator cuts demonstrations there)."""

    @abstractmethod
    def get_state(self) -> Float[np.ndarray, "state"]:
        """Everything that :meth:`set_state` needs to come back to this moment, in the same model."""

    @abstractmethod
    def set_state(self, state: Shaped[np.ndarray, "state"]) -> None:
        """Comes back to a moment; ``reset`` with the same seed and options must have been called before."""

    @abstractmethod
    def camera(self, name: str, size: tuple[int, int]) -> Camera:
        """A camera as it stands now, at the given height and width.

        Raises:
            ValueError: no such camera.
        """

    @abstractmethod
    def camera_names(self) -> tuple[str, ...]:
        """Names of cameras that can be rendered."""

    @abstractmethod
    def render_view(self, camera: str, modalities: Sequence[Modality], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Renders a camera: arrays by modality, as in :data:`visiongraft.robots.policy.Observation`."""

    @abstractmethod
    def _reset(self, seed: int, options: dict[str, Any]) -> None:
        """Puts the scene in a fresh start drawn from the seed alone."""

    @abstractmethod
    def _step(self, action: Float[np.ndarray, "7"]) -> None:
        """Advances one control step under a checked delta action."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. The same seed gives the same start, whatever happened before; without one, Gymnasium's generator draws it.

        Raises:
            ValueError: a seed that is not an integer of at least 0, or options that the suite does not know.
        """
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
                raise ValueError(f"The seed of a reset is an integer of at least 0, got {seed!r}.")
            seed = int(seed)
        super().reset(seed=seed)
        self._reset(int(self.np_random.integers(2**31)) if seed is None else seed, options or {})
        return self.observe(), {"success": self.is_success()}

    def step(self, action: Shaped[np.ndarray, "7"]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step. The reward is 1 on success, and the episode then ends; truncation at ``max_steps`` is the roll-out's.

        Raises:
            ValueError: an action that is not a finite delta action.
        """
        check_actions(action, "delta")
        self._step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        success = self.is_success()
        return self.observe(), float(success), success, False, {"success": success}

    def observe(self) -> Observation:
        """Observation of the present state, with the modalities of ``view``."""
        pose = self.gripper_pose()
        proprioception = np.concatenate([pose[:3, 3], rotation_6d(pose[:3, :3]), [self.gripper_command]])
        observation: Observation = {
            "instruction": self.instruction,
            "proprioception": proprioception.astype(np.float32),
            "gripper_pose": pose,
            "object_poses": {name: self.object_pose(name) for name in self.object_names},
        }
        if self.view.cameras:
            rendered = {name: self.render_view(name, self.view.modalities, self.view.size) for name in self.view.cameras}
            for modality in self.view.modalities:
                observation[modality] = {name: arrays[modality] for name, arrays in rendered.items()}
            observation["cameras"] = {name: self.camera(name, self.view.size) for name in self.view.cameras}
        return observation

    @property
    def action_space(self) -> gymnasium.spaces.Box:  # type: ignore[override]
        """Delta actions."""
        return gymnasium.spaces.Box(-1.0, 1.0, (ACTION_SIZES["delta"],), np.float32)
