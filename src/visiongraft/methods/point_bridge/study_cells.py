"""The cells of the study: who is rolled out where, and what came of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiongraft.methods.point_bridge.observing import Eyes
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.study_data import CAMERA, NUM_POINTS, shares
from visiongraft.methods.point_bridge.study_options import StudyBudget
from visiongraft.methods.point_bridge.study_policies import CO_TRAINED, IMAGE, MERGED, POINTS, SCENE, SINGLE, VARIANTS
from visiongraft.robots.results import EvaluationResult
from visiongraft.robots.rollouts import EvaluationTask, evaluate
from visiongraft.training.order import derived_seed

HELD_OUT_PAIR = 4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where a policy is rolled out.

    Args:
        twin: in the visually shifted twin.
        held_out: with the pair that training left out.
        distractors: other objects on the table; None: as ``twin``.
        camera_error: metres by which the reported camera is off.
        points: of every object; None: as in training.
        perception: of policies on points; None: aligned in simulation, segmentation in the twin.
        side: fewer episodes.
    """

    twin: bool = True
    held_out: bool = False
    distractors: bool | None = None
    camera_error: float = 0.0
    points: int | None = None
    perception: str | None = None
    side: bool = False


SIMULATION, TWIN, NEW_PAIR, CLEAR = "simulation", "twin", "twin, held-out pair", "twin without distractors"
WHOLE_SURFACES = "simulation, whole surfaces"
CAMERA_ERRORS = {0.02: "twin, camera off by 2 cm", 0.05: "twin, camera off by 5 cm"}
FEWER_POINTS = {8: "twin, 8 points", 16: "twin, 16 points", 64: "twin, 64 points"}
PERCEPTIONS = {"plane": "twin, plane removal", "stereo": "twin, stereo matching"}
CELLS: dict[str, Cell] = {
    SIMULATION: Cell(twin=False),
    TWIN: Cell(),
    NEW_PAIR: Cell(held_out=True),
    CLEAR: Cell(distractors=False),
    WHOLE_SURFACES: Cell(twin=False, perception="simulator"),
    **{name: Cell(camera_error=metres, side=True) for metres, name in CAMERA_ERRORS.items()},
    **{name: Cell(points=count, side=True) for count, name in FEWER_POINTS.items()},
    **{name: Cell(perception=perception, side=True) for perception, name in PERCEPTIONS.items()},
}
_COMPARED = (SIMULATION, TWIN, NEW_PAIR)
MEASURED: dict[str, tuple[str, ...]] = {
    POINTS: tuple(CELLS),
    SINGLE: _COMPARED,
    SCENE: (*_COMPARED, CLEAR, *CAMERA_ERRORS.values()),
    IMAGE: (*_COMPARED, CLEAR),
    CO_TRAINED: _COMPARED,
    MERGED: _COMPARED,
}
"""Cells of every policy."""


def eyes_of(cell: Cell, observed: str, budget: StudyBudget, seed: int) -> Eyes:
    """What a policy is shown in a cell."""
    if observed == "image":
        return Eyes("images", CAMERA, size=(budget.image_size, budget.image_size), seed=seed)
    if observed == "scene":
        return Eyes("scene", CAMERA, size=budget.camera_size, points=budget.scene_points, seed=seed)
    perception = cell.perception or ("segmentation" if cell.twin else "aligned")
    size = budget.stereo_size if perception == "stereo" else budget.camera_size
    return Eyes(perception, CAMERA, size=size, points=cell.points or NUM_POINTS, seed=seed)


def environments(cell: Cell, task: str, budget: StudyBudget) -> dict[int, EvaluationTask]:
    """A task's environments in a cell, by pair."""
    options: dict[str, Any] = {"twin": True} if cell.twin else {}
    options |= {} if cell.distractors is None else {"distractors": cell.distractors}
    options |= {"camera_error": cell.camera_error} if cell.camera_error else {}
    pairs = (HELD_OUT_PAIR,) if cell.held_out else budget.pairs
    return {pair: EvaluationTask(task, options | {"pair": pair}) for pair in pairs}


def roll_out(
    name: str, cell_name: str, task: str, policy: PointBridgePolicy, seed: int, budget: StudyBudget, folder: Path
) -> dict[str, Any]:
    """Rolls a policy out in a cell; an interrupted call continues.

    Args:
        name: of the policy in ``VARIANTS``.
        cell_name: in ``CELLS``.
        task: that is rolled out.
        policy: trained.
        seed: fixes the starts, which are the same for all policies and cells.
        budget: episodes and sizes.
        folder: of the episodes' records.

    Returns:
        Successes and episodes, mean steps of the successes, reasons of the end, both numbers by pair, and (pair, start) of the
        successes.
    """
    cell = CELLS[cell_name]
    eyes = eyes_of(cell, VARIANTS[name].observed, budget, seed)
    places = environments(cell, task, budget)
    numbers = shares(budget.side_episodes if cell.side else budget.episodes, len(places))
    # one evaluation a pair: every pair then has starts of its own, which pooled intervals count as independent
    parts = {
        pair: evaluate(
            [place],
            policy,
            episodes=number,
            seed=derived_seed("roll-outs", seed, pair),
            max_steps=budget.max_steps,
            observer_factory=eyes.observer_factory,
            view=eyes.view,
            slots=budget.slots,
            output=folder / f"pair-{pair}",
            progress=False,
        )
        for (pair, place), number in zip(places.items(), numbers, strict=True)
        if number
    }
    result = EvaluationResult(tuple(episode for part in parts.values() for episode in part.episodes))
    steps = [episode.steps for episode in result.episodes if episode.success]
    return {
        "successes": result.num_successes,
        "episodes": len(result.episodes),
        "steps": sum(steps) / len(steps) if steps else None,
        "reasons": result.reasons(),
        "pairs": {str(pair): [part.num_successes, len(part.episodes)] for pair, part in parts.items()},
        "succeeded": [[episode.options["pair"], episode.seed] for episode in result.episodes if episode.success],
    }
