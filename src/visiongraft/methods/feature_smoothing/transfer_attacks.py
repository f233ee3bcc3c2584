"""Targeted l-infinity attacks on embeddings: AttackVLM, M-Attack and FOA, as the paper's evaluation uses them.

All start at the clean image and take sign steps towards the features of a target image. The public scripts clamp to [0, 1] only
at the end (AttackVLM) or inside the feature extractor (M-Attack, FOA); here every step is clamped, so that each iterate is an
image. No l-infinity result is covered by an l2 certificate: these numbers are empirical.

Against a smoothed encoder (white box), give it as the only surrogate; its fresh noise makes every step an expectation over
transformation with its own sample count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.attacks import AttackConfig, AttackResult, ascend, checked_images
from visiongraft.methods.feature_smoothing.crops import random_resized_crop
from visiongraft.methods.feature_smoothing.perturbations import Images
from visiongraft.methods.feature_smoothing.transport import kmeans, transport_plan

LOCAL_WEIGHT = 0.2  # of the optimal-transport term in FOA


@runtime_checkable
class Surrogate(Protocol):
    """A differentiable encoder that an attack looks through: calling it gives tokens (B N D) of images in [0, 1].

    ``readout`` pools tokens to the global embedding (B E); the first ``num_prefix_tokens`` tokens (class, registers) are not
    patches. It accepts the size of the attacked images.
    """

    num_prefix_tokens: int

    def __call__(self, images: Tensor) -> Tensor: ...

    def readout(self, tokens: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Budget of a transfer attack: the l-infinity radius, in [0, 1] pixels, and the sign steps."""

    eps: float = 16 / 255
    steps: int = 300
    step_size: float = 1 / 255

    def __post_init__(self) -> None:
        self.ascent()

    def ascent(self) -> AttackConfig:
        """The same as plain sign ascent; raises what :class:`AttackConfig` raises."""
        return AttackConfig(norm="linf", eps=self.eps, steps=self.steps, step_size=self.step_size, restarts=1)


ATTACK_VLM_CONFIG = TransferConfig(eps=8 / 255)
M_ATTACK_CONFIG = FOA_CONFIG = TransferConfig(eps=16 / 255)


def attack_vlm(
    surrogates: Sequence[Surrogate], images: Images, targets: Images, config: TransferConfig = ATTACK_VLM_CONFIG
) -> AttackResult:
    """AttackVLM, image to image: raise the cosine between the global embeddings of the image and of the target.

    Args:
        surrogates: one in the published attack; of several, the mean cosine counts.
        images: clean images in [0, 1].
        targets: one target image for each.
        config: budget; 8/255 by default.

    Returns:
        The last iterates, as published; ``scores`` is the mean cosine to the target over surrogates, without crops.

    Raises:
        ValueError: no surrogate, images or targets outside [0, 1] or of different shapes, NaN features.

    Source: Zhao et al., arXiv 2305.16934 (image to image).
    """
    images, targets = _checked_pairs(surrogates, images, targets)
    with torch.no_grad():
        references = [surrogate.readout(surrogate(targets)).float() for surrogate in surrogates]

    def objective(adversarial: Tensor) -> Tensor:
        embeddings = [surrogate.readout(surrogate(adversarial)).float() for surrogate in surrogates]
        pairs = zip(embeddings, references, strict=True)
        return torch.stack([F.cosine_similarity(embedding, reference, dim=-1) for embedding, reference in pairs]).mean(0)

    return _run(objective, surrogates, images, targets, config)


def m_attack(
    surrogates: Sequence[Surrogate],
    images: Images,
    targets: Images,
    config: TransferConfig = M_ATTACK_CONFIG,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """M-Attack: the cosine of a random crop of the image and a random crop of the target, new ones at every step.

    Args:
        surrogates: ensemble; all see the same crops.
        images: clean images in [0, 1].
        targets: one target image for each.
        config: budget; 16/255 by default.
        generator: source of the crops.

    Returns:
        As :func:`attack_vlm`.

    Raises:
        ValueError: as :func:`attack_vlm`.

    Source: Li et al., arXiv 2503.10635.
    """
    images, targets = _checked_pairs(surrogates, images, targets)

    def objective(adversarial: Tensor) -> Tensor:
        return _mean_cosine(surrogates, random_resized_crop(adversarial, generator), random_resized_crop(targets, generator))

    return _run(objective, surrogates, images, targets, config)


def foa(
    surrogates: Sequence[Surrogate],
    images: Images,
    targets: Images,
    config: TransferConfig = FOA_CONFIG,
    clusters: int = 10,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """FOA: M-Attack's crops, plus optimal transport between clusters of patch tokens, plus dynamic weights of the surrogates.

    Args:
        surrogates: ensemble; all see the same crops.
        images: clean images in [0, 1].
        targets: one target image for each.
        config: budget; 16/255 by default.
        clusters: k-means clusters of the patch tokens of a crop, at most the patch tokens of any surrogate.
        generator: source of the crops and of the k-means starts.

    Returns:
        As :func:`attack_vlm`.

    Raises:
        ValueError: as :func:`attack_vlm`, and a surrogate with fewer patch tokens than clusters.

    Source: Jia et al., arXiv 2505.21494.
    """
    images, targets = _checked_pairs(surrogates, images, targets)
    losses_before: list[Tensor] = []

    def objective(adversarial: Tensor) -> Tensor:
        source, target = random_resized_crop(adversarial, generator), random_resized_crop(targets, generator)
        losses = torch.stack([_global_and_local(surrogate, source, target, clusters, generator) for surrogate in surrogates])
        weights = dynamic_weights(losses.detach(), losses_before.pop() if losses_before else None)
        losses_before.append(losses.detach())
        return (weights * losses).sum(0)

    return _run(objective, surrogates, images, targets, config)


def dynamic_weights(
    losses: Float[Tensor, "surrogates batch"], losses_before: Float[Tensor, "surrogates batch"] | None
) -> Float[Tensor, "surrogates batch"]:
    """Weights K softmax(L_i(t) / (L_i(t-1) + 1e-8)) over K surrogates, for each image; all 1 at the first step.

    Source: arXiv 2505.21494 (dynamic ensemble weights), at temperature 1.
    """
    if losses_before is None:
        return torch.ones_like(losses)
    return len(losses) * torch.softmax(losses / (losses_before + 1e-8), dim=0)


def local_alignment(
    source: Float[Tensor, "batch tokens dim"],
    target: Float[Tensor, "batch tokens dim"],
    clusters: int = 10,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """Optimal-transport similarity of clustered patch tokens: the sum of plan times cosine; at most 1.

    Differentiable through the cluster means; the assignment to clusters and the plan are held constant.

    Source: arXiv 2505.21494 (local feature alignment).
    """
    source_centres, target_centres = kmeans(source, clusters, generator), kmeans(target, clusters, generator)
    similarity = F.cosine_similarity(source_centres.unsqueeze(2), target_centres.unsqueeze(1), dim=-1)
    return (transport_plan(similarity) * similarity).sum((1, 2))


def _checked_pairs(surrogates: Sequence[Surrogate], images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if not surrogates:
        raise ValueError("A transfer attack needs at least one surrogate encoder; got none.")
    if images.shape != targets.shape:
        raise ValueError(f"Each image needs one target of its size; got images {tuple(images.shape)}, targets {tuple(targets.shape)}.")
    return checked_images(images), checked_images(targets, "targets")


def _run(
    objective: Callable[[Tensor], Tensor],
    surrogates: Sequence[Surrogate],
    images: Tensor,
    targets: Tensor,
    config: TransferConfig,
) -> AttackResult:
    _, adversarial, history = ascend(objective, images, images, config.ascent())
    with torch.no_grad():
        scores = _mean_cosine(surrogates, adversarial, targets)
    return AttackResult(adversarial, scores, history.unsqueeze(0))


def _embed(surrogate: Surrogate, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        target_tokens = surrogate(target)
    return surrogate(source), target_tokens


def _mean_cosine(surrogates: Sequence[Surrogate], source: Tensor, target: Tensor) -> Tensor:
    return torch.stack([_global_cosine(surrogate, *_embed(surrogate, source, target)) for surrogate in surrogates]).mean(0)


def _global_cosine(surrogate: Surrogate, source_tokens: Tensor, target_tokens: Tensor) -> Tensor:
    return F.cosine_similarity(surrogate.readout(source_tokens).float(), surrogate.readout(target_tokens).float(), dim=-1)


def _global_and_local(surrogate: Surrogate, source: Tensor, target: Tensor, clusters: int, generator: torch.Generator | None) -> Tensor:
    source_tokens, target_tokens = _embed(surrogate, source, target)
    prefix = surrogate.num_prefix_tokens
    local = local_alignment(source_tokens[:, prefix:].float(), target_tokens[:, prefix:].float(), clusters, generator)
    return _global_cosine(surrogate, source_tokens, target_tokens) + LOCAL_WEIGHT * local
