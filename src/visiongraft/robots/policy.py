"""What a policy is: observation in, chunk of actions out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Observation = dict[str, Any]
"""What a policy sees at one time. NumPy arrays by name; absent keys were not asked for:

- ``instruction``: text.
- ``proprioception``: (10,) float32: position (metres, base frame), 6D rotation (first two rows), last gripper command (-1 open, +1
  closed; -1 at first).
- ``gripper_pose``: (4, 4) float64, base frame; z is the approach direction, y the finger axis.
- ``object_poses``: name -> (4, 4) float64, base frame (simulators only).
- ``images``: camera -> (height, width, 3) uint8, first row on top.
- ``depth``: camera -> (height, width) float32, metres along the optical axis; infinity where nothing is hit.
- ``segmentation``: camera -> (height, width) int32, index into the environment's ``object_names``; -1 elsewhere (simulators only).
- ``cameras``: camera -> :class:`visiongraft.robots.cameras.Camera`.
- ``robot_points`` (8, 3), ``object_points`` (objects, points, 3): float32, metres, base frame, added by an observer.
- ``stale``: tuple of names of objects whose points are those of an earlier frame, added by an observer.
"""


class Policy(ABC):
    """Acts in many episodes at once; each has a *slot*, a number that keeps its memory apart.

    Attributes:
        convention: name of the action convention, see :mod:`visiongraft.robots.actions`.
    """

    convention: str

    def reset(self, slot: int = 0) -> None:  # noqa: B027
        """Forgets what a slot remembers; called when its episode begins. Nothing by default."""

    def act(self, observation: Observation, slot: int = 0) -> Float[np.ndarray, "chunk action"]:
        """Chunk of actions from now on, one a control step."""
        return self.act_batch([observation], [slot])[0]

    @abstractmethod
    def act_batch(self, observations: Sequence[Observation], slots: Sequence[int]) -> Float[np.ndarray, "batch chunk action"]:
        """Chunks of actions for several episodes."""
