"""Values of the study's measurements, one for each seed."""

from typing import Any

import numpy as np

from visiongraft.methods.panorama.placement import VARIANTS

SEQUENCE, TRUE_CAMERA, ASSUMED, ONE_CAMERA, NOT_CANONICAL = VARIANTS
VANILLA, CURED, MISMATCH, BLENDED = "plain|plain", "circular|circular", "circular|plain", "plain|blended"
NAMES = {
    VANILLA: "plain encoder, plain decoder (vanilla)",
    "plain|circular": "plain encoder, circular decoder",
    BLENDED: "plain encoder, blended decoder (rotate and cross-fade)",
    MISMATCH: "circular encoder, plain decoder (mismatch)",
    CURED: "circular encoder, circular decoder",
}


def combination_values(results: list[dict[str, Any]], combination: str, name: str) -> tuple[float, ...]:
    """One metric of one encoder and decoder."""
    return tuple(r["seams"]["autoencoder"]["rows"][combination][name] for r in results)


def roll_values(results: list[dict[str, Any]], name: str) -> tuple[float, ...]:
    """One error of latents under a roll."""
    return tuple(r["seams"]["autoencoder"]["roll"][name] for r in results)


def generator_values(results: list[dict[str, Any]], encoding: str, key: str, start: str | None = None) -> tuple[float, ...]:
    """Mean over scenes of one result of a transformer; ``start`` picks the time it was denoised from."""
    values = [r["seams"][f"generator {encoding}"][key] for r in results]
    return tuple(float(np.mean(value if start is None else value[start])) for value in values)


def placement_values(results: list[dict[str, Any]], variant: str, key: str = "visible") -> tuple[float, ...]:
    """Mean over worlds of one result of a way of giving the input."""
    return tuple(float(np.mean(r["placement"][variant][key])) for r in results)


def camera_errors(results: list[dict[str, Any]], variant: str, angle: str, key: str = "errors") -> tuple[float, ...]:
    """Median error of one angle in degrees."""
    return tuple(float(np.median(r["placement"][variant][key][angle])) for r in results)


def psnr_drop(results: list[dict[str, Any]], variant: str) -> tuple[float, ...]:
    """Mean loss of PSNR from the standard camera to all others, in dB."""
    tests = [r["placement"][variant]["robustness"] for r in results]
    return tuple(float(np.mean([t["standard"] - psnr for label, psnr in t.items() if label != "standard"])) for t in tests)
