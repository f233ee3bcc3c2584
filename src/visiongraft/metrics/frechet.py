"""Distances between two sets of feature vectors: Fréchet (FID and its kin) and kernel (KID), and the features of panoramas.

The functions take features, so that any encoder serves; TorchMetrics' ``FrechetInceptionDistance`` and
``KernelInceptionDistance`` are there for whoever wants Inception and running updates.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.panoramas import check_panorama, cubemap_from_panorama

FEW_SAMPLES = 2048


class KernelDistance(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


class OmniFID(NamedTuple):
    """Fréchet distances of the cubemap's groups, and their mean."""

    mean: float
    up: float
    down: float
    horizontal: float


def frechet_distance(real: Float[Tensor, "n dim"], fake: Float[Tensor, "m dim"]) -> float:
    """Fréchet distance of the Gaussians with the means and unbiased covariances of two sets.

    ``|mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))``, in float64. The trace of the root comes from an eigen-decomposition, or,
    with no more samples than dimensions, from the singular values of a matrix of samples by samples: exact for singular
    covariances and without the complex numbers of a general matrix root.

    Args:
        real: features, one row a sample.
        fake: features of the same encoder.

    Raises:
        ValueError: NaN, fewer than 2 samples, or different dimensions.

    Warns:
        With fewer than 2048 samples: the distance is biased upwards, and more so for fewer samples.

    Source: Heusel et al., arXiv 1706.08500, Eq. 6.
    """
    real, fake = _features(real, "real"), _features(fake, "fake")
    _check_same_width(real, fake)
    fewest = min(len(real), len(fake))
    if fewest < FEW_SAMPLES:
        warnings.warn(
            f"A Fréchet distance from {fewest} samples is biased upwards; compare it only with values of as many samples "
            f"({FEW_SAMPLES} or more are usual), or use the kernel distance.",
            stacklevel=2,
        )
    if max(len(real), len(fake)) > real.shape[1]:
        return gaussian_frechet_distance(real.mean(0), _covariance(real), fake.mean(0), _covariance(fake))
    # the covariance is A^T A, so the roots of the eigenvalues of the product are the singular values of A B^T
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (real, fake))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return _distance(real.mean(0) - fake.mean(0), a.square().sum() + b.square().sum(), root)


def gaussian_frechet_distance(
    mean_real: Float[Tensor, " dim"],
    cov_real: Float[Tensor, "dim dim"],
    mean_fake: Float[Tensor, " dim"],
    cov_fake: Float[Tensor, "dim dim"],
) -> float:
    """Fréchet distance (squared 2-Wasserstein distance) of two Gaussians.

    Args:
        mean_real, mean_fake: means.
        cov_real, cov_fake: symmetric positive semi-definite covariances, singular ones included.

    Source: Dowson and Landau, 1982.
    """
    mean_real, cov_real, mean_fake, cov_fake = (_float64(x) for x in (mean_real, cov_real, mean_fake, cov_fake))
    values, vectors = torch.linalg.eigh(cov_real)
    half = vectors * values.clamp(min=0).sqrt()
    # half^T S half is similar to S_r^(1/2) S_f S_r^(1/2): symmetric, so its eigenvalues are real and rounding cannot make them complex
    root = torch.linalg.eigvalsh(half.T @ cov_fake @ half).clamp(min=0).sqrt().sum()
    return _distance(mean_real - mean_fake, cov_real.trace() + cov_fake.trace(), root)


def kernel_distance(
    real: Float[Tensor, "n dim"],
    fake: Float[Tensor, "m dim"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    seed: int = 0,
) -> KernelDistance:
    """Kernel distance (KID): squared maximum mean discrepancy with the kernel ``(x.y / dim + 1)^degree``, unbiased.

    Zero on average for two sets of one distribution, so that it is slightly negative half of the time then.

    Args:
        real: features, one row a sample.
        fake: features of the same encoder.
        subsets: how many random subsets are averaged.
        subset_size: samples of each set in a subset, drawn without replacement.
        degree: of the polynomial.
        seed: of the subsets.

    Raises:
        ValueError: NaN, different dimensions, or subsets larger than a set or smaller than 2.

    Source: Bińkowski et al., arXiv 1801.01401, Sec. 4.
    """
    real, fake = _features(real, "real"), _features(fake, "fake")
    _check_same_width(real, fake)
    if not 2 <= subset_size <= min(len(real), len(fake)) or subsets < 1:
        raise ValueError(
            f"subset_size must be between 2 and the smaller set ({min(len(real), len(fake))} samples) and subsets at least 1; "
            f"got subset_size={subset_size}, subsets={subsets}."
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        rows, columns = (torch.randperm(len(x), generator=generator)[:subset_size].to(x.device) for x in (real, fake))
        values[i] = squared_discrepancy(real[rows], fake[columns], degree)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def squared_discrepancy(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], degree: int = 3) -> Float[Tensor, ""]:
    """Unbiased estimate of the squared maximum mean discrepancy, with the kernel ``(x.y / dim + 1)^degree``.

    Source: Gretton et al., JMLR 2012, Lemma 6.
    """
    within_x, within_y, across = ((a @ b.T / a.shape[1] + 1) ** degree for a, b in ((x, x), (y, y), (x, y)))
    return _mean_off_diagonal(within_x) + _mean_off_diagonal(within_y) - 2 * across.mean()


def faed_features(panoramas: Float[Tensor, "batch 3 height width"], encoder: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch features"]:
    """Features for the Fréchet auto-encoder distance (FAED): one vector of a whole panorama, whatever its yaw.

    The encoder's map is averaged over the width, its rows weighted by the cosine of their latitude, from +90 to -90 degrees
    inclusive, and flattened: of 16 rows the first and the last weigh nothing.

    Args:
        panoramas: in [0, 1], H x 2H, in the size of the encoder (512 x 1024 for the one of PanFusion).
        encoder: of an auto-encoder trained on panoramas; maps panoramas in [-1, 1] to batch x channels x rows x columns.

    Raises:
        ValueError: a panorama that is not H x 2H, or an encoder without a map.

    Source: arXiv 2404.07949 (PanFusion), evaluation; Oh et al., ECCV 2022 (BIPS).
    """
    features = encoder(check_panorama(panoramas) * 2 - 1)
    if features.dim() != 4:
        raise ValueError(f"The encoder of FAED must give batch x channels x rows x columns; got {tuple(features.shape)}.")
    latitude = torch.linspace(math.pi / 2, -math.pi / 2, features.shape[2], dtype=features.dtype, device=features.device)
    return (features.mean(-1) * latitude.cos()).flatten(1)


def cubemap_features(
    panoramas: Float[Tensor, "batch 3 height width"], encoder: Callable[[Tensor], Tensor], size: int
) -> Float[Tensor, "batch 6 dim"]:
    """Features of the six faces (front, right, back, left, up, down), for :func:`omni_fid`.

    Args:
        panoramas: in [0, 1], H x 2H.
        encoder: maps images in [0, 1] to batch x dim.
        size: of the faces in pixels.
    """
    faces = cubemap_from_panorama(panoramas, size)
    return encoder(faces.flatten(0, 1)).unflatten(0, (len(panoramas), 6))


def omni_fid(real: Float[Tensor, "n 6 dim"], fake: Float[Tensor, "m 6 dim"]) -> OmniFID:
    """Mean of the Fréchet distances of up faces, of down faces, and of the horizontal four averaged a panorama.

    Args:
        real: from :func:`cubemap_features`.
        fake: likewise.

    Raises:
        ValueError: as :func:`frechet_distance`.

    Source: Christensen et al., ECCV 2024 (OmniFID).
    """
    groups = (frechet_distance(group(real), group(fake)) for group in (lambda x: x[:, 4], lambda x: x[:, 5], lambda x: x[:, :4].mean(1)))
    up, down, horizontal = groups
    return OmniFID((up + down + horizontal) / 3, up, down, horizontal)


def _distance(mean: Tensor, traces: Tensor, root: Tensor) -> float:
    # rounding can take the distance of equal sets below zero
    return max(0.0, float(mean.square().sum() + traces - 2 * root))


def _covariance(features: Tensor) -> Tensor:
    # of a single dimension torch.cov makes a scalar
    return features.T.cov().reshape(features.shape[1], features.shape[1])


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


def _float64(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64
    return (x.cpu() if x.device.type == "mps" else x).detach().double()


def _features(features: Tensor, name: str) -> Tensor:
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"{name} features must be at least 2 samples x dimensions; got shape {tuple(features.shape)}.")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name} features contain NaN or infinity; check the encoder and its precision.")
    return _float64(features)


def _check_same_width(real: Tensor, fake: Tensor) -> None:
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Both sets need features of one encoder; got {real.shape[1]} and {fake.shape[1]} dimensions.")
