"""What ``train`` does with files of demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visiongraft.methods.point_bridge.commands import TrainOptions
from visiongraft.methods.point_bridge.data_files import demonstration_files
from visiongraft.methods.point_bridge.dataset import PolicyDataset, TaskEpisodes, co_training, policy_statistics
from visiongraft.methods.point_bridge.episodes import Episode, episode_from_demonstration
from visiongraft.methods.point_bridge.language import load_text_encoder
from visiongraft.methods.point_bridge.model import create_model
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard
from visiongraft.methods.point_bridge.recipe import BATCH_SIZE, STEPS, PointBridgeRecipe
from visiongraft.robots.extras import require
from visiongraft.training import TrainerConfig, train

_PAPER: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup_steps": 0,
    "clip_norm": None,
}
SMALL_RUN: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 96,
    "learning_rate": 1.5e-3,
    "schedule": "cosine",
    "warmup_steps": 100,
    "clip_norm": 1.0,
}
"""What small and tiny policies are trained with, where the options say nothing. Source: brief, section 9."""


def train_files(options: TrainOptions) -> int:
    """Runs ``train``; prints the policy's folder."""
    sim, held_out = load_tasks(options.data, options.cameras or (), options.point_noise, options.held_out)
    tasks = sim
    if options.real is not None:
        real, _ = load_tasks(options.real, options.cameras or (), 0.0, 0)
        tasks = co_training(sim, real, options.sim_share)
    names = tuple(dict.fromkeys(task.task for task in tasks))
    use_language = len(names) > 1 if options.language is None else options.language
    sizes: dict[str, Any] = {}
    if options.observed == "image":
        sizes |= {"num_cameras": len(options.cameras or ()), "image_size": _image_side(tasks, options)}
    if (key_points := tasks[0].episodes[0].robot_points) is not None:
        sizes["num_key_points"] = key_points.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = create_model(
            options.size,
            observed=options.observed,
            tokens=options.tokens,
            head=options.head,
            action_mode=options.action_mode,
            history=options.history,
            use_language=use_language,
            **sizes,
        )
    encoder = load_text_encoder(options.text_encoder) if use_language else None
    statistics = policy_statistics(tasks, model, options.range_floor)
    seen: dict[str, Any] = {"text_encoder": encoder, "cameras": options.cameras or ()}
    data = PolicyDataset(tasks, model, statistics, points_per_object=options.points_per_object, seed=options.seed, **seen)
    validation = PolicyDataset(held_out, model, statistics, seed=options.seed + 1, **seen) if held_out else None
    run = {name: value if (value := getattr(options, name)) is not None else default for name, default in _defaults(options).items()}
    recipe = PointBridgeRecipe(
        model,
        data,
        validation,
        learning_rate=run["learning_rate"],
        schedule=run["schedule"],
        warmup_steps=run["warmup_steps"],
    )
    config = TrainerConfig(
        output=options.output,
        steps=run["steps"],
        batch_size=run["batch_size"],
        clip_norm=run["clip_norm"],
        seed=options.seed,
        mixed_precision=options.mixed_precision,
        checkpoint_every=options.checkpoint_every,
        preview_every=max(1, run["steps"] // 10),
        logger=options.logger,
        workers=options.workers,
    )
    train(recipe, config)
    card = PolicyCard(
        tasks=names,
        object_counts=tuple(sorted(set(data.object_counts.values()))),
        cameras=tuple(options.cameras or ()),
        text_encoder=options.text_encoder,
    )
    print(PointBridgePolicy(model, statistics, card, text_encoder=encoder).save_pretrained(options.output / "policy"))
    return 0


def load_tasks(
    paths: list[Path], cameras: Sequence[str], point_noise: float, held_out: int
) -> tuple[list[TaskEpisodes], list[TaskEpisodes]]:
    """Episodes of demonstration files, by task, in memory.

    Source files (``*-source.hdf5``) within folders are left out where generated ones are there.

    Args:
        paths: files or folders.
        cameras: whose images are kept.
        point_noise: see ``TaskEpisodes``.
        held_out: episodes at the end of every file that are kept for validation.

    Returns:
        Training tasks and validation tasks.

    Raises:
        ValueError: a file with too few episodes.
        ImportError: h5py is not installed.
    """
    require("h5py")
    from visiongraft.robots.demonstrations import read_demonstrations

    episodes: dict[str, list[Episode]] = {}
    kept: dict[str, list[Episode]] = {}
    files = demonstration_files(paths)
    generated = [path for path in files if not path.stem.endswith("-source") or path in paths]
    for path in generated or files:
        with read_demonstrations(path) as file:
            task = str(file.environment_args["env_name"])
            loaded = [episode_from_demonstration(demonstration, cameras) for demonstration in file]
        if len(loaded) <= held_out:
            raise ValueError(f"{path} has {len(loaded)} demonstrations, of which {held_out} are held out; record more or hold out fewer.")
        episodes.setdefault(task, []).extend(loaded[: len(loaded) - held_out])
        kept.setdefault(task, []).extend(loaded[len(loaded) - held_out :])
    training = [TaskEpisodes(task=task, episodes=found, point_noise=point_noise) for task, found in episodes.items()]
    return training, [TaskEpisodes(task=task, episodes=found, point_noise=0.0) for task, found in kept.items() if found]


def _defaults(options: TrainOptions) -> dict[str, Any]:
    return _PAPER if options.size == "official" else SMALL_RUN


def _image_side(tasks: Sequence[TaskEpisodes], options: TrainOptions) -> int:
    """Side of the square images of an image policy."""
    if not options.cameras:
        raise ValueError("An image policy needs cameras; name those that were recorded, such as --cameras '[left]'.")
    height, width = (tasks[0].episodes[0].images or {})[options.cameras[0]].shape[1:3]
    if height != width:
        raise ValueError(f"Image policies see square images, these have {height} x {width}; record them with --image_size '[64, 64]'.")
    return height
