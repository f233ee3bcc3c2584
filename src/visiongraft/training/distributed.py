"""Modules on one process or several: DDP, or sharded with FSDP2; and whole tensors to and from them."""

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def sharding() -> bool:
    """Whether the run was launched with FSDP.

    Raises:
        ValueError: with version 1 of it.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("Only FSDP2 is supported; launch with --use_fsdp --fsdp_version 2.")
    return True


def distribute(accelerator: Accelerator, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules on the device, for the processes in use; make optimisers from their parameters afterwards.

    Accelerate starts the processes; wrapping is done here since Accelerate shards one module only, and none on CPU.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,)) if sharding() else None
    placed = {name: module.to(accelerator.device) for name, module in modules.items()}
    if mesh is not None:
        for module in placed.values():
            _shard(module, mesh, accelerator.mixed_precision)
    elif accelerator.num_processes > 1:
        devices = [accelerator.device] if accelerator.device.type == "cuda" else None
        for name, module in placed.items():
            if any(p.requires_grad for p in module.parameters()):
                placed[name] = DistributedDataParallel(module, device_ids=devices)
    return placed


def _shard(module: nn.Module, mesh: torch.distributed.DeviceMesh, precision: str) -> None:
    """FSDP2 over the blocks that a Diffusers or Transformers model says must stay together, and the rest as one."""
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor.data, 0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    blocks = set(getattr(module, "_no_split_modules", None) or ())
    for part in reversed([*module.modules()]):  # inner ones first
        if part is module or type(part).__name__ in blocks:
            # the root too: a module called without backward (a preview, the other optimiser's turn) would stay whole, and stale
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def plain(module: nn.Module) -> nn.Module:
    """The module inside its DDP wrapper; others as they are."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def gradient_sync(modules: dict[str, nn.Module], on: bool) -> Iterator[None]:
    """Whether gradients are averaged over processes in this micro-batch; only DDP can put it off to the last."""
    with ExitStack() as stack:
        for module in modules.values():
            if isinstance(module, DistributedDataParallel) and not on:
                stack.enter_context(module.no_sync())
        yield


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (every process takes part); others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(target: Tensor, value: Tensor) -> Tensor:
    """A whole tensor on the target's device, sharded as the target is."""
    value = value.to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value


def shells(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies without weights of modules about to be sharded, which cannot be made plain again."""
    shelled = {}
    for name, module in modules.items():
        weightless = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in module.parameters()}
        shelled[name] = copy.deepcopy(module, weightless)
    return shelled


def gather(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU, on the first process only; every process takes part."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if accelerator.is_main_process:
            gathered[name] = full.to("cpu", copy=True).contiguous()
    return gathered
