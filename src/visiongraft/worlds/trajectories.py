"""Camera paths: dolly, orbit, pan and a hand-held camera. World axes are x right, y down, z forward; rotations take camera to world."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.cameras import rotation_from_angles


@dataclass(frozen=True)
class Trajectory:
    """Poses of a camera, one a frame.

    Args:
        positions: metres.
        rotations: camera to world.
    """

    positions: Float[Tensor, "frames 3"]
    rotations: Float[Tensor, "frames 3 3"]

    def times(self, fps: float | int) -> Float[Tensor, " frames"]:
        """Seconds of the frames; the first one at 0."""
        return torch.arange(len(self.positions)) / fps


def dolly(start: Float[Tensor, "3"], end: Float[Tensor, "3"], frames: int, yaw: float = 0.0, pitch: float = 0.0) -> Trajectory:
    """Straight from one point to another, looking the same way; gently started and stopped.

    Args:
        start: metres; ``end``: metres.
        frames: at least 1.
        yaw: to the right, radians; ``pitch``: up, radians.

    Raises:
        ValueError: fewer than one frame.
    """
    share = _eased(frames)[:, None]
    angles = torch.full((frames,), float(yaw)), torch.full((frames,), float(pitch)), torch.zeros(frames)
    return Trajectory(torch.lerp(start.float(), end.float(), share), rotation_from_angles(*angles))


def pan(position: Float[Tensor, "3"], frames: int, start_yaw: float, end_yaw: float, pitch: float = 0.0) -> Trajectory:
    """On the spot, from one direction to another; angles in radians, more than one turn if they say so.

    Args:
        position: metres.
        frames: at least 1.
        start_yaw: to the right of +z; ``end_yaw``: likewise.
        pitch: up.

    Raises:
        ValueError: fewer than one frame.
    """
    yaw = start_yaw + (end_yaw - start_yaw) * _eased(frames)
    rotations = rotation_from_angles(yaw, torch.full((frames,), float(pitch)), torch.zeros(frames))
    return Trajectory(position.float().expand(frames, 3), rotations)


def orbit(
    target: Float[Tensor, "3"], radius: float, height: float, frames: int, start: float = 0.0, sweep: float = 2 * math.pi
) -> Trajectory:
    """Around a point and looking at it.

    Args:
        target: metres.
        radius: distance from the vertical through the target, metres.
        height: of the camera above the target, metres.
        frames: at least 1.
        start: angle of the first camera seen from the target, from +z towards +x, radians.
        sweep: angle from the first frame to the last; a whole turn ends one frame before the start, so that it loops.

    Raises:
        ValueError: fewer than one frame or a radius that is not positive.
    """
    if radius <= 0:
        raise ValueError(f"radius must be positive; got {radius:g}.")
    _check(frames)
    whole = abs(abs(sweep) - 2 * math.pi) < 1e-6
    angle = start + sweep * torch.arange(frames) / max(frames if whole else frames - 1, 1)
    offset = torch.stack([radius * angle.sin(), torch.full_like(angle, -height), radius * angle.cos()], -1)
    positions = target.float() + offset
    return Trajectory(positions, look_at(positions, target.float().expand(frames, 3)))


def hand_held(trajectory: Trajectory, seed: int, fps: float | int = 16.0, sway: float = 0.02, shake_deg: float = 1.0) -> Trajectory:
    """A path with the motion of the hand that holds the camera: breathing, drift and tremor, of position and of direction.

    Args:
        trajectory: to disturb.
        seed: fixes the motion.
        fps: frames a second.
        sway: standard deviation of the position along each axis, metres.
        shake_deg: standard deviation of yaw, pitch and roll, degrees.

    Raises:
        ValueError: a negative amount or frames a second that are not positive.
    """
    if fps <= 0 or sway < 0 or shake_deg < 0:
        raise ValueError(f"fps must be positive, sway and shake_deg not negative; got {fps:g}, {sway:g} and {shake_deg:g}.")
    generator = torch.Generator().manual_seed(seed)
    noise = _tremble(len(trajectory.positions), fps, generator).to(trajectory.positions)
    yaw, pitch, roll = (noise[:, 3:] * math.radians(shake_deg)).unbind(-1)
    rotations = trajectory.rotations @ rotation_from_angles(yaw, pitch, roll)
    return Trajectory(trajectory.positions + sway * noise[:, :3], rotations)


def look_at(positions: Float[Tensor, "frames 3"], targets: Float[Tensor, "frames 3"]) -> Float[Tensor, "frames 3 3"]:
    """Level cameras that see the targets in the middle of the picture."""
    forward = F.normalize(targets - positions, dim=-1)
    yaw, pitch = torch.atan2(forward[:, 0], forward[:, 2]), -torch.asin(forward[:, 1].clamp(-1, 1))
    return rotation_from_angles(yaw, pitch, torch.zeros_like(yaw))


def _tremble(frames: int, fps: float | int, generator: torch.Generator) -> Float[Tensor, "frames 6"]:
    """Six signals of unit variance over time: two slow waves, a random walk that returns, and a little noise."""
    time = torch.arange(frames) / fps
    rates = 0.3 + 1.2 * torch.rand(2, 1, 6, generator=generator)
    phases = 2 * math.pi * torch.rand(2, 1, 6, generator=generator)
    waves = torch.sin(2 * math.pi * rates * time[:, None] + phases).sum(0)  # variance 1
    pull = math.exp(-1 / (2 * fps))
    steps = torch.randn(frames, 6, generator=generator)
    drift = [steps[0]]
    for step in steps[1:]:
        drift.append(pull * drift[-1] + math.sqrt(1 - pull**2) * step)
    noise = torch.randn(frames, 6, generator=generator)
    return 0.6 * waves + 0.78 * torch.stack(drift) + 0.15 * noise


def _eased(frames: int) -> Float[Tensor, " frames"]:
    """From 0 to 1, slow at both ends."""
    _check(frames)
    share = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    return share * share * (3 - 2 * share)


def _check(frames: int) -> None:
    if frames < 1:
        raise ValueError(f"a trajectory needs at least 1 frame; got {frames}.")
