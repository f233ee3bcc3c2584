"""All that a run must remember, to and from a checkpoint: trained weights, optimisers, averages, loss scale."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from visiongraft.training.checkpoints import Checkpoint, save_checkpoint
from visiongraft.training.config import TrainerConfig
from visiongraft.training.distributed import distribute, gather, like, plain, sharding, shells
from visiongraft.training.identity import weights_digest
from visiongraft.training.recipe import Recipe

_SEPARATOR = "|"  # between a parameter's name and the optimiser's


@dataclass
class TrainState:
    """The pieces of a run. Its checkpoints hold whole tensors, so that any number of processes can continue.

    Frozen parameters, such as the base below a LoRA, are not written again at every checkpoint: the recipe brings them, and a
    resumed run is refused if they are others.
    """

    accelerator: Accelerator
    modules: dict[str, nn.Module]
    """On the device; wrapped or sharded where there are several processes."""
    optimizers: dict[str, torch.optim.Optimizer]
    schedules: dict[str, torch.optim.lr_scheduler.LRScheduler]
    averages: dict[str, EMAModel]
    """Of the trained parameters, by module; empty when off."""
    frozen: dict[str, str]
    """By module: digest of its frozen parameters."""
    shells: dict[str, nn.Module]
    """Weightless copies of sharded modules; empty otherwise."""

    @classmethod
    def start(cls, accelerator: Accelerator, recipe: Recipe, config: TrainerConfig) -> "TrainState":
        """The state before the first step."""
        frozen = {name: weights_digest(sorted(_frozen(module).items())) for name, module in recipe.modules.items()}
        shelled = shells(recipe.modules) if sharding() else {}
        modules = distribute(accelerator, recipe.modules)
        optimizers, schedules = {}, {}
        for name, spec in recipe.optimizers.items():
            parameters = [p for module in spec.modules for p in modules[module].parameters() if p.requires_grad]
            settings: dict[str, Any] = {"lr": spec.learning_rate, "betas": spec.betas, "weight_decay": spec.weight_decay}
            # without it a CPU makes several small calls for every parameter
            optimizer = torch.optim.AdamW(parameters, **settings, fused=accelerator.device.type == "cpu")
            schedules[name] = get_scheduler(spec.schedule, optimizer, num_warmup_steps=spec.warmup_steps, num_training_steps=config.steps)
            optimizers[name] = optimizer
        averages = {}
        if config.ema_decay is not None:
            averages = {name: EMAModel(_trained(module), decay=config.ema_decay) for name, module in modules.items()}
        return cls(accelerator, modules, optimizers, schedules, averages, frozen, shelled)

    def update(self, optimizer: str) -> None:
        """One step of an optimiser and its schedule; fp16's scaler leaves the optimiser's out after an overflow."""
        if self.accelerator.scaler is None:
            self.optimizers[optimizer].step()
        else:
            self.accelerator.scaler.step(self.optimizers[optimizer])
        self.schedules[optimizer].step()

    def average(self) -> None:
        """Takes the present weights into the averages, if on."""
        for name, average in self.averages.items():
            average.step(_trained(self.modules[name]))

    def save(self, folder: Path, step: int, fingerprint: dict[str, Any], keep: int) -> None:
        """Writes a checkpoint; every process takes part in gathering, the first one writes."""
        tensors = {}
        for name, module in self.modules.items():
            tensors[f"module-{name}"] = gather(self.accelerator, _kept(plain(module)))
        for name in self.optimizers:
            tensors[f"optimizer-{name}"] = gather(self.accelerator, self._moments(name))
        for name in self.averages:
            tensors[f"average-{name}"] = gather(self.accelerator, self._average(name))
        if self.accelerator.is_main_process:
            state = {
                "fingerprint": fingerprint,
                "frozen": self.frozen,
                "averages": {name: average.optimization_step for name, average in self.averages.items()},
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
            save_checkpoint(folder, step, tensors, state, keep)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def load(self, saved: Checkpoint) -> None:
        """Restores what :meth:`save` wrote.

        Raises:
            ValueError: tensors of other names or shapes than the recipe's (the message names the first), other frozen parameters, or a
                checkpoint of an earlier version.
        """
        if "frozen" not in saved.state:
            raise ValueError(f"{saved.path} was written by an earlier version and cannot be continued; choose another output folder.")
        for name, module in self.modules.items():
            mine, theirs = _kept(plain(module)), saved.tensors.get(f"module-{name}", {})
            _require_same_shapes(name, mine, theirs, saved.path)
            if saved.state["frozen"].get(name) != self.frozen[name]:
                raise ValueError(
                    f"{saved.path} belongs to another run: the frozen parameters of the module {name!r} are others now; "
                    "choose another output folder, or the same base."
                )
            _copy(mine, theirs)
        for name, optimizer in self.optimizers.items():
            for parameter, target in self._parameters().items():
                values = {
                    key.rsplit(_SEPARATOR, 1)[1]: value
                    for key, value in saved.tensors[f"optimizer-{name}"].items()
                    if key.rsplit(_SEPARATOR, 1)[0] == parameter
                }
                if values:  # AdamW counts its steps in a scalar on the CPU
                    optimizer.state[target] = {k: v if v.ndim == 0 else like(target, v) for k, v in values.items()}
            _forward(self.schedules[name], saved.step)
        for name, average in self.averages.items():
            average.optimization_step = saved.state["averages"][name]
            _copy(self._average(name), saved.tensors[f"average-{name}"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])

    def finished_modules(self) -> dict[str, nn.Module]:
        """Plain modules with the trained (averaged, if on) weights, in evaluation mode.

        Sharded modules are gathered on the first process; the others get theirs in shards.
        """
        finished: dict[str, nn.Module] = {}
        for name, module in self.modules.items():
            if name in self.averages:
                self.averages[name].copy_to(_trained(module))
            finished[name] = plain(module)
            if name in self.shells:
                weights = gather(self.accelerator, module.state_dict())
                if weights:
                    finished[name] = self.shells[name]
                    finished[name].load_state_dict(weights, assign=True)
            finished[name].eval()
        return finished

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules with averaged weights, if on, for the time of the block."""
        for name, average in self.averages.items():
            average.store(_trained(self.modules[name]))
            average.copy_to(_trained(self.modules[name]))
        try:
            yield
        finally:
            for name, average in self.averages.items():
                average.restore(_trained(self.modules[name]))

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{key}": p for name, module in self.modules.items() for key, p in plain(module).named_parameters()}

    def _moments(self, optimizer: str) -> dict[str, Tensor]:
        state = self.optimizers[optimizer].state
        return {
            f"{name}{_SEPARATOR}{key}": value for name, p in self._parameters().items() if p in state for key, value in state[p].items()
        }

    def _average(self, module: str) -> dict[str, Tensor]:
        names = [name for name, p in plain(self.modules[module]).named_parameters() if p.requires_grad]
        return dict(zip(names, self.averages[module].shadow_params, strict=True))


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _kept(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a module: trained parameters and buffers."""
    frozen = _frozen(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def _copy(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(like(target, values[name]))


def _forward(schedule: torch.optim.lr_scheduler.LRScheduler, step: int) -> None:
    """Puts a schedule, which is a function of the step, to where it was after ``step`` steps."""
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step - 1, "_step_count": step})
    schedule.step()


def _require_same_shapes(module: str, mine: dict[str, Tensor], theirs: dict[str, Tensor], path: Path) -> None:
    for name in {**mine, **theirs}:
        now, then = (tuple(t[name].shape) if name in t else "absent" for t in (mine, theirs))
        if now != then:
            raise ValueError(
                f"{path} belongs to another run: {name} of the module {module!r} was {then} and is now {now}; choose another output folder."
            )
