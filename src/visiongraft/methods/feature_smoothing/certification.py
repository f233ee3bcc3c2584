"""From one image and a smoothed encoder to a certificate: Monte-Carlo scores, confidence bounds, cosine bounds and radii."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.special import ndtri
from torch import Tensor

import visiongraft
from visiongraft.media.images import check_unit_range
from visiongraft.methods.feature_smoothing.bounds import BOUNDS, Bound, certified_radius, cosine_bound, deployed_bound, score_for_radius
from visiongraft.methods.feature_smoothing.confidence import (
    BettingTest,
    Confidence,
    check_sample_count,
    clopper_pearson,
    lower_bound,
    minimum_samples,
)
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, unit

DISCLAIMER = (
    "The certificate is about features within an l2 ball around the tensor the encoder receives (after resizing and cropping), "
    "for the smoothed encoder with infinitely many samples. It says nothing about l-infinity budgets such as 8/255, and nothing "
    "about the text that a language model writes from the features."
)


@dataclass(kw_only=True)
class CertificateConfig:
    """What is certified, and how sure.

    Args:
        n: noise samples for the scores of one image.
        n_ref: separate samples for the smoothed reference direction; never reused for its score.
        alpha: probability that the certificate of one image is wrong.
        method: confidence bound: betting, kl, empirical_bernstein or hoeffding.
        eps: l2 radii, in pixel units, at which bounds are reported.
        tau: cosine similarity that a certified radius keeps, in [0, 1).
        beta: failure probability of the bound for the deployed average of n0 samples.
        simultaneous: images that share alpha (Bonferroni): with the number of all images, every certificate holds at once.
        stop_radius: stop sampling as soon as this l2 radius is certified at tau, or cannot be any more (betting only).
    """

    n: int = 1000
    n_ref: int = 128
    alpha: float = 1e-3
    method: Confidence = "betting"
    eps: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    tau: float = 0.5
    beta: float = 1e-3
    simultaneous: int = 1
    stop_radius: float | None = None

    def __post_init__(self) -> None:
        if self.simultaneous < 1 or self.n_ref < 1:
            raise ValueError(f"simultaneous and n_ref must be at least 1; got {self.simultaneous} and {self.n_ref}.")
        check_sample_count(self.n, self.alpha if not 0 < self.alpha < 1 else self.alpha / self.simultaneous)
        if any(not (np.isfinite(e) and e >= 0) for e in self.eps):
            raise ValueError(f"eps are l2 radii in pixel units and must be non-negative; got {self.eps}.")
        if not 0 <= self.tau < 1:
            raise ValueError(f"tau must be a cosine in [0, 1); got {self.tau}.")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta is a failure probability and must lie in (0, 1); got {self.beta}.")
        if self.method not in ("betting", "kl", "empirical_bernstein", "hoeffding"):
            raise ValueError(f"method must be betting, kl, empirical_bernstein or hoeffding for similarity scores; got {self.method!r}.")
        if self.stop_radius is not None and self.method != "betting":
            raise ValueError("stop_radius needs method=betting: only its capital may be looked at before sampling ends.")


@dataclass(frozen=True, kw_only=True)
class ScoreBound:
    """A mean score and its lower confidence bound; the smallest over tokens when each token is certified."""

    mean: float
    lower: float


@dataclass(frozen=True, kw_only=True)
class PredictionCertificate:
    """Radii within which a zero-shot prediction of the smoothed encoder cannot change; 0 means abstain.

    ``margin``: argmax of the averaged feature; ``vote``: majority vote over noisy predictions (Cohen et al.); ``fcsb`` and
    ``reference``: the margin of the clean feature against the certified cosine (pooled features only, else None).
    """

    label: int
    margin_radius: float
    vote_radius: float
    fcsb_radius: float | None
    reference_radius: float | None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What holds for one image. ``bounds[eps][name]`` and ``radii[name]`` use the lower confidence bounds of the scores.

    ``reference``: score against the clean feature (stability and utility). ``smoothed``: score against the smoothed feature
    (stability only; an encoder that collapses under noise has it near 1).
    """

    image_sha256: str
    sigma: float
    n: int
    n_ref: int
    alpha: float
    beta: float
    n0: int
    method: str
    token_mode: str
    parts: int
    tau: float
    reference: ScoreBound
    smoothed: ScoreBound
    bounds: dict[float, dict[str, float]]
    radii: dict[str, float]
    deployed: dict[float, float]
    prediction: PredictionCertificate | None
    stopped_early: bool
    dtype: str
    version: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; radii as strings where they are keys."""
        record = asdict(self)
        for key in ("bounds", "deployed"):
            record[key] = {f"{eps:g}": value for eps, value in record[key].items()}
        return record

    def statement(self) -> str:
        """The certificate in one sentence, with what it does not say."""
        radius = self.radii["reference"]
        if radius <= 0:
            return f"Not certified: no l2 radius keeps cosine >= {self.tau:g} with confidence {1 - self.alpha:g}. {DISCLAIMER}"
        return (
            f"Features of every image within l2 <= {radius:.3f} (pixel units; {255 * radius:.0f} grey levels) of this tensor keep "
            f"cosine >= {self.tau:g} to its clean feature with confidence {1 - self.alpha:g}. {DISCLAIMER}"
        )


def image_generator(image: Float[Tensor, "channels height width"], purpose: str, seed: int) -> torch.Generator:
    """A generator that depends on the image, the purpose and the seed only, so that reports can be reproduced image by image."""
    digest = hashlib.sha256(f"{purpose}:{seed}:".encode() + bytes.fromhex(image_sha256(image))).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def image_sha256(image: Float[Tensor, "channels height width"]) -> str:
    """Hash of an image's float32 pixels and shape: what a certificate belongs to."""
    pixels = image.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Monte-Carlo scores of one image, before any confidence bound; several methods may be applied to the same ones.

    Args:
        similarity: samples x 2 x parts: against the clean feature, and against the smoothed feature from separate samples.
        margin: samples x (classes - 1): scores of the decision planes of the predicted class; ``None`` without classes.
        vote: samples: 1 where the noisy prediction is the predicted class.
        across: cosines between the clean feature and those planes' normals; ``None`` unless features are pooled.
        label: predicted class, picked on the separate samples; -1 without classes.
    """

    image_sha256: str
    similarity: Float[np.ndarray, "samples 2 parts"]
    margin: Float[np.ndarray, "samples others"] | None
    vote: Float[np.ndarray, " samples"] | None
    across: Float[np.ndarray, " others"] | None
    label: int
    dtype: str


def certify(
    smoothed: SmoothedEncoder,
    image: Shaped[Tensor, "channels height width"],
    config: CertificateConfig,
    *,
    classes: Float[Tensor, "classes embedding"] | None = None,
    seed: int = 0,
) -> Certificate:
    """Certifies the smoothed feature of one image against every l2-bounded change of it.

    Args:
        smoothed: the encoder under smoothing; bounds are for its configured token mode.
        image: in [0, 1], at the size where noise is added.
        config: samples, confidence, radii.
        classes: unit text (or prototype) embeddings of a zero-shot head; adds a certificate of the prediction.
        seed: with the image's hash, fixes the noise. Independent noise is used for reference and scores.

    Returns:
        Scores, bounds at each eps, radii at tau, and what holds for the deployed average of n0 samples.

    Raises:
        ValueError: pixels outside [0, 1] or NaN; features that are NaN; fewer than two classes.

    Source: arXiv 2601.16200, Sec. 3.1; confidence and tight bounds are derived in docs/methods/feature_smoothing.md.
    """
    return certificate(smoothed, sample_scores(smoothed, image, config, classes=classes, seed=seed), config)


@torch.inference_mode()
def sample_scores(
    smoothed: SmoothedEncoder,
    image: Shaped[Tensor, "channels height width"],
    config: CertificateConfig,
    *,
    classes: Float[Tensor, "classes embedding"] | None = None,
    seed: int = 0,
) -> Scores:
    """Draws the scores of one image, in chunks; stops early when ``config.stop_radius`` is decided. See :func:`certify`."""
    check_unit_range(image)
    if classes is not None and len(classes) < 2:
        raise ValueError(f"A prediction certificate needs at least 2 classes; got {len(classes)}.")
    batch = image.unsqueeze(0)
    pooled_mode = smoothed.config.token_mode == "pooled"
    clean = smoothed.reference(batch)[0]
    estimate, label = _selection(smoothed, batch, config.n_ref, classes, image_generator(image, "reference", seed))
    directions = torch.stack([clean, estimate])  # 2, parts, feature
    test = _stopping_test(config, smoothed.config.sigma, parts=clean.shape[0])
    normals = None if classes is None else _class_normals(classes.float(), label)

    similarity, margin, vote = [], [], []
    dtype = torch.float32
    for tokens in smoothed.token_samples(batch, config.n, image_generator(image, "score", seed)):
        dtype = tokens.dtype
        features = smoothed.reduce(tokens[0])
        similarity.append(_as_scores(torch.einsum("npf,dpf->ndp", features, directions)))
        if classes is not None and normals is not None:
            pooled = (features if pooled_mode else smoothed.reduce(tokens[0], "pooled"))[:, 0]
            margin.append(_as_scores(pooled @ normals.T))
            vote.append(((pooled @ classes.float().T).argmax(1) == label).cpu().double().numpy())
        if test is not None:
            test.update(similarity[-1][:, 0])
            if test.passed or test.hopeless:
                break
    return Scores(
        image_sha256=image_sha256(image),
        similarity=np.concatenate(similarity),
        margin=np.concatenate(margin) if margin else None,
        vote=np.concatenate(vote) if vote else None,
        across=(normals @ clean[0]).cpu().double().numpy() if normals is not None and pooled_mode else None,
        label=label,
        dtype=str(dtype).removeprefix("torch."),
    )


def certificate(smoothed: SmoothedEncoder, scores: Scores, config: CertificateConfig) -> Certificate:
    """Confidence bounds, cosine bounds and radii from scores that were drawn with ``config``."""
    settings, n = smoothed.config, len(scores.similarity)
    alpha, parts = config.alpha / config.simultaneous, scores.similarity.shape[2]
    lower = lower_bound(scores.similarity.reshape(n, -1), alpha / parts, config.method).reshape(2, parts)
    if not (lower < 1).all():
        raise AssertionError("A lower confidence bound reached 1, which finite samples cannot give.")
    reference, own = lower.min(axis=1)
    means = scores.similarity.mean(0).min(axis=1)
    return Certificate(
        image_sha256=scores.image_sha256,
        sigma=settings.sigma,
        n=n,
        n_ref=config.n_ref,
        alpha=alpha,
        beta=config.beta,
        n0=settings.n0,
        method=config.method,
        token_mode=settings.token_mode,
        parts=parts,
        tau=config.tau,
        reference=ScoreBound(mean=float(means[0]), lower=float(reference)),
        smoothed=ScoreBound(mean=float(means[1]), lower=float(own)),
        bounds={
            float(eps): {b: float(cosine_bound(_score(b, reference, own), eps / settings.sigma, b)) for b in BOUNDS} for eps in config.eps
        },
        radii={b: float(certified_radius(_score(b, reference, own), settings.sigma, config.tau, b)) for b in BOUNDS},
        deployed={float(eps): float(deployed_bound(reference, eps / settings.sigma, settings.n0, config.beta)) for eps in config.eps},
        prediction=_prediction(scores, settings.sigma, alpha, config, float(reference)),
        stopped_early=n < config.n,
        dtype=scores.dtype,
        version=visiongraft.__version__,
    )


def _as_scores(products: Tensor) -> np.ndarray:
    return ((1 + products) / 2).cpu().double().numpy()


def _stopping_test(config: CertificateConfig, sigma: float, parts: int) -> BettingTest | None:
    if config.stop_radius is None:
        return None
    alpha = config.alpha / config.simultaneous / parts
    target = score_for_radius(config.stop_radius, sigma, config.tau)
    if config.n < (needed := minimum_samples(target, alpha)):
        raise ValueError(f"A radius of {config.stop_radius} at cosine {config.tau} needs n>={needed} at this alpha; got n={config.n}.")
    return BettingTest(target, alpha, config.n)


def _score(bound: Bound, reference: float, smoothed: float) -> float:
    """The score a bound is about: ``smoothed`` compares two smoothed features, the others start from the clean one."""
    return float(smoothed if bound == "smoothed" else reference)


def _selection(
    smoothed: SmoothedEncoder, batch: Tensor, samples: int, classes: Tensor | None, generator: torch.Generator
) -> tuple[Float[Tensor, "parts feature"], int]:
    """Smoothed direction and predicted class from a batch of its own, independent of the samples that are scored."""
    total, pooled = torch.zeros(()), torch.zeros(())
    for tokens in smoothed.token_samples(batch, samples, generator):
        total = total + smoothed.reduce(tokens[0]).sum(0)
        if classes is not None:
            pooled = pooled + smoothed.reduce(tokens[0], "pooled").sum((0, 1))
    label = int((classes.float() @ pooled).argmax()) if classes is not None else -1
    return unit(total), label


def _class_normals(classes: Float[Tensor, "classes embedding"], label: int) -> Float[Tensor, "others embedding"]:
    """Unit normals of the decision planes between the predicted class and each other class."""
    classes = unit(classes)
    others = torch.arange(len(classes), device=classes.device) != label
    return unit(classes[label] - classes[others])


def _prediction(scores: Scores, sigma: float, alpha: float, config: CertificateConfig, reference: float) -> PredictionCertificate | None:
    """Radii of the prediction: sigma min_k Phi^-1(S_k) over decision planes, and the majority vote's sigma Phi^-1(p)."""
    if scores.margin is None or scores.vote is None:
        return None
    margins = lower_bound(scores.margin, alpha / scores.margin.shape[1], config.method)
    # Clopper-Pearson may not be looked at before sampling ends, so a stopped run falls back on the martingale bound
    share = clopper_pearson(scores.vote, alpha) if config.stop_radius is None else lower_bound(scores.vote, alpha, "betting")
    from_cosine: dict[Bound, float | None] = {"fcsb": None, "reference": None}
    if scores.across is not None:
        tau = float(np.sqrt(1 - min(scores.across.min(), 1.0) ** 2))
        certain = scores.across.min() > 0 and tau < 0.99
        for bound in from_cosine:
            # tau is rounded up to a hundredth, so that tables are shared between images
            radius = certified_radius(reference, sigma, float(np.ceil(tau * 100 + 1e-9) / 100), bound) if certain else 0.0
            from_cosine[bound] = max(float(radius), 0.0)
    return PredictionCertificate(
        label=scores.label,
        margin_radius=max(sigma * float(ndtri(margins.min())), 0.0),
        vote_radius=max(sigma * float(ndtri(share[0])), 0.0),
        fcsb_radius=from_cosine["fcsb"],
        reference_radius=from_cosine["reference"],
    )
