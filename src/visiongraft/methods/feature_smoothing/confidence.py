"""Lower confidence bounds on the mean of scores in [0, 1], for a finite number of independent samples.

``betting`` is the default: it adapts to the variance of the scores, is deterministic, does not depend on their order, and its
capital is a non-negative martingale, so that sampling may stop at any time (Ville's inequality). Intervals from the normal or
Student's t distribution are not offered: with 8 skewed samples they are wrong 78 % of the time at a nominal 5 %.
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp, rel_entr
from scipy.stats import beta as beta_distribution

Confidence = Literal["betting", "kl", "empirical_bernstein", "hoeffding", "clopper_pearson"]

# fractions of the capital that the bettor stakes; 31 spread over the log-odds and the all-in bet, with equal weights
_STAKES = np.append(expit(np.linspace(-6, 5, 31)), 1.0)
_BISECTIONS = 45
_RANGE_TOLERANCE = 1e-4


def minimum_samples(score: float, alpha: float) -> int:
    """Samples without which no distribution-free method can certify ``score``, even if every sample is 1: ln(alpha) / ln(score).

    Args:
        score: in (0, 1).
        alpha: failure probability in (0, 1).
    """
    return math.ceil(math.log(alpha) / math.log(score) - 1e-12)


def check_sample_count(n: int, alpha: float) -> None:
    """Refuses a number of samples with which no positive cosine bound (score above 1/2) is possible.

    Raises:
        ValueError: alpha outside (0, 1), n < 2, or n too small; the message says what n is needed.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a failure probability and must lie in (0, 1); got {alpha}.")
    needed = max(2, minimum_samples(0.5, alpha))
    if n < needed:
        raise ValueError(
            f"No positive bound is possible with n={n} samples at alpha={alpha}; need n>={needed}"
            f" (and n>={minimum_samples(0.95, alpha)} to certify a score of 0.95)."
        )


def checked_scores(scores: np.ndarray) -> Float[np.ndarray, "samples parts"]:
    """Scores as float64, one column a certified feature, clipped to [0, 1] where they are off by rounding only.

    Raises:
        ValueError: NaN (never dropped: that would bias the mean) or values outside [0, 1] by more than 1e-4.
    """
    scores = np.asarray(scores, np.float64)
    scores = scores.reshape(len(scores), -1)
    if not np.isfinite(scores).all():
        raise ValueError("Scores contain NaN or infinity; samples are never dropped, since that would bias the certificate.")
    low, high = scores.min(), scores.max()
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        norm = max(abs(2 * low - 1), abs(2 * high - 1))
        raise ValueError(
            f"Scores must lie in [0, 1] but reach {low:.4f} and {high:.4f}: features have norm {norm:.4f} > 1; normalise them."
        )
    return scores.clip(0, 1)


def lower_bound(scores: np.ndarray, alpha: float, method: Confidence = "betting") -> Float[np.ndarray, "parts"]:
    """Lower confidence bound of each column's mean: P(bound > mean) <= alpha for independent samples in [0, 1].

    Args:
        scores: samples x parts (or samples), in [0, 1].
        alpha: failure probability of each bound, in (0, 1).
        method: ``betting`` (default), ``kl`` (Chernoff-Hoeffding; best when scores are nearly 0 or 1),
            ``empirical_bernstein`` (Maurer and Pontil), ``hoeffding``, or ``clopper_pearson`` (only for scores that are 0 or 1).

    Returns:
        One bound a column, in [0, 1).

    Raises:
        ValueError: scores outside [0, 1] or NaN, alpha outside (0, 1), fewer than 2 samples, an unknown method, or
            ``clopper_pearson`` on scores that are not 0 or 1.

    Source: I. Waudby-Smith and A. Ramdas, 2023 (betting, here in an order-free variant); A. Maurer and M. Pontil, 2009.
    """
    scores = checked_scores(scores)
    n = len(scores)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a failure probability and must lie in (0, 1); got {alpha}.")
    if n < 2:
        raise ValueError(f"At least 2 samples are needed; got {n}.")
    mean, log_term = scores.mean(0), math.log(1 / alpha)
    if method == "hoeffding":
        return np.maximum(mean - math.sqrt(log_term / (2 * n)), 0)
    if method == "empirical_bernstein":
        log_two = math.log(2 / alpha)
        width = np.sqrt(2 * scores.var(0, ddof=1) * log_two / n) + 7 * log_two / (3 * (n - 1))
        return np.maximum(mean - width, 0)
    if method == "kl":
        return _largest_rejected(mean, lambda m: rel_entr(mean, m) + rel_entr(1 - mean, 1 - m) >= log_term / n)
    if method == "betting":
        return _largest_rejected(mean, lambda m: _log_capital(scores, m) >= log_term)
    if method == "clopper_pearson":
        return clopper_pearson(scores, alpha)
    raise ValueError(f"method must be betting, kl, empirical_bernstein, hoeffding or clopper_pearson; got {method!r}.")


def clopper_pearson(scores: np.ndarray, alpha: float) -> Float[np.ndarray, "parts"]:
    """Exact lower bound on a probability from independent 0/1 outcomes.

    Raises:
        ValueError: outcomes other than 0 and 1.
    """
    scores = checked_scores(scores)
    if not np.isin(scores, (0.0, 1.0)).all():
        raise ValueError("clopper_pearson holds for scores that are 0 or 1 only; use betting for similarity scores.")
    successes = scores.sum(0)
    bound = beta_distribution.ppf(alpha, successes, len(scores) - successes + 1)
    return np.where(successes > 0, bound, 0.0)


def _largest_rejected(mean: np.ndarray, rejected) -> Float[np.ndarray, "parts"]:
    """Largest candidate mean below the sample mean that is still rejected, by bisection from the safe side."""
    low, high = np.zeros_like(mean), mean.copy()
    for _ in range(_BISECTIONS):
        middle = np.clip((low + high) / 2, 1e-300, None)
        reject = rejected(middle)
        low, high = np.where(reject, middle, low), np.where(reject, high, middle)
    return low


def _log_wealth(scores: np.ndarray, candidate: np.ndarray) -> Float[np.ndarray, "stakes parts"]:
    """Log capital of each stake against a candidate mean: sum of log(1 + stake (score / candidate - 1))."""
    wealth = np.empty((len(_STAKES), scores.shape[1]))
    with np.errstate(divide="ignore"):  # the all-in bet is ruined by a score of 0
        for j, stake in enumerate(_STAKES):
            wealth[j] = np.log((1 - stake) + (stake / candidate) * scores).sum(0)
    return wealth


def _log_capital(scores: np.ndarray, candidate: np.ndarray) -> Float[np.ndarray, "parts"]:
    return _log_mean_exp(_log_wealth(scores, candidate))


def _log_mean_exp(wealth: Float[np.ndarray, "stakes parts"]) -> Float[np.ndarray, "parts"]:
    return np.asarray(logsumexp(wealth, axis=0)) - math.log(len(_STAKES))


class BettingTest:
    """Sequential test that the mean score exceeds ``target``, fed in chunks; it may be stopped at any time.

    Args:
        target: score to exceed, in (0, 1), the same for every part.
        alpha: probability that a mean at or below the target is ever accepted, for each part.
        n_max: samples after which sampling ends anyway; lets :attr:`hopeless` be known early.
    """

    def __init__(self, target: float, alpha: float, n_max: int) -> None:
        if not 0 < target < 1:
            raise ValueError(f"The target score must lie in (0, 1); got {target}.")
        self.target, self.n_max = target, n_max
        self._threshold = math.log(1 / alpha)
        self._wealth = np.zeros((len(_STAKES), 1))
        self.accepted: np.ndarray = np.zeros((), bool)  # by part, once true always true
        self.n = 0

    def update(self, scores: Float[np.ndarray, "samples parts"]) -> None:
        """Adds independent samples."""
        scores = checked_scores(scores)
        self._wealth = self._wealth + _log_wealth(scores, np.full(scores.shape[1], self.target))
        self.n += len(scores)
        self.accepted = np.logical_or(self.accepted, _log_mean_exp(self._wealth) >= self._threshold)

    @property
    def passed(self) -> bool:
        """Every part's mean exceeds the target, at level alpha each."""
        return bool(np.all(self.accepted))

    @property
    def hopeless(self) -> bool:
        """Some part could not pass any more even if every remaining score were 1."""
        best_growth = np.log((1 - _STAKES) + _STAKES / self.target)[:, None] * (self.n_max - self.n)
        best = _log_mean_exp(self._wealth + best_growth)
        return bool(np.any(~np.logical_or(self.accepted, best >= self._threshold)))
