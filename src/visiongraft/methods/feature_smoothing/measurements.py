"""What the study measures: behaviour under noise, certificates, and attacks set against them. Every function returns plain data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtri
from torch import Tensor, nn

from visiongraft.methods.feature_smoothing.attacks import AttackConfig, eot_cosine_objective, pgd
from visiongraft.methods.feature_smoothing.bounds import BOUNDS
from visiongraft.methods.feature_smoothing.certification import CertificateConfig, certificate, sample_scores
from visiongraft.methods.feature_smoothing.confidence import lower_bound
from visiongraft.methods.feature_smoothing.encoders import Encoder
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig, unit
from visiongraft.worlds.captioned import CaptionedImages

CONDITIONS = ("smoothing", "+ purifier", "+ purifier + mapper")
CONFIDENCE_METHODS = ("betting", "kl", "empirical_bernstein", "hoeffding")


@dataclass
class Parts:
    """One trained set: encoder, unit class embeddings (classes x embedding), purifier and mapper."""

    encoder: Encoder
    classes: Tensor
    purifier: nn.Module
    mapper: SmoothnessMapper

    def smoothed(self, condition: str, config: SmoothingConfig) -> SmoothedEncoder:
        """The encoder under one of ``CONDITIONS``."""
        purifier = self.purifier if "purifier" in condition else None
        return SmoothedEncoder(self.encoder, config, purifier, self.mapper if "mapper" in condition else None)


def predictions(classes: Float[Tensor, "classes embedding"], features: Float[Tensor, "batch embedding"]) -> Int[Tensor, " batch"]:
    """Zero-shot classes of pooled features."""
    return (features @ classes.T).argmax(1)


@torch.inference_mode()
def clean_accuracy(parts: Parts, data: CaptionedImages) -> float:
    """Accuracy of the undefended encoder on clean images."""
    features = unit(parts.encoder.readout(parts.encoder(data.images())))
    return accuracy(predictions(parts.classes, features), data.labels)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries."""
    return float((predicted == labels).float().mean())


@torch.inference_mode()
def under_noise(parts: Parts, data: CaptionedImages, condition: str, sigma: float, seed: int) -> dict[str, float]:
    """Accuracy of one noisy feature and the scores S (pooled and flat) against the clean feature, 2 samples an image."""
    smoothed = parts.smoothed(condition, SmoothingConfig(sigma=sigma, chunk_size=256))
    generator = torch.Generator().manual_seed(seed)
    images, labels = data.images(), data.labels
    clean = parts.encoder(images)
    tokens = torch.cat(list(smoothed.token_samples(images, 2, generator)), dim=1)
    result = {}
    for mode in ("pooled", "flat"):
        reference = smoothed.reduce(clean, mode)
        features = smoothed.reduce(tokens.flatten(0, 1), mode).unflatten(0, tokens.shape[:2])
        result[f"score_{mode}"] = float(((1 + (features * reference[:, None]).sum(-1)) / 2).mean())
        if mode == "pooled":
            guesses = predictions(parts.classes, features[:, :, 0].flatten(0, 1))
            result["accuracy"] = accuracy(guesses, labels.repeat_interleave(2))
    return result


def certificates(
    parts: Parts, data: CaptionedImages, condition: str, smoothing: SmoothingConfig, config: CertificateConfig, seed: int
) -> dict[str, Any]:
    """Certificates of every image, with every confidence method on the same scores."""
    smoothed = parts.smoothed(condition, smoothing)
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in CONFIDENCE_METHODS}
    similarity = []
    for image in data.images():
        scores = sample_scores(smoothed, image, config, classes=parts.classes, seed=seed)
        similarity.append(scores.similarity[:, 0, 0])
        for method in CONFIDENCE_METHODS:
            rows[method].append(certificate(smoothed, scores, replace(config, method=method)).to_dict())
    return {
        "rows": rows,
        "labels": data.labels.tolist(),
        "lower_by_n": {
            str(n): float(np.mean([lower_bound(s[:n], config.alpha)[0] for s in similarity]))
            for n in (8, 32, 128, config.n)
            if n <= config.n
        },
        "within_image_deviation": float(np.mean([s.std(ddof=1) for s in similarity])),
    }


def certified_accuracy(rows: list[dict[str, Any]], labels: list[int], kind: str, radii: np.ndarray) -> list[float]:
    """Share of images whose prediction is right and cannot change within each radius; ``kind``: margin, vote, fcsb, reference."""
    certified = np.array(
        [
            row["prediction"][f"{kind}_radius"] if row["prediction"]["label"] == label else -1.0
            for row, label in zip(rows, labels, strict=True)
        ]
    )
    return [float(np.mean(certified > radius)) for radius in radii]


def attack(
    parts: Parts,
    data: CaptionedImages,
    targets: CaptionedImages,
    condition: str | None,
    smoothing: SmoothingConfig,
    budget: AttackConfig,
    samples: int,
    estimate_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Attacks every image, untargeted and targeted, and says what is left of features and predictions.

    Args:
        condition: one of ``CONDITIONS``, or ``None`` for the undefended encoder.
        samples: fresh noise samples of one gradient (expectation over transformation).
        estimate_samples: samples of the estimates of g after the attack.

    Returns:
        Per image: cosine to the clean feature, to the clean smoothed feature, dot product; accuracy; targeted success.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = data.images(), data.labels
    if condition is None:
        features: Callable[..., Tensor] = lambda x, count: unit(parts.encoder.readout(parts.encoder(x))).unsqueeze(1)
    else:
        smoothed = parts.smoothed(condition, smoothing)
        features = lambda x, count: smoothed.mean_feature(x, count, generator)

    with torch.inference_mode():
        clean = unit(parts.encoder.readout(parts.encoder(images))).unsqueeze(1)
        aim = unit(parts.encoder.readout(parts.encoder(targets.images()))).unsqueeze(1)
    clean, aim = clean.clone(), aim.clone()
    found = {}
    for name, reference, targeted in (("untargeted", clean, False), ("targeted", aim, True)):
        objective = eot_cosine_objective(features, reference, samples, targeted)
        judge = eot_cosine_objective(features, reference, 4 * samples, targeted)
        found[name] = pgd(objective, images, budget, generator, evaluate=judge).images
    with torch.inference_mode():
        before, after = features(images, estimate_samples)[:, 0], features(found["untargeted"], estimate_samples)[:, 0]
        pulled = features(found["targeted"], estimate_samples)[:, 0]
    return {
        "to_clean": torch.cosine_similarity(clean[:, 0], after).tolist(),
        "to_clean_targeted": torch.cosine_similarity(clean[:, 0], pulled).tolist(),
        "dot": (clean[:, 0] * after).sum(1).tolist(),
        "to_smoothed": torch.cosine_similarity(before, after).tolist(),
        "to_smoothed_targeted": torch.cosine_similarity(before, pulled).tolist(),
        "clean_accuracy": accuracy(predictions(parts.classes, before), labels),
        "accuracy": accuracy(predictions(parts.classes, after), labels),
        "targeted_success": accuracy(predictions(parts.classes, pulled), targets.labels),
    }


def slack(rows: list[dict[str, Any]], attacked: dict[str, Any], eps: float) -> dict[str, float]:
    """Smallest distance between what an attack reached and each bound, over images and both attacks; negative is a violation."""
    smallest = {}
    for bound in BOUNDS:
        certified = np.array([row["bounds"][f"{eps:g}"][bound] for row in rows])
        kind = "to_smoothed" if bound == "smoothed" else "to_clean"
        reached = np.minimum(attacked[kind], attacked[f"{kind}_targeted"])
        smallest[bound] = float(np.min(np.where(certified >= 0, reached - certified, np.inf), initial=np.inf))
    return smallest


def garbled_formula(rows: list[dict[str, Any]], attacked: dict[str, Any], eps: float) -> dict[str, float]:
    """How often 2 Phi^-1(S) - eps - 1, the theorem as mis-transcribed, exceeds 1 or what the attack reached."""
    claimed = 2 * ndtri(np.array([row["reference"]["lower"] for row in rows])) - eps - 1
    return {"above_one": float(np.mean(claimed > 1)), "violated": float(np.mean(claimed > np.array(attacked["to_clean"])))}


@torch.inference_mode()
def split_and_same_sample_scores(smoothed: SmoothedEncoder, image: Tensor, samples: int, seed: int) -> tuple[float, float]:
    """Score of the smoothed direction from separate samples, and from the samples that formed it (which flatters it)."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        smoothed.reduce(torch.cat(list(smoothed.token_samples(image[None], samples, generator)), dim=1)[0])[:, 0] for _ in range(2)
    )
    direction = unit(first.mean(0))
    return float((1 + (second @ direction).mean()) / 2), float((1 + (first @ direction).mean()) / 2)


def fixed_noise_attack(
    parts: Parts, data: CaptionedImages, condition: str, smoothing: SmoothingConfig, budget: AttackConfig, seed: int
) -> dict[str, float]:
    """Accuracy of the deployed average of n0 samples when the attacker knows the realised noise, and when noise is fresh."""
    smoothed = parts.smoothed(condition, smoothing)
    images, labels = data.images(), data.labels
    result = {}
    for name in ("fixed", "fresh"):
        generator = torch.Generator().manual_seed(seed)

        def features(x: Tensor, count: int, name: str = name, generator: torch.Generator = generator) -> Tensor:
            noise = torch.Generator().manual_seed(seed) if name == "fixed" else generator
            return smoothed.mean_feature(x, count, noise)

        with torch.inference_mode():
            reference = smoothed.reference(images)
        objective = eot_cosine_objective(features, reference.clone(), smoothing.n0)
        adversarial = pgd(objective, images, budget, torch.Generator().manual_seed(seed), evaluate=objective).images
        with torch.inference_mode():
            result[name] = accuracy(predictions(parts.classes, features(adversarial, smoothing.n0)[:, 0]), labels)
    return result
