"""Circular latent encoding and decoding of panoramas with any Diffusers image or video VAE (arXiv 2601.16192).

A convolutional VAE pads the left and right border with zeros, although they are neighbours on the sphere: the latents of the border
columns differ from those of the same content elsewhere, and a generator learns to draw a seam. Here the panorama is continued
around the circle before it is encoded, and its latents before they are decoded. Only both together cure the seam: circular latents
under an ordinary decoder look worse than ordinary latents, hence ``circular=True`` in both functions.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.panoramas import check_panorama
from visiongraft.methods.panorama.latents import (
    Autoencoder,
    check_frames,
    denormalise_latents,
    encodes_videos,
    normalise_latents,
    spatial_stride,
)


@dataclass(frozen=True, kw_only=True)
class CircularPadding:
    """How far a panorama is continued around the circle before it is encoded or decoded.

    The defaults are exact for the convolutions of encoders with four levels (FLUX, Wan), which see 108 pixels far; decoders see 138.

    Args:
        pad_fraction: of the width, copied to each side.
        min_pad: pixels a side at least; wins over the fraction where the panorama is small.
        multiple: pixels; the pad is rounded up to it, so that the tokens of a patching generator never straddle the wrap.
        pole_pad: pixel rows continued across each pole (mirrored, half a turn away); 0 keeps the zeros of the VAE there. At decoding,
            latents are mirrored, which approximates the latents of the mirrored picture.
    """

    pad_fraction: float = 1 / 8
    min_pad: int = 112
    multiple: int = 16
    pole_pad: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.pad_fraction <= 1:
            raise ValueError(f"pad_fraction must lie in [0, 1], a part of the panorama's width; got {self.pad_fraction}.")
        for name, least in (("min_pad", 0), ("multiple", 1), ("pole_pad", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least} pixels; got {getattr(self, name)}.")


def pad_width(width: int, padding: CircularPadding, stride: int) -> int:
    """Pixels copied to each side of a panorama: ``max(width * pad_fraction, min_pad)``, rounded up, never more than the width.

    Args:
        width: of the panorama in pixels, a multiple of ``stride``.
        stride: pixels a latent column covers; the pad is a multiple of it and of ``padding.multiple``.

    Source: arXiv 2601.16192 (one eighth of the width); the least pad covers the receptive field of the encoder.
    """
    unit = math.lcm(padding.multiple, stride)
    return min(math.ceil(max(width * padding.pad_fraction, padding.min_pad) / unit) * unit, width)


def encode_latents(
    vae: Autoencoder,
    pixels: Float[Tensor, "batch channels *frames height width"],
    *,
    circular: bool = True,
    padding: CircularPadding = CircularPadding(),
    sample: bool = False,
    generator: torch.Generator | list[torch.Generator] | None = None,
    warn: bool = True,
) -> Float[Tensor, "batch latent_channels *latent_frames latent_height latent_width"]:
    """Normalised latents of panoramas, of the same shape as ordinary ones, without a trace of the left and right border.

    Rolling the pixels by whole latent columns rolls the latents: exactly for a convolutional encoder, nearly for one whose
    normalisation or attention sees the whole picture. Tiling and slicing of the VAE are respected. Decode with :func:`decode_latents`.

    Args:
        vae: any Diffusers image or video VAE that states its stride and the constants of its latents.
        pixels: in [-1, 1]; images (4-D) for an image VAE, batch x channels x frames x height x width for a video VAE.
        circular: continue around the circle; ``False`` encodes ordinary pictures of any aspect ratio.
        padding: how far; use the same for decoding.
        sample: draw from the posterior instead of taking its mode. Noise is drawn for the kept columns only, in the shape of the
            result: the same generator gives each latent column the same noise with and without ``circular``.
        generator: source of that noise, or one for each sample of the batch.
        warn: say where pixels of W = 2H are encoded without ``circular``; ``False`` where that is meant.

    Raises:
        ValueError: panoramas unless W = 2H, sizes that are no multiple of the stride, frames that the VAE would drop, pixels that are
            not finite or not in [-1, 1], a wrong layout, float16 for a VAE that needs more, a VAE that states too little about itself.

    Source: arXiv 2601.16192, circular latent encoding.
    """
    check_autoencoder(vae)
    check_pixels(vae, pixels)
    height, width = pixels.shape[-2:]
    if warn and not circular and width == 2 * height:
        warnings.warn(
            "W = 2H pixels encoded without circular padding: if they are a panorama, decoding it circularly (the default) makes the seam "
            "worse than with neither; pass circular=True, or warn=False if this is meant.",
            stacklevel=2,
        )
    stride = spatial_stride(vae)
    if circular:
        check_panorama_size(height, width, stride)
    elif height % stride or width % stride:
        raise ValueError(f"image size must be a multiple of {stride} pixels, the stride of the VAE; got {height}x{width}.")
    columns, rows = pads(height, width, padding, stride) if circular else (0, 0)
    output = vae.encode(surround(pixels.to(vae.dtype), columns, rows))
    posterior = getattr(output, "latent_dist", None)
    encoded = posterior.parameters if posterior is not None else output.latent if hasattr(output, "latent") else output.latents
    expected = ((height + 2 * rows) // stride, (width + 2 * columns) // stride)
    if tuple(encoded.shape[-2:]) != expected:
        raise ValueError(size_mismatch(vae, stride, "latents", tuple(encoded.shape[-2:]), expected))
    encoded = cut(encoded, columns // stride, rows // stride, crossfade=is_tiled(vae))
    if posterior is not None:
        posterior = type(posterior)(encoded)
        encoded = posterior.sample(generator) if sample else posterior.mode()
    return normalise_latents(vae, encoded.to(vae.dtype))


def decode_latents(
    vae: Autoencoder,
    latents: Float[Tensor, "batch latent_channels *latent_frames latent_height latent_width"],
    *,
    circular: bool = True,
    padding: CircularPadding = CircularPadding(),
    decode_options: Mapping[str, Any] | None = None,
    warn: bool = True,
) -> Float[Tensor, "batch channels *frames height width"]:
    """Panoramas without a seam from normalised latents.

    Args:
        vae: the one that encoded them.
        latents: normalised, as :func:`encode_latents` gives them or a generator drew them.
        circular: as at encoding; mixing the two gives a seam that is worse than with neither.
        padding: as at encoding.
        decode_options: further arguments of ``vae.decode``, e.g. ``temb`` of an LTX decoder or ``num_frames`` of Stable Video Diffusion's.
        warn: say where latents of W = 2H are decoded without ``circular``; ``False`` where that is meant.

    Returns:
        Pixels, nominally in [-1, 1]; not clipped.

    Raises:
        ValueError: latents unless W = 2H, a wrong layout, float16 for a VAE that needs more, NaN from the decoder.

    Source: arXiv 2601.16192, circular latent decoding.
    """
    check_autoencoder(vae)
    check_layout(vae, latents, "latents")
    if circular:
        check_panorama(latents)
    elif warn and latents.shape[-1] == 2 * latents.shape[-2]:
        warnings.warn(
            "W = 2H latents decoded without circular padding: if they were encoded circularly (the default), the seam gets worse than "
            "with neither; pass circular=True, or warn=False if this is meant.",
            stacklevel=2,
        )
    stride = spatial_stride(vae)
    height, width = (size * stride for size in latents.shape[-2:])
    columns, rows = pads(height, width, padding, stride) if circular else (0, 0)
    raw = denormalise_latents(vae, latents.to(vae.dtype))
    decoded = vae.decode(surround(raw, columns // stride, rows // stride), **(decode_options or {})).sample
    expected = (height + 2 * rows, width + 2 * columns)
    if tuple(decoded.shape[-2:]) != expected:
        raise ValueError(size_mismatch(vae, stride, "pixels", tuple(decoded.shape[-2:]), expected))
    if not torch.isfinite(decoded).all():
        raise ValueError(
            f"The decoded panorama has NaN or infinite pixels with a {vae.dtype} VAE; use bfloat16 or float32 "
            "(vae.to(torch.float32)), and check the weights."
        )
    return cut(decoded, columns, rows, crossfade=is_tiled(vae)).to(vae.dtype)


def roll_latents(
    latents: Float[Tensor, "batch channels *frames height width"], pixels: int, stride: int
) -> Float[Tensor, "batch channels *frames height width"]:
    """Latents of a panorama turned by some pixels to the right (negative: left), without encoding it again.

    Only for circular latents: ordinary ones carry the trace of the border along.

    Args:
        pixels: a multiple of ``stride``.
        stride: :func:`visiongraft.methods.panorama.latents.spatial_stride` of the VAE, times the patch of the generator if its tokens
            shall stay whole.

    Raises:
        ValueError: a turn that is no whole number of latent columns.
    """
    if pixels % stride:
        raise ValueError(
            f"a roll by {pixels} pixels is no whole number of latent columns of {stride} pixels; "
            f"roll by a multiple of {stride}, or roll the pixels and encode them again."
        )
    return latents.roll(pixels // stride, -1)


def reconstruct(
    vae: Autoencoder,
    pixels: Float[Tensor, "batch channels *frames height width"],
    *,
    encoder: Literal["circular", "plain"] = "circular",
    decoder: Literal["circular", "plain", "blended"] = "circular",
    padding: CircularPadding = CircularPadding(),
) -> Float[Tensor, "batch channels *frames height width"]:
    """Panoramas through the VAE and back, by any combination of encoder and decoder: for studies of where seams come from.

    Args:
        pixels: panoramas in [-1, 1] in the layout of the VAE.
        encoder, decoder: ``circular`` or ``plain`` (zeros beyond the border); ``blended`` decodes also half a turn away with a plain
            decoder and cross-fades, so that each border comes from the version in which it lies in the middle (as Argus does).

    Raises:
        ValueError: see :func:`encode_latents`; names that are none of these.
    """
    if encoder not in ("circular", "plain") or decoder not in ("circular", "plain", "blended"):
        raise ValueError(f"encoder must be circular or plain, decoder circular, plain or blended; got {encoder!r} and {decoder!r}.")
    check_panorama(pixels)
    latents = encode_latents(vae, pixels, circular=encoder == "circular", padding=padding, warn=False)
    if decoder != "blended":
        return decode_latents(vae, latents, circular=decoder == "circular", padding=padding, warn=False)
    half = latents.shape[-1] // 2
    facing, turned = (decode_latents(vae, version, circular=False, warn=False) for version in (latents, latents.roll(half, -1)))
    width = pixels.shape[-1]
    positions = torch.arange(width, device=pixels.device, dtype=facing.dtype) + 0.5
    from_facing = 1 - (2 * positions / width - 1).abs()  # 1 in the middle, 0 at the border
    return turned.roll(-(width // 2), -1).lerp(facing, from_facing)


def check_panorama_size(height: int, width: int, stride: int, patch: int = 1) -> None:
    """Refuses panoramas that are not whole in latent columns and tokens.

    Args:
        stride: pixels a latent column covers.
        patch: latent columns a token covers.

    Raises:
        ValueError: unless W = 2H and H is a multiple of both.
    """
    check_panorama(torch.empty(height, width, device="meta"))
    if height % (stride * patch):
        unit = f"{stride * patch} (VAE {stride} x patch {patch})" if patch > 1 else f"{stride} (the stride of the VAE)"
        raise ValueError(f"panorama size must be (H, 2H) with H a multiple of {unit}; got {height}x{width}.")


def check_pixels(vae: Autoencoder, pixels: Tensor) -> None:
    """Refuses layouts, frames and values that the VAE would encode to nonsense."""
    check_layout(vae, pixels, "pixels")
    if pixels.ndim == 5:
        check_frames(vae, pixels.shape[2])
    peak = float(pixels.detach().abs().max())
    if not math.isfinite(peak):
        raise ValueError("pixels contain NaN or infinity; repair the picture before it is encoded.")
    if peak > 2:  # resampling overshoots [-1, 1] a little
        raise ValueError(f"pixels must lie in [-1, 1]; got {peak:g}. Divide 8-bit values by 127.5 and subtract 1.")


def check_layout(vae: Autoencoder, values: Tensor, kind: str) -> None:
    """Refuses images for a video VAE and videos for an image VAE."""
    name, shape = type(vae).__name__, tuple(values.shape)
    if encodes_videos(vae) and values.ndim != 5:
        raise ValueError(
            f"{name} takes {kind} of batch x channels x frames x height x width; got shape {shape}. Give an image one frame: [:, :, None]."
        )
    if not encodes_videos(vae) and values.ndim != 4:
        raise ValueError(f"{name} takes {kind} of batch x channels x height x width; got shape {shape}. Move frames into the batch.")


def check_autoencoder(vae: Autoencoder) -> None:
    """Refuses float16 where an image VAE is known to overflow (video VAEs carry the flag without needing it) and VAEs of fixed tiles."""
    if type(vae).__name__ == "AutoencoderKLAllegro":
        raise ValueError("AutoencoderKLAllegro encodes fixed tiles only and leaves the columns between them empty; use another video VAE.")
    if vae.dtype == torch.float16 and vae.config.get("force_upcast") and not encodes_videos(vae):
        raise ValueError(
            f"this {type(vae).__name__} overflows in float16 (force_upcast in its config); use bfloat16 or float32, "
            "or vae.register_to_config(force_upcast=False) for weights that were made for float16."
        )


def pads(height: int, width: int, padding: CircularPadding, stride: int) -> tuple[int, int]:
    """Pixel columns a side and pixel rows a pole, multiples of the stride."""
    return pad_width(width, padding, stride), min(math.ceil(padding.pole_pad / stride) * stride, height)


def surround(values: Tensor, columns: int, rows: int) -> Tensor:
    """Rows continued across the poles (mirrored, half a turn away), then columns around the circle."""
    height, width = values.shape[-2:]
    if rows:
        beyond = values.roll(width // 2, -1).flip(-2)
        values = torch.cat([beyond[..., height - rows :, :], values, beyond[..., :rows, :]], -2)
    return torch.cat([values[..., width - columns :], values, values[..., :columns]], -1)


def cut(values: Tensor, columns: int, rows: int, *, crossfade: bool) -> Tensor:
    """Inverse of :func:`surround`.

    Args:
        crossfade: blend the two copies of the columns around the wrap, over half of the pad on each side. Needed after tiling, where
            the copies come from different tiles that each normalise by themselves; other neighbouring tiles are blended likewise.
    """
    width = values.shape[-1] - 2 * columns
    values = values[..., rows : values.shape[-2] - rows, :]
    kept, fade = values[..., columns : columns + width], columns // 2
    if not (crossfade and fade):
        return kept
    from_first = values[..., columns - fade : columns + fade]
    from_last = values[..., columns + width - fade : columns + width + fade]
    ramp = (torch.arange(2 * fade, device=values.device, dtype=values.dtype) + 0.5) / (2 * fade)
    seam = from_last.lerp(from_first, ramp)
    return torch.cat([seam[..., fade:], kept[..., fade : width - fade], seam[..., :fade]], -1)


def is_tiled(vae: Autoencoder) -> bool:
    """Whether ``vae.enable_tiling()`` is on."""
    return bool(vae.__dict__.get("use_tiling"))


def size_mismatch(vae: Autoencoder, stride: int, kind: str, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The sentence about a VAE whose stride is not the stated one, or whose tiles do not fit it."""
    advice = f"use tile sizes and overlaps that are multiples of {stride} pixels" if is_tiled(vae) else "correct its configuration"
    return (
        f"{type(vae).__name__} with a stride of {stride} gave {kind} of {got[0]}x{got[1]} instead of {expected[0]}x{expected[1]}; {advice}."
    )
