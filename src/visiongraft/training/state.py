"""All that a run must remember, to and from a checkpoint: weights, optimisers, schedules, averages, loss scale."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from visiongraft.training.checkpoints import save_checkpoint

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SEPARATOR = "|"


class TrainState:
    """The pieces of a run, saved with full (unsharded) tensors, so that any number of processes can continue.

    Args:
        accelerator: of the run.
        modules: prepared modules by name.
        optimizers: prepared optimisers by name.
        schedules: learning-rate schedules by optimiser.
        averages: EMA by module; empty when off.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        modules: dict[str, nn.Module],
        optimizers: dict[str, Any],
        schedules: dict[str, Any],
        averages: dict[str, EMAModel],
    ) -> None:
        self.accelerator, self.modules, self.optimizers = accelerator, modules, optimizers
        self.schedules, self.averages = schedules, averages
        self._all = nn.ModuleDict(modules)

    def save(self, folder: Path, step: int, fingerprint: dict[str, Any], keep: int) -> None:
        """Writes a checkpoint; every process takes part in gathering, the first one writes."""
        tensors: dict[str, dict[str, Tensor]] = {"modules": _tensors(get_model_state_dict(self._all, options=_FULL))}
        groups: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            saved = get_optimizer_state_dict(self._all, _bare(optimizer), options=_FULL)
            tensors[f"optimizer-{name}"] = {
                f"{parameter}{_SEPARATOR}{key}": value
                for parameter, entries in saved.get("state", {}).items()
                for key, value in entries.items()
            }
            groups[name] = saved.get("param_groups", [])
        for name, average in self.averages.items():
            tensors[f"average-{name}"] = {str(i): _whole(p) for i, p in enumerate(average.shadow_params)}
        if self.accelerator.is_main_process:
            state = {
                "fingerprint": fingerprint,
                "groups": groups,
                "schedules": {name: schedule.last_epoch for name, schedule in self.schedules.items()},
                "averages": {name: average.optimization_step for name, average in self.averages.items()},
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            }
            save_checkpoint(folder, step, tensors, state, keep)
        self.accelerator.wait_for_everyone()

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Restores what :meth:`save` wrote."""
        set_model_state_dict(self._all, tensors["modules"], options=StateDictOptions(full_state_dict=True))
        for name, optimizer in self.optimizers.items():
            entries: dict[str, dict[str, Tensor]] = {}
            for path, value in tensors[f"optimizer-{name}"].items():
                parameter, key = path.rsplit(_SEPARATOR, 1)
                entries.setdefault(parameter, {})[key] = value
            saved = {"state": entries, "param_groups": state["groups"][name]}
            set_optimizer_state_dict(self._all, _bare(optimizer), saved, options=StateDictOptions(full_state_dict=True))
        for name, schedule in self.schedules.items():
            for _ in range(state["schedules"][name] - schedule.last_epoch):
                schedule.step()
        for name, average in self.averages.items():
            average.optimization_step = state["averages"][name]
            with torch.no_grad():
                for i, parameter in enumerate(average.shadow_params):
                    _copy_whole(parameter, tensors[f"average-{name}"][str(i)])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def finished_modules(self) -> dict[str, nn.Module]:
        """Plain modules with the trained (averaged, if on) weights, gathered from all processes."""
        for name, average in self.averages.items():
            average.copy_to(self.modules[name].parameters())
        finished = {}
        for name, module in self.modules.items():
            weights = get_model_state_dict(module, options=_FULL)
            plain = self.accelerator.unwrap_model(module, keep_torch_compile=False)
            if weights and any(hasattr(p, "full_tensor") for p in plain.parameters()):  # sharded: whole tensors take their place
                plain.load_state_dict(weights, assign=True)
            finished[name] = plain
        return finished


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportCallIssue]


def _copy_whole(target: Tensor, value: Tensor) -> None:
    if hasattr(target, "device_mesh"):  # sharded
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)  # pyright: ignore
    target.copy_(value.to(target.device))
