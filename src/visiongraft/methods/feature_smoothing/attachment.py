"""Put smoothing into the vision tower of a Transformers model, and take it out again without a trace."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from visiongraft.methods.feature_smoothing.normalisation import read_normalisation
from visiongraft.methods.feature_smoothing.smoothed_tower import FeatureSpec, SmoothedVisionTower
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig
from visiongraft.methods.feature_smoothing.towers import Tower, find_tower

_MARK = "_visiongraft_smoothing"  # on a smoothed tower: its Attachment


class Attachment:
    """A smoothed model; :meth:`remove` (or leaving the ``with`` block) gives back the model as it was, bit for bit."""

    def __init__(self, model: nn.Module, tower: SmoothedVisionTower, undo: ExitStack) -> None:
        self.model, self.tower, self._undo = model, tower, undo

    def remove(self) -> None:
        """Takes the smoothing out; does nothing the second time."""
        self._undo.close()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attach(
    model: nn.Module,
    smoother: SmoothedEncoder | SmoothingConfig,
    *,
    purifier: nn.Module | None = None,
    mapper: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    path: str | None = None,
    feature: FeatureSpec | None = None,
    whole_images: bool = False,
    generator: torch.Generator | None = None,
) -> Attachment:
    """Smooths the vision tower of a Transformers model in place.

    Every call of the model then averages the tower over ``n0`` fresh noise samples; ``generate`` pays at prefill only.
    Move the model to its device first.

    Args:
        model: CLIP, SigLIP, SigLIP 2, DINOv2, LLaVA, PaliGemma, InternVL, SmolVLM, Idefics; any module with ``path``.
        smoother: noise level and samples; a ``SmoothedEncoder`` also gives purifier, mapper and normalisation.
        purifier: maps (noisy images, sigma) to images; moved to the tower's device.
        mapper: maps (tokens, sigma, grid_size) to a residual; moved to the tower's device.
        mean, std: normalisation of ``pixel_values``; ``None`` reads the image processor's configuration of the model.
        path: dotted path of the tower, for models that are not known.
        feature: tokens the mapper was trained on; ``None`` takes those that the model reads (LLaVA: layer -2, no
            class token).
        whole_images: for SmolVLM, Idefics 3 and InternVL, whose processors may cut an image into overlapping crops:
            says that every entry of ``pixel_values`` is a whole image; otherwise several entries a call are refused.
        generator: noise source, for tests only: fixed noise voids the certificate.

    Returns:
        A handle, also a context manager, that takes the smoothing out again.

    Raises:
        ValueError: unknown model, already attached, compiled or dispatched model, no normalisation, training mode.
        NotImplementedError: towers whose input does not allow noise on pixels (Qwen-VL, any-resolution crops).

    Example:
        >>> with attach(model, SmoothingConfig(sigma=0.25, n0=8)):
        ...     model.generate(**inputs)

    Source: arXiv 2601.16200, Sec. 3.
    """
    encoder = None
    if isinstance(smoother, SmoothedEncoder):
        purifier, mapper, encoder = purifier or smoother.purifier, mapper or smoother.mapper, smoother.encoder
        smoother = smoother.config
    found = find_tower(model, path)
    _require_attachable(model, found)
    mean, std = mean or getattr(encoder, "mean", None), std or getattr(encoder, "std", None)
    if mean is None or std is None:
        mean, std = read_normalisation(getattr(getattr(model, "config", None), "_name_or_path", ""))
    if feature is None and mapper is not None and found.layer is None:
        raise ValueError("This model reads several layers of its tower; say which one the mapper acts on with feature=….")
    tower = SmoothedVisionTower(
        found.module,
        smoother,
        mean,
        std,
        purifier=_beside(found.module, purifier),
        mapper=_beside(found.module, mapper),
        feature=feature or FeatureSpec(-1 if found.layer is None else found.layer, found.drop_cls),
        projection=found.projection,
        whole_images=whole_images or not found.may_split_images,
        generator=generator,
    )
    with ExitStack() as undo:
        _swap_in(model, found, tower, undo)
        _refuse_saving(model, found, tower, undo)
        attachment = Attachment(model, tower, undo.pop_all())
    setattr(found.module, _MARK, attachment)
    attachment._undo.callback(delattr, found.module, _MARK)
    return attachment


def detach(model: nn.Module) -> None:
    """Takes every smoothing out of a model; does nothing if there is none."""
    for module in list(model.modules()):
        if _MARK in module.__dict__:
            module.__dict__[_MARK].remove()


def _require_attachable(model: nn.Module, found: Tower) -> None:
    tower, name = found.module, type(found.module).__name__
    if isinstance(tower, SmoothedVisionTower) or _MARK in tower.__dict__:
        raise ValueError("This vision tower is already smoothed; detach(model) first.")
    around = _modules_along(model, found.path)
    if any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in around):
        raise ValueError("The model is compiled; attach first, then torch.compile.")
    if any(parameter.is_meta for parameter in tower.parameters()):
        raise ValueError(
            f"The weights of {name} are offloaded (meta device); keep the vision tower on a device in device_map, then attach."
        )


def _modules_along(model: nn.Module, path: str) -> list[nn.Module]:
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]


def _beside(tower: nn.Module, module: nn.Module | None) -> nn.Module | None:
    parameter = next(tower.parameters(), None)
    return module if module is None or parameter is None else module.to(parameter.device)


def _swap_in(model: nn.Module, found: Tower, tower: SmoothedVisionTower, undo: ExitStack) -> None:
    if not found.path:  # the model is the tower: it keeps its identity, only its forward changes
        tower.run_base = found.module.forward
        _override(found.module, "forward", tower.forward, undo)
        return
    owner_path, _, name = found.path.rpartition(".")
    owner = model.get_submodule(owner_path)
    setattr(owner, name, tower)
    undo.callback(setattr, owner, name, found.module)


def _refuse_saving(model: nn.Module, found: Tower, tower: SmoothedVisionTower, undo: ExitStack) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("This model's vision tower is smoothed; call detach(model) or handle.remove() before saving it.")

    undo.callback((tower if found.path else found.module).register_state_dict_pre_hook(refuse).remove)
    for module in _modules_along(model, found.path.rpartition(".")[0]):
        if hasattr(module, "save_pretrained"):  # before it makes a folder
            _override(module, "save_pretrained", refuse, undo)


def _override(module: nn.Module, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Replaces a method on this instance only."""
    before = module.__dict__.get(name)
    setattr(module, name, function)
    if before is None:
        undo.callback(delattr, module, name)
    else:
        undo.callback(setattr, module, name, before)
