"""Camera paths of the perspective clips that a video model is conditioned on: simulated ones, shaken by hand or not, and real ones."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import check_hfov_deg, rotation_from_angles
from visiongraft.geometry.panoramas import perspective_from_panorama
from visiongraft.methods.panorama.augmentation import CameraRanges

FPS = 16.0
_TURN_DEG = (90.0, 30.0, 10.0)
_SHAKE_HZ, _SHAKE_DEG = 1.5, (1.0, 0.5, 0.2)
_DRIFT_DEG, _DRIFT_PROBABILITY = (15.0, 3.0, 1.0), 2 / 3
_JITTER_DEG = (0.15, 0.15, 0.1)


class CameraPath(NamedTuple):
    """A camera of one field of view that turns on the spot; in the panorama's frame, radians. The first yaw is 0."""

    hfov: Float[Tensor, ""]
    yaw: Float[Tensor, " frames"]
    pitch: Float[Tensor, " frames"]
    roll: Float[Tensor, " frames"]


def draw_path(
    num_frames: int,
    generator: torch.Generator,
    ranges: CameraRanges = CameraRanges(),  # noqa: B008 (frozen)
    real: Sequence[Float[Tensor, "_ 3"]] = (),
    real_probability: float = 0.2,
    fps: float = FPS,
) -> CameraPath:
    """A camera path for one training clip: simulated, or with ``real_probability`` a piece of a real one where some are given.

    Training on simulated paths alone tilts the results of real hand-held videos.

    Args:
        num_frames: frames of the clip.
        generator: on the CPU.
        ranges: of field of view, pitch and roll.
        real: real paths, yaw, pitch and roll by frame in degrees; see :func:`read_paths`. Shorter ones than the clip are not drawn.
        real_probability: of a real path.
        fps: frames a second.

    Raises:
        ValueError: real paths that are all shorter than the clip.

    Source: arXiv 2601.16192, training: 80 % simulated, 20 % real.
    """
    long_enough = [path for path in real if len(path) >= num_frames]
    if real and not long_enough:
        raise ValueError(f"No camera path has the {num_frames} frames of a clip; the longest has {max(map(len, real))}. Give longer ones.")
    if long_enough and _uniform(generator) < real_probability:
        path = long_enough[int(torch.randint(len(long_enough), (1,), generator=generator))]
        start = int(torch.randint(len(path) - num_frames + 1, (1,), generator=generator))
        return _path(_between(generator, ranges.hfov_deg), path[start : start + num_frames].double())
    return simulated_path(num_frames, generator, ranges, fps=fps)


def simulated_path(
    num_frames: int,
    generator: torch.Generator,
    ranges: CameraRanges = CameraRanges(),  # noqa: B008 (frozen)
    shake_probability: float = 0.5,
    fps: float = FPS,
) -> CameraPath:
    """A linear turn from a random pose to one at most (90, 30, 10) degrees of yaw, pitch and roll away, half of them shaken by hand.

    Pitch and roll of both ends lie within ``ranges``; shaking may leave them a little.

    Args:
        num_frames: frames of the path.
        generator: on the CPU.
        ranges: of field of view, pitch and roll.
        shake_probability: of hand-held shake on top.
        fps: frames a second.

    Source: arXiv 2601.16192, simulated camera trajectories.
    """
    if num_frames < 1:
        raise ValueError(f"A camera path needs at least one frame; got {num_frames}.")
    hfov_deg = _between(generator, ranges.hfov_deg)
    start = torch.tensor([0.0, _between(generator, ranges.pitch_deg), _between(generator, ranges.roll_deg)], dtype=torch.float64)
    end = start + torch.tensor([_between(generator, (-turn, turn)) for turn in _TURN_DEG], dtype=torch.float64)
    end[1], end[2] = end[1].clamp(*ranges.pitch_deg), end[2].clamp(*ranges.roll_deg)
    angles_deg = torch.lerp(start, end, torch.linspace(0, 1, num_frames, dtype=torch.float64)[:, None])
    if _uniform(generator) < shake_probability:
        angles_deg = angles_deg + hand_held_shake(num_frames, generator, fps)
    return _path(hfov_deg, angles_deg)


def hand_held_shake(num_frames: int, generator: torch.Generator, fps: float = FPS) -> Float[Tensor, "num_frames 3"]:
    """What a hand adds to yaw, pitch and roll, in degrees (float64): sway at 1.5 Hz, in two of three cases a slow drift, and jitter.

    Source: arXiv 2601.16192, hand-held shake, after Argus.
    """
    seconds = torch.arange(num_frames, dtype=torch.float64)[:, None] / fps
    amplitude = torch.rand(3, generator=generator, dtype=torch.float64) * torch.tensor(_SHAKE_DEG, dtype=torch.float64)
    drift = (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1) * torch.tensor(_DRIFT_DEG, dtype=torch.float64)
    drifts = _uniform(generator) < _DRIFT_PROBABILITY
    jitter = torch.randn(num_frames, 3, generator=generator, dtype=torch.float64) * torch.tensor(_JITTER_DEG, dtype=torch.float64)
    return amplitude * torch.sin(2 * math.pi * _SHAKE_HZ * seconds) + drift * seconds * drifts + jitter


def clip_from_panoramas(
    panoramas: Float[Tensor, "frames 3 height width"], path: CameraPath, size: int
) -> Float[Tensor, "frames 3 {size} {size}"]:
    """The perspective clip that a camera on ``path`` takes of a panorama video, in [0, 1].

    Args:
        panoramas: frames in [0, 1], H x 2H.
        path: one pose a frame.
        size: side of the frames in pixels.

    Raises:
        ValueError: a path of another length.
    """
    if len(panoramas) != len(path.yaw):
        raise ValueError(f"The panorama video has {len(panoramas)} frames and the camera path {len(path.yaw)}; give one pose a frame.")
    hfov, rotation = path.hfov.to(panoramas).expand(len(panoramas)), rotation_from_angles(path.yaw, path.pitch, path.roll)
    return perspective_from_panorama(panoramas, hfov, rotation.to(panoramas), (size, size)).clamp(0, 1)


def read_paths(file: str | Path, fps: float = FPS) -> list[Float[Tensor, "_ 3"]]:
    """Real camera paths from a JSON Lines file, resampled to ``fps``.

    Each line is ``{"fps": 30, "yaw_deg": [...], "pitch_deg": [...], "roll_deg": [...]}`` with one number a frame; yaw may start
    anywhere and wrap, pitch and roll are relative to gravity.

    Returns:
        Yaw, pitch and roll by frame in degrees, float64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not a path; the message names it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of camera paths {file}.")
    lines = [(number, line) for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    paths = []
    for number, line in lines:
        try:
            row = json.loads(line)
            angles = torch.tensor([row["yaw_deg"], row["pitch_deg"], row["roll_deg"]], dtype=torch.float64).T
            rate = float(row["fps"])
            if not (rate > 0 and angles.ndim == 2 and len(angles) > 1 and bool(angles.isfinite().all())):
                raise ValueError("fps must be positive, and the angles finite numbers of two frames or more")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number} is not a camera path ({error}); it needs fps and yaw_deg, pitch_deg and roll_deg of equal length."
            ) from error
        paths.append(_resampled(angles, rate, fps))
    if not paths:
        raise ValueError(f"{file} has no camera paths; write one JSON object a line.")
    return paths


def _resampled(angles: Float[Tensor, "frames 3"], rate: float, fps: float) -> Float[Tensor, "_ 3"]:
    """Linear interpolation in time; yaw is unwrapped first."""
    steps = angles[1:, 0] - angles[:-1, 0]
    wrapped = (steps + 180) % 360 - 180
    angles = angles.clone()
    angles[1:, 0] = angles[0, 0] + wrapped.cumsum(0)
    count = math.floor((len(angles) - 1) * fps / rate + 1e-9) + 1
    position = torch.arange(count, dtype=torch.float64) * rate / fps
    left = position.floor().long().clamp(max=len(angles) - 2)
    return torch.lerp(angles[left], angles[left + 1], (position - left)[:, None])


def _path(hfov_deg: float, angles_deg: Float[Tensor, "frames 3"]) -> CameraPath:
    """In radians and float32, with the first frame's yaw as longitude 0."""
    check_hfov_deg(hfov_deg)
    radians = angles_deg.deg2rad()
    yaw, pitch, roll = radians.float().unbind(-1)
    yaw = (radians[:, 0] - radians[0, 0]).float()
    return CameraPath(torch.tensor(math.radians(hfov_deg)), yaw, pitch, roll)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator, dtype=torch.float64))


def _between(generator: torch.Generator, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * _uniform(generator)
