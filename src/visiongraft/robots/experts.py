"""Scripted experts: they act from the simulator's state, to make demonstrations."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from visiongraft.robots.environment import RobotEnvironment


@runtime_checkable
class Expert(Protocol):
    """Solves one task from the environment itself."""

    def reset(self) -> None:
        """Forgets the last episode."""
        ...

    def act(self, environment: RobotEnvironment) -> Float[np.ndarray, "7"]:
        """Delta action for the present state."""
        ...


def scripted_expert(environment: RobotEnvironment) -> Expert:
    """The scripted expert of an environment's suite.

    Raises:
        ValueError: a suite without scripted experts.
    """
    suite = environment.task.partition("/")[0]
    if suite == "tabletop":
        from visiongraft.robots.tabletop.expert import TabletopExpert

        return TabletopExpert()
    if suite == "metaworld":
        from visiongraft.robots.metaworld_experts import MetaworldExpert

        return MetaworldExpert(environment)
    raise ValueError(
        f"The suite {suite!r} has no scripted experts; those with one are tabletop and metaworld. Give demonstrations instead."
    )
