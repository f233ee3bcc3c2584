"""Released checkpoints: guided diffusion (purifier), FARE and TeCoA (robust CLIP towers), and our own purifiers and mappers."""

import json
import re
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier

Component = Literal["guided_diffusion_unet", "fare_clip", "tecoa_clip", "purifier", "mapper"]
COMPONENTS: tuple[Component, ...] = ("guided_diffusion_unet", "fare_clip", "tecoa_clip", "purifier", "mapper")
HUB = {f"chs20/{name}{eps}-clip": f"{name}_clip" for name in ("fare", "tecoa") for eps in (2, 4)}
_OURS = {"UNetPurifier": UNetPurifier, "DiffusionPurifier": DiffusionPurifier, "SmoothnessMapper": SmoothnessMapper}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")

IMAGENET_256 = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "attention_resolutions": "32,16,8",
    "num_head_channels": 64,
    "learn_sigma": True,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
"""Configuration keys of ``256x256_diffusion_uncond`` in the authors' scripts."""

VIT_L_14 = {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16, "embed_dim": 768}
"""Configuration of the FARE and TeCoA towers (open_clip's keys for ViT-L-14, flattened)."""


def load(path_or_hub_id: str | Path, component: Component | None = None, **config: Any) -> nn.Module:
    """A ready module from a safetensors file, a folder that we saved, or a hub id.

    Args:
        path_or_hub_id: folder of ``save_pretrained``; a ``.safetensors`` file in the authors' layout; or one of ``HUB`` (its
            layout is read as published; it cannot be exercised without a network).
        component: what it holds. A folder says so itself; a file is a guided-diffusion U-Net for ``purifier``.
        config: authors' configuration keys that differ from the released model's.

    Returns:
        The module in eval mode.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: pickled or damaged weights, keys that do not fit, or a folder with another component.
    """
    name = str(path_or_hub_id)
    if name in HUB:
        return build(HUB[name], config, _read(_download(name))).eval()  # pyright: ignore[reportArgumentType]
    path = Path(path_or_hub_id)
    if path.is_dir():
        return _load_folder(path, component)
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is loaded, and is refused. Convert it once, on a machine you can "
            "afford to lose: s = torch.load(path, weights_only=True); "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in s.items()}, 'converted.safetensors')."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}; give a folder, a .safetensors file, or one of {', '.join(HUB)}.")
    kind = "guided_diffusion_unet" if component in (None, "purifier") else component
    built = build(kind, config, _read(path))
    return built.eval()


def _load_folder(folder: Path, component: Component | None) -> nn.Module:
    inner = folder / component if component and (folder / component / "config.json").is_file() else folder
    if not (inner / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give the folder that save_pretrained wrote.")
    try:
        name = json.loads((inner / "config.json").read_text()).get("_class_name")
    except ValueError as error:
        raise ValueError(f"{inner / 'config.json'} is not JSON ({error}).") from error
    expected = {"purifier": ("UNetPurifier", "DiffusionPurifier"), "mapper": ("SmoothnessMapper",)}.get(component or "", tuple(_OURS))
    if name not in expected:
        raise ValueError(f"{inner} holds a {name}; expected {' or '.join(expected)}.")
    if not list(inner.glob("*.safetensors")):
        raise FileNotFoundError(f"{inner} has no *.safetensors weights (pickles are refused).")
    try:
        return _OURS[name].from_pretrained(inner, use_safetensors=True).eval()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"The weights in {inner} are damaged or do not fit their config: {str(error).splitlines()[0]}") from error


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", "*.json"]))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{hub_id} has no safetensors weights (pickles are refused); convert them and give the file.")
    return files[0]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged ({error}).") from error


def build(component: Component, config: dict[str, Any], state_dict: dict[str, Tensor]) -> nn.Module:
    """Our module from the authors' configuration keys and tensor names, loaded strictly.

    Args:
        component: one of ``COMPONENTS``.
        config: authors' keys; those left out are the released model's (``IMAGENET_256``, ``VIT_L_14``). For ``purifier`` and
            ``mapper`` our own constructor arguments.
        state_dict: authors' tensor names; meta tensors build a module without memory.

    Raises:
        ValueError: an unknown component or configuration key; missing, unexpected or misshaped tensors, each named.
    """
    if component == "guided_diffusion_unet":
        settings = _settings(IMAGENET_256, config)
        purifier = _diffusion_purifier(settings)
        mapped = _guided_diffusion_names(settings, state_dict)
        return _filled(purifier, {f"unet.{key}": value for key, value in mapped.items()})
    if component in ("fare_clip", "tecoa_clip"):
        settings = _settings(VIT_L_14, config)
        return _filled(_clip_tower(settings), _open_clip_names(settings, state_dict))
    if component == "purifier":
        return _filled(UNetPurifier(**config), dict(state_dict))
    if component == "mapper":
        return _filled(SmoothnessMapper(**config), dict(state_dict))
    raise ValueError(f"component must be one of {', '.join(COMPONENTS)}; got {component!r}.")


def _settings(released: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(released))
    if unknown:
        raise ValueError(f"Unknown configuration keys {', '.join(unknown)}; accepted: {', '.join(released)}.")
    return {**released, **config}


def _filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Strict loading with the offending names in the error; keeps meta tensors meta."""
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"The checkpoint does not fit {type(module).__name__}: {'; '.join(problems[:4])}{more}.")
    module.load_state_dict(weights, strict=True, assign=any(value.is_meta for value in weights.values()))
    return module


# --- guided diffusion -------------------------------------------------------------------------------------------------

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _multipliers(settings: dict[str, Any]) -> tuple[int, ...]:
    value = settings["channel_mult"]
    return tuple(int(v) for v in value.split(",")) if isinstance(value, str) else tuple(value)


def _attention_levels(settings: dict[str, Any]) -> tuple[int, ...]:
    """Levels with attention; the authors name resolutions (32, 16, 8)."""
    value = settings["attention_resolutions"]
    resolutions = [int(v) for v in value.split(",")] if isinstance(value, str) else list(value)
    return tuple(level for level in range(len(_multipliers(settings))) if settings["image_size"] // 2**level in resolutions)


def _diffusion_purifier(settings: dict[str, Any]) -> DiffusionPurifier:
    for key, needed in (("learn_sigma", True), ("class_cond", False), ("use_scale_shift_norm", True), ("resblock_updown", True)):
        if settings[key] is not needed:
            raise ValueError(f"Only guided-diffusion models with {key}={needed} can be a purifier; got {settings[key]}.")
    return DiffusionPurifier(
        sample_size=settings["image_size"],
        block_out_channels=tuple(settings["num_channels"] * m for m in _multipliers(settings)),
        layers_per_block=settings["num_res_blocks"],
        attention_levels=_attention_levels(settings),
        attention_head_dim=settings["num_head_channels"],
    )


def _guided_diffusion_places(settings: dict[str, Any]) -> dict[str, str]:
    """Source module to target module, with the kind of block as a prefix: ``res:``, ``attention:`` or none."""
    levels, blocks, attends = len(_multipliers(settings)), settings["num_res_blocks"], _attention_levels(settings)
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.0": "res:mid_block.resnets.0",
        "middle_block.1": "attention:mid_block.attentions.0",
        "middle_block.2": "res:mid_block.resnets.1",
    }
    source = 1
    for level in range(levels):
        for block in range(blocks):
            places[f"input_blocks.{source}.0"] = f"res:down_blocks.{level}.resnets.{block}"
            if level in attends:
                places[f"input_blocks.{source}.1"] = f"attention:down_blocks.{level}.attentions.{block}"
            source += 1
        if level < levels - 1:
            places[f"input_blocks.{source}.0"] = f"res:down_blocks.{level}.downsamplers.0"
            source += 1
    source = 0
    for up, level in enumerate(reversed(range(levels))):
        for block in range(blocks + 1):
            places[f"output_blocks.{source}.0"] = f"res:up_blocks.{up}.resnets.{block}"
            inner = 1
            if level in attends:
                places[f"output_blocks.{source}.1"] = f"attention:up_blocks.{up}.attentions.{block}"
                inner = 2
            if block == blocks and level > 0:
                places[f"output_blocks.{source}.{inner}"] = f"res:up_blocks.{up}.upsamplers.0"
            source += 1
    return places


def _guided_diffusion_names(settings: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    places, head, mapped = _guided_diffusion_places(settings), settings["num_head_channels"], {}
    for key, value in state.items():
        match = re.match(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+|time_embed\.\d+|out\.\d+)\.(.+)", key)
        place = places.get(match[1]) if match else None
        if match is None or place is None:
            mapped[key] = value  # reported as unexpected
            continue
        kind, _, target = place.rpartition(":")
        rest = match[2]
        if kind == "res":
            part, _, leaf = rest.rpartition(".")
            mapped[f"{target}.{_RES_BLOCK.get(part, part)}.{leaf}"] = value
        elif kind == "attention":
            mapped.update(_attention_tensors(target, rest, value, head))
        else:
            mapped[f"{target}.{rest}"] = value
    return mapped


def _attention_tensors(target: str, rest: str, value: Tensor, head: int) -> dict[str, Tensor]:
    """``norm``, ``qkv`` (1x1 convolution, interleaved as q, k, v within each head) and ``proj_out`` as linear layers."""
    part, _, leaf = rest.rpartition(".")
    if part == "norm":
        return {f"{target}.group_norm.{leaf}": value}
    if part == "proj_out":
        return {f"{target}.to_out.0.{leaf}": value.flatten(1) if leaf == "weight" else value}
    if part == "qkv" and value.shape[0] % (3 * head) == 0:
        per_head = value.flatten(1) if leaf == "weight" else value
        per_head = per_head.unflatten(0, (-1, 3, head))
        return {f"{target}.to_{name}.{leaf}": per_head[:, i].flatten(0, 1) for i, name in enumerate("qkv")}
    return {f"{target}.{rest}": value}


# --- open_clip towers -------------------------------------------------------------------------------------------------


def _clip_tower(settings: dict[str, Any]) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=settings["width"],
            intermediate_size=4 * settings["width"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            image_size=settings["image_size"],
            patch_size=settings["patch_size"],
            projection_dim=settings["embed_dim"],
            hidden_act="quick_gelu",
        )
    )


_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _open_clip_names(settings: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    tower, mapped = "vision_model.", {}
    whole = {
        "class_embedding": f"{tower}embeddings.class_embedding",
        "positional_embedding": f"{tower}embeddings.position_embedding.weight",
        "conv1.weight": f"{tower}embeddings.patch_embedding.weight",
    }
    for original, value in state.items():
        key = original.removeprefix("module.").removeprefix("model.").removeprefix("visual.")
        layer = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", key)
        if key in whole:
            mapped[whole[key]] = value
        elif key == "proj":
            mapped["visual_projection.weight"] = value.T.contiguous()
        elif key.startswith(("ln_pre.", "ln_post.")):
            name, leaf = key.split(".")
            mapped[f"{tower}{'pre_layrnorm' if name == 'ln_pre' else 'post_layernorm'}.{leaf}"] = value
        elif layer and layer[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
            leaf = layer[2].removeprefix("attn.in_proj_")
            for name, third in zip("qkv", value.chunk(3), strict=True):
                mapped[f"{tower}encoder.layers.{layer[1]}.self_attn.{name}_proj.{leaf}"] = third.contiguous()
        elif layer and layer[2].rpartition(".")[0] in _CLIP_LAYER:
            part, _, leaf = layer[2].rpartition(".")
            mapped[f"{tower}encoder.layers.{layer[1]}.{_CLIP_LAYER[part]}.{leaf}"] = value
        else:
            mapped[original] = value  # reported as unexpected
    return mapped
