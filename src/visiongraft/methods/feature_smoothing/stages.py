"""The two training stages (Algorithm 1 of arXiv 2601.16200) on a user's images and encoder: purifier first, then mapper."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from visiongraft.methods.feature_smoothing.commands import TrainMapperOptions, TrainOptions, TrainPurifierOptions
from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
from visiongraft.methods.feature_smoothing.encoders import Encoder, load_encoder
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.pipeline import load_part
from visiongraft.methods.feature_smoothing.recipe import ImageFolder, MapperRecipe, PurifierRecipe
from visiongraft.methods.feature_smoothing.released import load
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier
from visiongraft.training import TrainerConfig, train


def train_purifier_stage(options: TrainPurifierOptions) -> int:
    """Stage 1: a new light U-Net, or fine-tuning of a given purifier, against the frozen encoder."""
    encoder = load_encoder(options.encoder)
    purifier = _new_purifier(options) if options.start is None else load(options.start, component="purifier")
    rate = options.learning_rate or (1e-5 if isinstance(purifier, DiffusionPurifier) else 2e-4)
    recipe = PurifierRecipe(
        encoder,
        purifier,
        ImageFolder(options.images, _side(encoder), options.seed),
        sigma_range=(options.sigma_min, options.sigma_max),
        learning_rate=rate,
    )
    config = TrainerConfig(
        output=options.output,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        mixed_precision=options.mixed_precision,
        ema_decay=options.ema_decay or None,
        preview_every=500,
    )
    train(recipe, config)
    print(options.output / "purifier")
    return 0


def train_mapper_stage(options: TrainMapperOptions) -> int:
    """Stage 2: the mapper, behind the frozen encoder and the purifier of stage 1."""
    encoder = load_encoder(options.encoder)
    purifier = load_part(options.purifier, "purifier", small=options.encoder == "small")
    images = ImageFolder(options.images, _side(encoder), options.seed)
    mapper = _new_mapper(encoder, images[0], options.seed)
    recipe = MapperRecipe(encoder, purifier, mapper, images, sigma_max=options.sigma_max, learning_rate=options.learning_rate)
    config = TrainerConfig(
        output=options.output,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        mixed_precision=options.mixed_precision,
    )
    train(recipe, config)
    print(options.output / "mapper")
    return 0


def train_both_stages(options: TrainOptions) -> int:
    """Stage 1 into ``output/purifier-stage``, then stage 2 into ``output/mapper-stage``; an interrupted run continues."""
    first = options.purifier
    stage_one = replace(first, output=Path(first.output) / "purifier-stage")
    train_purifier_stage(stage_one)
    return train_mapper_stage(
        TrainMapperOptions(
            images=first.images,
            purifier=str(stage_one.output / "purifier"),
            output=Path(first.output) / "mapper-stage",
            encoder=first.encoder,
            sigma_max=first.sigma_max,
            steps=options.mapper_steps,
            batch_size=options.mapper_batch_size,
            mixed_precision=first.mixed_precision,
            seed=first.seed,
        )
    )


def _side(encoder: Encoder) -> int:
    height, width = encoder.image_size or (224, 224)
    if height != width:
        raise ValueError(f"Training crops are square; the encoder expects {height}x{width} pixels.")
    return height


def _new_purifier(options: TrainPurifierOptions) -> UNetPurifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return UNetPurifier(widths=tuple(options.widths), patch_size=options.patch_size)


def _new_mapper(encoder: Encoder, image: torch.Tensor, seed: int) -> nn.Module:
    with torch.no_grad():
        dim = encoder(image[None]).shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmoothnessMapper(dim, num_prefix_tokens=encoder.num_prefix_tokens)
