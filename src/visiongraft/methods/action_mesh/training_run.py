"""What ``train`` does: data, frozen models, the module and its recipe, from options."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from visiongraft.methods.action_mesh.animation_files import AnimationFolder
from visiongraft.methods.action_mesh.autoencoder_recipe import AutoencoderRecipe
from visiongraft.methods.action_mesh.config import create
from visiongraft.methods.action_mesh.data import ProceduralAnimations
from visiongraft.methods.action_mesh.denoiser_recipe import DenoiserRecipe
from visiongraft.methods.action_mesh.dit_recipe import BaseRecipe
from visiongraft.methods.action_mesh.image_features import DINOV2_LARGE, load_image_encoder
from visiongraft.methods.action_mesh.temporal_autoencoder import temporalize
from visiongraft.methods.action_mesh.temporal_denoiser import inflate
from visiongraft.methods.action_mesh.toy_video import SIZE, toy_context
from visiongraft.methods.action_mesh.train_options import StageSettings, TrainOptions
from visiongraft.methods.action_mesh.trained_parts import load_part
from visiongraft.methods.action_mesh.training_inputs import FrozenEncoders, ImageTokens, PictureEncoder
from visiongraft.methods.action_mesh.triposg_dit import TripoSGDiT
from visiongraft.methods.action_mesh.vae_recipe import VAERecipe
from visiongraft.training import Recipe, TrainerConfig, train
from visiongraft.training.order import derived_seed

PROCEDURAL = "procedural"
_PICTURE_SIDE = 256  # DINOv2's shortest edge before the crop


def train_files(options: TrainOptions) -> int:
    """Trains a stage, or continues an interrupted run; prints the folder of the trained module.

    Raises:
        FileNotFoundError: no such data or models.
        ValueError: data or models that do not fit the stage.
    """
    settings = options.settings()
    output = options.output or Path("runs/action_mesh") / options.stage
    recipe = make_recipe(options, settings)
    train(recipe, trainer_config(options, settings, output))
    print(output / options.stage)
    return 0


def trainer_config(options: TrainOptions, settings: StageSettings, output: Path) -> TrainerConfig:
    """How the Trainer runs."""
    return TrainerConfig(
        output=output,
        steps=settings.steps,
        batch_size=settings.batch_size,
        clip_norm=settings.clip_norm,
        ema_decay=settings.ema_decay,
        mixed_precision=settings.mixed_precision,
        seed=options.seed,
        accumulate=options.accumulate,
        checkpoint_every=options.checkpoint_every,
        preview_every=options.preview_every,
        logger=options.logger,
        workers=options.workers,
    )


def make_recipe(options: TrainOptions, settings: StageSettings) -> Recipe:
    """The stage's recipe with its data, frozen models and first weights.

    Raises:
        FileNotFoundError, ValueError: see :func:`train_files`.
    """
    samples, held_out = data_sets(options, settings)
    if options.stage == "vae":
        vae = _model("vae", options) if options.init is None else load_part(options.init, "vae")
        return VAERecipe(_checkpointed(vae, options), samples, settings, held_out=held_out)
    vae = load_part(str(options.vae), "vae")
    tokens = None if options.stage == "autoencoder" else image_tokens(options)
    encoders = FrozenEncoders(vae, settings.tokens, tokens, grouped=options.grouped)
    if options.stage == "autoencoder":
        return AutoencoderRecipe(
            _checkpointed(_autoencoder(vae, options, settings), options), samples, encoders, settings, held_out=held_out
        )
    module = _denoising(options, settings, encoders, samples)
    kind = BaseRecipe if options.stage == "base" else DenoiserRecipe
    return kind(_checkpointed(module, options), samples, encoders, settings, held_out=held_out)


def data_sets(options: TrainOptions, settings: StageSettings) -> tuple[Dataset, Dataset | None]:
    """Training and held-out clips: procedural ones of other seeds, or other files of the folder.

    Raises:
        FileNotFoundError: no such folder, or nothing in it.
        ValueError: fewer files than are held out, or settings that the data do not allow.
    """
    near = round(settings.query_points * settings.near_share) if options.stage == "vae" else 0
    shared: dict[str, Any] = {
        "num_frames": settings.frames,
        "num_points": settings.surface_points,
        "near": near,
        "uniform": settings.query_points - near if options.stage == "vae" else 0,
        "near_sigma": settings.near_deviation,
    }
    side = SIZE if encoder_name(options) == "toy" else _PICTURE_SIDE
    if options.data == PROCEDURAL:
        shared |= {"kinds": options.kinds, "framing": options.framing, "random_view": options.random_view}
        shared |= {"clip_frames": options.clip_frames, "image_size": side}
        training = ProceduralAnimations(length=options.clips, seed=derived_seed(options.seed, "training clips"), **shared)
        if not options.held_out:
            return training, None
        return training, ProceduralAnimations(length=options.held_out, seed=derived_seed(options.seed, "held-out clips"), **shared)
    folder = AnimationFolder(options.data, image_size=side, draws=options.draws, seed=options.seed, **shared)
    if len(folder.files) <= options.held_out:
        raise ValueError(
            f"{options.data} has {len(folder.files)} animations, of which {options.held_out} are to be "
            "held out; add files, or hold out fewer."
        )
    # the same files are held out when others are added
    names = [path.relative_to(folder.folder).as_posix() for path in folder.files]
    lots = sorted(range(len(names)), key=lambda number: derived_seed(options.seed, "held out", names[number]))
    kept, apart = sorted(lots[options.held_out :]), sorted(lots[: options.held_out])
    training = Subset(folder, [number * options.draws + draw for number in kept for draw in range(options.draws)])
    return training, Subset(folder, [number * options.draws for number in apart]) if apart else None


def encoder_name(options: TrainOptions) -> str:
    """The picture encoder that is asked for, or the size's own."""
    return options.image_encoder or (DINOV2_LARGE if options.size == "released" else "toy")


def image_tokens(options: TrainOptions) -> ImageTokens:
    """Pictures to tokens, frozen.

    Raises:
        OSError: an encoder that cannot be loaded.
    """
    name = encoder_name(options)
    return toy_context if name == "toy" else PictureEncoder(load_image_encoder(name))


def _denoising(options: TrainOptions, settings: StageSettings, encoders: FrozenEncoders, samples: Dataset) -> nn.Module:
    """The base or the denoiser with its first weights: of a base (inflated), of an earlier one, or random."""
    trained: dict[str, Any] = {"temporal_context_size": settings.frames, "num_tokens_nominal": settings.tokens}
    if options.init is not None:
        module = load_part(options.init, "dit") if options.stage == "base" else load_part(options.init, "denoiser", "dit")
        if options.stage == "base":
            return module
        return inflate(module, rope=options.rope, **trained) if isinstance(module, TripoSGDiT) else _with_rope(module, options.rope)
    one = {name: value[None] for name, value in samples[0].items()}
    sizes = {"in_channels": encoders.vae.config.latent_channels, "cross_attention_dim": encoders.context(one).shape[-1]}
    if options.stage == "base":
        return _model("dit", options, **sizes)
    warnings.warn("The denoiser starts from random weights; give a trained base as --init to graft onto it.", stacklevel=2)
    return _model("denoiser", options, rope=options.rope, **sizes, **trained)


def _autoencoder(vae: Any, options: TrainOptions, settings: StageSettings) -> nn.Module:
    """Stage II with its first weights: an earlier one's, or the VAE's."""
    if options.init is not None:
        return load_part(options.init, "autoencoder")
    changes = {"prediction_mode": options.prediction_mode, "pair_in_queries": options.pair_in_queries}
    changes |= {"in_extra_channels": 3 if options.normals else 0, "temporal_context_size": settings.frames}
    return temporalize(vae, torch.Generator().manual_seed(derived_seed(options.seed, "stage two head")), **changes)


def _model(component: str, options: TrainOptions, **sizes: Any) -> nn.Module:
    """A model with random weights of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(options.seed, "first weights"))
        return create(component, options.size, **sizes)


def _with_rope(module: Any, rope: bool) -> nn.Module:
    if module.config.rope != rope:
        raise ValueError(f"The denoiser to start from has rope={module.config.rope}, and rope={rope} is asked for; start from the base.")
    return module


def _checkpointed(module: Any, options: TrainOptions) -> nn.Module:
    """The module, which computes its activations again where that is asked for; the released size does unless told not to."""
    wanted = options.gradient_checkpointing if options.gradient_checkpointing is not None else options.size == "released"
    if wanted:
        module.enable_gradient_checkpointing()
    return module
