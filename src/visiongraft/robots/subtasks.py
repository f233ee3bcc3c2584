"""What the generator needs to know about a task: its subtasks, and the two sets of defaults that are in use."""

from collections.abc import Sequence
from dataclasses import dataclass

from visiongraft.robots.environment import RobotEnvironment

STRATEGIES: tuple[str, ...] = ("random", "nearest_neighbor_object", "nearest_neighbor_robot_distance")


@dataclass(frozen=True, kw_only=True)
class Subtask:
    """One object-centric part of a task.

    Args:
        reference: object that the motion is relative to; None for the robot's base.
        signal: becomes true when the subtask ends; None for the last subtask, which ends with the demonstration.
        offset_range: bounds (included) of the random number of steps that is added to the end; (0, 0) for the last.
        strategy: how the source is chosen.
        neighbors: the nearest-neighbour strategies choose among so many.
        position_weight, rotation_weight: of the distance, per metre and per radian.
        action_noise: standard deviation of the noise on the six arm numbers of an action.
        interpolation_steps: poses between the last pose and the segment's first.
        fixed_steps: times that the segment's first pose is repeated after that.
        noise_during_interpolation: whether the way there is noisy too.

    Raises:
        ValueError: a strategy that does not exist or does not fit, or numbers that cannot be.

    Source: MimicGen, MG_TaskSpec.
    """

    reference: str | None
    signal: str | None
    offset_range: tuple[int, int] = (10, 20)
    strategy: str = "nearest_neighbor_object"
    neighbors: int = 3
    position_weight: float = 1.0
    rotation_weight: float = 1.0
    action_noise: float = 0.05
    interpolation_steps: int = 5
    fixed_steps: int = 0
    noise_during_interpolation: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"Unknown selection strategy {self.strategy!r}; there are {', '.join(STRATEGIES)}.")
        if self.reference is None and self.strategy != "random":
            raise ValueError(
                f"A subtask without a reference object cannot use {self.strategy!r}, which measures object poses; use 'random'."
            )
        low, high = self.offset_range
        if low > high:
            raise ValueError(f"offset_range must be (lowest, highest), got {self.offset_range}.")
        if self.signal is None and self.offset_range != (0, 0):
            raise ValueError(f"The last subtask ends with the demonstration; its offset_range must be (0, 0), got {self.offset_range}.")
        if self.neighbors < 1 or self.interpolation_steps < 0 or self.fixed_steps < 0 or self.action_noise < 0:
            raise ValueError("neighbors must be at least 1; interpolation_steps, fixed_steps and action_noise at least 0.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How segments are joined.

    Args:
        select_per_subtask: whether every subtask chooses its source anew, or the first chooses for all.
        transform_first_robot_pose: whether the robot's own first pose begins every segment, not only the first.
        interpolate_from_last_target: whether the way to a segment begins at the last target, or at the pose that was reached.
        trim_approach: leaves out the free-space approach of source segments and goes straight to where they become interesting, with
            as many steps as ``step_distance`` and ``step_angle`` demand; ``interpolation_steps`` is then not used. Demonstrations
            become short and alike, which small policies need. Off in MimicGen.
        approach_radius: how near (metres) to the grasp or the release the interesting part begins.
        step_distance: of the straight way, metres.
        step_angle: of the straight way, radians.
    """

    select_per_subtask: bool = True
    transform_first_robot_pose: bool = False
    interpolate_from_last_target: bool = True
    trim_approach: bool = False
    approach_radius: float = 0.08
    step_distance: float = 0.03
    step_angle: float = 0.2

    def __post_init__(self) -> None:
        if min(self.approach_radius, self.step_distance, self.step_angle) <= 0:
            raise ValueError("approach_radius, step_distance and step_angle must be above 0.")


@dataclass(frozen=True)
class Preset:
    """Defaults of a generator: the noise, and how segments are joined."""

    action_noise: float
    settings: Settings


PRESETS: dict[str, Preset] = {
    "mimicgen": Preset(0.05, Settings(select_per_subtask=False)),
    "mimiclabs": Preset(0.01, Settings(select_per_subtask=True)),
}
"""MimicGen's core tasks, and MimicLabs, which Point Bridge used."""


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


def make_subtasks(
    references: Sequence[str | None], signals: Sequence[str], preset_name: str = "mimiclabs", offset_range: tuple[int, int] = (10, 20)
) -> tuple[Subtask, ...]:
    """Subtasks with a preset's values, one for each signal; the last signal only names the last subtask.

    Args:
        references: objects that the subtasks refer to, in order.
        signals: their signals, in order.
        preset_name: see :data:`PRESETS`.
        offset_range: of all but the last.

    Raises:
        ValueError: unequal numbers, none, or an unknown preset.
    """
    noise = preset(preset_name).action_noise
    if len(references) != len(signals) or not references:
        raise ValueError(f"Every subtask has one reference and one signal; got {len(references)} references and {len(signals)} signals.")
    subtasks = []
    for i, (reference, signal) in enumerate(zip(references, signals, strict=True)):
        last = i == len(signals) - 1
        subtasks.append(
            Subtask(
                reference=reference,
                signal=None if last else signal,
                offset_range=(0, 0) if last else offset_range,
                strategy="random" if reference is None else "nearest_neighbor_object",
                action_noise=noise,
            )
        )
    return tuple(subtasks)


def default_subtasks(
    environment: RobotEnvironment, preset_name: str = "mimiclabs", offset_range: tuple[int, int] = (10, 20)
) -> tuple[Subtask, ...]:
    """Subtasks of an environment that has as many subtask signals as objects: the i-th signal belongs to the i-th object.

    MimicLabs derives them likewise: ``Grasp(bowl)`` refers to the bowl, ``On(bowl, plate)`` to the plate.

    Args:
        environment: already reset.
        preset_name: see :data:`PRESETS`.
        offset_range: of all but the last.

    Raises:
        ValueError: unequal numbers.
    """
    signals = list(environment.subtask_signals())
    if len(signals) != len(environment.object_names):
        raise ValueError(
            f"{environment.task} has subtask signals {', '.join(signals) or 'none'} and objects {', '.join(environment.object_names)}; "
            "their numbers differ, so say which object each subtask refers to: make_subtasks(references, signals)."
        )
    return make_subtasks(environment.object_names, signals, preset_name, offset_range)
