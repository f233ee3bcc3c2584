"""What the study's measurements say: claims, beside tables and figures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import visiongraft
from visiongraft.methods.panorama.placement import CameraRanges
from visiongraft.methods.panorama.small_training import SmallBudget
from visiongraft.methods.panorama.study_figures import draw_figures
from visiongraft.methods.panorama.study_tables import autoencoder_table, bundled_table, generator_table, placement_table, robustness_table
from visiongraft.methods.panorama.study_values import (
    ASSUMED,
    BLENDED,
    CURED,
    MISMATCH,
    NOT_CANONICAL,
    ONE_CAMERA,
    SEQUENCE,
    TRUE_CAMERA,
    VANILLA,
    camera_errors,
    combination_values,
    generator_values,
    placement_values,
    psnr_drop,
    roll_values,
)
from visiongraft.studies import Claim, Report
from visiongraft.studies.claim import spread


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
    placement_steps: int = 900
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
            autoencoder_table(results),
            generator_table(config.starts, results),
            placement_table(results),
            robustness_table(list(config.robustness), results),
            *([bundled_table(bundled)] if bundled else []),
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


def _every(rule: Callable[..., bool], *values: tuple[float, ...]) -> bool:
    return all(rule(*seed) for seed in zip(*values, strict=True))


def _seam_claims(config: StudyConfig, results: list[dict[str, Any]]) -> list[Claim]:
    plain, circular = roll_values(results, "plain, border"), roll_values(results, "circular, border")
    vanilla, cured = combination_values(results, VANILLA, "seam ratio"), combination_values(results, CURED, "seam ratio")
    truth, mismatch = combination_values(results, "truth", "seam ratio"), combination_values(results, MISMATCH, "seam ratio")
    edges = [combination_values(results, c, "edge error") for c in (BLENDED, CURED)]
    scores = [combination_values(results, c, "discontinuity") for c in (VANILLA, BLENDED, CURED)]
    start = f"{config.starts[len(config.starts) // 2]:g}"
    own = [generator_values(results, encoding, "own latents", start) for encoding in ("plain", "circular")]
    same = [generator_values(results, encoding, "circular latents", start) for encoding in ("plain", "circular")]
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
    free, true, assumed = (placement_values(results, name) for name in (SEQUENCE, TRUE_CAMERA, ASSUMED))
    angles = ("hfov", "pitch", "roll")
    found = {a: camera_errors(results, SEQUENCE, a) for a in angles}
    constant = {a: camera_errors(results, "true panoramas", a, "constant") for a in angles}
    ratio = tuple(float(np.mean([found[a][i] / constant[a][i] for a in angles])) for i in range(len(results)))
    drops = [psnr_drop(results, name) for name in (ONE_CAMERA, SEQUENCE)]
    standard = [tuple(r["placement"][name]["robustness"]["standard"] for r in results) for name in (ONE_CAMERA, SEQUENCE)]
    whole = [placement_values(results, name, "whole") for name in (NOT_CANONICAL, SEQUENCE)]
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
