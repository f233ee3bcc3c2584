"""The policies that the study compares: one trunk, head and recipe, and different things to see."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visiongraft.methods.point_bridge.dataset import PolicyDataset, TaskEpisodes, co_training, policy_statistics
from visiongraft.methods.point_bridge.language import load_text_encoder
from visiongraft.methods.point_bridge.model import create_model
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard
from visiongraft.methods.point_bridge.recipe import PointBridgeRecipe
from visiongraft.methods.point_bridge.study_data import CAMERA, read_simulation, read_twin
from visiongraft.methods.point_bridge.study_options import StudyBudget
from visiongraft.methods.point_bridge.training_run import SMALL_RUN
from visiongraft.training import TrainerConfig, train

RANGE_FLOOR = 0.1
_TEXT_ENCODER = "hashed"


@dataclass(frozen=True)
class Variant:
    """A policy of the study.

    Args:
        observed, tokens: see ``PointBridgeModel``.
        with_twin: co-trained with twin demonstrations.
        single_task: a policy for each task, without language, in place of one for all.
    """

    observed: str = "points"
    tokens: str = "per_object"
    with_twin: bool = False
    single_task: bool = False


POINTS, SINGLE, SCENE, IMAGE, CO_TRAINED, MERGED = (
    "points",
    "points, single-task",
    "scene cloud",
    "image",
    "points, co-trained",
    "merged points",
)
VARIANTS: dict[str, Variant] = {
    POINTS: Variant(),
    SINGLE: Variant(single_task=True),
    SCENE: Variant(observed="scene"),
    IMAGE: Variant(observed="image"),
    CO_TRAINED: Variant(with_twin=True),
    MERGED: Variant(tokens="shared"),
}
"""Points with a token for every object; a policy for each task; an unfiltered cloud; a picture; more data; and, as in the authors' code,
all objects in one cloud without identity."""


def train_variant(name: str, data: dict[str, list[Path]], seed: int, budget: StudyBudget, folder: Path) -> dict[str, Any]:
    """Trains a policy into ``folder / "policy"``; an interrupted training continues.

    Args:
        name: in ``VARIANTS``.
        data: folders of :func:`visiongraft.methods.point_bridge.study_data.make_demonstrations` by task.
        seed: of weights, order and noise.
        budget: size and steps.
        folder: of checkpoints.

    Returns:
        Parameters, steps and the last loss.
    """
    variant = VARIANTS[name]
    steps = budget.image_steps if variant.observed == "image" else budget.steps
    return train_policy(variant, data, seed, budget, folder, steps * len(data))


def train_policy(variant: Variant, data: dict[str, list[Path]], seed: int, budget: StudyBudget, folder: Path, steps: int) -> dict[str, Any]:
    """As :func:`train_variant`, of any variant for any number of steps."""
    is_image = variant.observed == "image"
    cameras = (CAMERA,) if is_image else ()
    use_language = len(data) > 1
    simulated = {task: [episode for folder in folders for episode in read_simulation(folder, is_image)] for task, folders in data.items()}
    tasks = [TaskEpisodes(task=task, episodes=episodes) for task, episodes in simulated.items()]
    if variant.with_twin:
        twin = {task: [episode for folder in folders for episode in read_twin(folder)] for task, folders in data.items()}
        tasks = co_training(tasks, [TaskEpisodes(task=task, episodes=episodes) for task, episodes in twin.items()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(
            budget.size,
            observed=variant.observed,
            tokens=variant.tokens,
            use_language=use_language,
            **({"image_size": budget.image_size, "image_pooling": "soft_argmax"} if is_image else {}),
        )
    encoder = load_text_encoder(_TEXT_ENCODER) if use_language else None
    statistics = policy_statistics(tasks, model, RANGE_FLOOR)
    samples = PolicyDataset(
        tasks,
        model,
        statistics,
        text_encoder=encoder,
        cameras=cameras,
        points_per_object=budget.points_per_object,
        image_shift=budget.image_shift if is_image else 0,
        seed=seed,
    )
    warmup = min(SMALL_RUN["warmup_steps"], steps // 10)
    recipe = PointBridgeRecipe(
        model, samples, learning_rate=SMALL_RUN["learning_rate"], schedule=SMALL_RUN["schedule"], warmup_steps=warmup
    )
    config = TrainerConfig(
        output=folder,
        steps=steps,
        batch_size=budget.batch_size,
        clip_norm=SMALL_RUN["clip_norm"],
        seed=seed,
        keep_checkpoints=1,
        logger="none",
    )
    trained: Any = train(recipe, config)["model"]
    card = PolicyCard(
        tasks=tuple(data), object_counts=tuple(sorted(set(samples.object_counts.values()))), cameras=cameras, text_encoder=_TEXT_ENCODER
    )
    PointBridgePolicy(trained, statistics, card, text_encoder=encoder).save_pretrained(folder / "policy")
    return {"parameters": sum(p.numel() for p in trained.parameters()), "steps": steps, "loss": _last_loss(folder)}


def _last_loss(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    return float([row["actions"] for row in rows if "actions" in row][-1])
