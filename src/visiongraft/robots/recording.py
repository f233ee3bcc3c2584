"""Recording an expert, and taking recorded episodes up again: replay, and the poses that files from elsewhere lack."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Shaped

from visiongraft.robots.actions import check_actions, target_of_delta
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.episodes import Attribute, Demonstration
from visiongraft.robots.experts import Expert
from visiongraft.robots.observers import Observer
from visiongraft.robots.policy import Observation


class StepRecorder:
    """Collects an episode of an environment, step by step.

    Args:
        environment: already reset.
        observation: that its reset gave.
        seed: of that reset.
        observe: adds points or the like to what is stored.
    """

    def __init__(self, environment: RobotEnvironment, observation: Observation, seed: int, observe: Observer | None = None) -> None:
        self.environment, self.seed, self.observe = environment, seed, observe
        self.succeeded = False
        self._steps: list[dict[str, np.ndarray]] = []
        self._last = observation
        if observe is not None:
            observe.reset(self._last)

    def __len__(self) -> int:
        return len(self._steps)

    def step(self, action: Shaped[np.ndarray, "7"]) -> bool:
        """Notes the present moment, takes the action, and returns whether the task is done now."""
        check_actions(action, "delta")
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self._steps.append(_moment(self.environment, self._last, action, self.observe))
        self._last, _, success, _, _ = self.environment.step(action)
        self.succeeded = self.succeeded or success
        return success

    def finish(self, attributes: Mapping[str, Attribute] | None = None) -> Demonstration:
        """The episode so far."""
        return _stack(self._steps, self.environment, self.seed, dict(attributes or {}))


def record(
    environment: RobotEnvironment,
    expert: Expert,
    seed: int,
    *,
    max_steps: int | None = None,
    after_success: int = 2,
    observe: Observer | None = None,
) -> Demonstration | None:
    """Records an expert from a fresh start until the task is done.

    Args:
        environment: its ``view`` says which images are stored.
        expert: acts.
        seed: of the start.
        max_steps: gives up after so many; the environment's own limit by default.
        after_success: steps that follow the success. The generator's gripper lags one step behind, so that a demonstration that ends
            with its very release cannot be taken up.
        observe: adds points or the like to what is stored.

    Returns:
        The demonstration, or None when the expert fails.
    """
    observation, _ = environment.reset(seed=seed)
    expert.reset()
    recorder = StepRecorder(environment, observation, seed, observe)
    for _ in range(environment.max_steps if max_steps is None else max_steps):
        if recorder.step(expert.act(environment)):
            for _ in range(after_success):
                recorder.step(expert.act(environment))
            return recorder.finish()
    return None


@dataclass(frozen=True)
class Replay:
    """What became of a replayed demonstration.

    Args:
        success: whether the task was done.
        position_error: largest distance between the gripper now and the gripper recorded, metres; NaN without recorded poses.
        object_error: the same for objects.
    """

    success: bool
    position_error: float
    object_error: float


def replay(environment: RobotEnvironment, demonstration: Demonstration, mode: str = "states") -> Replay:
    """Checks that a demonstration still does the task.

    ``states`` puts the simulator into every recorded state and takes the last action from the last one: it checks the scene and the
    success test. ``actions`` begins at the first state and takes the actions: it checks the controller too, and small differences
    between machines may grow along the way.

    Raises:
        ValueError: states of another model, or an unknown mode.
    """
    if mode not in ("states", "actions"):
        raise ValueError(f"Unknown replay mode {mode!r}; there are states and actions.")
    _begin(environment, demonstration)
    success = False
    errors: list[tuple[float, float]] = []
    for t, action in enumerate(demonstration.actions):
        if mode == "states":
            environment.set_state(demonstration.states[t])
            success = success or environment.is_success()
        errors.append(_errors(environment, demonstration, t))
        if mode == "actions" or t == len(demonstration) - 1:
            success = environment.step(action)[2] or success
    gripper, objects = np.max(errors, axis=0)
    return Replay(bool(success), float(gripper), float(objects))


def annotate(environment: RobotEnvironment, demonstration: Demonstration) -> Demonstration:
    """Adds the poses and subtask signals that the generator needs, by putting the simulator into every recorded state.

    This is MimicGen's ``prepare_src_dataset`` for our environments.

    Raises:
        ValueError: states of another model.
    """
    _begin(environment, demonstration)
    moments = []
    for state, action in zip(demonstration.states, demonstration.actions, strict=True):
        environment.set_state(state)
        moments.append(_scene(environment, action))
    poses = _stack_scenes(moments, environment)
    return replace(demonstration, **poses, instruction=demonstration.instruction or environment.instruction)


def _begin(environment: RobotEnvironment, demonstration: Demonstration) -> None:
    environment.reset(seed=demonstration.seed)
    size = len(environment.get_state())
    if demonstration.states.shape[1] != size:
        raise ValueError(
            f"The demonstration's states have {demonstration.states.shape[1]} numbers, those of {environment.task} have {size}; "
            "it was recorded in another model or with other options."
        )
    environment.set_state(demonstration.states[0])


def _errors(environment: RobotEnvironment, demonstration: Demonstration, t: int) -> tuple[float, float]:
    if not demonstration.has_datagen_info:
        return float("nan"), float("nan")
    gripper = np.linalg.norm(environment.gripper_pose()[:3, 3] - demonstration.gripper_poses[t, :3, 3])
    objects = [np.linalg.norm(environment.object_pose(name)[:3, 3] - p[t, :3, 3]) for name, p in demonstration.object_poses.items()]
    return float(gripper), float(max(objects, default=0.0))


def _scene(environment: RobotEnvironment, action: np.ndarray) -> dict[str, np.ndarray]:
    gripper_pose = environment.gripper_pose()
    scene = {"gripper": gripper_pose, "target": target_of_delta(action, gripper_pose, environment.scale)}
    scene |= {f"object/{name}": environment.object_pose(name) for name in environment.object_names}
    return scene | {f"signal/{name}": np.asarray(done, bool) for name, done in environment.subtask_signals().items()}


def _moment(environment: RobotEnvironment, observation: Observation, action: np.ndarray, observe: Observer | None) -> dict[str, np.ndarray]:
    moment = {"action": action, "state": np.array(environment.get_state(), np.float64)} | _scene(environment, action)
    return moment | {f"obs/{name}": array for name, array in stored_observation(observe(observation) if observe else observation).items()}


def stored_observation(observation: Observation) -> dict[str, np.ndarray]:
    """What of an observation a file keeps: arrays under robomimic's flat names (``left_image``, ``left_depth`` for a camera ``left``)."""
    arrays = {
        name: np.asarray(observation[name])
        for name in ("proprioception", "robot_points", "object_points", "scene_points")
        if name in observation
    }
    for modality, suffix in (("images", "image"), ("depth", "depth"), ("segmentation", "segmentation")):
        arrays |= {f"{camera}_{suffix}": np.asarray(image) for camera, image in observation.get(modality, {}).items()}
    return arrays


def _column(moments: list[dict[str, np.ndarray]], prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in moments[0] if name.startswith(prefix)]
    return {name.removeprefix(prefix): np.stack([moment[name] for moment in moments]) for name in names}


def _stack_scenes(moments: list[dict[str, np.ndarray]], environment: RobotEnvironment) -> dict:
    return {
        "gripper_poses": np.stack([moment["gripper"] for moment in moments]),
        "target_poses": np.stack([moment["target"] for moment in moments]),
        "object_poses": _column(moments, "object/"),
        "signals": _column(moments, "signal/"),
    }


def _stack(
    moments: list[dict[str, np.ndarray]], environment: RobotEnvironment, seed: int, attributes: dict[str, Attribute]
) -> Demonstration:
    return Demonstration(
        actions=np.stack([moment["action"] for moment in moments]),
        states=np.stack([moment["state"] for moment in moments]),
        observations=_column(moments, "obs/"),
        **_stack_scenes(moments, environment),
        instruction=environment.instruction,
        seed=seed,
        model_xml=str(getattr(environment, "model_xml", "")),
        attributes=attributes,
    )
