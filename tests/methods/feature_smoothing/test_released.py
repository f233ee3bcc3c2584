"""Released layouts, checked against plain forward passes over the authors' own tensor names."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing import released
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier

TINY = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2, 2),
    "attention_resolutions": "8,4",
    "num_head_channels": 16,
}
# two blocks a level, and a level that is enlarged without attention
SPARSE = {**TINY, "num_res_blocks": 2, "channel_mult": (1, 1, 2), "attention_resolutions": "4", "num_head_channels": 32}


def source_tensors(config, seed=0):
    """Random tensors under the authors' names for a configuration, from their description of the network."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def add(name, *shape):
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        values = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        tensors[name] = values if len(shape) > 1 else 0.1 * values + (1.0 if name.endswith("weight") else 0.0)

    def res(name, channels_in, channels_out):
        add(f"{name}.in_layers.0.weight", channels_in), add(f"{name}.in_layers.0.bias", channels_in)
        add(f"{name}.in_layers.2.weight", channels_out, channels_in, 3, 3), add(f"{name}.in_layers.2.bias", channels_out)
        add(f"{name}.emb_layers.1.weight", 2 * channels_out, 4 * base), add(f"{name}.emb_layers.1.bias", 2 * channels_out)
        add(f"{name}.out_layers.0.weight", channels_out), add(f"{name}.out_layers.0.bias", channels_out)
        add(f"{name}.out_layers.3.weight", channels_out, channels_out, 3, 3), add(f"{name}.out_layers.3.bias", channels_out)
        if channels_in != channels_out:
            add(f"{name}.skip_connection.weight", channels_out, channels_in, 1, 1), add(f"{name}.skip_connection.bias", channels_out)

    def attention(name, channels):
        add(f"{name}.norm.weight", channels), add(f"{name}.norm.bias", channels)
        add(f"{name}.qkv.weight", 3 * channels, channels, 1), add(f"{name}.qkv.bias", 3 * channels)
        add(f"{name}.proj_out.weight", channels, channels, 1), add(f"{name}.proj_out.bias", channels)

    base, multipliers = config["num_channels"], config["channel_mult"]
    attends = [
        config["image_size"] // 2**level in map(int, config["attention_resolutions"].split(",")) for level in range(len(multipliers))
    ]
    add("time_embed.0.weight", 4 * base, base), add("time_embed.0.bias", 4 * base)
    add("time_embed.2.weight", 4 * base, 4 * base), add("time_embed.2.bias", 4 * base)
    add("input_blocks.0.0.weight", base, 3, 3, 3), add("input_blocks.0.0.bias", base)
    channels, skips, index = base, [base], 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(config["num_res_blocks"]):
            res(f"input_blocks.{index}.0", channels, base * multiplier)
            channels = base * multiplier
            if attends[level]:
                attention(f"input_blocks.{index}.1", channels)
            skips.append(channels)
            index += 1
        if level < len(multipliers) - 1:
            res(f"input_blocks.{index}.0", channels, channels)
            skips.append(channels)
            index += 1
    res("middle_block.0", channels, channels), attention("middle_block.1", channels), res("middle_block.2", channels, channels)
    index = 0
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for block in range(config["num_res_blocks"] + 1):
            res(f"output_blocks.{index}.0", channels + skips.pop(), base * multiplier)
            channels = base * multiplier
            if attends[level]:
                attention(f"output_blocks.{index}.1", channels)
            if level and block == config["num_res_blocks"]:
                res(f"output_blocks.{index}.{2 if attends[level] else 1}", channels, channels)
            index += 1
    add("out.0.weight", channels), add("out.0.bias", channels), add("out.2.weight", 6, channels, 3, 3), add("out.2.bias", 6)
    return tensors


def reference_forward(tensors, config, x, t):
    """The network as the authors describe it, as functions of their tensors."""
    base, multipliers, head = config["num_channels"], config["channel_mult"], config["num_head_channels"]
    get = tensors.__getitem__

    def linear(name, v):
        return F.linear(v, get(f"{name}.weight"), get(f"{name}.bias"))

    def conv(name, v, padding=1):
        return F.conv2d(v, get(f"{name}.weight"), get(f"{name}.bias"), padding=padding)

    def norm(name, v):
        return F.group_norm(v, 32, get(f"{name}.weight"), get(f"{name}.bias"), eps=1e-5)

    def res(name, v, embedding, resample=None):
        hidden = F.silu(norm(f"{name}.in_layers.0", v))
        if resample is not None:
            hidden, v = resample(hidden), resample(v)
        hidden = conv(f"{name}.in_layers.2", hidden)
        scale, shift = linear(f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = conv(f"{name}.out_layers.3", F.silu(norm(f"{name}.out_layers.0", hidden) * (1 + scale) + shift))
        return hidden + (conv(f"{name}.skip_connection", v, 0) if f"{name}.skip_connection.weight" in tensors else v)

    def attention(name, v):
        batch, channels = v.shape[:2]
        flat = v.flatten(2)
        qkv = F.conv1d(
            F.group_norm(flat, 32, get(f"{name}.norm.weight"), get(f"{name}.norm.bias"), 1e-5),
            get(f"{name}.qkv.weight"),
            get(f"{name}.qkv.bias"),
        )
        q, k, value = qkv.reshape(batch * channels // head, 3 * head, -1).chunk(3, dim=1)  # the legacy order: split within each head
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(head), dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weights, value).reshape(batch, channels, -1)
        return (flat + F.conv1d(mixed, get(f"{name}.proj_out.weight"), get(f"{name}.proj_out.bias"))).view(v.shape)

    frequencies = torch.exp(-math.log(10_000) * torch.arange(base // 2) / (base // 2))
    angles = t[:, None].float() * frequencies
    embedding = linear("time_embed.2", F.silu(linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))))
    down, up = (lambda v: F.avg_pool2d(v, 2)), (lambda v: F.interpolate(v, scale_factor=2, mode="nearest"))
    hidden = conv("input_blocks.0.0", x)
    skips, index = [hidden], 1
    for level in range(len(multipliers)):
        for _ in range(config["num_res_blocks"]):
            hidden = res(f"input_blocks.{index}.0", hidden, embedding)
            if f"input_blocks.{index}.1.qkv.weight" in tensors:
                hidden = attention(f"input_blocks.{index}.1", hidden)
            skips.append(hidden)
            index += 1
        if level < len(multipliers) - 1:
            hidden = res(f"input_blocks.{index}.0", hidden, embedding, down)
            skips.append(hidden)
            index += 1
    hidden = res("middle_block.2", attention("middle_block.1", res("middle_block.0", hidden, embedding)), embedding)
    index = 0
    for level in reversed(range(len(multipliers))):
        for block in range(config["num_res_blocks"] + 1):
            hidden = res(f"output_blocks.{index}.0", torch.cat([hidden, skips.pop()], dim=1), embedding)
            inner = 1
            if f"output_blocks.{index}.1.qkv.weight" in tensors:
                hidden, inner = attention(f"output_blocks.{index}.1", hidden), 2
            if level and block == config["num_res_blocks"]:
                hidden = res(f"output_blocks.{index}.{inner}", hidden, embedding, up)
            index += 1
    return conv("out.2", F.silu(norm("out.0", hidden)))


@pytest.mark.parametrize("config", [TINY, SPARSE])
def test_guided_diffusion_layout_gives_the_authors_network(config):
    tensors = source_tensors(config)
    purifier = released.build("guided_diffusion_unet", config, tensors).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([144.0, 3.0])
    with torch.no_grad():
        ours, theirs = purifier.unet(x, t).sample, reference_forward(tensors, config, x, t)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_a_plain_split_of_qkv_would_be_another_network():
    tensors = source_tensors(TINY)
    shuffled = dict(tensors)
    for name, value in tensors.items():
        if ".qkv." in name:  # q, k, v as whole thirds instead of within each head
            shuffled[name] = value.unflatten(0, (-1, 3, TINY["num_head_channels"])).transpose(0, 1).flatten(0, 2)
    x, t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([100.0])
    right, wrong = (released.build("guided_diffusion_unet", TINY, s).eval().unet(x, t).sample for s in (tensors, shuffled))
    assert (right - wrong).abs().max() > 1e-2 * right.abs().max()


def test_the_imagenet_model_has_its_published_size():
    with torch.device("meta"):
        purifier = released._diffusion_purifier(released.IMAGENET_256)
    assert sum(p.numel() for p in purifier.parameters()) == 552_814_086
    names = {key for place in released._guided_diffusion_places(released.IMAGENET_256).values() for key in [place.rpartition(":")[2]]}
    assert all(any(key.startswith(f"unet.{name}.") for name in names) for key in purifier.state_dict())
    attention = [place for place in released._guided_diffusion_places(released.IMAGENET_256).values() if place.startswith("attention")]
    # q, k and v are one tensor in the authors' file: four tensors fewer for each attention block
    assert len(purifier.state_dict()) - 4 * len(attention) == 566


def test_published_attention_blocks_are_where_the_authors_have_them():
    places = released._guided_diffusion_places(released.IMAGENET_256)
    inputs = [int(key.split(".")[1]) for key, place in places.items() if key.startswith("input_blocks") and place.startswith("attention")]
    outputs = [int(key.split(".")[1]) for key, place in places.items() if key.startswith("output_blocks") and place.startswith("attention")]
    assert inputs == [10, 11, 13, 14, 16, 17] and outputs == list(range(9))


CLIP = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "embed_dim": 12}


def open_clip_tensors(seed=0):
    generator, width = torch.Generator().manual_seed(seed), CLIP["width"]
    random = lambda *shape: torch.randn(shape, generator=generator) * 0.2
    tensors = {
        "class_embedding": random(width),
        "positional_embedding": random(5, width),
        "conv1.weight": random(width, 3, 8, 8),
        "proj": random(width, CLIP["embed_dim"]),
    }
    for name in ("ln_pre", "ln_post"):
        tensors |= {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}
    for i in range(CLIP["layers"]):
        prefix = f"transformer.resblocks.{i}."
        shapes = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,), "attn.out_proj.weight": (width, width)}
        shapes |= {"attn.out_proj.bias": (width,), "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,)}
        shapes |= {"mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,)}
        tensors |= {prefix + key: random(*shape) for key, shape in shapes.items()}
        for name in ("ln_1", "ln_2"):
            tensors |= {f"{prefix}{name}.weight": 1 + random(width), f"{prefix}{name}.bias": random(width)}
    return tensors


def open_clip_forward(s, pixels):
    width, heads, states = CLIP["width"], CLIP["heads"], []
    norm = lambda name, v: F.layer_norm(v, (width,), s[f"{name}.weight"], s[f"{name}.bias"])
    patches = F.conv2d(pixels, s["conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([s["class_embedding"].expand(len(pixels), 1, -1), patches], dim=1) + s["positional_embedding"]
    x = norm("ln_pre", x)
    for i in range(CLIP["layers"]):
        states.append(x)
        p = f"transformer.resblocks.{i}."
        qkv = F.linear(norm(p + "ln_1", x), s[p + "attn.in_proj_weight"], s[p + "attn.in_proj_bias"])
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // heads), dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, s[p + "attn.out_proj.weight"], s[p + "attn.out_proj.bias"])
        hidden = F.linear(norm(p + "ln_2", x), s[p + "mlp.c_fc.weight"], s[p + "mlp.c_fc.bias"])
        x = x + F.linear(hidden * torch.sigmoid(1.702 * hidden), s[p + "mlp.c_proj.weight"], s[p + "mlp.c_proj.bias"])
    return norm("ln_post", x[:, 0]) @ s["proj"], states


@pytest.mark.parametrize("prefix", ["", "visual.", "module.model.visual."])
def test_robust_clip_layout_gives_the_authors_tower(prefix):
    tensors = open_clip_tensors()
    tower = released.build("fare_clip", CLIP, {prefix + key: value for key, value in tensors.items()}).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = tower(pixel_values=pixels, output_hidden_states=True)
    embedding, states = open_clip_forward(tensors, pixels)
    torch.testing.assert_close(ours.image_embeds, embedding, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.hidden_states[-2], states[-1], rtol=1e-5, atol=1e-5)


def test_robust_clip_at_real_size_builds_from_296_meta_tensors():
    width, meta = 1024, lambda *shape: torch.empty(shape, device="meta")
    tensors = {"class_embedding": meta(width), "positional_embedding": meta(257, width), "proj": meta(width, 768)}
    tensors["conv1.weight"] = meta(width, 3, 14, 14)
    norms = ["ln_pre", "ln_post", *(f"transformer.resblocks.{i}.{name}" for i in range(24) for name in ("ln_1", "ln_2"))]
    tensors |= {f"{name}.{leaf}": meta(width) for name in norms for leaf in ("weight", "bias")}
    for i in range(24):
        block = f"transformer.resblocks.{i}"
        tensors |= {f"{block}.attn.in_proj_weight": meta(3 * width, width), f"{block}.attn.in_proj_bias": meta(3 * width)}
        for name, rows, columns in (("attn.out_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4)):
            tensors |= {f"{block}.{name}.weight": meta(rows * width, columns * width), f"{block}.{name}.bias": meta(rows * width)}
    assert len(tensors) == 296 and sum(value.numel() for value in tensors.values()) == 303_966_208
    tower = released.build("fare_clip", {}, {f"visual.{key}": value for key, value in tensors.items()})
    assert all(value.is_meta for value in tower.parameters())
    assert sum(value.numel() for value in tower.parameters()) == 303_966_208


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("conv1.weight"), "missing vision_model.embeddings.patch_embedding.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update(proj=torch.zeros(3, 3)), r"visual_projection.weight has shape \(3, 3\) instead of"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(spoil, message):
    tensors = open_clip_tensors()
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        released.build("tecoa_clip", CLIP, tensors)


def test_our_parts_go_through_build_and_folders_unchanged(tmp_path):
    for kind, module, config in (
        ("purifier", UNetPurifier(widths=(8, 16)), {"widths": (8, 16)}),
        ("mapper", SmoothnessMapper(16), {"dim": 16}),
    ):
        built = released.build(kind, config, module.state_dict())
        module.save_pretrained(tmp_path / kind)
        for other in (built, released.load(tmp_path / kind, component=kind), released.load(tmp_path, component=kind)):
            assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_safetensors_file_in_the_authors_layout_loads(tmp_path):
    save_file(source_tensors(TINY), tmp_path / "uncond.safetensors")
    purifier = released.load(tmp_path / "uncond.safetensors", component="purifier", **TINY)
    purified = purifier(torch.rand(1, 3, 16, 16), torch.tensor([0.25]))
    assert purified.min() >= 0 and purified.max() <= 1 and not purifier.training


def test_wrong_files_and_settings_are_refused_with_a_reason(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "torn.safetensors").write_bytes(b"abc")
    (tmp_path / "empty").mkdir()
    SmoothnessMapper(16).save_pretrained(tmp_path / "mapper")
    for call, message in (
        (lambda: released.load(tmp_path / "model.pt"), "is a pickle, which can run any code"),
        (lambda: released.load(tmp_path / "torn.safetensors"), "is no safetensors file, or is damaged"),
        (lambda: released.load(tmp_path / "nothing"), "There is no file or folder"),
        (lambda: released.load(tmp_path / "empty"), "has no config.json"),
        (lambda: released.load(tmp_path / "mapper", component="purifier"), "holds a SmoothnessMapper; expected UNetPurifier"),
        (lambda: released.build("guided_diffusion_unet", {"colour": 1}, {}), "Unknown configuration keys colour"),
        (lambda: released.build("guided_diffusion_unet", {"class_cond": True}, {}), "class_cond=False"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            call()
