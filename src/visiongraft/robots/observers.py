"""What stands between an environment and a policy: observers add to observations what the policy reads."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from visiongraft.robots.cameras import Camera
from visiongraft.robots.policy import Observation


class UnseenError(ValueError):
    """Something that an observer needs is not to be seen: this episode fails, and the next one may well go on."""


@runtime_checkable
class Observer(Protocol):
    """Adds keys to observations. It keeps what it learns in one episode and never changes the observation that it is given."""

    def reset(self, observation: Observation) -> None:
        """An episode begins with this observation, which is then also passed to the observer itself."""

    def __call__(self, observation: Observation) -> Observation:
        """A new dictionary: the observation and what the observer adds."""
        ...


def camera_depth(observation: Observation, camera: str) -> tuple[Float[np.ndarray, "height width"], Camera]:
    """Depth image of a camera and the camera itself.

    Raises:
        ValueError: the observation has no depth of that camera, or it does not fit the camera.
    """
    depth = observation.get("depth", {})
    if camera not in depth or camera not in observation.get("cameras", {}):
        raise ValueError(
            f"The observation has no depth of camera {camera!r}; it has depth of: {', '.join(depth) or 'none'}. "
            f"Make the environment with View(cameras=({camera!r},), modalities=('depth',))."
        )
    image, found = depth[camera], observation["cameras"][camera]
    if image.shape != tuple(found.size):
        raise ValueError(
            f"The depth image of {camera!r} has {image.shape} pixels and its camera {tuple(found.size)}; they must be of one size."
        )
    return image, found
