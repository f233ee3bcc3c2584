"""The study's tables."""

from typing import Any

import numpy as np

from visiongraft.methods.panorama.placement import ALL_CAMERAS, VARIANTS
from visiongraft.methods.panorama.seam_origin import COMBINATIONS
from visiongraft.methods.panorama.study_values import (
    ASSUMED,
    CURED,
    NAMES,
    ONE_CAMERA,
    SEQUENCE,
    TRUE_CAMERA,
    camera_errors,
    combination_values,
    generator_values,
    placement_values,
    roll_values,
)
from visiongraft.studies import Table
from visiongraft.studies.claim import spread


def autoencoder_table(results: list[dict[str, Any]]) -> Table:
    """Seam metrics of every encoder and decoder."""
    names = ["discontinuity", "seam ratio", "edge error", "interior error", "step error", "interior step error"]
    combinations = ["truth", *("|".join(c) for c in COMBINATIONS)]
    interior = combination_values(results, CURED, "interior discontinuity")
    rolls = ", ".join(f"{name} {spread(roll_values(results, name))}" for name in results[0]["seams"]["autoencoder"]["roll"])
    return Table(
        title="One autoencoder, every combination",
        columns=["encoder and decoder", *names],
        rows=[[NAMES.get(c, "ground truth"), *(spread(combination_values(results, c, name)) for name in names)] for c in combinations],
        note=f"Mean over scenes (range over seeds). Discontinuity at interior columns: {spread(interior)}. Change of latents under a roll "
        f"in standard deviations: {rolls}.",
    )


def generator_table(starts: tuple[float, ...], results: list[dict[str, Any]]) -> Table:
    """Seam ratios of two transformers, denoised from several times, with paired intervals."""
    labels = [f"{t:g}" for t in (*starts, 1.0)]
    rows: list[list[Any]] = [["autoencoder alone, circular decoding", *_compared(results, "autoencoder alone", None)]]
    rows += [
        [f"denoised from t = {t}, own latents" if t != "1" else "from pure noise", *_compared(results, "own latents", t)] for t in labels
    ]
    rows += [[f"denoised from t = {t}, both from circular latents", *_compared(results, "circular latents", t)] for t in labels[:-1]]
    bias = ", ".join(
        f"{encoding} {spread(generator_values(results, encoding, 'bias of data'))} in the data and "
        f"{spread(generator_values(results, encoding, 'bias of samples'))} in samples from noise"
        for encoding in ("plain", "circular")
    )
    return Table(
        title="Two transformers: trained on ordinary and on circular latents (seam ratio)",
        columns=["panoramas", "ordinary latents", "circular latents", "difference, 95 % interval over scenes"],
        rows=rows,
        note=f"The intervals are bootstrapped over paired scenes of all seeds; they do not cover the variance of training. Ground truth: "
        f"{spread(generator_values(results, 'circular', 'truth'))}. Bias of border latents in standard deviations: {bias}.",
    )


def _compared(results: list[dict[str, Any]], key: str, start: str | None) -> list[str]:
    plain, circular = (np.concatenate([_scenes(r["seams"][f"generator {e}"][key], start) for r in results]) for e in ("plain", "circular"))
    low, high = paired_interval(plain - circular)
    means = [spread(generator_values(results, e, key, start)) for e in ("plain", "circular")]
    return [*means, f"{np.mean(plain - circular):.3f} [{low:.3f}, {high:.3f}]"]


def _scenes(value: Any, start: str | None) -> np.ndarray:
    return np.asarray(value if start is None else value[start])


def paired_interval(differences: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences; always the same draws."""
    picks = np.random.default_rng(0).integers(0, len(differences), (draws, len(differences)))
    low, high = np.quantile(differences[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def placement_table(results: list[dict[str, Any]]) -> Table:
    """Every way of giving the input."""
    angles = ("hfov", "pitch", "roll")
    rows: list[list[Any]] = []
    for name in VARIANTS:
        row = [name, spread(placement_values(results, name)), spread(placement_values(results, name, "whole"))]
        if "errors" in results[0]["placement"][name]:
            row += [spread(placement_values(results, name, "found")), *(spread(camera_errors(results, name, a)) for a in angles)]
        rows.append(row + ["–"] * (7 - len(row)))
    rows.append(["sequence, another sample's panorama", spread(placement_values(results, SEQUENCE, "shuffled")), *["–"] * 5])
    found = spread(placement_values(results, "true panoramas", "found"))
    alone = [spread(camera_errors(results, "true panoramas", a)) for a in angles]
    rows.append(["true panoramas (the estimator alone)", "–", "–", found, *alone])
    rows.append(["constant answer", "–", "–", "–", *(spread(camera_errors(results, "true panoramas", a, "constant")) for a in angles)])
    over_true, over_assumed = (
        paired_interval(
            np.concatenate([np.subtract(r["placement"][SEQUENCE]["visible"], r["placement"][other]["visible"]) for r in results])
        )
        for other in (TRUE_CAMERA, ASSUMED)
    )
    return Table(
        title="Ways of giving the input",
        columns=[
            "condition",
            "PSNR, visible part",
            "PSNR, whole",
            "PSNR, input at the found camera",
            "hfov error",
            "pitch error",
            "roll error",
        ],
        rows=rows,
        note="PSNR in dB, mean; errors in degrees, median (range over seeds). The found camera is where the panorama repeats the "
        f"input best, right or wrong. Inputs: hfov {_range(ALL_CAMERAS.hfov)}, pitch "
        f"{_range(ALL_CAMERAS.pitch)}, roll {_range(ALL_CAMERAS.roll)}. Sequence minus channels over paired worlds, 95 %: true camera "
        f"[{over_true[0]:.2f}, {over_true[1]:.2f}] dB, assumed camera [{over_assumed[0]:.2f}, {over_assumed[1]:.2f}] dB.",
    )


def _range(values: tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


def robustness_table(cameras: list[str], results: list[dict[str, Any]]) -> Table:
    """PSNR at single cameras."""
    names = (SEQUENCE, ONE_CAMERA, TRUE_CAMERA, ASSUMED)
    return Table(
        title="Robustness over field of view, pitch and roll",
        columns=["camera of the input", *names],
        rows=[[label, *(spread(tuple(r["placement"][name]["robustness"][label] for r in results)) for name in names)] for label in cameras],
        note="PSNR in dB where the input sees the panorama; standard is hfov 75, level; angles in degrees.",
    )


def bundled_table(bundled: dict[str, Any]) -> Table:
    """The models that the package ships."""
    keys = ("visible", "shuffled", "seam ratio", "seam ratio of truth")
    return Table(
        title="The bundled small models on held-out worlds",
        columns=["model", "PSNR, visible part", "PSNR, another sample of the kind", "seam ratio", "seam ratio of the truth", "MB"],
        rows=[[mode, *(round(float(np.mean(b[key])), 3) for key in keys), round(b["bytes"] / 1e6, 2)] for mode, b in bundled.items()],
        note="One training. Of clips the first frame is measured.",
    )
