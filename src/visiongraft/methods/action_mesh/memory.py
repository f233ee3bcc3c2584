"""Where models are while they work: on the device all the time, or only for their stage."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
Stage = Literal["shape", "latents", "vertices"]
"""Stage 0, stage I, stage II."""


@contextmanager
def on_device(module: Any, device: torch.device, low_memory: bool) -> Iterator[None]:
    """Has a model on the device while the block runs; in low-memory mode only then.

    In low-memory mode the model goes back to the CPU, also after an error, the device's cache is given back, and copies that autocast
    keeps of the weights are dropped after each of the model's blocks.

    Args:
        module: a model, or something that is none and stays where it is.
        device: to compute on.
        low_memory: whether models are kept on the CPU between their stages.

    Source: ActionMesh brief, 6 (low_ram).
    """
    if not isinstance(module, nn.Module):
        yield
        return
    hooks = []
    if low_memory:
        for block in getattr(module, "blocks", []):
            hooks.append(block.register_forward_hook(lambda *_: torch.clear_autocast_cache()))
    try:
        if any(parameter.device != device for parameter in module.parameters()):
            module.to(device)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if low_memory:
            module.to("cpu")
            empty_cache(device)


def empty_cache(device: torch.device) -> None:
    """Gives memory that PyTorch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def autocast(device: torch.device, stage: Stage, precision: str = "auto") -> Any:
    """Autocast of a stage as a context.

    ``auto``: on a GPU float16 for stage 0 and bfloat16 for stages I and II (float16 where the GPU has no bfloat16, such as a T4); on
    other devices the weights' own precision.

    Raises:
        ValueError: another precision.

    Source: ActionMesh brief, 6.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.")
    if precision == "float32" or (precision == "auto" and device.type != "cuda"):
        return nullcontext()
    if precision == "auto":
        half = stage == "shape" or not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.autocast(device.type, torch.float16 if half else torch.bfloat16)
    return torch.autocast(device.type, getattr(torch, precision))


class Stagewise:
    """What a pipeline of several stages has: a device to compute on, and a mode in which models are there only for their stage.

    Mixed into ``DiffusionPipeline``. Diffusers' own offloading moves a model when its ``forward`` is called; autoencoders are called by
    other names here, so that ``enable_model_cpu_offload`` means this in its place.
    """

    _stage_device: torch.device | None = None

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Low-memory mode: every model is on the device for its stage only, and on the CPU before and after it.

        Args:
            gpu_id: number of the GPU.
            device: to compute on; default: the GPU where there is one, else the CPU.

        Source: ActionMesh brief, 6 (low_ram).
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        if gpu_id is not None:
            chosen = torch.device(chosen.type, gpu_id)
        for module in self._component_modules():
            module.to("cpu")
        empty_cache(chosen)
        self._stage_device = chosen

    def disable_model_cpu_offload(self) -> None:
        """Ends low-memory mode; models stay where they are, ``to`` moves them."""
        self._stage_device = None

    @property
    def low_memory(self) -> bool:
        """Whether models are on the device for their stage only."""
        return self._stage_device is not None

    @property
    def stage_device(self) -> torch.device:
        """Where stages compute."""
        if self._stage_device is not None:
            return self._stage_device
        modules = self._component_modules()
        return next((parameter.device for module in modules for parameter in module.parameters()), torch.device("cpu"))

    def _component_modules(self) -> list[nn.Module]:
        """Not by DiffusionPipeline's ``device`` and ``to``, which ask for a dtype that a plain module as image encoder lacks."""
        pipeline: Any = self
        return [component for component in pipeline.components.values() if isinstance(component, nn.Module)]

    @contextmanager
    def working(self, name: str) -> Iterator[Any]:
        """Has one component ready for its stage.

        Raises:
            ValueError: the pipeline was built without it.
        """
        component = getattr(self, name)
        if component is None:
            kind = type(self).__name__
            raise ValueError(f"This needs the component {name}, which the pipeline was built without; give {kind}(..., {name}=...).")
        with on_device(component, self.stage_device, self.low_memory):
            yield component
