"""PGD and APGD with expectation over transformation, to check a certificate from below: no attack may beat it.

An objective maps images (B C H W in [0, 1]) to one score an image, and attacks maximise it. It may be random (fresh noise at
every call), and the score of an image may not depend on its batch mates. Gradients are real ones, through whatever the
objective contains (purifier, encoder, mapper), and are taken with respect to the images only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.perturbations import Images, Norm, ascent_direction, perturb, random_start

Objective = Callable[[Tensor], Tensor]
MOMENTUM = 0.75  # weight of the new step in APGD
PROGRESS = 0.75  # share of steps between two checkpoints that must improve the score
EVALUATION_REPEATS = 4  # default re-evaluation: this many times the objective calls of one step


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Budget of an attack.

    Args:
        norm: ``l2`` (the ball of the certificate) or ``linf`` (never covered by it).
        eps: radius in pixel units of [0, 1].
        steps: gradient steps of one restart.
        restarts: independent uniform random starts in the ball.
        step_size: default 2.5 eps / steps for PGD, 2 eps (the first one) for APGD.
        eot_repeats: objective calls averaged for one step, one after the other, so that memory does not grow with them.
    """

    norm: Norm = "l2"
    eps: float = 0.5
    steps: int = 20
    restarts: int = 2
    step_size: float | None = None
    eot_repeats: int = 1

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise ValueError(f"norm must be l2 or linf; got {self.norm!r}.")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be a finite, non-negative radius in pixel units of [0, 1]; got {self.eps}.")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be positive and finite, or left out for the default; got {self.step_size}.")
        for name in ("steps", "restarts", "eot_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Args:
        images: adversarial images, inside the eps ball around the clean ones and inside [0, 1].
        scores: their scores, drawn after the choice was made, hence without the optimism of a maximum over noisy scores.
        history: scores that the attack itself saw, restart by restart and step by step.
    """

    images: Images
    scores: Float[Tensor, " batch"]
    history: Float[Tensor, "restarts steps batch"]


def pgd(
    objective: Objective,
    images: Images,
    config: AttackConfig,
    generator: torch.Generator | None = None,
    evaluate: Objective | None = None,
) -> AttackResult:
    """Projected gradient ascent with a fixed step: sign steps in l-infinity, normalised gradients in l2.

    Args:
        objective: score to maximise; see the module docstring.
        images: clean images in [0, 1].
        config: ball, steps and restarts.
        generator: source of the random starts.
        evaluate: score by which restarts, the best and the last iterate, and the clean image are compared; ideally a larger
            draw than the objective's. Default: the mean of ``4 * eot_repeats`` fresh calls of the objective.

    Returns:
        The best image found for each clean image.

    Raises:
        ValueError: images outside [0, 1], NaN scores, an objective without gradient.

    Source: Madry et al., arXiv 1706.06083; expectation over transformation: Athalye et al., arXiv 1802.00420.
    """
    return _best_of_restarts(ascend, objective, images, config, generator, evaluate)


def apgd(
    objective: Objective,
    images: Images,
    config: AttackConfig,
    generator: torch.Generator | None = None,
    evaluate: Objective | None = None,
) -> AttackResult:
    """Gradient ascent with momentum and a step that each image halves for itself when it stops making progress.

    Arguments, result and errors as in :func:`pgd`. Preferable to it where no step size is known to be good.

    Source: Croce and Hein, arXiv 2003.01690, Alg. 1.
    """
    return _best_of_restarts(_ascend_adaptively, objective, images, config, generator, evaluate)


def eot_cosine_objective(
    features: Callable[[Tensor, int], Tensor],
    reference: Float[Tensor, "batch *parts feature"],
    samples: int = 8,
    targeted: bool = False,
) -> Objective:
    """Objective that drives smoothed features away from a reference (or, targeted, towards it).

    Args:
        features: (images, samples) to the mean feature over that many *fresh* noise samples, differentiable, in the shape of
            ``reference``; with several parts an image (one a token), the mean of their cosines counts.
        reference: clean features f(x), or those of the target image; detached here.
        samples: noise samples an objective call; 8 to 32 are usual. ``AttackConfig.eot_repeats`` adds more at equal memory.
        targeted: maximise the cosine instead of minus the cosine.

    Raises:
        ValueError: fewer than one sample, or features of another shape than the reference.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}.")
    reference, sign = reference.detach(), 1.0 if targeted else -1.0

    def objective(images: Tensor) -> Tensor:
        mean_features = features(images, samples)
        if mean_features.shape != reference.shape:
            raise ValueError(f"features must have the reference's shape {tuple(reference.shape)}; got {tuple(mean_features.shape)}.")
        return sign * F.cosine_similarity(mean_features, reference, dim=-1).reshape(len(images), -1).mean(1)

    return objective


def checked_images(images: Images, name: str = "images") -> Images:
    """Detached images in float32 (float64 stays), or an error if they are not finite or not in [0, 1]."""
    if images.numel() == 0:
        raise ValueError(f"{name} must hold at least one image; got shape {tuple(images.shape)}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} must be finite and in [0, 1]; got values from {low:.3g} to {high:.3g}. "
            "Divide 8-bit pixels by 255, and attack before normalisation."
        )
    return images.detach() if images.dtype == torch.float64 else images.detach().float()


def score_and_gradient(
    objective: Objective, images: Images, repeats: int = 1
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch channels height width"]]:
    """Scores and their gradient with respect to the images, averaged over fresh calls of the objective.

    Raises:
        ValueError: scores of a wrong shape, NaN or infinite scores or gradients, an objective that is not differentiable.
    """
    scores, gradient = images.new_zeros(len(images)), torch.zeros_like(images)
    for _ in range(repeats):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            score = _checked_scores(objective(leaf), leaf)
            # Gradients of the images alone: backward() would also leave gradients in the parameters.
            found = torch.autograd.grad(score.sum(), leaf, allow_unused=True)[0] if score.requires_grad else None
        if found is None:
            raise ValueError("The objective has no gradient with respect to the images; remove detach() and no_grad() from it.")
        if not torch.isfinite(found).all():
            raise ValueError("The objective has a NaN or infinite gradient; look for sqrt(0) or 0/0 in it, or for float16.")
        scores += score.detach() / repeats
        gradient += found / repeats
    return scores, gradient


def ascend(
    objective: Objective, images: Images, start: Images, config: AttackConfig
) -> tuple[Images, Images, Float[Tensor, "steps batch"]]:
    """One PGD run from ``start``: (iterate of the best score seen, last iterate, scores seen)."""
    step_size = 2.5 * config.eps / config.steps if config.step_size is None else config.step_size
    current = best = start
    best_score = images.new_full((len(images),), -torch.inf)
    history = []
    for _ in range(config.steps):
        score, gradient = score_and_gradient(objective, current, config.eot_repeats)
        history.append(score)
        best, best_score = _choose(score > best_score, current, best), torch.maximum(score, best_score)
        moved = current + step_size * ascent_direction(gradient, config.norm)
        current = perturb(images, moved - images, config.eps, config.norm)
    return best, current, torch.stack(history)


def _ascend_adaptively(
    objective: Objective, images: Images, start: Images, config: AttackConfig
) -> tuple[Images, Images, Float[Tensor, "steps batch"]]:
    def admissible(moved: Tensor) -> Tensor:
        return perturb(images, moved - images, config.eps, config.norm)

    step_size = images.new_full((len(images),), 2 * config.eps if config.step_size is None else config.step_size)
    current = previous = best = start
    best_score = best_at_checkpoint = images.new_full((len(images),), -torch.inf)
    score_before, best_gradient = -best_score, torch.zeros_like(images)
    improved = torch.zeros(len(images), dtype=torch.long, device=images.device)
    halved = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    checkpoints, last_checkpoint = apgd_checkpoints(config.steps), 0
    history = []
    for step in range(config.steps):
        score, gradient = score_and_gradient(objective, current, config.eot_repeats)
        history.append(score)
        improved += score > score_before
        better = score > best_score
        best, best_gradient = _choose(better, current, best), _choose(better, gradient, best_gradient)
        best_score = torch.maximum(score, best_score)
        if step in checkpoints:  # the first is step 0, where nothing can be halved and counting begins
            halved = must_halve(improved, step - last_checkpoint, best_score > best_at_checkpoint, halved)
            step_size = torch.where(halved, step_size / 2, step_size)
            current, gradient = _choose(halved, best, current), _choose(halved, best_gradient, gradient)
            score = torch.where(halved, best_score, score)
            improved, best_at_checkpoint, last_checkpoint = torch.zeros_like(improved), best_score, step
        stepped = admissible(current + step_size[:, None, None, None] * ascent_direction(gradient, config.norm))
        if step > 0:
            stepped = admissible(current + MOMENTUM * (stepped - current) + (1 - MOMENTUM) * (current - previous))
        previous, current, score_before = current, stepped, score
    return best, current, torch.stack(history)


def apgd_checkpoints(steps: int) -> list[int]:
    """Steps at which APGD reconsiders its step size: ceil(p_j * steps), p_0 = 0, p_1 = 0.22, each gap 0.03 less, at least 0.06.

    Source: arXiv 2003.01690, Sec. 3, in whole hundredths so that the ceiling is exact.
    """
    before, percent, found = 0, 22, [0]
    while percent < 100:
        found.append(-(-percent * steps // 100))
        before, percent = percent, percent + max(percent - before - 3, 6)
    return sorted(set(found))


def must_halve(
    improved: Int[Tensor, " batch"],
    window: int,
    best_rose: Bool[Tensor, " batch"],
    halved_last_time: Bool[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """APGD's rule at a checkpoint: too few of the ``window`` steps improved, or the best stalled at an unchanged step."""
    return (improved < PROGRESS * window) | (~best_rose & ~halved_last_time)


def _best_of_restarts(
    run: Callable[[Objective, Tensor, Tensor, AttackConfig], tuple[Tensor, Tensor, Tensor]],
    objective: Objective,
    images: Tensor,
    config: AttackConfig,
    generator: torch.Generator | None,
    evaluate: Objective | None,
) -> AttackResult:
    images = checked_images(images)

    @torch.no_grad()
    def judge(candidates: Tensor) -> Tensor:
        if evaluate is not None:
            return _checked_scores(evaluate(candidates), candidates)
        repeats = EVALUATION_REPEATS * config.eot_repeats
        return sum((_checked_scores(objective(candidates), candidates) for _ in range(repeats)), images.new_zeros(())) / repeats

    best, best_score, histories = images, judge(images), []
    for _ in range(config.restarts):
        start = random_start(images, config.eps, config.norm, generator)
        *candidates, history = run(objective, images, start, config)
        histories.append(history)
        for candidate in candidates:
            score = judge(candidate)
            best, best_score = _choose(score > best_score, candidate, best), torch.maximum(score, best_score)
    return AttackResult(best, judge(best), torch.stack(histories))


def _checked_scores(scores: Tensor, images: Tensor) -> Tensor:
    if scores.shape != (len(images),):
        raise ValueError(f"An objective must give one score an image, shape ({len(images)},); got {tuple(scores.shape)}.")
    if not torch.isfinite(scores).all():
        raise ValueError("The objective gave a NaN or infinite score; check the encoder's precision and the images.")
    return scores


def _choose(condition: Tensor, images: Tensor, others: Tensor) -> Tensor:
    return torch.where(condition[:, None, None, None], images, others)
