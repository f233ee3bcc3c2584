"""Released checkpoints: guided diffusion (purifier), FARE and TeCoA (robust CLIP towers), and our own purifiers and mappers."""

import inspect
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visiongraft.methods.feature_smoothing.bundle import read_part
from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier

Component = Literal["guided_diffusion_unet", "fare_clip", "tecoa_clip", "purifier", "mapper"]
COMPONENTS: tuple[Component, ...] = ("guided_diffusion_unet", "fare_clip", "tecoa_clip", "purifier", "mapper")
HUB = {f"chs20/{name}{eps}-clip": f"{name}_clip" for name in ("fare", "tecoa") for eps in (2, 4)}
_OURS = {"UNetPurifier": UNetPurifier, "DiffusionPurifier": DiffusionPurifier, "SmoothnessMapper": SmoothnessMapper}
_IN_FOLDERS = {
    "purifier": ("UNetPurifier", "DiffusionPurifier"),
    "guided_diffusion_unet": ("DiffusionPurifier",),
    "mapper": ("SmoothnessMapper",),
}
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
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
}
"""Configuration keys of ``256x256_diffusion_uncond`` in the authors' scripts."""

VIT_L_14 = {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16, "head_width": 64, "embed_dim": 768}
"""Configuration of the FARE and TeCoA towers (open_clip's keys for ViT-L-14, flattened)."""


def load(path_or_hub_id: str | Path, component: Component | None = None, **config: Any) -> nn.Module:
    """A ready module from a safetensors file, a folder that we saved, or a hub id.

    Args:
        path_or_hub_id: folder of ``save_pretrained`` or ``bundle.save``; a ``.safetensors`` file in the authors' layout; or one of
            ``HUB`` (its layout is read as published; it cannot be exercised without a network).
        component: what it holds. A folder says so itself; a file is a guided-diffusion U-Net for ``purifier``.
        config: of a file, authors' configuration keys that differ from the released model's.

    Returns:
        The module in eval mode.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: pickled or damaged weights, keys that do not fit, or a folder with another component.
    """
    name = str(path_or_hub_id)
    if name in HUB:
        return build(HUB[name], config, _read(_download(name))).eval()
    path = Path(path_or_hub_id)
    if path.is_dir():
        if config:
            raise ValueError(f"{path} has its own configuration; {', '.join(config)} cannot be given beside it.")
        return _load_folder(path, component)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}; give a folder, a .safetensors file, or one of {', '.join(HUB)}.")
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is loaded, and is refused. Convert it once and give the new file:\n"
            "    import torch, safetensors.torch\n"
            f"    tensors = torch.load({name!r}, weights_only=True, map_location='cpu')\n"
            "    safetensors.torch.save_file({key: t.contiguous() for key, t in tensors.items()}, 'converted.safetensors')"
        )
    return build("guided_diffusion_unet" if component in (None, "purifier") else component, config, _read(path)).eval()


def _load_folder(folder: Path, component: Component | None) -> nn.Module:
    bundled = read_part(folder, component)
    if bundled is not None:
        return build(*bundled[:2], _read(bundled[2])).eval()
    inner = folder / component if component and (folder / component / "config.json").is_file() else folder
    if not (inner / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give the folder that save_pretrained wrote.")
    try:
        name = json.loads((inner / "config.json").read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{inner / 'config.json'} is not the JSON that save_pretrained writes ({error}).") from error
    expected = tuple(_OURS) if component is None else _IN_FOLDERS.get(component, ())
    if not expected:
        raise ValueError(f"A {component} is read from a .safetensors file or one of {', '.join(HUB)}; got the folder {folder}.")
    if name not in expected:
        raise ValueError(f"{inner} holds a {name}; expected {' or '.join(expected)}.")
    if not list(inner.glob("*.safetensors")):
        raise FileNotFoundError(f"{inner} has no *.safetensors weights (pickles are refused).")
    try:
        module, report = _OURS[name].from_pretrained(inner, use_safetensors=True, output_loading_info=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"The weights in {inner} are damaged or do not fit their config: {str(error).splitlines()[0]}") from error
    # Diffusers fills what is missing with random weights and a warning
    _require_none([f"{kind} {key}" for kind in ("missing", "unexpected") for key in report[f"{kind}_keys"]], module)
    return module.eval()


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.safetensors"]))
    except (OSError, HfHubHTTPError) as error:
        raise FileNotFoundError(f"{hub_id} is not in the local cache and cannot be downloaded: {str(error).splitlines()[0]}") from error
    files = sorted(folder.glob("*.safetensors"), key=lambda file: (not file.name.startswith("open_clip"), file.name))
    if not files:
        raise ValueError(f"{hub_id} has no safetensors weights (pickles are refused); convert them and give the file.")
    return files[0]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged ({error}).") from error


def build(component: str, config: dict[str, Any], state_dict: dict[str, Tensor]) -> nn.Module:
    """Our module from the authors' configuration keys and tensor names, loaded strictly.

    Args:
        component: one of ``COMPONENTS``.
        config: authors' keys; those left out are the released model's (``IMAGENET_256``, ``VIT_L_14``; open_clip's
            nested ``vision_cfg`` is accepted too). For ``purifier`` and ``mapper`` our own constructor arguments or ``config.json``.
        state_dict: authors' tensor names. A CLIP tower's may have ``module.`` and ``visual.`` in front, and then a text tower
            beside them, which is left out. Meta tensors build a module without memory.

    Raises:
        ValueError: an unknown component or configuration key; missing, unexpected or misshaped tensors, each named.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(COMPONENTS)}; got {component!r}.")
    on_meta = any(tensor.is_meta for tensor in state_dict.values())
    with torch.device("meta") if on_meta else nullcontext():
        if component == "guided_diffusion_unet":
            settings = _settings(IMAGENET_256, config, _NO_EFFECT)
            mapped = _guided_diffusion_names(settings, state_dict)
            return _filled(_diffusion_purifier(settings), {f"unet.{key}": value for key, value in mapped.items()})
        if component in ("fare_clip", "tecoa_clip"):
            return _filled(_clip_tower(_open_clip_settings(config)), _open_clip_names(_vision_tensors(state_dict)))
        return _filled(_ours(component, config), dict(state_dict))


def _ours(component: str, config: dict[str, Any]) -> nn.Module:
    name = config.get("_class_name", _IN_FOLDERS[component][0])
    if name not in _IN_FOLDERS[component]:
        raise ValueError(f"A {component} is a {' or '.join(_IN_FOLDERS[component])}; got {name}.")
    accepted = dict.fromkeys(inspect.signature(_OURS[name]).parameters)
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    _settings(accepted, given)
    if component == "mapper" and "dim" not in given:
        raise ValueError("A mapper's configuration needs dim, the width of the encoder's tokens.")
    return _OURS[name](**given)


def _settings(released: dict[str, Any], config: dict[str, Any], ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    unknown = sorted(set(config) - set(released) - set(ignored))
    if unknown:
        raise ValueError(f"Unknown configuration keys {', '.join(unknown)}; accepted: {', '.join([*released, *ignored])}.")
    return {**released, **{key: value for key, value in config.items() if key not in ignored}}


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
    _require_none(problems, module)
    module.load_state_dict(weights, strict=True, assign=any(value.is_meta for value in weights.values()))
    return module


def _require_none(problems: list[str], module: nn.Module) -> None:
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"The checkpoint does not fit {type(module).__name__}: {'; '.join(problems[:4])}{more}.")


# --- guided diffusion -------------------------------------------------------------------------------------------------

# without effect on what the weights mean, at 1,000 steps and with the heads' width given
_NO_EFFECT = ("num_heads", "num_heads_upsample", "dropout", "use_checkpoint", "use_fp16", "timestep_respacing", "use_kl")
_NO_EFFECT += ("rescale_timesteps", "rescale_learned_sigmas")
_REQUIRED = ("learn_sigma", "class_cond", "use_scale_shift_norm", "resblock_updown", "diffusion_steps", "noise_schedule", "predict_xstart")
_DEFAULT_MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _multipliers(settings: dict[str, Any]) -> tuple[int, ...]:
    value, size = settings["channel_mult"], settings["image_size"]
    if value == "":
        if size not in _DEFAULT_MULTIPLIERS:
            raise ValueError(f"image_size {size} has no default channel_mult; give one such as '1,2,4'.")
        return _DEFAULT_MULTIPLIERS[size]
    return tuple(int(v) for v in value.split(",")) if isinstance(value, str) else tuple(value)


def _attention_levels(settings: dict[str, Any]) -> tuple[int, ...]:
    """Levels with attention; the authors name resolutions (32, 16, 8)."""
    value = settings["attention_resolutions"]
    resolutions = [int(v) for v in value.split(",")] if isinstance(value, str) else list(value)
    return tuple(level for level in range(len(_multipliers(settings))) if settings["image_size"] // 2**level in resolutions)


def _diffusion_purifier(settings: dict[str, Any]) -> DiffusionPurifier:
    for key in _REQUIRED:
        if settings[key] != IMAGENET_256[key]:
            raise ValueError(f"Only guided-diffusion models with {key}={IMAGENET_256[key]} can be a purifier; got {settings[key]!r}.")
    if settings["num_head_channels"] < 1:
        raise ValueError(f"num_head_channels must be the heads' width, the same at all levels; got {settings['num_head_channels']}.")
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
    places, mapped = _guided_diffusion_places(settings), {}
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
            mapped.update(_attention_tensors(target, rest, value, settings))
        else:
            mapped[f"{target}.{rest}"] = value
    return mapped


def _attention_tensors(target: str, rest: str, value: Tensor, settings: dict[str, Any]) -> dict[str, Tensor]:
    """``norm``, ``qkv`` (1x1 convolution: q, k, v within each head, in the newer order as thirds) and ``proj_out`` as linear layers."""
    head = settings["num_head_channels"]
    part, _, leaf = rest.rpartition(".")
    if part == "norm":
        return {f"{target}.group_norm.{leaf}": value}
    if part == "proj_out":
        return {f"{target}.to_out.0.{leaf}": value.flatten(1) if leaf == "weight" else value}
    if part == "qkv" and value.shape[0] % (3 * head) == 0:
        rows = value.flatten(1) if leaf == "weight" else value
        if settings["use_new_attention_order"]:
            return {f"{target}.to_{name}.{leaf}": third for name, third in zip("qkv", rows.chunk(3), strict=True)}
        per_head = rows.unflatten(0, (-1, 3, head))
        return {f"{target}.to_{name}.{leaf}": per_head[:, i].flatten(0, 1) for i, name in enumerate("qkv")}
    return {f"{target}.{rest}": value}


# --- open_clip towers -------------------------------------------------------------------------------------------------

_TEXT_TOWER = ("transformer.", "text.", "token_embedding.", "ln_final.", "positional_embedding")
_TEXT_TOWER += ("text_projection", "logit_scale", "attn_mask")


def _open_clip_settings(config: dict[str, Any]) -> dict[str, Any]:
    flat = {**config, **config.get("vision_cfg", {})}
    if flat.get("quick_gelu", True) is not True:
        raise ValueError("FARE and TeCoA towers have quick_gelu=True, as OpenAI's CLIP; got another activation.")
    settings = _settings(VIT_L_14, flat, ("vision_cfg", "text_cfg", "quick_gelu"))
    return settings if "heads" in flat else {**settings, "heads": settings["width"] // settings["head_width"]}


def _vision_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower's tensors; in a whole CLIP the text tower, whose names are the same but for the prefix, is left out."""
    plain = {key.removeprefix("module.").removeprefix("model."): value for key, value in state.items()}
    if not any(key.startswith("visual.") for key in plain):
        return plain
    kept = {key: value for key, value in plain.items() if key.startswith("visual.") or not key.startswith(_TEXT_TOWER)}
    return {key.removeprefix("visual."): value for key, value in kept.items()}


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


def _open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tower, mapped = "vision_model.", {}
    whole = {
        "class_embedding": f"{tower}embeddings.class_embedding",
        "positional_embedding": f"{tower}embeddings.position_embedding.weight",
        "conv1.weight": f"{tower}embeddings.patch_embedding.weight",
    }
    for key, value in state.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", key)
        if key in whole:
            mapped[whole[key]] = value
        elif key == "proj":
            mapped["visual_projection.weight"] = value.t().contiguous()
        elif key.startswith(("ln_pre.", "ln_post.")):
            name, leaf = key.split(".")
            mapped[f"{tower}{'pre_layrnorm' if name == 'ln_pre' else 'post_layernorm'}.{leaf}"] = value
        elif layer and layer[2] in ("attn.in_proj_weight", "attn.in_proj_bias") and len(value) % 3 == 0:
            leaf = layer[2].removeprefix("attn.in_proj_")
            for name, third in zip("qkv", value.chunk(3), strict=True):
                mapped[f"{tower}encoder.layers.{layer[1]}.self_attn.{name}_proj.{leaf}"] = third.contiguous()
        elif layer and layer[2].rpartition(".")[0] in _CLIP_LAYER:
            part, _, leaf = layer[2].rpartition(".")
            mapped[f"{tower}encoder.layers.{layer[1]}.{_CLIP_LAYER[part]}.{leaf}"] = value
        else:
            mapped[key] = value  # reported as unexpected
    return mapped
