"""What the study's measurements say: claims, tables and figures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import visiongraft
from visiongraft.methods.panorama.placement import ALL_CAMERAS, VARIANTS, CameraRanges
from visiongraft.methods.panorama.seam_origin import COMBINATIONS
from visiongraft.methods.panorama.small_training import SmallBudget
from visiongraft.methods.panorama.study_figures import draw_figures
from visiongraft.studies import Claim, Report, Table
from visiongraft.studies.claim import spread

SEQUENCE, TRUE_CAMERA, ASSUMED, ONE_CAMERA, NOT_CANONICAL = VARIANTS
VANILLA, CURED, MISMATCH, BLENDED = "plain|plain", "circular|circular", "circular|plain", "plain|blended"
NAMES = {
    VANILLA: "plain encoder, plain decoder (vanilla)",
    "plain|circular": "plain encoder, circular decoder",
    BLENDED: "plain encoder, blended decoder (rotate and cross-fade)",
    MISMATCH: "circular encoder, plain decoder (mismatch)",
    CURED: "circular encoder, circular decoder",
}


def _fixed(hfov: float = 75.0, pitch: float = 0.0, roll: float = 0.0) -> CameraRanges:
    return CameraRanges((hfov, hfov), (pitch, pitch), (roll, roll))


ROBUSTNESS = {
    "standard": _fixed(),
    "hfov 45": _fixed(hfov=45.0),
    "hfov 105": _fixed(hfov=105.0),
    "pitch -40": _fixed(pitch=-40.0),
    "pitch 40": _fixed(pitch=40.0),
    "roll -14": _fixed(roll=-14.0),
    "roll 14": _fixed(roll=14.0),
}


@dataclass(kw_only=True)
class StudyConfig:
    """How much the study trains and measures.

    Args:
        output: folder of the results; an interrupted study continues there.
        seeds: independent repetitions, each with its own training.
        bundle: train the bundled small models too.
        quick: a minute instead of many, to see that everything runs.
        budget: of the small models.
        placement_steps: training steps of each way of giving the input.
        test_scenes: held-out panoramas of the seam experiment.
        test_clips: held-out clips of the bundled video model.
        test_worlds: held-out worlds of the placement experiment.
        starts: times from which panoramas are denoised, besides 1.
        sampling_steps: of Euler.
        robustness: single cameras that placement is tested on, by label.
    """

    output: Path = Path("runs/panorama/study")
    seeds: tuple[int, ...] = (0, 1, 2)
    bundle: bool = True
    quick: bool = False
    budget: SmallBudget = field(default_factory=SmallBudget)
    placement_steps: int = 800
    test_scenes: int = 96
    test_clips: int = 24
    test_worlds: int = 96
    starts: tuple[float, ...] = (0.3, 0.5, 0.7)
    sampling_steps: int = 20
    robustness: dict[str, CameraRanges] = field(default_factory=lambda: dict(ROBUSTNESS))

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("The study needs at least one seed.")
        if self.quick:
            self.budget = SmallBudget(scenes=8, vae=2, transformer=2, clips=4, video_vae=1, image=2, video=1, batch_size=4)
            self.placement_steps, self.test_scenes, self.test_clips, self.test_worlds = 2, 8, 5, 4
            self.starts, self.sampling_steps = (0.5,), 2
            self.robustness = {label: ROBUSTNESS[label] for label in ("standard", "pitch 40")}


def study_report(
    config: StudyConfig, results: list[dict[str, Any]], bundled: dict[str, Any] | None, settings: dict[str, Any], elapsed: float
) -> Report:
    """Claims, tables and figures (written to ``config.output``) from the measurements of every seed."""
    return Report(
        method="panorama",
        title="Panoramas from any photo or video",
        claims=[*_seam_claims(config, results), *_placement_claims(results)],
        tables=[
            _autoencoder_table(results),
            _generator_table(config, results),
            _placement_table(results),
            _robustness_table(config, results),
            *([_bundled_table(bundled)] if bundled else []),
        ],
        figures=draw_figures(config.output, results),
        notes=[
            "Seam metrics are means over the held-out scenes of a seed. The discontinuity score (0..255) is a heavy-tailed ratio that flat "
            "areas inflate, and is blind to blur; read it beside the seam ratio and the errors at the edge. The ground truth's own seam "
            "ratio is the target, not 1.",
            "The placement experiment is in pixel space on 16 x 32 panoramas of worlds that are a colour for every direction. Each way "
            "of giving the input had the same network, steps and seeds. The camera errors are those of the generated panoramas: the "
            "estimator's own errors on true panoramas stand in the table's last row but one.",
            "Everything was trained on 2 CPU cores; losses were still falling when training ended.",
        ],
        settings=settings,
        seeds=tuple(config.seeds),
        elapsed_s=elapsed,
        version=visiongraft.__version__,
    )


# --- access -----------------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]], combination: str, name: str) -> tuple[float, ...]:
    return tuple(r["seams"]["autoencoder"]["rows"][combination][name] for r in results)


def _roll(results: list[dict[str, Any]], name: str) -> tuple[float, ...]:
    return tuple(r["seams"]["autoencoder"]["roll"][name] for r in results)


def _generator(results: list[dict[str, Any]], encoding: str, key: str, start: str | None = None) -> tuple[float, ...]:
    values = [r["seams"][f"generator {encoding}"][key] for r in results]
    return tuple(float(np.mean(value if start is None else value[start])) for value in values)


def _visible(results: list[dict[str, Any]], variant: str, key: str = "visible") -> tuple[float, ...]:
    return tuple(float(np.mean(r["placement"][variant][key])) for r in results)


def _errors(results: list[dict[str, Any]], variant: str, angle: str, key: str = "errors") -> tuple[float, ...]:
    return tuple(float(np.median(r["placement"][variant][key][angle])) for r in results)


def _drop(results: list[dict[str, Any]], variant: str) -> tuple[float, ...]:
    """Mean loss of PSNR from the standard camera to all others, in dB."""
    tests = [r["placement"][variant]["robustness"] for r in results]
    return tuple(float(np.mean([t["standard"] - psnr for label, psnr in t.items() if label != "standard"])) for t in tests)


def _every(rule: Callable[..., bool], *values: tuple[float, ...]) -> bool:
    return all(rule(*seed) for seed in zip(*values, strict=True))


# --- claims -----------------------------------------------------------------------------------------------------------------


def _seam_claims(config: StudyConfig, results: list[dict[str, Any]]) -> list[Claim]:
    plain, circular = _roll(results, "plain, border"), _roll(results, "circular, border")
    vanilla, cured = _rows(results, VANILLA, "seam ratio"), _rows(results, CURED, "seam ratio")
    truth, mismatch = _rows(results, "truth", "seam ratio"), _rows(results, MISMATCH, "seam ratio")
    edges = [_rows(results, c, "edge error") for c in (BLENDED, CURED)]
    scores = [_rows(results, c, "discontinuity") for c in (VANILLA, BLENDED, CURED)]
    start = f"{config.starts[len(config.starts) // 2]:g}"
    own = [_generator(results, encoding, "own latents", start) for encoding in ("plain", "circular")]
    same = [_generator(results, encoding, "circular latents", start) for encoding in ("plain", "circular")]
    return [
        Claim(
            name="origin of the seam",
            sentence="Zero padding in the VAE's encoder disturbs the latents at the left and right border; circular encoding does not.",
            source="circular latent encoding",
            quantity="change of border latents when the panorama is rolled by half a turn, in standard deviations",
            without=plain,
            with_graft=circular,
            held=_every(lambda p, c: c < p / 10, plain, circular),
            rule="at most a tenth, in every seed",
        ),
        Claim(
            name="the cure",
            sentence="Circular encoding and decoding remove the seam of the autoencoder.",
            source="seam table",
            quantity="seam ratio (ground truth of the same scenes: " + spread(truth) + ")",
            without=vanilla,
            with_graft=cured,
            held=_every(lambda v, c, t: abs(c - t) < abs(v - t) / 2, vanilla, cured, truth),
            rule="distance to the ground truth's ratio at least halved, in every seed",
        ),
        Claim(
            name="both or neither",
            sentence="Circular latents under an ordinary decoder are worse than doing nothing.",
            source="consequence of circular latent encoding",
            quantity="seam ratio: vanilla, against circular latents under the plain decoder",
            without=vanilla,
            with_graft=mismatch,
            held=_every(lambda v, m: m > v, vanilla, mismatch),
            rule="higher in every seed",
        ),
        Claim(
            name="better than blending",
            sentence="Circular encoding beats decoding twice and blending.",
            source="seam table (5.29 against 3.87)",
            quantity="mean error within 4 columns of the seam: blended, against circular",
            without=edges[0],
            with_graft=edges[1],
            held=_every(lambda b, c: c < b, *edges),
            rule="lower in every seed",
        ),
        Claim(
            name="discontinuity score",
            sentence="The discontinuity score falls from vanilla over blended decoding to circular encoding.",
            source="seam table (9.92, 5.29, 3.87)",
            quantity="discontinuity score: vanilla, against circular; blended: " + spread(scores[1]),
            without=scores[0],
            with_graft=scores[2],
            held=_every(lambda v, b, c: c < b < v, *scores),
            rule="in this order in every seed",
        ),
        Claim(
            name="generated panoramas",
            sentence="A transformer trained on circular latents makes panoramas with a weaker seam.",
            source="circular latent encoding",
            quantity=f"seam ratio denoised from t = {start}, each from its own latents, both decoded circularly",
            without=own[0],
            with_graft=own[1],
            held=_every(lambda p, c: c < p, *own),
            rule="lower in every seed",
        ),
        Claim(
            name="the generator's share",
            sentence="The transformer itself has learned the disturbed border.",
            source="circular latent encoding",
            quantity=f"seam ratio denoised from t = {start}, both starting from circular latents",
            without=same[0],
            with_graft=same[1],
            held=_every(lambda p, c: c < p, *same),
            rule="lower in every seed",
        ),
    ]


def _placement_claims(results: list[dict[str, Any]]) -> list[Claim]:
    free, true, assumed = (_visible(results, name) for name in (SEQUENCE, TRUE_CAMERA, ASSUMED))
    angles = ("hfov", "pitch", "roll")
    found = {a: _errors(results, SEQUENCE, a) for a in angles}
    constant = {a: _errors(results, "true panoramas", a, "constant") for a in angles}
    ratio = tuple(float(np.mean([found[a][i] / constant[a][i] for a in angles])) for i in range(len(results)))
    drops = [_drop(results, name) for name in (ONE_CAMERA, SEQUENCE)]
    standard = [tuple(r["placement"][name]["robustness"]["standard"] for r in results) for name in (ONE_CAMERA, SEQUENCE)]
    whole = [_visible(results, name, "whole") for name in (NOT_CANONICAL, SEQUENCE)]
    return [
        Claim(
            name="no camera needed",
            sentence="Appending the input's tokens without any camera is at least as good as warping it with the true camera.",
            source="ablation: channel concatenation",
            quantity="PSNR in dB where the input sees the panorama: channels with the true camera, against the sequence",
            without=true,
            with_graft=free,
            held=_every(lambda t, f: f >= t, true, free),
            rule="not lower in any seed",
        ),
        Claim(
            name="better than a wrong camera",
            sentence="It is far better than warping with an assumed camera.",
            source="geometry-free conditioning",
            quantity="PSNR in dB where the input sees the panorama: channels with the assumed camera, against the sequence",
            without=assumed,
            with_graft=free,
            held=_every(lambda a, f: f > a + 1, assumed, free),
            rule="more than 1 dB better in every seed",
        ),
        Claim(
            name="zero-shot camera",
            sentence="The generated panorama betrays field of view, pitch and roll of the input.",
            source="zero-shot camera estimation",
            quantity="median error over that of the constant answer, mean of field of view, pitch and roll",
            without=(1.0,) * len(results),
            with_graft=ratio,
            held=_every(
                lambda *pairs: all(f < c for f, c in zip(pairs[::2], pairs[1::2], strict=True)),
                *(v for a in angles for v in (found[a], constant[a])),
            ),
            rule="each of the three below the constant answer in every seed",
        ),
        Claim(
            name="robust to the camera",
            sentence="Trained on random cameras, it loses less on unusual ones than when trained on one camera.",
            source="robustness: +6.48 against +0.98 FID",
            quantity="mean loss of PSNR in dB from the standard camera to unusual ones",
            without=drops[0],
            with_graft=drops[1],
            held=_every(lambda o, s: s < o, *drops),
            rule="lower in every seed",
        ),
        Claim(
            name="augmentation helps the standard camera too",
            sentence="Training on random cameras also improves the standard camera.",
            source="ablation: camera augmentation",
            quantity="PSNR in dB at the standard camera: trained on it alone, against trained on all",
            without=standard[0],
            with_graft=standard[1],
            held=_every(lambda o, s: s > o, *standard),
            rule="higher in every seed",
        ),
        Claim(
            name="canonical targets",
            sentence="Upright targets are easier to learn than panoramas turned to the input.",
            source="ablation: canonical targets, FVD 559 to 471",
            quantity="PSNR in dB of the whole panorama: turned targets, against upright ones",
            without=whole[0],
            with_graft=whole[1],
            held=_every(lambda t, u: u > t, *whole),
            rule="higher in every seed",
        ),
    ]


# --- tables -----------------------------------------------------------------------------------------------------------------


def _autoencoder_table(results: list[dict[str, Any]]) -> Table:
    names = ["discontinuity", "seam ratio", "edge error", "interior error", "step error", "interior step error"]
    combinations = ["truth", *("|".join(c) for c in COMBINATIONS)]
    interior = _rows(results, CURED, "interior discontinuity")
    rolls = ", ".join(f"{name} {spread(_roll(results, name))}" for name in results[0]["seams"]["autoencoder"]["roll"])
    return Table(
        title="One autoencoder, every combination",
        columns=["encoder and decoder", *names],
        rows=[[NAMES.get(c, "ground truth"), *(spread(_rows(results, c, name)) for name in names)] for c in combinations],
        note=f"Mean over scenes (range over seeds). Discontinuity at interior columns: {spread(interior)}. Change of latents under a roll "
        f"in standard deviations: {rolls}.",
    )


def _generator_table(config: StudyConfig, results: list[dict[str, Any]]) -> Table:
    starts = [f"{t:g}" for t in (*config.starts, 1.0)]
    rows: list[list[Any]] = [["autoencoder alone, circular decoding", *_compared(results, "autoencoder alone", None)]]
    rows += [
        [f"denoised from t = {t}, own latents" if t != "1" else "from pure noise", *_compared(results, "own latents", t)] for t in starts
    ]
    rows += [[f"denoised from t = {t}, both from circular latents", *_compared(results, "circular latents", t)] for t in starts[:-1]]
    bias = ", ".join(
        f"{encoding} {spread(_generator(results, encoding, 'bias of data'))} in the data and "
        f"{spread(_generator(results, encoding, 'bias of samples'))} in samples from noise"
        for encoding in ("plain", "circular")
    )
    return Table(
        title="Two transformers: trained on ordinary and on circular latents (seam ratio)",
        columns=["panoramas", "ordinary latents", "circular latents", "difference, 95 % interval over scenes"],
        rows=rows,
        note=f"The intervals are bootstrapped over paired scenes of all seeds; they do not cover the variance of training. Ground truth: "
        f"{spread(_generator(results, 'circular', 'truth'))}. Bias of border latents in standard deviations: {bias}.",
    )


def _compared(results: list[dict[str, Any]], key: str, start: str | None) -> list[str]:
    plain, circular = (np.concatenate([_scenes(r["seams"][f"generator {e}"][key], start) for r in results]) for e in ("plain", "circular"))
    low, high = paired_interval(plain - circular)
    means = [spread(_generator(results, e, key, start)) for e in ("plain", "circular")]
    return [*means, f"{np.mean(plain - circular):.3f} [{low:.3f}, {high:.3f}]"]


def _scenes(value: Any, start: str | None) -> np.ndarray:
    return np.asarray(value if start is None else value[start])


def paired_interval(differences: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences; always the same draws."""
    picks = np.random.default_rng(0).integers(0, len(differences), (draws, len(differences)))
    low, high = np.quantile(differences[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def _placement_table(results: list[dict[str, Any]]) -> Table:
    angles = ("hfov", "pitch", "roll")
    rows: list[list[Any]] = []
    for name in VARIANTS:
        has_camera = "errors" in results[0]["placement"][name]
        errors = [spread(_errors(results, name, a)) for a in angles] if has_camera else ["–"] * 3
        rows.append([name, spread(_visible(results, name)), spread(_visible(results, name, "whole")), *errors])
    rows.append(["sequence, another sample's panorama", spread(_visible(results, SEQUENCE, "shuffled")), "–", "–", "–", "–"])
    rows.append(["true panoramas (the estimator alone)", "–", "–", *(spread(_errors(results, "true panoramas", a)) for a in angles)])
    rows.append(["constant answer", "–", "–", *(spread(_errors(results, "true panoramas", a, "constant")) for a in angles)])
    over_true, over_assumed = (
        paired_interval(
            np.concatenate([np.subtract(r["placement"][SEQUENCE]["visible"], r["placement"][other]["visible"]) for r in results])
        )
        for other in (TRUE_CAMERA, ASSUMED)
    )
    return Table(
        title="Ways of giving the input",
        columns=["condition", "PSNR, visible part", "PSNR, whole", "hfov error", "pitch error", "roll error"],
        rows=rows,
        note=f"PSNR in dB, mean; errors in degrees, median (range over seeds). Inputs: hfov {_range(ALL_CAMERAS.hfov)}, pitch "
        f"{_range(ALL_CAMERAS.pitch)}, roll {_range(ALL_CAMERAS.roll)}. Sequence minus channels over paired worlds, 95 %: true camera "
        f"[{over_true[0]:.2f}, {over_true[1]:.2f}] dB, assumed camera [{over_assumed[0]:.2f}, {over_assumed[1]:.2f}] dB.",
    )


def _range(values: tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


def _robustness_table(config: StudyConfig, results: list[dict[str, Any]]) -> Table:
    names = (SEQUENCE, ONE_CAMERA, TRUE_CAMERA, ASSUMED)
    return Table(
        title="Robustness over field of view, pitch and roll",
        columns=["camera of the input", *names],
        rows=[
            [label, *(spread(tuple(r["placement"][name]["robustness"][label] for r in results)) for name in names)]
            for label in config.robustness
        ],
        note="PSNR in dB where the input sees the panorama; standard is hfov 75, level; angles in degrees.",
    )


def _bundled_table(bundled: dict[str, Any]) -> Table:
    keys = ("visible", "shuffled", "seam ratio", "seam ratio of truth")
    return Table(
        title="The bundled small models on held-out worlds",
        columns=["model", "PSNR, visible part", "PSNR, another sample of the kind", "seam ratio", "seam ratio of the truth", "MB"],
        rows=[[mode, *(round(float(np.mean(b[key])), 3) for key in keys), round(b["bytes"] / 1e6, 2)] for mode, b in bundled.items()],
        note="One training. Of clips the first frame is measured.",
    )
