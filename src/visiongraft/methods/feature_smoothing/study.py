"""The small-scale study of feature smoothing: trained on clean digits, shapes and photographs, then attacked and certified.

Per seed: a CLIP, its purifier and its mapper are trained; then stability under noise, certificates, and l2 attacks through
everything are measured with nothing tuned in between.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visiongraft.methods.feature_smoothing import measurements as measure
from visiongraft.methods.feature_smoothing.attacks import AttackConfig
from visiongraft.methods.feature_smoothing.certification import CertificateConfig
from visiongraft.methods.feature_smoothing.encoders import load_encoder
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.pipeline import WEIGHTS, ZeroShot
from visiongraft.methods.feature_smoothing.small import train_small
from visiongraft.methods.feature_smoothing.smoothing import SmoothingConfig
from visiongraft.methods.feature_smoothing.study_report import StudyConfig, study_report
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier
from visiongraft.studies import Report, Study
from visiongraft.worlds.captioned import CLASS_PROMPTS, CaptionedImages, held_out_images


def load_parts(folder: Path) -> measure.Parts:
    """Encoder, classes, purifier and mapper from a folder with ``clip``, ``purifier`` and ``mapper``."""
    return measure.Parts(
        encoder=load_encoder(str(folder / "clip")),
        classes=ZeroShot(str(folder / "clip"), list(CLASS_PROMPTS)).classes.clone(),
        purifier=UNetPurifier.from_pretrained(folder / "purifier").eval(),
        mapper=SmoothnessMapper.from_pretrained(folder / "mapper").eval(),
    )


def run_study(config: StudyConfig) -> Report:
    """Trains and measures every seed, writes report.json, report.md and figures to ``config.output``, and returns the report."""
    settings = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in ("output", "seeds")}, default=str))
    study = Study(name="feature_smoothing", output=config.output, settings=settings)
    results = [_one_seed(study, config, seed) for seed in config.seeds]
    report = study_report(config, results, settings, study.seconds)
    report.write(config.output)
    return report


def _one_seed(study: Study, config: StudyConfig, seed: int) -> dict[str, Any]:
    folder = WEIGHTS if config.bundled else config.output / f"seed-{seed}"
    training = {"seconds": {}} if config.bundled else study.unit(f"train-{seed}", lambda: train_small(folder, config.budget, seed))
    parts = load_parts(folder)
    each = config.images // 2
    data, large = held_out_images(seed, digits=each, shapes=each), held_out_images(seed, digits=200, shapes=200)
    targets = _targets(data, seed)
    smoothing = SmoothingConfig(sigma=config.sigma, token_mode="pooled", chunk_size=128)
    certificate = CertificateConfig(n=config.n, eps=tuple(config.eps))
    attack_args = {"samples": config.attack_samples, "estimate_samples": config.n // 2, "seed": seed}
    result: dict[str, Any] = {"training": training}
    result["clean"] = study.unit(f"clean-{seed}", lambda: measure.clean_accuracy(parts, large))
    result["noise"] = {
        f"{condition}|{sigma}": study.unit(
            f"noise-{seed}-{condition}-{sigma}", lambda c=condition, s=sigma: measure.under_noise(parts, large, c, s, seed)
        )
        for condition in measure.CONDITIONS
        for sigma in config.noise_levels
    }
    result["certificates"] = {
        condition: study.unit(
            f"certificates-{seed}-{condition}",
            lambda c=condition: measure.certificates(parts, data, c, smoothing, certificate, seed),
        )
        for condition in measure.CONDITIONS
    }
    result["attacks"] = {
        f"{condition or 'no defence'}|{norm}|{eps:.4g}": study.unit(
            f"attack-{seed}-{condition}-{norm}-{eps:.4g}",
            lambda c=condition, n=norm, e=eps: measure.attack(parts, data, targets, c, smoothing, _budget(config, n, e), **attack_args),
        )
        for condition in (None, *measure.CONDITIONS)
        for norm, eps in (*(("l2", eps) for eps in config.eps), ("linf", 8 / 255))
    }
    best = measure.CONDITIONS[-1]
    result["fixed_noise"] = study.unit(
        f"fixed-{seed}",
        lambda: measure.fixed_noise_attack(parts, data, best, smoothing, _budget(config, "l2", config.eps[-1]), seed),
    )
    result["split"] = study.unit(
        f"split-{seed}",
        lambda: np.mean(
            [measure.split_and_same_sample_scores(parts.smoothed("smoothing", smoothing), x, 8, seed) for x in data.images()], axis=0
        ).tolist(),
    )
    return result


def _budget(config: StudyConfig, norm: Any, eps: float) -> AttackConfig:
    return AttackConfig(norm=norm, eps=eps, steps=config.attack_steps, restarts=1)


def _targets(data: CaptionedImages, seed: int) -> CaptionedImages:
    """For each image another held-out image, of another class, that the targeted attack imitates."""
    pool = held_out_images(seed + 500, digits=100, shapes=100)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)
    chosen = [next(int(i) for i in order.roll(k * 7) if pool.labels[i] != label) for k, label in enumerate(data.labels)]
    return CaptionedImages(pool.pixels[chosen], pool.labels[chosen], [pool.captions[i] for i in chosen])
