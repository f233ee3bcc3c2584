"""What the loaders accept and refuse beyond the layouts: the scripts' own keys, whole CLIPs, incomplete folders, pickles, hub ids."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from visiongraft.methods.feature_smoothing import released
from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier

TINY = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_head_channels": 16,
}
SCRIPT_FLAGS = {
    **TINY,
    "class_cond": False,
    "diffusion_steps": 1000,
    "dropout": 0.0,
    "learn_sigma": True,
    "noise_schedule": "linear",
    "num_heads": 4,
    "num_heads_upsample": -1,
    "predict_xstart": False,
    "rescale_learned_sigmas": False,
    "rescale_timesteps": False,
    "resblock_updown": True,
    "timestep_respacing": "250",
    "use_checkpoint": False,
    "use_fp16": True,
    "use_kl": False,
    "use_new_attention_order": False,
    "use_scale_shift_norm": True,
}
CLIP = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "embed_dim": 12}
_INVERSE = {target: source for source, target in released._RES_BLOCK.items()}


def _guided_diffusion_tensors(config: dict, meta: bool = False) -> dict[str, torch.Tensor]:
    """The authors' tensors, made from our module by walking the key map backwards."""
    settings = released._settings(released.IMAGENET_256, config, released._NO_EFFECT)
    with torch.device("meta" if meta else "cpu"):
        torch.manual_seed(0)
        ours = released._diffusion_purifier(settings).unet.state_dict()
    theirs = {}
    for source, place in released._guided_diffusion_places(settings).items():
        kind, _, target = place.rpartition(":")
        for key in [key for key in ours if key.startswith(f"{target}.")]:
            part, _, leaf = key.removeprefix(f"{target}.").rpartition(".")
            if kind == "res":
                theirs[f"{source}.{_INVERSE[part]}.{leaf}"] = ours[key]
            elif part == "to_q":
                heads = [ours[key.replace("to_q", f"to_{name}")].unflatten(0, (-1, settings["num_head_channels"])) for name in "qkv"]
                qkv = torch.stack(heads, 1).flatten(0, 2)
                theirs[f"{source}.qkv.{leaf}"] = qkv.unsqueeze(-1) if leaf == "weight" else qkv
            elif part == "to_out.0":
                theirs[f"{source}.proj_out.{leaf}"] = ours[key].unsqueeze(-1) if leaf == "weight" else ours[key]
            elif part == "group_norm":
                theirs[f"{source}.norm.{leaf}"] = ours[key]
            elif part not in ("to_k", "to_v"):
                theirs[f"{source}.{leaf}"] = ours[key]
    return theirs


def _clip_tensors(width: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (5, width),
        "conv1.weight": (width, 3, 8, 8),
        "proj": (width, 12),
        "transformer.resblocks.0.attn.in_proj_weight": (3 * width, width),
        "transformer.resblocks.0.attn.in_proj_bias": (3 * width,),
        "transformer.resblocks.0.attn.out_proj.weight": (width, width),
        "transformer.resblocks.0.attn.out_proj.bias": (width,),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
        "transformer.resblocks.0.mlp.c_fc.bias": (4 * width,),
        "transformer.resblocks.0.mlp.c_proj.weight": (width, 4 * width),
        "transformer.resblocks.0.mlp.c_proj.bias": (width,),
    }
    for norm in ("ln_pre", "ln_post", "transformer.resblocks.0.ln_1", "transformer.resblocks.0.ln_2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def _equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- guided diffusion -------------------------------------------------------------------------------------------------


def test_the_scripts_flags_are_accepted_as_they_are():
    tensors = _guided_diffusion_tensors(TINY)
    assert _equal(released.build("guided_diffusion_unet", SCRIPT_FLAGS, tensors), released.build("guided_diffusion_unet", TINY, tensors))


def test_an_empty_channel_mult_is_the_scripts_default_for_the_size():
    assert released._multipliers({"channel_mult": "", "image_size": 64}) == (1, 2, 3, 4)
    assert released._multipliers({"channel_mult": "", "image_size": 256}) == released.IMAGENET_256["channel_mult"]
    with pytest.raises(ValueError, match=r"image_size 96 has no default channel_mult; give one such as '1,2,4'"):
        released.build("guided_diffusion_unet", {"channel_mult": "", "image_size": 96}, {})


def test_both_attention_orders_of_one_network_build_the_same_module():
    legacy = _guided_diffusion_tensors(TINY)
    newer = {
        key: value.unflatten(0, (-1, 3, 16)).transpose(0, 1).flatten(0, 2) if ".qkv." in key else value for key, value in legacy.items()
    }
    assert any(not torch.equal(legacy[key], newer[key]) for key in legacy)
    expected = released.build("guided_diffusion_unet", TINY, legacy)
    assert _equal(released.build("guided_diffusion_unet", {**TINY, "use_new_attention_order": True}, newer), expected)
    assert not _equal(released.build("guided_diffusion_unet", TINY, newer), expected)


def test_the_released_size_builds_from_566_meta_tensors_without_memory():
    tensors = _guided_diffusion_tensors({}, meta=True)
    assert len(tensors) == 566 and sum(value.numel() for value in tensors.values()) == 552_814_086
    assert tensors["input_blocks.10.1.qkv.weight"].shape == (3 * 512, 512, 1) and "input_blocks.9.1.qkv.weight" not in tensors
    assert tensors["time_embed.0.weight"].shape == (1024, 256) and tensors["out.2.weight"].shape == (6, 256, 3, 3)
    assert tensors["output_blocks.2.2.in_layers.2.weight"].shape == (1024, 1024, 3, 3)  # upsampling after attention
    assert tensors["output_blocks.11.1.in_layers.2.weight"].shape == (512, 512, 3, 3)  # and where there is none
    built = released.build("guided_diffusion_unet", {}, tensors)
    assert all(value.is_meta for value in built.state_dict().values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"noise_schedule": "cosine"}, "noise_schedule=linear can be a purifier; got 'cosine'"),
        ({"diffusion_steps": 4000}, "diffusion_steps=1000 can be a purifier; got 4000"),
        ({"predict_xstart": True}, "predict_xstart=False"),
        ({"learn_sigma": False}, "learn_sigma=True"),
        ({"num_head_channels": -1}, "num_head_channels must be the heads' width, the same at all levels; got -1"),
    ],
)
def test_models_that_cannot_be_a_purifier_are_refused(config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        released.build("guided_diffusion_unet", {**TINY, **config}, {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("out.2.weight"), "missing unet.conv_out.weight"),
        (lambda t: t.update({"label_emb.weight": torch.zeros(1)}), "unexpected unet.label_emb.weight"),
        (lambda t: t.update({"middle_block.1.qkv.weight": torch.zeros(50, 64, 1)}), "missing unet.mid_block.attentions.0.to_q.weight"),
        (lambda t: t.update({"out.2.bias": torch.zeros(3)}), r"unet.conv_out.bias has shape \(3,\) instead of \(6,\)"),
    ],
)
def test_a_u_net_that_does_not_fit_is_refused_by_name(spoil, message: str):
    tensors = _guided_diffusion_tensors(TINY)
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        released.build("guided_diffusion_unet", TINY, tensors)


# --- robust CLIP ------------------------------------------------------------------------------------------------------


def test_the_text_tower_of_a_whole_clip_does_not_replace_the_vision_tower():
    vision = _clip_tensors()
    text = {
        key: value for key, value in _clip_tensors(seed=1).items() if key.startswith("transformer.") or key == "positional_embedding"
    }  # the same names and shapes
    text |= {"token_embedding.weight": torch.zeros(7, 32), "ln_final.weight": torch.zeros(32), "logit_scale": torch.zeros(())}
    text |= {"text_projection": torch.zeros(32, 12)}
    visual = {f"visual.{key}": value for key, value in vision.items()}
    expected = released.build("fare_clip", CLIP, vision)
    for whole in ({**visual, **text}, {**text, **visual}, {f"module.{key}": value for key, value in {**visual, **text}.items()}):
        assert _equal(released.build("fare_clip", CLIP, whole), expected)
    with pytest.raises(ValueError, match="unexpected adapter"):
        released.build("fare_clip", CLIP, {**visual, **text, "adapter.weight": torch.zeros(1)})


def test_open_clips_nested_configuration_is_accepted():
    nested = {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77},
    }
    tensors = _clip_tensors()
    built = released.build("tecoa_clip", nested, tensors)
    assert built.config.num_attention_heads == 2 and built.config.hidden_act == "quick_gelu"
    assert _equal(built, released.build("tecoa_clip", CLIP, tensors))
    with pytest.raises(ValueError, match="quick_gelu=True"):
        released.build("tecoa_clip", {**nested, "quick_gelu": False}, tensors)


def test_released_towers_have_sixteen_heads():
    assert released._open_clip_settings({})["heads"] == released._open_clip_settings({"width": 1024})["heads"] == 16


def test_projection_rows_that_are_no_thirds_are_refused_by_name():
    tensors = _clip_tensors() | {"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"missing .*self_attn\.[qkv]_proj\.bias"):
        released.build("fare_clip", CLIP, tensors)


def test_meta_tensors_build_a_meta_tower():
    built = released.build("fare_clip", CLIP, {key: value.to("meta") for key, value in _clip_tensors().items()})
    # the position ids are no weights: they show where the tower was made
    assert list(built.buffers()) and all(value.is_meta for value in [*built.parameters(), *built.buffers()])


# --- our own folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "component"),
    [
        (UNetPurifier(widths=(8, 16)), "purifier"),
        (SmoothnessMapper(16), "mapper"),
        (
            DiffusionPurifier(16, block_out_channels=(32, 32), layers_per_block=1, attention_levels=(), attention_head_dim=16),
            "guided_diffusion_unet",
        ),
    ],
)
def test_a_folder_is_loaded_whole_or_refused(tmp_path, module, component):
    module.save_pretrained(tmp_path)
    assert _equal(released.load(tmp_path), module) and _equal(released.load(str(tmp_path), component), module)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    kept = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not fit {type(module).__name__}: missing {name}"):
        released.load(tmp_path)
    save_file({**tensors, name: kept, "extra": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="unexpected extra"):
        released.load(tmp_path)
    save_file({**tensors, name: torch.zeros(1, 2, 3)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="damaged or do not fit their config"):
        released.load(tmp_path)


def test_config_json_is_accepted_by_build(tmp_path):
    mapper = SmoothnessMapper(16, gate=True)
    mapper.save_pretrained(tmp_path)
    built = released.build("mapper", json.loads((tmp_path / "config.json").read_text()), mapper.state_dict())
    assert _equal(built, mapper) and built.config.gate is True


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: released.build("purifier", {"colour": 1}, {}), "Unknown configuration keys colour; accepted: widths, "),
        (lambda: released.build("mapper", {}, {}), "needs dim, the width of the encoder's tokens"),
        (lambda: released.build("mapper", {"_class_name": "UNetPurifier"}, {}), "A mapper is a SmoothnessMapper; got UNetPurifier"),
        (lambda: released.build("sam", {}, {}), "component must be one of guided_diffusion_unet, .*; got 'sam'"),
    ],
)
def test_wrong_configurations_are_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_folder_is_not_given_a_second_configuration_or_another_component(tmp_path):
    UNetPurifier(widths=(8,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has its own configuration; widths cannot be given beside it"):
        released.load(tmp_path, widths=(8,))
    with pytest.raises(ValueError, match="holds a UNetPurifier; expected DiffusionPurifier"):
        released.load(tmp_path, "guided_diffusion_unet")
    with pytest.raises(ValueError, match=r"A fare_clip is read from a \.safetensors file or one of chs20/fare2-clip"):
        released.load(tmp_path, "fare_clip")


def test_damaged_folders_are_refused(tmp_path):
    UNetPurifier(widths=(8,)).save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors weights \(pickles are refused\)"):
        released.load(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not the JSON that save_pretrained writes"):
            released.load(tmp_path)


# --- files and hub ids ------------------------------------------------------------------------------------------------


def test_a_missing_pickle_is_missing_and_a_present_one_is_refused_with_a_way_out_that_works(tmp_path):
    pickled = tmp_path / "tower.pt"
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        released.load(pickled, "fare_clip")
    torch.save(_clip_tensors(), pickled)
    with pytest.raises(ValueError, match="is a pickle, which can run any code when it is loaded, and is refused") as refusal:
        released.load(pickled, "fare_clip")
    hint = "\n".join(line.strip() for line in str(refusal.value).splitlines()[1:])
    assert len(hint.splitlines()) == 3
    exec(hint.replace("'converted.safetensors'", repr(str(tmp_path / "converted.safetensors"))), {})
    loaded = released.load(tmp_path / "converted.safetensors", "fare_clip", **CLIP)
    assert _equal(loaded, released.build("fare_clip", CLIP, _clip_tensors())) and not loaded.training


def test_hub_ids_read_the_cached_open_clip_file(tmp_path, monkeypatch):
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({f"visual.{key}": value for key, value in _clip_tensors().items()}, tmp_path / "open_clip_model.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert _equal(released.load("chs20/tecoa4-clip", **CLIP), released.build("tecoa_clip", CLIP, _clip_tensors()))


def test_hub_ids_that_cannot_be_downloaded_are_named(tmp_path, monkeypatch):
    def offline(name, allow_patterns):
        raise OSError("no network\ndetails")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"chs20/fare2-clip is not in the local cache and cannot be downloaded: no network$"):
        released.load("chs20/fare2-clip")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    with pytest.raises(ValueError, match="chs20/fare4-clip has no safetensors weights"):
        released.load("chs20/fare4-clip")
