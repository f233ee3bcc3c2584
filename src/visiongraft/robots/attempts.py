"""One attempt of the generator: a new scene, segments of source demonstrations moved into it, and what comes of that."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from visiongraft.robots.actions import delta_to_target
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.episodes import NEEDS_DATAGEN_INFO, Demonstration
from visiongraft.robots.observers import Observer
from visiongraft.robots.recording import StepRecorder
from visiongraft.robots.segments import (
    contact_start,
    draw_boundaries,
    gripper_commands,
    interpolate_poses,
    needed_interpolation_steps,
    segment_ends,
    transform_segment,
)
from visiongraft.robots.selection import select_source
from visiongraft.robots.subtasks import Settings, Subtask


@dataclass(frozen=True, eq=False)
class Source:
    """What the generator takes from a demonstration.

    Args:
        gripper_poses: reached.
        target_poses: asked for.
        object_poses: of the subtasks' reference objects.
        commands: of the gripper.
    """

    gripper_poses: Float[np.ndarray, "steps 4 4"]
    target_poses: Float[np.ndarray, "steps 4 4"]
    object_poses: dict[str, Float[np.ndarray, "steps 4 4"]]
    commands: Float[np.ndarray, "steps"]


@dataclass(frozen=True, eq=False)
class Sources:
    """Source demonstrations and the ends of their segments."""

    demonstrations: tuple[Source, ...]
    ends: Int[np.ndarray, "demonstrations subtasks"]


@dataclass(frozen=True, eq=False)
class Waypoints:
    """Targets of a segment and of the way to it.

    Args:
        poses: targets.
        commands: of the gripper.
        noise: standard deviation of the noise on each action.
    """

    poses: Float[np.ndarray, "waypoints 4 4"]
    commands: Float[np.ndarray, "waypoints"]
    noise: Float[np.ndarray, "waypoints"]


def prepare_sources(demonstrations: Sequence[Demonstration], subtasks: Sequence[Subtask]) -> Sources:
    """Checks demonstrations and finds the ends of their segments.

    Raises:
        ValueError: none, or one without poses, objects or signals that the subtasks need.
    """
    if not demonstrations:
        raise ValueError("The generator needs at least one source demonstration; record some first.")
    if not subtasks or subtasks[-1].signal is not None or any(subtask.signal is None for subtask in subtasks[:-1]):
        raise ValueError("Every subtask but the last needs a signal, and the last has none; see make_subtasks.")
    sources, ends = [], []
    for number, demonstration in enumerate(demonstrations):
        name = f"Source demonstration {number}"
        if not demonstration.has_datagen_info:
            raise ValueError(f"{name} has no datagen_info, which {NEEDS_DATAGEN_INFO} need; pass it through annotate first.")
        for subtask in subtasks:
            if subtask.reference is not None and subtask.reference not in demonstration.object_poses:
                known = ", ".join(demonstration.object_poses) or "none"
                raise ValueError(f"{name} has no poses of {subtask.reference!r}; it has: {known}.")
        ends.append(segment_ends(demonstration.signals, len(demonstration), subtasks, name))
        commands = np.asarray(demonstration.actions[:, -1], np.float64)
        sources.append(Source(demonstration.gripper_poses, demonstration.target_poses, demonstration.object_poses, commands))
    return Sources(tuple(sources), np.array(ends))


def plan_segment(
    source: Source,
    subtask: Subtask,
    settings: Settings,
    bounds: tuple[int, int],
    *,
    object_pose: Float[np.ndarray, "4 4"] | None,
    gripper_pose: Float[np.ndarray, "4 4"],
    last_target: Float[np.ndarray, "4 4"] | None,
) -> Waypoints:
    """Waypoints of one subtask in a new scene: n between the start and the segment, m repeats of its first pose, and its poses.

    Args:
        source: where the segment comes from.
        subtask: its numbers.
        settings: how segments are joined.
        bounds: start and exclusive end of the segment in the source.
        object_pose: of the reference object now; None without one.
        gripper_pose: now.
        last_target: last waypoint of the subtask before; None for the first subtask.
    """
    start, end = bounds
    objects = None if subtask.reference is None else source.object_poses[subtask.reference]
    if settings.trim_approach:
        start = contact_start(source.gripper_poses, objects, source.commands, start, end, settings.approach_radius)
    poses = source.target_poses[start:end]
    if last_target is None or settings.transform_first_robot_pose:
        poses = np.concatenate([source.gripper_poses[start : start + 1], poses])
    commands = gripper_commands(source.commands, start, end)[: len(poses)]
    if objects is not None and object_pose is not None:
        poses = transform_segment(poses, object_pose, objects[start])
    begin = last_target if last_target is not None and settings.interpolate_from_last_target else gripper_pose
    between = subtask.interpolation_steps
    if settings.trim_approach:
        between = needed_interpolation_steps(begin, poses[0], settings.step_distance, settings.step_angle)
    way = np.concatenate([interpolate_poses(begin, poses[0], between)[:-1], np.repeat(poses[:1], subtask.fixed_steps, axis=0)])
    way_noise = subtask.action_noise if subtask.noise_during_interpolation else 0.0
    return Waypoints(
        np.concatenate([way, poses]),
        np.concatenate([np.full(len(way), commands[0]), commands]),
        np.concatenate([np.full(len(way), way_noise), np.full(len(poses), subtask.action_noise)]),
    )


def attempt(
    environment: RobotEnvironment,
    sources: Sources,
    subtasks: Sequence[Subtask],
    settings: Settings,
    generator: np.random.Generator,
    observe: Observer | None = None,
) -> Demonstration | None:
    """One attempt to do the task in a scene drawn from the generator.

    Args:
        environment: any state; it is reset.
        sources: of :func:`prepare_sources`.
        subtasks: in order.
        settings: how segments are joined.
        generator: of the scene, the offsets, the choice of sources and the noise.
        observe: adds points or the like to what is stored.

    Returns:
        The demonstration when the task was done at any step, else None.

    Source: brief, 2.2; MimicGen, DataGenerator.generate.
    """
    seed = int(generator.integers(2**31))
    observation, _ = environment.reset(seed=seed)
    bounds = draw_boundaries(sources.ends, subtasks, generator)
    recorder = StepRecorder(environment, observation, seed, observe)
    chosen: list[int] = []
    last_target = None
    for i, subtask in enumerate(subtasks):
        object_pose = None if subtask.reference is None else environment.object_pose(subtask.reference)
        if i == 0 or settings.select_per_subtask:
            chosen.append(_choose(environment, sources, subtask, bounds[:, i, 0], object_pose, generator))
        else:
            chosen.append(chosen[0])
        waypoints = plan_segment(
            sources.demonstrations[chosen[-1]],
            subtask,
            settings,
            (int(bounds[chosen[-1], i, 0]), int(bounds[chosen[-1], i, 1])),
            object_pose=object_pose,
            gripper_pose=environment.gripper_pose(),
            last_target=last_target,
        )
        _execute(recorder, waypoints, generator)
        last_target = waypoints.poses[-1]
    if not recorder.succeeded:
        return None
    return recorder.finish({"sources": ",".join(map(str, chosen))})


def _choose(
    environment: RobotEnvironment,
    sources: Sources,
    subtask: Subtask,
    starts: Int[np.ndarray, "demonstrations"],
    object_pose: Float[np.ndarray, "4 4"] | None,
    generator: np.random.Generator,
) -> int:
    pairs = list(zip(sources.demonstrations, starts, strict=True))
    gripper_poses = np.stack([source.gripper_poses[start] for source, start in pairs])
    objects = None if subtask.reference is None else np.stack([source.object_poses[subtask.reference][start] for source, start in pairs])
    return select_source(subtask, object_pose, environment.gripper_pose(), objects, gripper_poses, generator)


def _execute(recorder: StepRecorder, waypoints: Waypoints, generator: np.random.Generator) -> None:
    environment = recorder.environment
    for pose, command, noise in zip(waypoints.poses, waypoints.commands, waypoints.noise, strict=True):
        # recomputed from where the gripper is: errors do not add up
        action = delta_to_target(pose, float(command), environment.gripper_pose(), environment.scale)
        action[:6] += noise * generator.standard_normal(6)
        recorder.step(np.clip(action, -1.0, 1.0))
