"""Bounds on the cosine similarity of smoothed features under an l2-bounded change of the image.

Notation, used in every docstring here: ``score`` S = E[(1 + <u, f(x + noise)>) / 2] for a fixed unit direction u and a
feature ||f|| <= 1; ``ratio`` r = eps / sigma, the l2 budget in units of the noise. All functions take and return float64
NumPy arrays and broadcast. Proofs stand in docs/methods/feature_smoothing.md.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri, rel_entr

Real = int | float | np.number | np.ndarray
Bound = Literal["fcsb", "reference", "smoothed"]
BOUNDS: tuple[Bound, ...] = ("fcsb", "reference", "smoothed")
QUADRATURE_SLACK = 1e-4  # what the integrals of the tight bounds may be off by; subtracted from them


def _checked(score: Real, ratio: Real) -> tuple[np.ndarray, np.ndarray]:
    score, ratio = np.asarray(score, np.float64), np.asarray(ratio, np.float64)
    if not (np.all(score >= 0) and np.all(score <= 1)):
        raise ValueError(f"Scores must lie in [0, 1]; got values from {np.min(score)} to {np.max(score)}.")
    if not np.all(ratio >= 0) or not np.all(np.isfinite(ratio)):
        raise ValueError(f"The l2 radius eps must be non-negative and finite, and sigma positive; got eps/sigma = {ratio}.")
    return score, ratio


def shifted_score(score: Real, ratio: Real) -> Float[np.ndarray, "..."]:
    """Smallest score at any point within the ball: Phi(Phi^-1(S) - r). With ``ratio < 0`` the largest one: Phi(Phi^-1(S) + r)."""
    return np.asarray(ndtr(ndtri(np.asarray(score, np.float64)) - np.asarray(ratio, np.float64)))


def dot_bound(score: Real, ratio: Real) -> Float[np.ndarray, "..."]:
    """Lower bound on <u, g(x')>: 2 Phi(Phi^-1(S) - r) - 1, which may be negative.

    Raises:
        ValueError: a score outside [0, 1] or a negative ratio.

    Source: arXiv 2601.16200, Theorem 1, with the outer Phi and the noise level restored. It holds for g itself, not for g/||g||,
    when negative.
    """
    return np.asarray(2 * shifted_score(*_checked(score, ratio)) - 1)


def dot_upper_bound(score: Real, ratio: Real) -> Float[np.ndarray, "..."]:
    """Upper bound on <u, g(x')>: 2 Phi(Phi^-1(S) + r) - 1, to show that features cannot be pulled towards u.

    Give it an *upper* confidence bound of the score.
    """
    score, ratio = _checked(score, ratio)
    return np.asarray(2 * shifted_score(score, -ratio) - 1)


def cosine_bound(score: Real, ratio: Real, bound: Bound = "fcsb") -> Float[np.ndarray, "..."]:
    """Certified lower bound on a cosine similarity at every image within the ball; -1 where nothing is certified.

    Args:
        score: lower confidence bound of S, in [0, 1].
        ratio: eps / sigma, non-negative.
        bound: ``fcsb``: the paper's bound (dot product over a norm of at most 1), for cos(u, g(x')) and, because S is largest at
            u = g/||g||, for cos(g(x), g(x')) too. ``reference``: tight for cos(u, g(x')). ``smoothed``: tight for cos(g(x), g(x')).

    Returns:
        Values in {-1} or [0, 1]; the three bounds reach 0 at the same ratio, Phi^-1(S).

    Raises:
        ValueError: a score outside [0, 1], a negative ratio, or an unknown bound.

    Source: arXiv 2601.16200, Theorem 1 (``fcsb``); the other two are derived in docs/methods/feature_smoothing.md.
    """
    score, ratio = np.broadcast_arrays(*_checked(score, ratio))
    plain = dot_bound(score, ratio)
    if bound == "fcsb":
        return np.where(plain >= 0, plain, -1.0)
    if bound not in BOUNDS:
        raise ValueError(f"bound must be one of {', '.join(BOUNDS)}; got {bound!r}.")
    result = np.full(score.shape, -1.0)
    if bound == "smoothed":
        result[(ratio == 0) & (plain > 0)] = 1.0  # the same image
    here = (plain > 0) & (ratio > 0)
    if here.any():
        # memoised on the score rounded down: a smaller score gives a smaller, still valid bound
        keys = list(zip(np.floor(score[here] * 1e4) / 1e4, ratio[here], strict=True))
        result[here] = _tight_cosines(keys, bound)
    return np.asarray(np.maximum(result, np.where(plain > 0, plain, -1.0)))


def certified_radius(score: Real, sigma: float, tau: float = 0.5, bound: Bound = "fcsb") -> Float[np.ndarray, "..."]:
    """Largest l2 radius, in pixel units, within which the cosine stays at least ``tau``; 0 or less means not certified.

    Args:
        score: lower confidence bound of S.
        sigma: noise level in pixel units, positive.
        tau: cosine to keep, in [0, 1).
        bound: see :func:`cosine_bound`.

    Raises:
        ValueError: sigma not positive, tau outside [0, 1), a score outside [0, 1].

    Source: arXiv 2601.16200, Corollary 1: sigma (Phi^-1(S) - Phi^-1((1 + tau) / 2)).
    """
    score, _ = _checked(score, 0.0)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive; got {sigma}.")
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be a cosine in [0, 1); got {tau}.")
    plain = ndtri(score) - ndtri((1 + tau) / 2)
    if bound == "fcsb" or tau == 0:
        return np.asarray(sigma * plain)
    ratios, needed = _alignment_by_ratio(float(tau), bound)
    index = np.searchsorted(needed, 2 * score - 1, side="right") - 1
    tight = np.where(index >= 0, ratios[np.maximum(index, 0)], -np.inf)
    return np.asarray(sigma * np.maximum(plain, tight))


def score_for_radius(radius: float, sigma: float, tau: float = 0.5) -> float:
    """The score that certifies ``radius`` at cosine ``tau`` by the plain bound: Phi(radius / sigma + Phi^-1((1 + tau) / 2))."""
    return float(ndtr(radius / sigma + ndtri((1 + tau) / 2)))


def deployed_bound(score: Real, ratio: Real, n0: int, beta: float = 1e-3) -> Float[np.ndarray, "..."]:
    """Lower bound on <u, ghat(x')> where ghat averages only ``n0`` fresh samples, with probability 1 - beta over them.

    A Chernoff bound on the mean of n0 scores whose expectation is at least m = Phi(Phi^-1(S) - r). Also a cosine bound where
    not negative. Void when the inference noise is fixed: then the attacker can optimise against it.

    Raises:
        ValueError: n0 < 1 or beta outside (0, 1).
    """
    score, ratio = _checked(score, ratio)
    if n0 < 1 or not 0 < beta < 1:
        raise ValueError(f"n0 must be at least 1 and beta in (0, 1); got n0={n0}, beta={beta}.")
    mean = shifted_score(score, ratio)
    low, high = np.zeros_like(mean), mean.copy()
    for _ in range(60):
        middle = (low + high) / 2
        far = rel_entr(middle, mean) + rel_entr(1 - middle, 1 - mean) >= np.log(1 / beta) / n0
        low, high = np.where(far, middle, low), np.where(far, high, middle)
    return np.asarray(2 * low - 1)


# --- the tight bounds -------------------------------------------------------------------------------------------------
# cos(u, g') >= cos(theta) is certified iff s = 2S - 1 is at least
#     needed(c, r) = min over t (and b) of E sqrt((1 - c t L)^2 + (b - q t L)^2),
# c = sin(theta), q = cos(theta), L = exp(r T - r^2 / 2), T ~ N(0, 1); b = 0 for "reference", free for "smoothed".
# The function under the minimum is convex (a norm of an affine map), and any (t, b) gives a valid, if weaker, answer.


_ANGLES = np.linspace(0, 1, 65)[1:] ** 1.5 * np.pi / 2
_memo: dict[tuple[float, float, Bound], float] = {}


def _tight_cosines(keys: list[tuple[float, float]], bound: Bound) -> Float[np.ndarray, "cases"]:
    """cos(theta) for each (score, ratio): the angle where the needed alignment meets 2S - 1, found from the safe side."""
    new = sorted({key for key in keys if (*key, bound) not in _memo})
    if new:
        score, ratio = np.array(new).T
        aligned = 2 * score - 1
        tables = np.stack([_alignment_by_angle(float(r), bound) for r in ratio])
        index = np.sum(tables > aligned[:, None], axis=1)  # first tabulated angle whose need is met
        angles = np.concatenate([[0.0], _ANGLES, [np.pi / 2]])
        tables = np.concatenate([np.ones((len(new), 1)), tables, np.minimum(tables[:, -1:], aligned[:, None])], axis=1)
        low, high = angles[index], angles[index + 1]
        need_low, need_high = np.take_along_axis(tables, np.stack([index, index + 1], 1), 1).T
        for _ in range(3):  # regula falsi, leaning towards the valid side
            share = np.clip((need_low - aligned) / np.maximum(need_low - need_high, 1e-12), 0, 1)
            guess = low + (high - low) * np.minimum(share + 0.03, 1)
            need = _needed_alignment(np.sin(guess), ratio, bound)
            met = need <= aligned
            high, need_high = np.where(met, guess, high), np.where(met, need, need_high)
            low, need_low = np.where(met, low, guess), np.where(met, need_low, need)
        cosines = np.maximum(np.cos(high) - QUADRATURE_SLACK, 0.0)
        _memo.update({(*key, bound): float(value) for key, value in zip(new, cosines, strict=True)})
    return np.array([_memo[(*key, bound)] for key in keys])


@lru_cache(maxsize=256)
def _alignment_by_angle(ratio: float, bound: Bound) -> Float[np.ndarray, "angles"]:
    """The alignment 2S - 1 that each of ``_ANGLES`` needs at this ratio (non-increasing)."""
    return np.minimum.accumulate(_needed_alignment(np.sin(_ANGLES), np.full_like(_ANGLES, ratio), bound))


@lru_cache(maxsize=64)
def _alignment_by_ratio(tau: float, bound: Bound) -> tuple[np.ndarray, np.ndarray]:
    """Ratios from 0 to 5 and the alignment 2S - 1 that keeps cosine tau (with the quadrature slack) at each (non-decreasing)."""
    ratios = np.linspace(0, 5, 501)
    sine = np.sqrt(1 - min(tau + QUADRATURE_SLACK, 1.0) ** 2)
    needed = _needed_alignment(np.full_like(ratios, sine), ratios, bound)
    return ratios, np.maximum.accumulate(needed)


def _needed_alignment(
    sine: Float[np.ndarray, "cases"],
    ratio: Float[np.ndarray, "cases"],
    bound: Bound,
    nodes: int = 1001,
    batch: int = 64,
) -> Float[np.ndarray, "cases"]:
    """The minimum above for each (sine, ratio), by damped Newton from several starts; batches bound the memory."""
    parts = [slice(i, i + batch) for i in range(0, len(sine), batch)]
    return np.concatenate([_minimise(sine[p, None], ratio[p, None], bound == "smoothed", nodes) for p in parts])


def _minimise(c: np.ndarray, r: np.ndarray, free_b: bool, nodes: int) -> np.ndarray:
    grid = np.linspace(0.0, 1.0, nodes)
    normal = -10 + (20 + r) * grid
    weight = np.exp(-(normal**2) / 2) * (20 + r) / (nodes - 1) / np.sqrt(2 * np.pi)
    likelihood = np.exp(r * normal - r**2 / 2)
    q = np.sqrt(np.maximum(1 - c**2, 0))

    def value(t: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (weight * np.hypot(1 - c * t * likelihood, b - q * t * likelihood)).sum(1, keepdims=True)

    def descend(t: np.ndarray, b: np.ndarray, move_b: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        best = value(t, b)
        for _ in range(25):
            x, y = 1 - c * t * likelihood, b - q * t * likelihood
            length = np.maximum(np.hypot(x, y), 1e-12)
            cross_t, cross_b = likelihood * (q * x - c * y) / length, -x / length
            gradient_t = (weight * -likelihood * (c * x + q * y) / length).sum(1, keepdims=True)
            h_tt = (weight * cross_t**2 / length).sum(1, keepdims=True) + 1e-12
            step_t, step_b = gradient_t / h_tt, np.zeros_like(b)
            if move_b:
                gradient_b = (weight * y / length).sum(1, keepdims=True)
                h_bb = (weight * cross_b**2 / length).sum(1, keepdims=True) + 1e-12
                h_tb = (weight * cross_t * cross_b / length).sum(1, keepdims=True)
                determinant = np.maximum(h_tt * h_bb - h_tb**2, 1e-14)
                step_t = (h_bb * gradient_t - h_tb * gradient_b) / determinant
                step_b = (h_tt * gradient_b - h_tb * gradient_t) / determinant
            scale = np.ones_like(t)
            for _ in range(12):  # halve the step until it improves
                new_t, new_b = np.maximum(t - scale * step_t, 0), b - scale * step_b
                new = value(new_t, new_b)
                worse = ~(new <= best)
                if not worse.any():
                    break
                scale = np.where(worse, scale / 2, scale)
            gain = np.where(worse, 0.0, best - new)
            t, b, best = np.where(worse, t, new_t), np.where(worse, b, new_b), np.where(worse, best, new)
            if gain.max() < 1e-10:
                break
        return t, b, best

    t, _, best = descend(1 / np.maximum(c, 0.5), np.zeros_like(c), move_b=False)
    if free_b:
        for start in (0.0, 0.5, 0.9):
            best = np.minimum(best, descend(t, start * q * t, move_b=True)[2])
    return best[:, 0]
