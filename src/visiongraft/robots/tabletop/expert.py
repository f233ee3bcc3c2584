"""The tabletop's scripted expert: above the object, down, close, lift, over the target, down, open, away."""

import numpy as np
from jaxtyping import Float

from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.tabletop.environment import TabletopEnvironment

_CLEARANCE = 0.03
"""Metres between what is carried, or the open fingers' tips, and what they pass over."""
_FINGER_PHASES = {"close": 3, "open": 2}
"""Steps that the fingers are given."""
_TOLERANCES = {"approach": 0.012, "descend": 0.003, "lift": 0.02, "carry": 0.012, "lower": 0.004, "retreat": 0.01}
"""Metres within which a way-point counts as reached."""
_PHASES = ("approach", "descend", "close", "lift", "carry", "lower", "open", "retreat")
_CLOSED = ("close", "lift", "carry", "lower")


class TabletopExpert:
    """Goes through phases; each ends where its way-point is reached, or after a number of steps for the fingers.

    The way-points follow the objects' present poses, so that a slip or a push is corrected.

    Args:
        speed: share of the largest step that it takes; 0.5 gives demonstrations of about 45 steps.
    """

    def __init__(self, speed: float = 0.5) -> None:
        self.speed = speed
        self.reset()

    def reset(self) -> None:
        """Begins with the first phase."""
        self._phase = self._waited = 0
        self._release = np.zeros(3)

    def act(self, environment: RobotEnvironment) -> Float[np.ndarray, "7"]:
        """Delta action for the present state.

        Raises:
            ValueError: another suite's environment.
        """
        if not isinstance(environment, TabletopEnvironment):
            raise ValueError(f"The tabletop's expert does not know {environment.task!r}; use scripted_expert to find the right one.")
        while True:
            phase = _PHASES[self._phase]
            offset, turn = _way(environment, phase, self._release)
            if phase in _FINGER_PHASES:
                done = self._waited >= _FINGER_PHASES[phase]
            else:
                done = bool(np.linalg.norm(offset) < _TOLERANCES[phase] and abs(turn) < 0.03)
            if not done or self._phase == len(_PHASES) - 1:
                self._waited += 1
                return _action(environment, offset, turn, phase, self.speed)
            self._phase, self._waited = self._phase + 1, 0
            self._release = environment.gripper_pose()[:3, 3]


def _action(
    environment: TabletopEnvironment, offset: Float[np.ndarray, "3"], turn: float, phase: str, speed: float
) -> Float[np.ndarray, "7"]:
    """The way that one step can go, in its direction."""
    move = offset / environment.scale.position
    move = move / max(1.0, float(np.linalg.norm(move)) / speed)
    yaw = np.clip(turn / environment.scale.rotation, -speed, speed)
    return np.concatenate([move, [0.0, 0.0, yaw, 1.0 if phase in _CLOSED else -1.0]])


def _way(environment: TabletopEnvironment, phase: str, release: Float[np.ndarray, "3"]) -> tuple[Float[np.ndarray, "3"], float]:
    """How far the gripper is from the phase's way-point (metres), and how far it has to turn (radians)."""
    item, target = environment.manipulated, environment.target
    gripper, held, goal = environment.gripper_pose(), environment.object_pose(item.name), environment.object_pose(target.name)
    position = gripper[:3, 3]
    grasp = held[:3, 3] + [0.0, 0.0, max(0.0, item.half_height - 0.025)]
    if phase in ("approach", "descend"):
        over = item.half_height + environment.gripper.finger_tip + _CLEARANCE if phase == "approach" else 0.0
        return grasp + [0.0, 0.0, over] - position, _nearest_turn(environment, held, gripper)
    if phase in _FINGER_PHASES:
        return np.zeros(3), 0.0
    top = goal[2, 3] + target.half_height
    if phase == "lift":
        return np.array([0.0, 0.0, _carry_height(environment, top) - held[2, 3]]), 0.0
    if phase == "carry":
        return goal[:3, 3] * [1, 1, 0] + [0.0, 0.0, _carry_height(environment, top)] - held[:3, 3], 0.0
    if phase == "lower":
        # into a bin the object falls the last centimetres: the open fingers would touch its walls
        gap = -0.005 if target.shape == "bin" else 0.003
        return goal[:3, 3] * [1, 1, 0] + [0.0, 0.0, top + item.half_height + gap] - held[:3, 3], 0.0
    return release + [0.0, 0.0, 2 * item.half_height + 0.03] - position, 0.0


def _carry_height(environment: TabletopEnvironment, top: float) -> float:
    """Height of the carried object's centre over the target."""
    return top + environment.manipulated.half_height + _CLEARANCE


def _nearest_turn(environment: TabletopEnvironment, held: Float[np.ndarray, "4 4"], gripper: Float[np.ndarray, "4 4"]) -> float:
    """The smaller turn that puts the fingers on both sides of the object: along its y axis, for narrow boxes also along its x."""
    item = environment.manipulated
    if item.is_round:
        return 0.0
    yaw = np.arctan2(held[1, 0], held[0, 0]) - np.arctan2(gripper[1, 0], gripper[0, 0])
    symmetry = np.pi / 2 if item.shape == "box" and max(item.size[:2]) < environment.gripper.opening - 0.01 else np.pi
    return float((yaw + symmetry / 2) % symmetry - symmetry / 2)
