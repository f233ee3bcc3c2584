"""The training loop: precision, accumulation, clipping, schedules, EMA, logging, checkpoints and exact resume, on Accelerate."""

import json
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from visiongraft.media.files import append_jsonl, atomic_write, ensure_writable_folder, read_jsonl
from visiongraft.training.checkpoints import list_checkpoints, load_latest, save_checkpoint
from visiongraft.training.order import StepBatches, derived_seed
from visiongraft.training.recipe import Recipe
from visiongraft.training.state import TrainState


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
    """

    output: Path
    steps: int = 1000
    batch_size: int = 32
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = 1
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    log_every: int = 10
    preview_every: int | None = None
    logger: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    resume: bool = True
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1), or be none; got {self.ema_decay}.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive, or none; got {self.clip_norm}.")


def train(recipe: Recipe, config: TrainerConfig) -> dict[str, nn.Module]:
    """Trains a recipe, or continues where an earlier call with the same output folder stopped.

    Exact resume: data order and randomness are functions of seed and step, so a run that was killed at any moment and
    started again gives the same weights as one that was not (bit for bit on CPU). Ctrl-C finishes the step, saves a
    checkpoint and stops. Works under ``accelerate launch`` (DDP; FSDP2 with one module).

    Returns:
        The trained modules (averaged weights if EMA is on), also saved to ``output/<name>``.

    Raises:
        FloatingPointError: a loss that is NaN or infinite; names the step, the losses and the last good checkpoint.
        ValueError: a checkpoint of another recipe or configuration in the output folder; a batch size that does not divide.
        KeyboardInterrupt: after Ctrl-C, once the checkpoint is saved.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    output = Path(config.output)
    ensure_writable_folder(output)
    recipe.to(device)
    optimizers = {
        name: torch.optim.AdamW(
            [p for m in spec.modules for p in recipe.modules[m].parameters() if p.requires_grad],
            lr=spec.learning_rate,
            betas=spec.betas,
            weight_decay=spec.weight_decay,
        )
        for name, spec in recipe.optimizers.items()
    }
    schedules = {
        name: get_scheduler(
            spec.schedule, optimizers[name], num_warmup_steps=spec.warmup_steps, num_training_steps=config.steps
        )
        for name, spec in recipe.optimizers.items()
    }
    fingerprint = _fingerprint(recipe, config)
    prepared = accelerator.prepare(*recipe.modules.values(), *optimizers.values())
    prepared = prepared if isinstance(prepared, tuple) else (prepared,)
    modules = dict(zip(recipe.modules, prepared, strict=False))
    optimizers = dict(zip(optimizers, prepared[len(modules) :], strict=True))
    averages = (
        {name: EMAModel(module.parameters(), decay=config.ema_decay) for name, module in modules.items()}
        if config.ema_decay is not None
        else {}
    )
    state = TrainState(accelerator, modules, optimizers, schedules, averages)
    start = _restore(state, output, config, fingerprint)

    data = recipe.data()
    batches = StepBatches(
        len(data), config.batch_size, config.seed, start, config.steps, config.accumulate, rank, processes  # pyright: ignore[reportArgumentType]
    )
    loader = iter(DataLoader(data, batch_sampler=batches, num_workers=config.workers, collate_fn=recipe.collate))
    log = _Log(output, config, active=accelerator.is_main_process, start=start)
    for module in modules.values():
        module.train()
    bar = tqdm(
        total=config.steps, initial=start, desc=output.name, unit="step", disable=not (config.progress and accelerator.is_main_process)
    )
    with bar, log, _stop_at_step_end() as stopped:
        for step in range(start, config.steps):
            micro_batches = [send_to_device(next(loader), device) for _ in range(config.accumulate)]
            losses: dict[str, float] = {}
            with _seeded(derived_seed(config.seed, "step", step, rank), device) as generator:
                for name, optimizer in optimizers.items():
                    optimizer.zero_grad()
                    for batch in micro_batches:
                        with accelerator.autocast():
                            terms = recipe.losses(modules, batch, generator, name)
                        loss = torch.stack([term.float() for term in terms.values()]).sum() / config.accumulate
                        for term, value in _averaged(accelerator, terms).items():
                            losses[term] = losses.get(term, 0.0) + value / config.accumulate
                        _require_finite(losses, step, output)
                        accelerator.backward(loss)
                    if config.clip_norm is not None:
                        accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.clip_norm)
                    optimizer.step()
                    schedules[name].step()
            for name, average in averages.items():
                average.step(modules[name].parameters())
            done = step + 1
            bar.update()
            if done % config.log_every == 0 or done == config.steps:
                log.losses(done, losses, {name: s.get_last_lr()[0] for name, s in schedules.items()})
                bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()})
            if done == config.steps or (config.preview_every and done % config.preview_every == 0):
                log.previews(done, recipe, {name: accelerator.unwrap_model(m) for name, m in modules.items()})
            interrupted = stopped.is_set()
            if done % config.checkpoint_every == 0 or done == config.steps or interrupted:
                state.save(output / "checkpoints", done, fingerprint, config.keep_checkpoints)
            if interrupted:
                if accelerator.is_main_process:
                    tqdm.write(f"Stopped after step {done}; run the same command again to continue from {output}.")
                raise KeyboardInterrupt
    trained = state.finished_modules()
    if accelerator.is_main_process:
        for name, module in trained.items():
            save_module(module, output / name)
    accelerator.wait_for_everyone()
    return trained


def save_module(module: nn.Module, folder: Path) -> None:
    """Saves a module with its own ``save_pretrained``, or as ``model.safetensors``."""
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        return
    from safetensors.torch import save_model

    with atomic_write(folder / "model.safetensors") as path:
        save_model(module, str(path))


def _restore(state: TrainState, output: Path, config: TrainerConfig, fingerprint: dict[str, Any]) -> int:
    """Finished steps of the newest checkpoint, after loading it; 0 without one."""
    folder = output / "checkpoints"
    if not config.resume and list_checkpoints(folder):
        raise ValueError(f"{output} has checkpoints of an earlier run; choose another output folder, or resume it.")
    found = load_latest(folder)
    if found is None:
        return 0
    path, tensors, saved = found
    differing = [key for key in fingerprint if saved["fingerprint"].get(key) != fingerprint[key]]
    if differing:
        told = ", ".join(f"{key} was {saved['fingerprint'].get(key)} and is now {fingerprint[key]}" for key in differing)
        raise ValueError(f"{path} belongs to another run ({told}); choose another output folder.")
    state.load(tensors, saved)
    return saved["step"]


def _fingerprint(recipe: Recipe, config: TrainerConfig) -> dict[str, Any]:
    """What a resumed run must share with its checkpoint for the curve to be the same one."""
    shapes = {name: {k: list(v.shape) for k, v in m.state_dict().items()} for name, m in recipe.modules.items()}
    scheduled = any(spec.schedule not in ("constant", "constant_with_warmup") for spec in recipe.optimizers.values())
    return {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "mixed_precision": config.mixed_precision,
        "ema_decay": config.ema_decay,
        "clip_norm": config.clip_norm,
        "steps": config.steps if scheduled else None,
        "optimizers": {name: str(spec) for name, spec in recipe.optimizers.items()},
        "modules": {name: f"{derived_seed(json.dumps(s, sort_keys=True)):x}" for name, s in shapes.items()},
    }


def _averaged(accelerator: Accelerator, terms: dict[str, Tensor]) -> dict[str, float]:
    """Loss terms as numbers, averaged over processes."""
    values = torch.stack([term.detach().float() for term in terms.values()])
    return dict(zip(terms, accelerator.reduce(values, "mean").tolist(), strict=True))  # pyright: ignore[reportAttributeAccessIssue]


def _require_finite(losses: dict[str, float], step: int, output: Path) -> None:
    if all(math.isfinite(value) for value in losses.values()):
        return
    kept = list_checkpoints(output / "checkpoints")
    told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise FloatingPointError(
        f"The loss is not finite at step {step + 1} ({told}); the last good checkpoint is {kept[-1] if kept else 'none yet'}. "
        "Lower the learning rate, or train in bf16 or float32."
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """The step's generator; global randomness (dropout) is seeded inside and left as it was outside."""
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield torch.Generator(device=device).manual_seed(seed)


@contextmanager
def _stop_at_step_end() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a step is never cut in half; a second one interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def on_interrupt(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


class _Log:
    """losses.jsonl, the logger and preview pictures; nothing on processes other than the first."""

    def __init__(self, output: Path, config: TrainerConfig, active: bool, start: int) -> None:
        self.output, self.active, self._writer, self._run = output, active, None, None
        self.file = output / "losses.jsonl"
        if not active:
            return
        rows = [row for row in (read_jsonl(self.file) if self.file.exists() else []) if row["step"] <= start]
        with atomic_write(self.file) as path:  # rows after the checkpoint will be written again
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if config.logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output / "logs"), purge_step=start)
        elif config.logger == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            self._run = wandb.init(project="visiongraft", name=output.name, dir=str(output), resume="allow", id=output.name)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()

    def losses(self, step: int, losses: dict[str, float], rates: dict[str, float]) -> None:
        if self.active:
            append_jsonl(self.file, {"step": step, **losses})
            self._scalars(step, {**{f"loss/{k}": v for k, v in losses.items()}, **{f"lr/{k}": v for k, v in rates.items()}})

    def previews(self, step: int, recipe: Recipe, modules: dict[str, nn.Module]) -> None:
        if not self.active:
            return
        with torch.no_grad():
            pictures, figures = recipe.preview(modules), recipe.validate(modules)
        for module in modules.values():
            module.train()
        self._scalars(step, {f"validation/{name}": value for name, value in figures.items()})
        for name, picture in pictures.items():
            from PIL import Image

            pixels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().byte()
            with atomic_write(self.output / "previews" / f"{name}-{step:08d}.png") as path:
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, format="PNG")
            if self._writer is not None:
                self._writer.add_image(name, pixels, step)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(values, step=step)
