"""Options of ``visiongraft panorama train``. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(kw_only=True)
class TrainOptions:
    """Options of ``train``.

    Args:
        data: folder of equirectangular images or videos, with subfolders and captions (.txt of the same name), both optional
        output: folder of checkpoints and previews, and of the trained graft (output/graft); an interrupted run continues there
        base: small or small-video (bundled), a folder of a pipeline or graft, or a hub id such as black-forest-labs/FLUX.1-dev
        lora: a LoRA on the same base to continue from, such as a text-to-panorama LoRA; its rank is kept
        rank: of the LoRA that is trained, in float32; 0 trains the whole transformer
        lora_parts: where the LoRA goes: attention, mlp, embedding; default: attention and embedding for images, all for videos
        height: of the panoramas in pixels, which are twice as wide; default: what the base's graft says (1024, videos 512)
        condition_size: side of the perspective input in pixels; default: what the base's graft says (512, videos 256)
        frames: frames of a clip, 4k+1, at 16 fps; default: what the base's graft says (81)
        cond_timestep: modulate the input's tokens with the panorama's time (shared) or with time 0 (zero); default: the base graft's
        hfov_deg: lowest and highest horizontal field of view of the inputs
        pitch_deg: lowest and highest pitch
        roll_deg: lowest and highest roll
        paths: JSON Lines file of real camera paths, drawn for one clip in five
        draws: random yaws and cameras of each panorama, encoded once
        roll_latents: encode each panorama once and roll its latents; less exact and several times faster (images)
        cache: folder of encoded samples; default: output/cache. Runs may share one
        cache_dtype: of encoded samples; bfloat16 takes half the space
        skip_bad: leave out files that are no full panorama, with a warning, instead of stopping
        held_out: panoramas kept from training for validation and previews
        steps: optimiser steps
        batch_size: samples a step
        accumulate: micro-batches of a step, for batches that do not fit
        learning_rate: of AdamW; default: 1e-4 for a LoRA, 5e-5 for a whole image model, 1e-5 for a whole video model
        warmup_steps: of a constant rate
        ema_decay: of averaged weights that are saved; default: 0.9999 for a whole model, off for a LoRA; 0 switches it off
        mixed_precision: bf16 or no; with bf16 the frozen base of a LoRA is in bfloat16 too
        gradient_checkpointing: recompute activations, for less memory
        checkpoint_every: steps between checkpoints
        preview_every: steps between previews and validation; default: only at the end
        preview_steps: sampling steps of a preview
        logger: tensorboard, wandb or none
        workers: data loading processes
        device: torch device that encodes the samples; default: where accelerate trains (a GPU if there is one)
        seed: fixes draws, order, noise and the LoRA's first values
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("data",)
    data: Path
    output: Path = Path("runs/panorama/train")
    base: str = "black-forest-labs/FLUX.1-dev"
    lora: str | None = None
    rank: int = 64
    lora_parts: list[Literal["attention", "mlp", "embedding"]] | None = None
    height: int | None = None
    condition_size: int | None = None
    frames: int | None = None
    cond_timestep: Literal["shared", "zero"] | None = None
    hfov_deg: tuple[float, float] = (30.0, 120.0)
    pitch_deg: tuple[float, float] = (-60.0, 60.0)
    roll_deg: tuple[float, float] = (-15.0, 15.0)
    paths: Path | None = None
    draws: int = 8
    roll_latents: bool = False
    cache: Path | None = None
    cache_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    skip_bad: bool = False
    held_out: int = 1
    steps: int = 10_000
    batch_size: int = 8
    accumulate: int = 8
    learning_rate: float | None = None
    warmup_steps: int = 1000
    ema_decay: float | None = None
    mixed_precision: Literal["no", "bf16"] = "bf16"
    gradient_checkpointing: bool = True
    checkpoint_every: int = 500
    preview_every: int | None = None
    preview_steps: int = 20
    logger: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    workers: int = 0
    device: str | None = None
    seed: int = 0
