"""The study's trainings: the base and its VAE, both grafts, and each graft without one of its parts."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visiongraft.methods.action_mesh.study_options import StudyBudget, StudyOptions
from visiongraft.methods.action_mesh.train_options import Stage, TrainOptions
from visiongraft.methods.action_mesh.trained_parts import load_part
from visiongraft.methods.action_mesh.training_run import PROCEDURAL, train_files

VAE, BASE, DENOISER, AUTOENCODER = "vae", "base", "denoiser", "autoencoder"
NO_ROPE, NO_SOURCES = "denoiser-without-rope", "denoiser-without-sources"
NO_NORMALS, PAIR_IN_QUERIES = "autoencoder-without-normals", "autoencoder-pair-in-queries"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training.

    Args:
        stage: of the method.
        label: in tables and figures.
        changes: options of ``train`` that differ from the stage's own.
    """

    stage: Stage
    label: str
    changes: dict[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    VAE: Variant(stage="vae", label="VAE"),
    BASE: Variant(stage="base", label="base, single frames"),
    DENOISER: Variant(stage="denoiser", label="stage I"),
    NO_ROPE: Variant(stage="denoiser", label="stage I without RoPE", changes={"rope": False}),
    NO_SOURCES: Variant(stage="denoiser", label="stage I without masked sources", changes={"sources": (0, 0)}),
    AUTOENCODER: Variant(stage="autoencoder", label="stage II"),
    NO_NORMALS: Variant(stage="autoencoder", label="stage II without normals", changes={"normals": False}),
    PAIR_IN_QUERIES: Variant(stage="autoencoder", label="stage II, pair in the queries", changes={"pair_in_queries": True}),
}
"""All trainings of a seed by the name of their folder, in an order in which each finds what it starts from."""


def seed_folder(options: StudyOptions, seed: int) -> Path:
    """Folder of one seed."""
    return options.output / f"seed-{seed}"


def training_options(name: str, seed: int, options: StudyOptions) -> TrainOptions:
    """What ``visiongraft action_mesh train`` would be told for a variant.

    Args:
        name: in ``VARIANTS``.
        seed: of data, first weights, order and noise.
        options: of the study; output and budget.
    """
    variant, folder, plan = VARIANTS[name], seed_folder(options, seed), options.plan
    inputs = {} if variant.stage == "vae" else {"vae": str(folder / VAE / "vae")}
    if variant.stage == "denoiser":
        inputs["init"] = str(folder / BASE / "base")
    steps = _steps(variant.stage, plan)
    return TrainOptions(
        data=PROCEDURAL,
        stage=variant.stage,
        output=folder / name,
        size=plan.size,
        kinds=["creature"],
        framing="box",
        held_out=0,
        logger="none",
        seed=seed,
        frames=plan.frames,
        steps=steps,
        warmup=steps // 10,
        batch_size=plan.batch_size,
        **inputs,
        **variant.changes,
    )


def train_variant(name: str, seed: int, options: StudyOptions) -> dict[str, Any]:
    """Trains a variant into ``seed-<seed>/<name>``; an interrupted training continues, a finished one is only read.

    Returns:
        Parameters, steps, and the curve: steps and losses by name, as in losses.jsonl.

    Raises:
        FileNotFoundError: the VAE or the base is not trained yet.
        ValueError: a folder with a training of another budget.
    """
    training = training_options(name, seed, options)
    folder = seed_folder(options, seed) / name
    train_files(training)
    module = load_model(name, seed, options)
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [key for key in rows[-1] if key != "step"]
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "steps": rows[-1]["step"],
        "curve": {key: [row[key] for row in rows] for key in ("step", *losses)},
    }


def load_model(name: str, seed: int, options: StudyOptions) -> Any:
    """A trained variant, in evaluation mode."""
    stage = VARIANTS[name].stage
    return load_part(seed_folder(options, seed) / name / stage, "dit" if stage == "base" else stage)


def _steps(stage: Stage, plan: StudyBudget) -> int:
    return {"vae": plan.vae_steps, "base": plan.base_steps, "denoiser": plan.denoiser_steps, "autoencoder": plan.autoencoder_steps}[stage]
