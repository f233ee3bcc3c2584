"""robosuite's one-armed tasks (extra ``robosuite``), after its public documentation; see :mod:`visiongraft.robots.robosuite_cell`."""

from dataclasses import dataclass
from typing import Any

from visiongraft.robots.environment import View
from visiongraft.robots.extras import require
from visiongraft.robots.robosuite_cell import RobosuiteCell


@dataclass(frozen=True)
class RobosuiteTask:
    """A task of robosuite.

    Args:
        instruction: what to do, in words.
        objects: name -> what its bodies' names contain, in the order of their use.
    """

    instruction: str
    objects: dict[str, str]


ROBOSUITE_TASKS: dict[str, RobosuiteTask] = {
    "Lift": RobosuiteTask("lift the cube", {"cube": "cube"}),
    "Stack": RobosuiteTask("stack the red cube on the green cube", {"red_cube": "cubeA", "green_cube": "cubeB"}),
    "NutAssemblySquare": RobosuiteTask("put the square nut on the square peg", {"square_nut": "SquareNut", "square_peg": "peg1"}),
    "NutAssemblyRound": RobosuiteTask("put the round nut on the round peg", {"round_nut": "RoundNut", "round_peg": "peg2"}),
    "PickPlaceCan": RobosuiteTask("put the can in its bin", {"can": "Can", "bin": "bin2"}),
    "PickPlaceMilk": RobosuiteTask("put the milk in its bin", {"milk": "Milk", "bin": "bin2"}),
    "PickPlaceBread": RobosuiteTask("put the bread in its bin", {"bread": "Bread", "bin": "bin2"}),
    "PickPlaceCereal": RobosuiteTask("put the cereal in its bin", {"cereal": "Cereal", "bin": "bin2"}),
    "Door": RobosuiteTask("open the door", {"door": "Door"}),
}
TASKS = tuple(ROBOSUITE_TASKS)


class RobosuiteEnvironment(RobosuiteCell):
    """A task of robosuite with a Panda under OSC_POSE at 20 Hz, delta actions in the base frame.

    Args:
        task: such as ``Stack``.
        view: what is rendered into observations, by this package's renderers.
        robot: robosuite's name of a one-armed robot.

    Raises:
        ImportError: robosuite is not installed.
        ValueError: a camera, modality, renderer or size that cannot be.
    """

    def __init__(self, task: str, *, view: View = View(), robot: str = "Panda") -> None:  # noqa: B008
        robosuite = require("robosuite")
        simulator = robosuite.make(
            env_name=task,
            robots=robot,
            controller_configs=delta_controller(robosuite, robot),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            control_freq=20,
            horizon=100_000,
            ignore_done=True,
            hard_reset=True,
        )
        spec = ROBOSUITE_TASKS[task]
        super().__init__(simulator, f"robosuite/{task}", spec.instruction, spec.objects, view)


def delta_controller(robosuite: Any, robot: str) -> dict[str, Any]:
    """robosuite 1.5's composite controller ``BASIC`` with OSC_POSE for the arm: deltas in the base frame, 5 cm and 0.5 rad."""
    config = robosuite.load_composite_controller_config(controller="BASIC", robot=robot)
    config["body_parts"]["right"] |= {
        "type": "OSC_POSE",
        "input_type": "delta",
        "input_ref_frame": "base",
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    }
    return config
