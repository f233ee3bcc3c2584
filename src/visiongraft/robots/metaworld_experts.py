"""Meta-World's scripted policies as experts."""

import warnings

import numpy as np
from jaxtyping import Float

from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.extras import require
from visiongraft.robots.metaworld import MetaworldEnvironment


class MetaworldExpert:
    """The policy that Meta-World ships for a task; it has no memory."""

    def __init__(self, environment: RobotEnvironment) -> None:
        require("metaworld")
        from metaworld.policies import ENV_POLICY_MAP

        self._policy = ENV_POLICY_MAP[environment.task.partition("/")[2]]()

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, environment: RobotEnvironment) -> Float[np.ndarray, "7"]:
        """Delta action for the present state.

        Raises:
            ValueError: another suite's environment.
        """
        if not isinstance(environment, MetaworldEnvironment):
            raise ValueError(f"Meta-World's expert does not know {environment.task!r}; use scripted_expert to find the right one.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant", UserWarning)  # its gains exceed 1 by design; the action is clipped
            action = self._policy.get_action(environment.native_observation)
        return environment.delta_of_native(action)
