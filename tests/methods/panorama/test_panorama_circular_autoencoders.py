"""Circular encoding on tiny random instances of Diffusers' own autoencoders: strides, frames, constants, what is left of the border."""

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import models

from visiongraft.methods.panorama.circular import CircularPadding, decode_latents, encode_latents
from visiongraft.methods.panorama.latents import (
    check_frames,
    denormalise_latents,
    encodes_videos,
    normalise_latents,
    spatial_stride,
    temporal_factor,
)

pytestmark = pytest.mark.filterwarnings("ignore:W = 2H .* without circular padding")  # meant here
THREE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
KL: dict[str, Any] = THREE | {"block_out_channels": (8, 8, 16), "sample_size": 32}
WAN: dict[str, Any] = {"base_dim": 4, "z_dim": 16, "dim_mult": [1] * 4, "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
EIGHT: dict[str, Any] = {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1}
LTX: dict[str, Any] = {"latent_channels": 8, "layers_per_block": (1,) * 5, "patch_size": 1}
DC: dict[str, Any] = {
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 8),
    "encoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
}
# class, configuration, spatial stride, temporal factor (None: images)
CASES: dict[str, Any] = {
    "kl": ("AutoencoderKL", KL | {"shift_factor": 0.1159, "scaling_factor": 0.3611}, 4, None),
    "asymmetric": (
        "AsymmetricAutoencoderKL",
        THREE | {"down_block_out_channels": (8, 8, 16), "up_block_out_channels": (8, 8, 16)},
        4,
        None,
    ),
    "tiny": (
        "AutoencoderTiny",
        {f"{side}_block_out_channels": (8,) * 4 for side in ("encoder", "decoder")}
        | {f"num_{side}_blocks": (1,) * 4 for side in ("encoder", "decoder")},
        8,
        None,
    ),
    "dc": (
        "AutoencoderDC",
        DC
        | {name.replace("encoder", "decoder"): value for name, value in DC.items()}
        | {"latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.41407},
        2,
        None,
    ),
    "flux2": ("AutoencoderKLFlux2", KL, 4, None),
    "hunyuan_image": (
        "AutoencoderKLHunyuanImage",
        {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (32,) * 3}
        | {"layers_per_block": 1, "spatial_compression_ratio": 4, "sample_size": 64, "scaling_factor": 0.75},
        4,
        None,
    ),
    "vq": ("VQModel", KL, 4, None),
    "svd": ("AutoencoderKLTemporalDecoder", {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32)}, 2, None),
    "wan": ("AutoencoderKLWan", WAN, 8, 4),
    "wan_2_2": (
        "AutoencoderKLWan",
        WAN | {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16},
        16,
        4,
    ),
    "qwen": ("AutoencoderKLQwenImage", WAN, 8, 4),
    "cogvideox": ("AutoencoderKLCogVideoX", EIGHT | {"norm_num_groups": 2, "sample_height": 64, "sample_width": 64}, 8, 4),
    "ltx": (
        "AutoencoderKLLTXVideo",
        LTX | {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4} | {"decoder_layers_per_block": (1,) * 5},
        8,
        8,
    ),
    "hunyuan_video": ("AutoencoderKLHunyuanVideo", EIGHT | {"norm_num_groups": 4}, 8, 4),
    "hunyuan_video_1_5": ("AutoencoderKLHunyuanVideo15", EIGHT | {"block_out_channels": (8,) * 5}, 16, 4),
    "mochi": (
        "AutoencoderKLMochi",
        {"in_channels": 15, "latent_channels": 12, "layers_per_block": (1,) * 5}
        | {f"{side}_block_out_channels": (32,) * 4 for side in ("encoder", "decoder")},
        8,
        6,
    ),
    "magvit": ("AutoencoderKLMagvit", EIGHT | {"norm_num_groups": 4}, 8, 4),
    "cosmos": (
        "AutoencoderKLCosmos",
        {"latent_channels": 4, "encoder_block_out_channels": (8,) * 4, "decode_block_out_channels": (8,) * 4}
        | {"attention_resolutions": (8,), "resolution": 64, "num_layers": 1, "latents_mean": None, "latents_std": None},
        8,
        8,
    ),
}
HEAVY = ("mochi", "magvit", "hunyuan_video_1_5", "cosmos")
PADDING = CircularPadding(min_pad=64)


@cache
def autoencoder(name: str) -> Any:
    kind, config, _, _ = CASES[name]
    torch.manual_seed(0)
    return getattr(models, kind)(**config).eval().requires_grad_(False)


def panorama(name: str) -> torch.Tensor:
    _, _, stride, factor = CASES[name]
    height = max(32, 4 * stride)
    frames = () if factor is None else (factor + 1,) if name != "cogvideox" else (9,)
    return torch.rand(1, 3, *frames, height, 2 * height, generator=torch.Generator().manual_seed(1)) * 2 - 1


def border_trace(function, values: torch.Tensor, columns: int, turn: int) -> float:
    """How much a border half a turn away changes the columns next to it and to the present border, in standard deviations."""
    here = function(values)
    scale = here.shape[-1] / values.shape[-1]
    turned = function(values.roll(turn, -1)).roll(-round(turn * scale), -1)
    error = (turned - here).abs().movedim(-1, 0).flatten(1).mean(1)
    middle = len(error) // 2
    near = torch.cat([error[:columns], error[-columns:], error[middle - columns : middle + columns]])
    return float(near.mean() / here.std())


@pytest.mark.parametrize("name", CASES)
def test_strides_and_layouts_are_those_of_the_class(name):
    _, _, stride, factor = CASES[name]
    vae = autoencoder(name)
    assert spatial_stride(vae) == stride and encodes_videos(vae) == (factor is not None)
    assert factor is None or temporal_factor(vae) == factor


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in CASES])
def test_circular_latents_and_pixels_keep_a_small_part_of_the_border_trace_of_plain_ones(name):
    vae, stride = autoencoder(name), CASES[name][2]
    pixels = panorama(name)
    options = {"num_frames": 1} if name == "svd" else None
    latents = encode_latents(vae, pixels, padding=PADDING)
    assert latents.shape == encode_latents(vae, pixels, circular=False).shape
    assert decode_latents(vae, latents, padding=PADDING, decode_options=options).shape == pixels.shape

    def encode(circular):
        return border_trace(lambda x: encode_latents(vae, x, circular=circular, padding=PADDING), pixels, 1, pixels.shape[-1] // 2)

    def decode(circular):
        settings: dict[str, Any] = {"circular": circular, "padding": PADDING, "decode_options": options}
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
        return border_trace(lambda z: decode_latents(vae, z, **settings), noise, stride, latents.shape[-1] // 2)

    assert encode(True) < 0.2 * encode(False)
    assert decode(True) < 0.2 * decode(False)


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cogvideox", "ltx"))])
def test_tiled_video_encoding_and_decoding_keep_size_and_seam(name):
    vae = autoencoder(name)
    pixels = panorama(name)
    tiles = {"tile_sample_min_height": 64, "tile_sample_min_width": 64}
    if name == "cogvideox":
        tiles |= {"tile_overlap_factor_height": 0.25, "tile_overlap_factor_width": 0.25}
    else:
        tiles |= {"tile_sample_stride_height": 48, "tile_sample_stride_width": 48}
    vae.enable_tiling(**tiles)
    try:
        latents = encode_latents(vae, pixels, padding=PADDING)
        decoded = decode_latents(vae, latents, padding=PADDING)
    finally:
        vae.disable_tiling()
    assert decoded.shape == pixels.shape and latents.shape == encode_latents(vae, pixels, padding=PADDING).shape
    steps = (decoded - decoded.roll(1, -1)).abs().mean([0, 1, 2, 3])
    assert steps[0] <= steps[1:].max()


def by_vectors(mean, std, scale=1.0):
    return lambda z: (z - mean.view(1, -1, *[1] * (z.ndim - 2))) * scale / std.view(1, -1, *[1] * (z.ndim - 2))


def formula(name: str):
    vae = autoencoder(name)
    config = vae.config
    if name in ("wan", "qwen", "mochi"):
        return by_vectors(torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"]), config.get("scaling_factor", 1.0))
    if name == "ltx":
        vae.latents_mean.copy_(torch.linspace(-1, 1, 8)), vae.latents_std.copy_(torch.linspace(1, 2, 8))
        return by_vectors(vae.latents_mean, vae.latents_std, config["scaling_factor"])
    return lambda z: (z - (config.get("shift_factor") or 0)) * config["scaling_factor"]


@pytest.mark.parametrize("name", ["kl", "dc", "wan", "qwen", "cogvideox", "ltx", "hunyuan_video", "mochi"])
def test_latents_are_normalised_by_the_constants_of_the_base(name):
    vae = autoencoder(name)
    raw = torch.randn(2, vae.config.get("latent_channels") or vae.config["z_dim"], *(1,) * (CASES[name][3] is not None), 4, 8)
    expected = formula(name)(raw)
    normalised = normalise_latents(vae, raw)
    torch.testing.assert_close(normalised, expected)
    torch.testing.assert_close(denormalise_latents(vae, normalised), raw)


def test_vectors_in_the_configuration_of_an_image_vae_come_before_its_shift():
    config: dict[str, Any] = KL | {"latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 3.0, 4.0], "scaling_factor": 0.5}
    raw = torch.randn(1, 4, 4, 8)
    expected = by_vectors(torch.arange(4.0), torch.arange(1.0, 5.0), 0.5)(raw)
    torch.testing.assert_close(normalise_latents(models.AutoencoderKL(**config), raw), expected)


def test_flux_2_latents_are_normalised_as_its_pipeline_does_after_packing():
    from diffusers import Flux2Pipeline

    vae: Any = models.AutoencoderKLFlux2(**KL)
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 16)), vae.bn.running_var.copy_(torch.linspace(1, 3, 16))
    raw = torch.randn(1, 4, 4, 8)
    packed = Flux2Pipeline._patchify_latents(raw)
    mean, std = vae.bn.running_mean.view(1, -1, 1, 1), torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config["batch_norm_eps"])
    expected = Flux2Pipeline._unpatchify_latents((packed - mean) / std)
    torch.testing.assert_close(normalise_latents(vae, raw), expected)


def test_cosmos_constants_differ_from_frame_to_frame():
    mean, std = torch.arange(12.0), torch.arange(1.0, 13.0)
    vae: Any = models.AutoencoderKLCosmos(**CASES["cosmos"][1] | {"latents_mean": mean.tolist(), "latents_std": std.tolist()})
    raw = torch.randn(1, 4, 2, 4, 8)
    frames = (values.view(1, 4, 3, 1, 1)[:, :, :2] for values in (mean, std))
    torch.testing.assert_close(normalise_latents(vae, raw), (raw - next(frames)) / next(frames))


def test_constants_for_another_number_of_channels_are_refused():
    config: dict[str, Any] = WAN | {"z_dim": 4}
    vae = models.AutoencoderKLWan(**config)
    with pytest.raises(ValueError, match="states 16 latents_mean or latents_std for latents of 4 channels; configure it with 4 of each"):
        normalise_latents(vae, torch.zeros(1, 4, 1, 4, 8))


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("wan", 80, r"num_frames must be 4k\+1 \(e.g. 81\); got 80"),
        ("ltx", 80, r"num_frames must be 8k\+1 \(e.g. 81\); got 80"),
        ("mochi", 80, r"num_frames must be 6k\+1 \(e.g. 85\); got 80"),
        ("cogvideox", 77, r"num_frames must be 8k or 8k\+1 \(e.g. 81\); got 77"),
    ],
)
def test_frames_that_would_be_dropped_are_refused(name, frames, message):
    with pytest.raises(ValueError, match=message):
        encode_latents(autoencoder(name), torch.zeros(1, 3, frames, 16, 32))


@pytest.mark.parametrize(("name", "frames"), [("wan", 1), ("wan", 5), ("cogvideox", 8), ("cogvideox", 9), ("ltx", 9), ("mochi", 7)])
def test_accepted_frames_come_back_from_the_vae(name, frames):
    vae = autoencoder(name)
    check_frames(vae, frames)
    assert vae.decode(vae.encode(torch.zeros(1, 3, frames, 16, 32)).latent_dist.mode()).sample.shape[2] == frames


def test_images_are_refused_by_video_autoencoders():
    with pytest.raises(ValueError, match=r"AutoencoderKLWan takes pixels of batch x channels x frames.*Give an image one frame"):
        encode_latents(autoencoder("wan"), torch.zeros(1, 3, 16, 32))


def test_an_autoencoder_that_states_nothing_is_refused_until_it_is_told():
    vae: Any = models.AutoencoderKLKVAE(channels=32, num_enc_blocks=1, num_dec_blocks=1, z_channels=4, ch_mult=(1, 1)).eval()
    pixels = torch.zeros(1, 3, 16, 32)
    with pytest.raises(ValueError, match=r"AutoencoderKLKVAE states no spatial stride; set vae\.spatial_compression_ratio"):
        encode_latents(vae, pixels)
    vae.spatial_compression_ratio = 2
    with pytest.raises(ValueError, match=r"states no constants for its latents.*register_to_config"):
        encode_latents(vae, pixels)
    vae.register_to_config(scaling_factor=1.0)
    assert encode_latents(vae, pixels).shape == (1, 4, 8, 16)


def test_autoencoders_of_fixed_tiles_are_refused():
    config: dict[str, Any] = EIGHT | {"norm_num_groups": 2, "sample_size": 64}
    vae = models.AutoencoderKLAllegro(**config)
    with pytest.raises(ValueError, match="AutoencoderKLAllegro encodes fixed tiles only"):
        encode_latents(vae, torch.zeros(1, 3, 8, 64, 128))
