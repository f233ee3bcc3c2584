"""Circular encoding and decoding on purely convolutional autoencoders, where they are exact, and the rules around them."""

import warnings
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from visiongraft.geometry.panoramas import pad_sphere
from visiongraft.methods.panorama.circular import (
    CircularPadding,
    check_panorama_size,
    cut,
    decode_latents,
    encode_latents,
    pad_width,
    reconstruct,
    roll_latents,
    surround,
)

pytestmark = pytest.mark.filterwarnings("ignore:W = 2H .* without circular padding")  # meant here
ENOUGH = CircularPadding(min_pad=64)


def convolutional_vae(channels: tuple[int, ...] = (4, 4), layers: int = 1, sample_size: int = 128, **config: Any) -> Any:
    """AutoencoderKL without what is global in it: group normalisation and attention."""
    torch.manual_seed(0)
    levels = len(channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=1,
        sample_size=sample_size,
        mid_block_add_attention=False,
        **config,
    )
    for module in list(vae.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return vae.double().eval().requires_grad_(False)


def tiny_vae() -> Any:
    torch.manual_seed(0)
    four: dict[str, Any] = {"encoder_block_out_channels": (4,) * 4, "decoder_block_out_channels": (4,) * 4}
    return AutoencoderTiny(**four, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4).double().eval().requires_grad_(False)


def panorama(height: int = 64, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, 2 * height, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(("vae", "stride"), [(convolutional_vae(), 2), (tiny_vae(), 8)], ids=["kl", "tiny"])
@pytest.mark.parametrize("columns", [1, 5, -3])
def test_circular_encoding_and_decoding_commute_with_roll(vae, stride, columns):
    pixels = panorama()
    padding = CircularPadding(min_pad=128)
    latents = encode_latents(vae, pixels, padding=padding)
    turned = encode_latents(vae, pixels.roll(columns * stride, -1), padding=padding)
    torch.testing.assert_close(turned, roll_latents(latents, columns * stride, stride))
    decoded = decode_latents(vae, latents.roll(columns, -1), padding=padding)
    torch.testing.assert_close(decoded, decode_latents(vae, latents, padding=padding).roll(columns * stride, -1))


def test_plain_encoding_and_decoding_do_not_commute_with_roll():
    vae, pixels = convolutional_vae(), panorama()
    latents = encode_latents(vae, pixels, circular=False)
    assert (encode_latents(vae, pixels.roll(2, -1), circular=False) - latents.roll(1, -1)).abs().max() > 1e-2
    decoded = decode_latents(vae, latents, circular=False)
    assert (decode_latents(vae, latents.roll(1, -1), circular=False) - decoded.roll(2, -1)).abs().max() > 1e-2


def test_circular_and_plain_latents_have_one_shape_and_agree_far_from_the_border():
    vae, pixels = convolutional_vae(), panorama()
    circular, plain = encode_latents(vae, pixels, padding=ENOUGH), encode_latents(vae, pixels, circular=False)
    assert circular.shape == plain.shape == (1, 4, 32, 64)
    torch.testing.assert_close(circular[..., 16:-16], plain[..., 16:-16])
    assert (circular - plain)[..., 0].abs().max() > 1e-3


def reach(gradient: Any, centre: float) -> float:
    """Distance from a place to the middle of the outermost column that matters."""
    columns = gradient.abs().sum([0, 1, 2]).nonzero().flatten() + 0.5
    return float((columns - centre).abs().max())


def test_the_least_pad_covers_the_receptive_field_of_the_flux_encoder():
    vae = convolutional_vae((4,) * 4, layers=2, use_quant_conv=False, use_post_quant_conv=False)
    for name, weights in vae.named_parameters():
        weights.fill_(0.01 if name.endswith("weight") else 0.1)  # all positive: nothing cancels
    pixels = torch.rand(1, 3, 8, 512, dtype=torch.float64, requires_grad=True)
    vae.encode(pixels).latent_dist.mode()[..., 32].sum().backward()
    assert reach(pixels.grad, 32.5 * 8) - 4 <= CircularPadding().min_pad  # from the edge of the latent column
    latents = torch.rand(1, 4, 1, 64, dtype=torch.float64, requires_grad=True)
    vae.decode(latents).sample[..., 256].sum().backward()
    assert reach(latents.grad, 32) == 17.5  # 18 latent columns


@pytest.mark.parametrize(
    ("width", "stride", "padding", "expected"),
    [
        (2048, 8, CircularPadding(), 256),
        (1024, 8, CircularPadding(), 128),
        (512, 8, CircularPadding(), 112),
        (1000, 8, CircularPadding(), 128),
        (64, 8, CircularPadding(), 64),
        (128, 4, CircularPadding(min_pad=0), 16),
        (128, 4, CircularPadding(min_pad=3, pad_fraction=0.0, multiple=1), 4),
        (128, 4, CircularPadding(min_pad=0, pad_fraction=0.0), 0),
        (768, 32, CircularPadding(), 128),
        (960, 12, CircularPadding(), 144),
    ],
)
def test_pad_is_a_fraction_of_the_width_rounded_up_and_never_more_than_the_width(width, stride, padding, expected):
    assert pad_width(width, padding, stride) == expected


def test_no_padding_is_plain_encoding_and_decoding():
    vae, pixels, none = convolutional_vae(), panorama(), CircularPadding(pad_fraction=0.0, min_pad=0)
    latents = encode_latents(vae, pixels, padding=none)
    torch.testing.assert_close(latents, encode_latents(vae, pixels, circular=False))
    torch.testing.assert_close(decode_latents(vae, latents, padding=none), decode_latents(vae, latents, circular=False))


def test_the_same_generator_gives_each_latent_column_the_same_noise_with_and_without_padding():
    vae, pixels = convolutional_vae(), panorama(batch=2)
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:], vae.quant_conv.bias[channels:] = 0, 0  # the posterior's standard deviation is 1
    noises = []
    for circular in (True, False):
        settings: dict[str, Any] = {"circular": circular, "padding": ENOUGH}
        drawn = encode_latents(vae, pixels, sample=True, generator=torch.Generator().manual_seed(3), **settings)
        noises.append(drawn - encode_latents(vae, pixels, **settings))
    expected = torch.randn(noises[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(noises[0], noises[1])
    torch.testing.assert_close(noises[0], expected * vae.config.scaling_factor)


def test_surrounding_by_one_is_the_sphere_neighbourhood_of_the_geometry():
    pixels = panorama(8)
    torch.testing.assert_close(surround(pixels, 1, 1), pad_sphere(pixels))


def test_with_pole_padding_a_uniform_panorama_has_no_border_anywhere():
    vae = convolutional_vae()
    pixels = torch.full((1, 3, 64, 128), 0.3, dtype=torch.float64)
    for pole_pad, uniform in ((48, True), (0, False)):
        padding = CircularPadding(min_pad=64, pole_pad=pole_pad)
        latents = encode_latents(vae, pixels, padding=padding)
        decoded = decode_latents(vae, latents[..., :1, :1].expand_as(latents), padding=padding)
        for values in (latents, decoded):
            assert (values.amax([-2, -1]) - values.amin([-2, -1]) < 1e-12).all() == uniform


def test_tiled_decoding_equals_untiled_decoding_across_the_seam_where_tiles_do_not_blend():
    vae, pixels = convolutional_vae(), panorama()
    latents = encode_latents(vae, pixels, padding=ENOUGH)
    whole = decode_latents(vae, latents, padding=ENOUGH)
    vae.enable_tiling()  # tiles of 128 pixels from column -64: [-64, 64) [32, 160) [128, 192), blended over [32, 64) and [128, 160)
    error = (decode_latents(vae, latents, padding=ENOUGH) - whole).abs()[..., :64, :].amax([0, 1])[:40].amax(0)
    assert error[64:].max() < 1e-12 and error[:32].max() <= error[32:64].max()
    error = (encode_latents(vae, pixels, padding=ENOUGH) - latents).abs()[..., :20, :].amax([0, 1, 2])
    assert error[36:].max() < 1e-12 and error[:16].max() <= error[16:32].max()


def test_copies_from_tiles_that_drifted_apart_meet_without_a_step():
    pixels = torch.zeros(1, 1, 4, 64)
    drifted = surround(pixels, 16, 0) + torch.arange(96.0)  # as tiles that normalise by themselves do
    hard, soft = (cut(drifted, 16, 0, crossfade=crossfade) for crossfade in (False, True))
    steps = [(values - values.roll(1, -1))[0, 0, 0] for values in (hard, soft)]
    assert steps[0][0] == -63
    torch.testing.assert_close(steps[1][:8], torch.full((8,), 1 - 64 / 16))  # spread over half of the pad on each side
    assert steps[1].abs().max() < 4


def test_slicing_changes_nothing():
    vae, pixels = convolutional_vae(), panorama(batch=3)
    latents = encode_latents(vae, pixels)
    decoded = decode_latents(vae, latents)
    vae.enable_slicing()
    torch.testing.assert_close(encode_latents(vae, pixels), latents)
    torch.testing.assert_close(decode_latents(vae, latents), decoded)


def test_blended_decoding_takes_each_border_from_the_version_turned_by_half():
    vae, pixels = convolutional_vae(), panorama()
    latents = encode_latents(vae, pixels, circular=False)
    facing = decode_latents(vae, latents, circular=False)
    turned = decode_latents(vae, latents.roll(32, -1), circular=False).roll(-64, -1)
    blended = reconstruct(vae, pixels, encoder="plain", decoder="blended")
    torch.testing.assert_close(blended[..., 0], turned[..., 0] * 127 / 128 + facing[..., 0] / 128)
    torch.testing.assert_close(blended[..., 64], facing[..., 64] * 127 / 128 + turned[..., 64] / 128)


def test_reconstruction_is_encoding_then_decoding_with_the_chosen_variants():
    vae, pixels = convolutional_vae(), panorama()
    mixed = decode_latents(vae, encode_latents(vae, pixels, padding=ENOUGH), circular=False)
    torch.testing.assert_close(reconstruct(vae, pixels, encoder="circular", decoder="plain", padding=ENOUGH), mixed)
    whole = reconstruct(vae, pixels, padding=CircularPadding(min_pad=128))
    torch.testing.assert_close(reconstruct(vae, pixels.roll(6, -1), padding=CircularPadding(min_pad=128)), whole.roll(6, -1))


def test_panoramas_encoded_or_decoded_without_padding_are_warned_of():
    vae, pixels = convolutional_vae(), panorama(16)
    with pytest.warns(
        UserWarning, match=r"^W = 2H pixels encoded without circular padding: .* worse than with neither; pass circular=True"
    ):
        latents = encode_latents(vae, pixels, circular=False)
    with pytest.warns(
        UserWarning, match=r"^W = 2H latents decoded without circular padding: .* worse than with neither; pass circular=True"
    ):
        decode_latents(vae, latents, circular=False)


def test_what_is_circular_no_panorama_or_meant_is_not_warned_of():
    vae, pixels = convolutional_vae(), panorama(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_latents(vae, encode_latents(vae, pixels))
        decode_latents(vae, encode_latents(vae, pixels[..., :16], circular=False), circular=False)
        decode_latents(vae, encode_latents(vae, pixels, circular=False, warn=False), circular=False, warn=False)
        for encoder in ("circular", "plain"):
            for decoder in ("circular", "plain", "blended"):
                reconstruct(vae, pixels, encoder=encoder, decoder=decoder)


def test_latents_and_pixels_have_the_precision_of_the_vae():
    vae = convolutional_vae().bfloat16()
    latents = encode_latents(vae, panorama().float())
    assert latents.dtype == decode_latents(vae, latents.float()).dtype == torch.bfloat16


def test_gradients_reach_the_pixels_across_the_border():
    vae, pixels = convolutional_vae(), panorama().requires_grad_()
    encode_latents(vae, pixels, padding=ENOUGH)[..., 0].sum().backward()
    assert pixels.grad[..., -1].abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: torch.cat([x, x[..., :1]], -1), "ERP must have W = 2H; got 64x129"),
        (lambda x: x[..., 1:, 2:], r"H a multiple of 2 \(the stride of the VAE\); got 63x126"),
        (lambda x: x[:, :, None], r"takes pixels of batch x channels x height x width; got shape \(1, 3, 1, 64, 128\). Move frames"),
        (lambda x: x.masked_fill(x > 0.9, float("nan")), "NaN or infinity; repair"),
        (lambda x: (x + 1) * 127.5, r"pixels must lie in \[-1, 1\]; got 25.*Divide 8-bit values by 127.5"),
    ],
)
def test_panoramas_that_cannot_be_encoded_are_refused_with_a_reason(change, message):
    with pytest.raises(ValueError, match=message):
        encode_latents(convolutional_vae(), change(panorama()))


def test_ordinary_images_need_no_aspect_ratio_but_whole_latent_columns():
    vae = convolutional_vae()
    assert encode_latents(vae, panorama()[..., :34], circular=False).shape[-2:] == (32, 17)
    with pytest.raises(ValueError, match="image size must be a multiple of 2 pixels, the stride of the VAE; got 64x33"):
        encode_latents(vae, panorama()[..., :33], circular=False)


def test_latents_that_are_no_panorama_are_refused():
    with pytest.raises(ValueError, match="ERP must have W = 2H; got 32x63"):
        decode_latents(convolutional_vae(), torch.zeros(1, 4, 32, 63))
    with pytest.raises(ValueError, match="takes latents of batch x channels x height x width"):
        decode_latents(convolutional_vae(), torch.zeros(1, 4, 1, 32, 64))


def test_float16_is_refused_where_the_vae_overflows():
    vae = convolutional_vae().half()
    with pytest.raises(ValueError, match=r"overflows in float16 \(force_upcast in its config\); use bfloat16 or float32"):
        encode_latents(vae, panorama())
    vae.register_to_config(force_upcast=False)
    assert encode_latents(vae, panorama()).dtype == torch.float16


def test_a_vae_with_another_stride_than_it_states_is_refused():
    vae = convolutional_vae()
    vae.spatial_compression_ratio = 4
    with pytest.raises(ValueError, match="with a stride of 4 gave latents of 32x128 instead of 16x64; correct its configuration"):
        encode_latents(vae, panorama(), padding=ENOUGH)
    with pytest.raises(ValueError, match="gave pixels of 64x128 instead of 128x256"):
        decode_latents(vae, torch.zeros(1, 4, 32, 64), padding=CircularPadding(pad_fraction=0.0, min_pad=0))


def test_tiles_that_do_not_fit_the_stride_are_refused():
    vae = convolutional_vae()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 70, 35
    with pytest.raises(ValueError, match="use tile sizes and overlaps that are multiples of 2 pixels"):
        encode_latents(vae, panorama(), padding=ENOUGH)


def test_panorama_sizes_are_whole_in_tokens():
    check_panorama_size(512, 1024, 8, 2)
    with pytest.raises(ValueError, match=r"\(H, 2H\) with H a multiple of 16 \(VAE 8 x patch 2\); got 500x1000"):
        check_panorama_size(500, 1000, 8, 2)
    with pytest.raises(ValueError, match="ERP must have W = 2H; got 1024x513"):
        check_panorama_size(1024, 513, 8)


def test_latents_roll_by_whole_columns_only():
    latents = torch.arange(8.0).expand(1, 1, 4, 8)
    assert roll_latents(latents, -16, 8)[0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 0, 1]
    with pytest.raises(ValueError, match="a roll by 100 pixels is no whole number of latent columns of 8 pixels; roll by a multiple of 8"):
        roll_latents(latents, 100, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pad_fraction": 1.5}, r"pad_fraction must lie in \[0, 1\].*got 1.5"),
        ({"min_pad": -1}, "min_pad must be at least 0 pixels; got -1"),
        ({"multiple": 0}, "multiple must be at least 1 pixels; got 0"),
        ({"pole_pad": -8}, "pole_pad must be at least 0 pixels; got -8"),
    ],
)
def test_impossible_paddings_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CircularPadding(**values)
