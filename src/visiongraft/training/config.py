"""How a recipe is trained: the one configuration every method's ``train`` verb shares. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Precision = Literal["no", "bf16", "fp16"]
Logger = Literal["tensorboard", "wandb", "none"]


@dataclass(kw_only=True)
class TrainerConfig:
    """How a recipe is trained.

    Args:
        output: folder of checkpoints, logs and the trained modules; a run that was stopped continues there.
        steps: optimiser steps.
        batch_size: samples of one step, over all processes and micro-batches.
        seed: fixes data order and every step's randomness.
        mixed_precision: no, bf16 or fp16 (fp16 needs a GPU).
        accumulate: micro-batches of one step, for batches that do not fit.
        clip_norm: largest gradient norm of each optimiser's parameters; none to switch clipping off.
        ema_decay: decay of averaged weights, which are then the ones saved at the end; none to switch it off.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints that are kept.
        log_every: steps between rows of losses.jsonl and the logger.
        preview_every: steps between previews and validation; none for only at the end.
        logger: tensorboard, wandb or none.
        resume: continue from the newest checkpoint; false refuses a folder that has one.
        workers: data loading processes.
        progress: show a progress bar.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    output: Path
    steps: int = 1000
    batch_size: int = 32
    seed: int = 0
    mixed_precision: Precision = "no"
    accumulate: int = 1
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    log_every: int = 10
    preview_every: int | None = None
    logger: Logger = "tensorboard"
    resume: bool = True
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.preview_every is not None and self.preview_every < 1:
            raise ValueError(f"preview_every must be at least 1, or none; got {self.preview_every}.")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more; got {self.workers}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1), or be none; got {self.ema_decay}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or none; got {self.clip_norm}.")
        for name, accepted in (("mixed_precision", get_args(Precision)), ("logger", get_args(Logger))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {getattr(self, name)!r}.")
