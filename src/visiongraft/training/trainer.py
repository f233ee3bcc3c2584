"""The training loop: precision, accumulation, clipping, schedules, EMA, logging, checkpoints and exact resume, on Accelerate."""

import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader
from tqdm import tqdm

from visiongraft.media.files import ensure_writable_folder
from visiongraft.training.checkpoints import Checkpoint, list_checkpoints, load_latest
from visiongraft.training.checks import check_data, check_losses, check_recipe
from visiongraft.training.config import TrainerConfig
from visiongraft.training.distributed import gradient_sync, plain, whole
from visiongraft.training.order import SeededItems, StepBatches, derived_seed
from visiongraft.training.recipe import Recipe
from visiongraft.training.recording import Recording, trackers
from visiongraft.training.state import TrainState


def train(recipe: Recipe, config: TrainerConfig) -> dict[str, nn.Module]:
    """Trains a recipe, or continues where an earlier call with the same output folder stopped.

    Exact resume: data order and randomness are functions of seed and step, so a run that was killed at any moment and
    started again gives the same weights as one that was not (bit for bit on CPU). Ctrl-C finishes the step, saves a
    checkpoint and stops. Works under ``accelerate launch`` (DDP and FSDP2).

    Returns:
        The trained modules (averaged weights if EMA is on) in evaluation mode, also saved to ``output/<name>``. Under FSDP2
        only the first process gets whole modules.

    Raises:
        FloatingPointError: a loss or gradient that is NaN or infinite; names the step, the losses and the last good checkpoint.
        ValueError: a checkpoint of another recipe or configuration in the output folder; a batch size that does not divide.
        KeyboardInterrupt: after Ctrl-C, once the checkpoint is saved.
    """
    check_recipe(recipe)
    output = ensure_writable_folder(config.output)
    accelerator = _accelerator(config)
    recipe.to(accelerator.device)
    state = TrainState.start(accelerator, recipe, config)
    fingerprint = _fingerprint(recipe, config)
    saved = _latest(output, config, fingerprint)
    if saved is not None:
        state.load(saved)
    start = 0 if saved is None else saved.step
    if start < config.steps:
        data = check_data(recipe.data(), recipe)
        fingerprint["samples"] = len(data)  # pyright: ignore[reportArgumentType]
        _require_same_run(saved, fingerprint)
        with Recording(accelerator, output, start) as recording:
            _steps(recipe, config, state, _batches(recipe, config, accelerator, data, start), recording, start, fingerprint)
    trained = state.finished_modules()
    if accelerator.is_main_process:
        for name, module in trained.items():
            save_module(module, output / name)
    accelerator.wait_for_everyone()
    return trained


def _steps(
    recipe: Recipe, config: TrainerConfig, state: TrainState, batches: Iterator, recording: Recording, start: int, fingerprint: dict
) -> None:
    """Steps ``start + 1`` to the last, with all that is written along the way."""
    accelerator, modules = state.accelerator, state.modules
    hidden = not (config.progress and accelerator.is_main_process)
    bar = tqdm(total=config.steps, initial=start, desc=config.output.name, unit="step", disable=hidden)
    _set_training(modules)
    with bar, _stop_at_step_end() as stop:
        for step in range(start + 1, config.steps + 1):
            micro_batches = [send_to_device(next(batches), accelerator.device, non_blocking=True) for _ in range(config.accumulate)]
            with _seeded(accelerator.device, config.seed, "step", step, accelerator.process_index) as generator:
                losses, norms = _step(recipe, config, state, micro_batches, generator, step)
            last, interrupted = step == config.steps, _anywhere(accelerator, stop.is_set())
            bar.update()
            if last or step % config.log_every == 0:
                rates = {name: float(schedule.get_last_lr()[0]) for name, schedule in state.schedules.items()}
                recording.losses(step, losses, rates, norms)
                bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()})
            if last or (config.preview_every is not None and step % config.preview_every == 0):
                with _seeded(accelerator.device, config.seed, "preview", step), torch.no_grad(), state.averaged():
                    shown = {name: plain(module) for name, module in modules.items()}
                    recording.previews(step, recipe.preview(shown), recipe.validate(shown))
                _set_training(modules)  # which looking may have changed
            if last or interrupted or step % config.checkpoint_every == 0:
                state.save(config.output / "checkpoints", step, fingerprint, config.keep_checkpoints)
            if interrupted:
                if accelerator.is_main_process:
                    told = f"Stopped after step {step}; run the same command again to continue from {config.output}."
                    tqdm.write(told, file=sys.stderr)
                raise KeyboardInterrupt


def _set_training(modules: dict[str, nn.Module]) -> None:
    for module in modules.values():
        module.train()


def _step(
    recipe: Recipe, config: TrainerConfig, state: TrainState, micro_batches: list, generator: torch.Generator, step: int
) -> tuple[dict[str, float], dict[str, float]]:
    """One step of every optimiser in turn: (losses by name, gradient norm by optimiser)."""
    accelerator, modules = state.accelerator, state.modules
    losses: dict[str, float] = {}
    norms: dict[str, float] = {}
    for name, optimizer in state.optimizers.items():
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches, 1):
            with gradient_sync(modules, on=number == config.accumulate):
                with accelerator.autocast():
                    terms = check_losses(recipe.losses(modules, batch, generator, name), recipe, name)
                parts = {term: value.float().squeeze() / config.accumulate for term, value in terms.items()}
                accelerator.backward(torch.stack([*parts.values()]).sum())
            sums = {term: sums.get(term, 0) + value.detach() for term, value in parts.items()}
        norm = _clip(accelerator, optimizer, config.clip_norm)
        *values, norms[name] = _averaged(accelerator, [*sums.values(), norm])
        prefix = f"{name}/" if len(state.optimizers) > 1 else ""
        losses |= {prefix + term: value for term, value in zip(sums, values, strict=True)}
        _require_finite(losses, norms, step, config.output, scaled=accelerator.scaler is not None)
        state.update(name)
    if accelerator.scaler is not None:
        accelerator.scaler.update()
    state.average()
    return losses, norms


def save_module(module: nn.Module, folder: Path) -> None:
    """Saves a module with its own ``save_pretrained``, or as ``model.safetensors``; replaces an earlier one as a whole."""
    writing = folder.with_name(f".{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(writing)  # pyright: ignore[reportCallIssue]
    else:
        from safetensors.torch import save_model

        save_model(module, str(writing / "model.safetensors"))
    if folder.exists():
        shutil.rmtree(folder)
    writing.rename(folder)


def _accelerator(config: TrainerConfig) -> Accelerator:
    cpu = not torch.accelerator.is_available()  # said outright, or processes launched on a machine without GPU stay alone
    if config.mixed_precision == "fp16" and cpu:
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU choose bf16 or no.")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    return Accelerator(cpu=cpu, mixed_precision=config.mixed_precision, **trackers(config))


def _batches(recipe: Recipe, config: TrainerConfig, accelerator: Accelerator, data: torch.utils.data.Dataset, start: int) -> Iterator:
    order = StepBatches(
        length=len(data),  # pyright: ignore[reportArgumentType]
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        steps=config.steps,
        accumulate=config.accumulate,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    loader = DataLoader(
        SeededItems(data, config.seed),
        batch_sampler=order,  # pyright: ignore[reportArgumentType]
        num_workers=config.workers,
        collate_fn=recipe.collate,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_ignore_interrupt,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    return iter(loader)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches loading processes too; they end with the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _latest(output: Path, config: TrainerConfig, fingerprint: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint to continue from; refuses one that is not of this run."""
    folder = output / "checkpoints"
    if not config.resume and list_checkpoints(folder):
        raise ValueError(f"{output} has checkpoints of an earlier run; choose another output folder, or resume it.")
    saved = load_latest(folder)
    _require_same_run(saved, fingerprint)
    if saved is not None and saved.step > config.steps:
        raise ValueError(
            f"{output} is at step {saved.step}, past the {config.steps} asked for; ask for more steps, or choose another output folder."
        )
    return saved


def _fingerprint(recipe: Recipe, config: TrainerConfig) -> dict[str, Any]:
    """What a resumed run must share with its checkpoint for the curve to be the same one."""
    with_end = any(spec.schedule not in ("constant", "constant_with_warmup") for spec in recipe.optimizers.values())
    return {
        "recipe": type(recipe).__name__,
        "modules": ", ".join(recipe.modules),
        **{f"optimizer {name}": str(spec) for name, spec in recipe.optimizers.items()},
        **{name: getattr(config, name) for name in ("seed", "batch_size", "accumulate", "mixed_precision", "clip_norm", "ema_decay")},
        "steps": config.steps if with_end else "any",
    }


def _require_same_run(saved: Checkpoint | None, fingerprint: dict[str, Any]) -> None:
    if saved is None:
        return
    before = saved.state["fingerprint"]
    told = ", ".join(f"{key} was {before.get(key)} and is now {now}" for key, now in fingerprint.items() if before.get(key) != now)
    if told:
        raise ValueError(f"{saved.path} belongs to another run ({told}); choose another output folder, or the same settings.")


def _clip(accelerator: Accelerator, optimizer: Any, largest: float | None) -> Tensor:
    """Norm of the gradient of an optimiser's parameters, which is scaled down to ``largest`` first."""
    accelerator.unscale_gradients(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = whole(get_total_norm([p.grad for p in parameters]))
    if largest is not None:
        clip_grads_with_norm_(parameters, largest, norm)
    return norm


@torch.no_grad()
def _averaged(accelerator: Accelerator, values: list[Tensor]) -> list[float]:
    """Scalars as numbers, averaged over processes."""
    stacked = torch.stack([value.float() for value in values])
    return accelerator.reduce(stacked, "mean").tolist()  # pyright: ignore[reportAttributeAccessIssue]


def _anywhere(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so on any process; all give the same answer, and so go on together."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.reduce(torch.tensor(float(here), device=accelerator.device), "sum").item())  # pyright: ignore


def _require_finite(losses: dict[str, float], norms: dict[str, float], step: int, output: Path, scaled: bool) -> None:
    """Stops before the weights are spoilt; a scaled (fp16) gradient may overflow, and that step is then left out."""
    finite = all(math.isfinite(value) for value in losses.values())
    if finite and (scaled or all(math.isfinite(value) for value in norms.values())):
        return
    kept = list_checkpoints(output / "checkpoints")
    told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise FloatingPointError(
        f"The {'gradient' if finite else 'loss'} is not finite at step {step} ({told}); the last good checkpoint is "
        f"{kept[-1] if kept else 'none yet'}. Lower the learning rate, or train in bf16 or float32."
    )


@contextmanager
def _seeded(device: torch.device, *seed: int | str) -> Iterator[torch.Generator]:
    """A generator for the losses; global randomness (dropout) is seeded inside, and outside is left as it was."""
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(derived_seed(*seed, "global"))  # torch.manual_seed is slow where a GPU is not
        if device.type == "cuda":
            torch.cuda.manual_seed(derived_seed(*seed, "global"))
        yield torch.Generator(device=device).manual_seed(derived_seed(*seed))


@contextmanager
def _stop_at_step_end() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a step is never cut in half; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_interrupt(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
