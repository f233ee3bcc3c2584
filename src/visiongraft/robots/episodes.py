"""One recorded episode of a task, and what has to be true of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Shaped

from visiongraft.robots.actions import check_actions

Attribute = str | int | float

NEEDS_DATAGEN_INFO = "generate() and Point Bridge's target poses"


@dataclass(eq=False)
class Demonstration:
    """One episode, step by step: what was seen *before* each action, and the action.

    All poses are in the robot's base frame. A demonstration recorded elsewhere may lack poses and signals: the arrays are then empty,
    and :func:`visiongraft.robots.recording.annotate` fills them in.

    Args:
        actions: (steps, 7) delta actions, see :mod:`visiongraft.robots.actions`.
        states: (steps, numbers) of the simulator, for ``RobotEnvironment.set_state``.
        observations: arrays by name, each (steps, …).
        gripper_poses: (steps, 4, 4), of the gripper.
        target_poses: (steps, 4, 4), that the actions asked for.
        object_poses: (steps, 4, 4) by the object's name.
        signals: (steps,) bool by name, whether each subtask was done, in the order of the subtasks.
        instruction: what to do, in words.
        seed: of the ``reset`` that the episode began with.
        model_xml: the MuJoCo model; empty where it is not known.
        attributes: anything else worth keeping.

    Raises:
        ValueError: lengths, sizes or values that do not fit; the sentence says which.
    """

    # sizes are checked below, with a sentence that names what does not fit
    actions: Float[np.ndarray, "..."]
    states: Float[np.ndarray, "..."]
    observations: dict[str, Shaped[np.ndarray, "..."]]
    gripper_poses: Float[np.ndarray, "..."]
    target_poses: Float[np.ndarray, "..."]
    object_poses: dict[str, Float[np.ndarray, "..."]]
    signals: dict[str, Bool[np.ndarray, "..."]]
    instruction: str
    seed: int
    model_xml: str = ""
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = to_arrays(self)
        check_shapes("The demonstration", {path: array.shape for path, array in arrays.items()})
        check_values("The demonstration", arrays)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def has_datagen_info(self) -> bool:
        """Whether poses of the gripper, targets and objects are there."""
        return len(self.gripper_poses) > 0


def to_arrays(demonstration: Demonstration) -> dict[str, np.ndarray]:
    """Arrays by their place in a robomimic file (MimicGen's ``datagen_info``), empty ones left out.

    Signals become int8 because MimicGen subtracts them from one another; the gripper's command has a trailing axis of 1.
    """
    arrays = {"actions": demonstration.actions, "states": demonstration.states}
    arrays |= {f"obs/{name}": array for name, array in demonstration.observations.items()}
    if demonstration.has_datagen_info:
        arrays["datagen_info/eef_pose"] = demonstration.gripper_poses
        arrays["datagen_info/target_pose"] = demonstration.target_poses
        arrays["datagen_info/gripper_action"] = demonstration.actions[:, -1:]
    arrays |= {f"datagen_info/object_poses/{name}": poses for name, poses in demonstration.object_poses.items()}
    signals = {name: np.asarray(signal, np.int8) for name, signal in demonstration.signals.items()}
    return arrays | {f"datagen_info/subtask_term_signals/{name}": signal for name, signal in signals.items()}


def check_shapes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses arrays of different lengths or wrong sizes, from their shapes alone.

    Args:
        name: of the demonstration, begins the sentence.
        shapes: by the array's place in a robomimic file.

    Raises:
        ValueError: the first that does not fit.
    """
    for required in ("actions", "states"):
        if required not in shapes:
            raise ValueError(f"{name} has no {required}; it is no demonstration in robomimic's layout.")
    _check_action_size(name, shapes["actions"])
    steps = shapes["actions"][0]
    if steps == 0:
        raise ValueError(f"{name} has no steps; leave it out.")
    if len(shapes["states"]) != 2:
        raise ValueError(f"{name} has states of shape {shapes['states']}; one flat state a step is accepted.")
    for path, shape in shapes.items():
        group, _, rest = path.partition("/")
        if group == "obs" and not rest:
            continue
        what = {"obs": f"observations ({rest})", "datagen_info": f"entries of datagen_info/{rest}"}.get(group, group)
        if not shape or shape[0] != steps:
            raise ValueError(
                f"{name} has {steps} actions but {shape[0] if shape else 'no'} {what}; the recording was cut off or edited, leave it out."
            )
        is_pose = rest in ("eef_pose", "target_pose") or rest.startswith("object_poses/")
        if group == "datagen_info" and is_pose and shape[1:] != (4, 4):
            raise ValueError(f"{name} has {what} of shape {shape}; poses are 4x4 matrices.")


def _check_action_size(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"{name} has actions of shape {shape}; (steps, 7) is accepted.")
    try:
        check_actions(np.empty((0, shape[1])), "delta")
    except ValueError as error:
        raise ValueError(f"{name} cannot be used. {error}") from None


def check_values(name: str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Refuses values that are not finite, actions outside [-1, 1], and poses that are none.

    Args:
        name: of the demonstration, begins the sentence.
        arrays: by their place in a robomimic file.

    Raises:
        ValueError: the first that does not fit, with its first step.
    """
    for path, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        broken = ~np.isfinite(array.reshape(len(array), -1)).all(1)
        # depth is infinite where a ray hits nothing
        if path.endswith("_depth"):
            broken = np.isnan(array.reshape(len(array), -1)).any(1)
        if broken.any():
            raise ValueError(f"{name} has {path} that are not finite, first at step {int(broken.argmax())}; leave it out.")
        if path.startswith("datagen_info/") and array.shape[1:] == (4, 4) and not _are_poses(array):
            raise ValueError(f"{name} has {path} that are no poses: a rotation must be orthonormal and the last row 0 0 0 1.")
    largest = np.abs(arrays["actions"]).max()
    if largest > 1 + 1e-6:
        raise ValueError(
            f"{name} has actions up to {largest:.3g}; delta actions lie in [-1, 1], so these are of another convention or unscaled."
        )


def _are_poses(poses: np.ndarray) -> bool:
    rotation = poses[:, :3, :3]
    orthonormal = np.allclose(rotation @ np.swapaxes(rotation, -1, -2), np.eye(3), atol=1e-3)
    return orthonormal and bool((np.linalg.det(rotation) > 0).all()) and np.allclose(poses[:, 3], [0, 0, 0, 1])
