"""Videos of roll-outs: what the overview camera sees, and at the end a border that tells how it went."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from visiongraft.media.video_writing import video_writer
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.rollout_episode import Recording

SUCCESS_COLOUR, FAILURE_COLOUR = (40, 170, 70), (200, 50, 40)
_STILL_SECONDS = 0.7


class EpisodeVideo:
    """Films one episode straight to a file, so that its length costs no memory.

    Args:
        environment: after its reset.
        path: without suffix; :meth:`finish` adds how it went.
        recording: camera, size, frames.

    Raises:
        ValueError: no such camera.
    """

    def __init__(self, environment: RobotEnvironment, path: Path, recording: Recording) -> None:
        self._environment, self._path, self._recording = environment, path, recording
        self._camera = recording.camera or overview_camera(environment)
        self._fps = max(1.0, environment.control_frequency / recording.stride)
        self._unfinished = path.with_name(f".{path.name}-unfinished.mp4")
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(video_writer(self._unfinished, self._fps, crf=23, preset="veryfast"))
        self._steps = 0

    def step(self) -> None:
        """Films the present moment, or skips it."""
        if self._steps % self._recording.stride == 0:
            self._write(self._picture())
        self._steps += 1

    def finish(self, success: bool) -> Path:
        """Adds the last moment as a still with a green or red border, and gives the file its name."""
        still = with_border(self._picture(), SUCCESS_COLOUR if success else FAILURE_COLOUR)
        for _ in range(max(1, round(_STILL_SECONDS * self._fps))):
            self._write(still)
        self._stack.close()
        path = self._path.with_name(f"{self._path.name}-{'success' if success else 'failure'}.mp4")
        return self._unfinished.replace(path)

    def discard(self) -> None:
        """Leaves nothing behind."""
        self._stack.close()
        self._unfinished.unlink(missing_ok=True)

    def _picture(self) -> UInt8[np.ndarray, "height width 3"]:
        return self._environment.render_view(self._camera, ("images",), self._recording.size)["images"]

    def _write(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        self._writer.write(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1))


def overview_camera(environment: RobotEnvironment) -> str:
    """The camera named ``overview``, else the first.

    Raises:
        ValueError: no cameras.
    """
    names = environment.camera_names()
    if not names:
        raise ValueError(f"The environment {environment.task} has no camera, so that no video can be made.")
    return "overview" if "overview" in names else names[0]


def with_border(picture: UInt8[np.ndarray, "height width 3"], colour: tuple[int, int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A copy with a border of a colour, a thirtieth of the smaller side wide and at least 3 pixels."""
    width = max(3, min(picture.shape[:2]) // 30)
    framed = np.empty_like(picture)
    framed[:] = colour
    framed[width:-width, width:-width] = picture[width:-width, width:-width]
    return framed
