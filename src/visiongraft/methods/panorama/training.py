"""Training a graft on a user's folder of panoramas: encode once, train, write a folder that ``lift`` reads."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from visiongraft.methods.panorama.augmentation import CameraRanges
from visiongraft.methods.panorama.cache import TensorCache
from visiongraft.methods.panorama.circular import check_panorama_size
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.data import PanoramaFolder, list_panoramas
from visiongraft.methods.panorama.encoded import Embeddings, EncodedFolder, PairEncoder
from visiongraft.methods.panorama.latents import check_frames, spatial_stride
from visiongraft.methods.panorama.lora import add_lora
from visiongraft.methods.panorama.recipe import PanoramaRecipe, training_shift
from visiongraft.methods.panorama.released import BUNDLED, load
from visiongraft.methods.panorama.sequence_flux import patch_size
from visiongraft.methods.panorama.train_options import TrainOptions
from visiongraft.methods.panorama.trajectories import read_paths
from visiongraft.training import TrainerConfig, train
from visiongraft.training.order import derived_seed


def train_panorama(options: TrainOptions) -> int:
    """Trains a LoRA, or the whole transformer, on a folder of panoramas; the graft's folder is ``output/graft``.

    Encoding and training may be interrupted and started again. Under ``accelerate launch`` processes share the encoding.

    Raises:
        FileNotFoundError: no such folder, no panoramas in it, no such base.
        ValueError: sizes that do not fit the base, files that are no full panoramas, options out of range.
    """
    half = options.mixed_precision == "bf16" and options.rank > 0  # weights that are trained stay in float32
    pipeline: Any = load(options.base, torch_dtype=torch.bfloat16 if half else torch.float32, lora=options.lora)
    if half:
        pipeline.vae.to(torch.float32)
    config = graft_config(options, pipeline)
    patch = _patch(pipeline)
    encoder = PairEncoder(pipeline, config, TensorCache(options.cache or options.output / "cache"), getattr(torch, options.cache_dtype))
    training, held_out = _folders(options, config, encoder, spatial_stride(pipeline.vae) * patch)
    null_text = _encode(options, pipeline, encoder, [training, *([held_out] if held_out else [])])
    transformer, vae, scheduler = pipeline.transformer, pipeline.vae, pipeline.scheduler
    encoder.release()
    del pipeline  # and with it the text encoders

    if options.rank:
        parts = None if options.lora_parts is None else tuple(options.lora_parts)
        config = config.changed(lora_rank=add_lora(transformer, config.mode, options.rank, parts=parts, seed=options.seed))
    else:
        transformer.requires_grad_(True)
    if options.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    tokens = config.width * config.height // (spatial_stride(vae) * patch) ** 2
    recipe = PanoramaRecipe(
        transformer,
        config,
        training,
        null_text=null_text,
        shift=training_shift(config, scheduler, tokens),
        held_out=held_out,
        vae=vae,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        preview_steps=options.preview_steps,
    )
    train(recipe, trainer_config(options))
    print(options.output / "graft")
    return 0


def graft_config(options: TrainOptions, pipeline: Any) -> GraftConfig:
    """The graft that is trained: the base's own, with what the options change.

    Raises:
        ValueError: sizes that the base does not take, or a base whose graft cannot be trained this way.
    """
    given = {"height": options.height, "condition_size": options.condition_size, "num_frames": options.frames}
    given |= {"cond_timestep": options.cond_timestep, "base": _base(options, pipeline)}
    config = pipeline.graft.changed(lora_rank=None, **{name: value for name, value in given.items() if value is not None})
    stride, patch = spatial_stride(pipeline.vae), _patch(pipeline)
    check_panorama_size(config.height, config.width, stride, patch)
    if config.condition_size % (stride * patch):
        raise ValueError(f"condition_size must be a multiple of {stride * patch}, the pixels of a token; got {config.condition_size}.")
    if config.mode == "video":
        check_frames(pipeline.vae, config.num_frames)
    return config


def trainer_config(options: TrainOptions) -> TrainerConfig:
    """How the Trainer runs; averaged weights are for whole models, unless a decay is given."""
    ema_decay = options.ema_decay if options.ema_decay is not None else 0.0 if options.rank else 0.9999
    return TrainerConfig(
        output=options.output,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        mixed_precision=options.mixed_precision,
        accumulate=options.accumulate,
        ema_decay=ema_decay or None,
        checkpoint_every=options.checkpoint_every,
        preview_every=options.preview_every,
        logger=options.logger,
        workers=options.workers,
    )


def _base(options: TrainOptions, pipeline: Any) -> str:
    """What the trained weights will be loaded onto."""
    has_lora = bool(getattr(pipeline.transformer, "peft_config", None))
    if has_lora and not options.rank:
        raise ValueError("rank 0 trains the whole transformer, but it has a LoRA already; fuse that first, or leave rank to train it.")
    if options.base in BUNDLED:
        return options.base
    if (Path(options.base) / "model_index.json").is_file():
        return str(Path(options.base).resolve())
    if options.rank and not has_lora and pipeline.graft.base != options.base:
        raise ValueError(
            f"{options.base} is a whole transformer without the rest of its pipeline, so a LoRA on it could not be loaded again; save it "
            "with save_graft(..., complete=True) first, or train on with rank 0."
        )
    return pipeline.graft.base


def _folders(
    options: TrainOptions, config: GraftConfig, encoder: PairEncoder, yaw_multiple: int
) -> tuple[EncodedFolder, EncodedFolder | None]:
    """Training samples, and held-out ones: one draw of each of a few files, the same ones when files are added elsewhere."""
    files = list_panoramas(options.data, config.mode)
    lots = sorted(files, key=lambda file: derived_seed(options.seed, "held out", file.relative_to(options.data).as_posix()))
    held_out = lots[: min(options.held_out, len(files) - 1)]
    common: dict[str, Any] = {
        "ranges": CameraRanges(hfov_deg=options.hfov_deg, pitch_deg=options.pitch_deg, roll_deg=options.roll_deg),
        "seed": options.seed,
        "real_paths": read_paths(options.paths) if options.paths else (),
        "yaw_multiple": yaw_multiple if options.roll_latents else 1,
        "root": options.data,
    }
    training = PanoramaFolder([file for file in files if file not in held_out], config, draws=options.draws, **common)
    if not held_out:
        return EncodedFolder(training, encoder, options.roll_latents), None
    apart = PanoramaFolder(held_out, config, draws=1, **common)
    return EncodedFolder(training, encoder, options.roll_latents), EncodedFolder(apart, encoder, options.roll_latents)


def _encode(options: TrainOptions, pipeline: Any, encoder: PairEncoder, folders: list[EncodedFolder]) -> Embeddings:
    """Fills the cache, each process its share, and gives the empty caption's embeddings."""
    processes = PartialState(cpu=not torch.accelerator.is_available())
    device = options.device or processes.device
    for part in (pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            part.to(device)
    null_text = encoder.caption("")
    if processes.num_processes > 1:
        for folder in folders:
            folder.prepare(skip_bad=options.skip_bad, part=(processes.process_index, processes.num_processes), progress=False)
        processes.wait_for_everyone()
    for folder in folders:
        folder.prepare(skip_bad=options.skip_bad, progress=processes.is_main_process)
    pipeline.vae.to("cpu")
    return null_text


def _patch(pipeline: Any) -> int:
    """Latents of a token along one side."""
    if pipeline.graft.mode == "video":
        return pipeline.transformer.config.patch_size[-1]
    return patch_size(pipeline.transformer, pipeline.vae.config.latent_channels)
