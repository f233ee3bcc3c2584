"""One component at a time from the authors' configuration keys and tensor names, which are those of Diffusers, loaded strictly."""

import inspect
import re
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderKLWan, FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

COMPONENTS = ("flux_transformer", "wan_transformer", "vae", "video_vae", "lora")

FLUX_1_DEV = {"guidance_embeds": True}
"""What FLUX.1-dev's transformer has other than the defaults of its class."""

FLUX_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""What FLUX.1's autoencoder has other than the defaults of its class."""


def build(component: str, config: dict[str, Any], state_dict: dict[str, Tensor]) -> nn.Module:
    """One component from its configuration and tensors in Diffusers' layout, loaded strictly.

    Args:
        component: ``flux_transformer``, ``wan_transformer``, ``vae`` (FLUX), ``video_vae`` (Wan), or ``lora``.
        config: keys of ``config.json``; those left out are those of FLUX.1-dev or Wan2.1-14B. For ``lora``: PEFT's ``lora_alpha``
            (default: the rank), and the transformer that gets it, as a module (``{"transformer": module}``) or by its own keys.
        state_dict: tensors by name; the module shares their memory. Meta tensors build a module without memory.

    Returns:
        The module in eval mode, in the dtype of the tensors; for ``lora`` the transformer with the adapter.

    Raises:
        ValueError: an unknown component or key; names that are missing, unexpected, or of another shape.
    """
    kinds = {
        "flux_transformer": (FluxTransformer2DModel, FLUX_1_DEV),
        "wan_transformer": (WanTransformer3DModel, {}),
        "vae": (AutoencoderKL, FLUX_VAE),
        "video_vae": (AutoencoderKLWan, {}),
    }
    if component == "lora":
        return _build_lora(config, state_dict).eval()
    if component not in kinds:
        raise ValueError(f"There is no component {component!r}; there are {', '.join(COMPONENTS)}.")
    kind, released = kinds[component]
    with init_empty_weights(include_buffers=False):
        module = _from_config(kind, released | config)
    _check_tensors({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, state_dict, component)
    module.load_state_dict(state_dict, strict=True, assign=True)
    return module.eval()


def _from_config(kind: Any, values: dict[str, Any]) -> Any:
    values = {name: value for name, value in values.items() if not name.startswith("_")}
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)} in its configuration; it has {', '.join(sorted(known))}.")
    return kind(**values)


_PEFT_KEYS = {"r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights", "peft_type", "task_type", "bias", "inference_mode"}


_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def _build_lora(config: dict[str, Any], state_dict: dict[str, Tensor]) -> nn.Module:
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    config = dict(config)
    adapter = {name: config.pop(name) for name in _PEFT_KEYS & set(config)}
    transformer: Any = config.pop("transformer", None)
    if not isinstance(transformer, nn.Module):
        video = any(name.startswith("blocks.") for name in tensors)
        kind, released = (WanTransformer3DModel, {}) if video else (FluxTransformer2DModel, FLUX_1_DEV)
        with torch.device("meta" if all(tensor.is_meta for tensor in tensors.values()) else "cpu"):
            transformer = _from_config(kind, released | (transformer or {}) | config)
    elif config:
        raise ValueError(f"Beside a transformer, a LoRA has {', '.join(sorted(_PEFT_KEYS))} in its configuration; got {', '.join(config)}.")
    ranks = {name.removesuffix(_DOWN): len(tensor) for name, tensor in tensors.items() if name.endswith(_DOWN)}
    expected = {}
    for place, layer in transformer.named_modules():
        layer = getattr(layer, "base_layer", layer)
        if isinstance(layer, nn.Linear | nn.Conv3d) and (place in ranks or _is_target(place, adapter.get("target_modules"))):
            kernel = tuple(layer.weight.shape[2:])
            rank = ranks.get(place, 0)
            expected[place + _DOWN] = (rank, layer.weight.shape[1], *kernel)
            expected[place + _UP] = (layer.weight.shape[0], rank, *(1 for _ in kernel))
    if not expected:
        raise ValueError(f"A LoRA has <layer>{_DOWN} and <layer>{_UP} of the transformer's layers; got none of them.")
    _check_tensors(expected, tensors, "lora")
    rank = adapter.get("r", next(iter(ranks.values())))
    if set(ranks.values()) != {rank}:
        raise ValueError(f"The LoRA's ranks are {', '.join(map(str, sorted(set(ranks.values()))))}; expected {rank} everywhere.")
    settings = {"r": rank, "lora_alpha": adapter.get("lora_alpha", rank), "target_modules": sorted(ranks)}
    add: Any = transformer.load_lora_adapter
    add(tensors, prefix=None, metadata=settings, adapter_name="graft")
    return transformer


def _is_target(place: str, targets: str | list[str] | None) -> bool:
    """PEFT's rule: a pattern of the whole name, or endings of it."""
    if isinstance(targets, str):
        return re.fullmatch(targets, place) is not None
    return any(place == target or place.endswith(f".{target}") for target in targets or ())


def _check_tensors(expected: dict[str, tuple[int, ...]], given: dict[str, Tensor], what: str) -> None:
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} of shape {tuple(given[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    require_none(problems, what)


def require_none(problems: list[str], what: str) -> None:
    """Refuses tensors that do not fit, naming the first three problems."""
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"The tensors do not fit the configuration of {what}: {', '.join(problems[:3])}{rest}.")
