"""Where the seam of a generated panorama comes from: the study's first experiment (arXiv 2601.16192, circular latent encoding).

One autoencoder, trained on pictures without a wrap, encodes and decodes panoramas in every combination; then one transformer is
trained on its ordinary latents and one on its circular latents.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from visiongraft.flow.paths import interpolate
from visiongraft.flow.sampling import sample
from visiongraft.flow.times import time_grid
from visiongraft.methods.panorama.circular import CircularPadding, decode_latents, encode_latents, reconstruct
from visiongraft.methods.panorama.latents import spatial_stride
from visiongraft.methods.panorama.sequence_flux import flux_velocity
from visiongraft.metrics.seams import discontinuity_score, edge_error, interior_discontinuity, seam_ratio, step_error

Encoding = Literal["plain", "circular"]
COMBINATIONS = (("plain", "plain"), ("plain", "circular"), ("plain", "blended"), ("circular", "plain"), ("circular", "circular"))
EDGE = 1
"""Latent columns on each side that count as the border."""


def to_signed(panoramas: UInt8[Tensor, "count 3 height width"]) -> Float[Tensor, "count 3 height width"]:
    """Bytes as [-1, 1]."""
    return panoramas.float() / 127.5 - 1


def to_unit(pixels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """[-1, 1] as [0, 1], clipped."""
    return ((pixels + 1) / 2).clamp(0, 1)


def seam_figures(panorama: Float[Tensor, "count 3 height width"], truth: Float[Tensor, "count 3 height width"]) -> dict[str, float]:
    """All seam metrics of pictures in [0, 1], averaged over them."""
    edge, step = edge_error(panorama, truth), step_error(panorama, truth)
    values = {
        "discontinuity": discontinuity_score(panorama),
        "interior discontinuity": interior_discontinuity(panorama).mean(1),
        "seam ratio": seam_ratio(panorama),
        "edge error": edge.seam,
        "interior error": edge.interior,
        "step error": step.seam,
        "interior step error": step.interior,
    }
    return {name: float(value.mean()) for name, value in values.items()}


@torch.no_grad()
def autoencoder_seams(vae: Any, panoramas: UInt8[Tensor, "count 3 height width"], padding: CircularPadding) -> dict[str, dict[str, float]]:
    """Seam metrics of the truth and of every combination of encoder and decoder, by ``encoder|decoder``."""
    pixels = to_signed(panoramas)
    truth = to_unit(pixels)
    rows = {"truth": seam_figures(truth, truth)}
    for encoder, decoder in COMBINATIONS:
        restored = [reconstruct(vae, part, encoder=encoder, decoder=decoder, padding=padding) for part in pixels.split(16)]  # pyright: ignore[reportArgumentType]
        rows[f"{encoder}|{decoder}"] = seam_figures(to_unit(torch.cat(restored)), truth)
    return rows


@torch.no_grad()
def roll_errors(vae: Any, panoramas: UInt8[Tensor, "count 3 height width"], padding: CircularPadding) -> dict[str, float]:
    """How far latents change when the panorama is rolled by half a turn and back, at the border and inside, in standard deviations."""
    pixels, stride = to_signed(panoramas), spatial_stride(vae)
    half = pixels.shape[-1] // 2
    errors = {}
    for encoding in ("plain", "circular"):
        circular = encoding == "circular"
        latents, rolled = (
            torch.cat([encode_latents(vae, part, circular=circular, padding=padding, warn=False) for part in p.split(16)])
            for p in (pixels, pixels.roll(half, -1))
        )
        difference = (latents - rolled.roll(-half // stride, -1)).abs() / latents.std()
        column = difference.mean((0, 1, 2))
        quarter = len(column) // 4  # far from the border of both
        errors[f"{encoding}, border"] = float(torch.cat([column[:EDGE], column[-EDGE:]]).mean())
        errors[f"{encoding}, interior"] = float(column[quarter : quarter + 2].mean())
    return errors


def border_bias(latents: Float[Tensor, "count channels height width"]) -> float:
    """Mean over channels of |mean latent of the border columns - mean of the others|, in standard deviations."""
    border = torch.cat([latents[..., :EDGE], latents[..., -EDGE:]], -1).mean((0, 2, 3))
    inside = latents[..., EDGE:-EDGE].mean((0, 2, 3))
    return float(((border - inside).abs() / latents.std((0, 2, 3))).mean())


@torch.no_grad()
def generated_latents(
    transformer: Any, data: dict[str, Tensor], start: float, seed: int, steps: int = 20
) -> Float[Tensor, "count channels height width"]:
    """Latents denoised from time ``start`` (1: from noise alone; below: from the data mixed with noise), with input and text.

    Args:
        transformer: trained; ``flux_velocity`` takes it.
        data: encoded samples, see :class:`visiongraft.methods.panorama.encoded.EncodedSamples`.
        start: time in (0, 1].
        seed: of the noise; the same for every transformer.
        steps: of Euler.
    """
    noise = torch.randn(data["panorama"].shape, generator=torch.Generator().manual_seed(seed))
    latents = []
    for part in torch.arange(len(noise)).split(32):
        given = {name: values[part] for name, values in data.items()}

        def velocity(y: Tensor, t: Tensor, given: dict[str, Tensor] = given) -> Tensor:
            return flux_velocity(transformer, y, given["condition"], t, given["prompt_embeds"], given["pooled_prompt_embeds"])

        noisy = interpolate(given["panorama"], noise[part], torch.tensor(start))
        latents.append(sample(velocity, noisy, time_grid(steps, start=start)))
    return torch.cat(latents)


@torch.no_grad()
def decoded_seam_ratios(vae: Any, latents: Tensor, padding: CircularPadding, circular: bool = True) -> list[float]:
    """Seam ratio of each panorama that the latents decode to."""
    pictures = [decode_latents(vae, part, circular=circular, padding=padding, warn=False) for part in latents.split(16)]
    return seam_ratio(to_unit(torch.cat(pictures))).tolist()
