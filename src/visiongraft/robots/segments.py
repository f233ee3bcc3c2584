"""Object-centric segments of demonstrations: where they end, how they move to another scene, and the way to their start.

Pure functions on arrays; poses are 4x4 in the robot's base frame. Source: MimicGen (Mandlekar et al. 2023) and its code's defaults.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from visiongraft.robots.poses import invert_pose, make_pose, rotation_from_vector, rotation_vector
from visiongraft.robots.subtasks import Subtask

_SMALL_ANGLE = 0.05
"""Below this many radians MimicGen takes the end rotation at once."""


def segment_ends(signals: Mapping[str, Shaped[np.ndarray, "steps"]], steps: int, subtasks: Sequence[Subtask], name: str) -> list[int]:
    """Exclusive ends of a demonstration's segments.

    A subtask ends one step after the first step at which its signal has become true, looking from the end of the subtask before; if
    ``signal[k] = 0`` and ``signal[k + 1] = 1`` then its end is ``k + 2``. The last ends with the demonstration.

    Args:
        signals: whether each subtask was done, step by step.
        steps: of the demonstration.
        subtasks: in order.
        name: of the demonstration, for the sentence.

    Raises:
        ValueError: a signal that is missing or never becomes true, or segments that the random offsets could empty.
    """
    ends: list[int] = []
    for number, subtask in enumerate(subtasks):
        if subtask.signal is None:
            ends.append(steps)
            continue
        if subtask.signal not in signals:
            raise ValueError(f"{name} has no signal {subtask.signal!r} for subtask {number}; it has: {', '.join(signals) or 'none'}.")
        values = np.asarray(signals[subtask.signal], np.int64)
        rises = np.flatnonzero(np.diff(values) == 1) + 1
        rises = rises[rises >= (ends[-1] if ends else 0)]
        if not len(rises):
            raise ValueError(f"{name}: subtask {number} never ends, its signal {subtask.signal!r} does not become true; leave it out.")
        ends.append(int(rises[0]) + 1)
    for i in range(1, len(ends)):
        latest, earliest = ends[i - 1] + subtasks[i - 1].offset_range[1], ends[i] + subtasks[i].offset_range[0]
        if latest >= earliest:
            raise ValueError(
                f"{name}: subtask {i} may become empty: subtask {i - 1} ends at step {ends[i - 1]} plus up to "
                f"{subtasks[i - 1].offset_range[1]}, subtask {i} at step {ends[i]} plus at least {subtasks[i].offset_range[0]}. "
                "Use smaller offsets or a longer demonstration."
            )
    return ends


def draw_boundaries(
    ends: Int[np.ndarray, "demonstrations subtasks"], subtasks: Sequence[Subtask], generator: np.random.Generator
) -> Int[np.ndarray, "demonstrations subtasks 2"]:
    """Starts and exclusive ends of all segments, each end but the last moved by a random offset.

    Args:
        ends: of :func:`segment_ends`.
        subtasks: whose ``offset_range`` is drawn from, both ends included.
        generator: of the offsets.

    Raises:
        ValueError: segments that are empty or out of order; :func:`segment_ends` would have said why.
    """
    moved = ends.copy()
    for i, subtask in enumerate(subtasks[:-1]):
        low, high = subtask.offset_range
        moved[:, i] += generator.integers(low, high, size=len(ends), endpoint=True)
    starts = np.concatenate([np.zeros((len(ends), 1), moved.dtype), moved[:, :-1]], axis=1)
    if (moved <= starts).any():
        raise ValueError("A segment is empty or ends before it starts; use smaller offset ranges.")
    return np.stack([starts, moved], axis=-1)


def transform_segment(
    poses: Float[np.ndarray, "steps 4 4"],
    object_pose: Float[np.ndarray, "4 4"],
    source_object_pose: Float[np.ndarray, "4 4"],
) -> Float[np.ndarray, "steps 4 4"]:
    """A source segment moved with its object: what the gripper did relative to the object stays the same.

    Args:
        poses: of the source segment.
        object_pose: of the object in the new scene.
        source_object_pose: of the object in the source, at the segment's start.
    """
    return object_pose @ invert_pose(source_object_pose) @ poses


def gripper_commands(commands: Shaped[np.ndarray, "steps"], start: int, end: int) -> Shaped[np.ndarray, "steps_plus_1"]:
    """Commands of a segment with the first one doubled, as MimicGen has them.

    They go with the poses by index. Where the robot's first pose is put before the segment they fit; elsewhere the gripper lags one
    step behind and the last command is not used. That is so upstream, and kept for parity.
    """
    return np.concatenate([commands[start : start + 1], commands[start:end]])


def interpolate_poses(start: Float[np.ndarray, "4 4"], end: Float[np.ndarray, "4 4"], num: int) -> Float[np.ndarray, "waypoints 4 4"]:
    """Waypoints from one pose to another: ``num`` between them, then the end; the start is left out.

    Positions are spread evenly on the line. Rotations turn evenly about one axis, or are the end's at once when the whole turn is
    below 0.05 rad.

    Raises:
        ValueError: a negative number.
    """
    if num < 0:
        raise ValueError(f"The number of interpolation steps must be at least 0, got {num}.")
    share = np.arange(1, num + 2)[:, None] / (num + 1)
    positions = start[:3, 3] + share * (end[:3, 3] - start[:3, 3])
    turn = rotation_vector(end[:3, :3] @ start[:3, :3].T)
    if np.linalg.norm(turn) < _SMALL_ANGLE:
        rotations = np.broadcast_to(end[:3, :3], (num + 1, 3, 3))
    else:
        rotations = rotation_from_vector(share * turn) @ start[:3, :3]
    waypoints = make_pose(rotations, positions)
    waypoints[-1] = end  # exactly, not to rounding
    return waypoints


def needed_interpolation_steps(
    start: Float[np.ndarray, "4 4"], end: Float[np.ndarray, "4 4"], distance: float = 0.03, angle: float = 0.2
) -> int:
    """How many poses between two poses keep every step below a distance (metres) and an angle (radians)."""
    turn = np.linalg.norm(rotation_vector(end[:3, :3] @ start[:3, :3].T))
    steps = max(np.linalg.norm(end[:3, 3] - start[:3, 3]) / distance, turn / angle)
    return max(math.ceil(steps - 1e-9) - 1, 0)


def contact_start(
    gripper_poses: Float[np.ndarray, "steps 4 4"],
    object_poses: Float[np.ndarray, "steps 4 4"] | None,
    commands: Shaped[np.ndarray, "steps"],
    start: int,
    end: int,
    radius: float,
) -> int:
    """First step of a segment from which the gripper stays near the place where it acts: what comes before is free-space approach.

    The place is where the segment's last change of the gripper's command happens (a grasp, a release), or where the segment ends
    without one, seen from the object. Near is within ``radius`` metres of it.

    Args:
        gripper_poses: of the demonstration.
        object_poses: of the object that the segment refers to; None for none.
        commands: of the gripper.
        start: of the segment.
        end: of the segment, exclusive.
        radius: metres.

    Source: ours; the brief's section 9 found that long approaches keep a small policy from learning.
    """
    positions = gripper_poses[start:end, :3, 3]
    if object_poses is not None:
        positions = (invert_pose(object_poses[start:end]) @ gripper_poses[start:end])[:, :3, 3]
    changes = np.flatnonzero(np.diff(np.sign(commands[start:end]))) + 1
    event = int(changes[-1]) if len(changes) else len(positions) - 1
    far = np.flatnonzero(np.linalg.norm(positions[: event + 1] - positions[event], axis=1) > radius)
    return start + (int(far[-1]) + 1 if len(far) else 0)
