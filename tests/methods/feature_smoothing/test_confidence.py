import math

import numpy as np
import pytest
from scipy.special import logsumexp

from visiongraft.methods.feature_smoothing.confidence import (
    BettingTest,
    check_sample_count,
    clopper_pearson,
    lower_bound,
    minimum_samples,
)

METHODS = ("betting", "kl", "empirical_bernstein", "hoeffding")


def beta_scores(rng, mean, spread, shape):
    total = mean * (1 - mean) / spread**2 - 1
    return rng.beta(mean * total, (1 - mean) * total, shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [16, 64])
def test_error_rate_is_within_alpha_on_skewed_scores(method, n):
    # 0.99 with probability 0.97, else 0.2: where Student's t is wrong far more often than it says
    rng = np.random.default_rng(1)
    scores = np.where(rng.random((n, 1500)) < 0.97, 0.99, 0.2)
    assert np.mean(lower_bound(scores, 0.05, method) > 0.99 * 0.97 + 0.2 * 0.03) <= 0.05


def test_bounds_equal_their_closed_forms():
    scores = np.random.default_rng(0).random(50)
    alpha, mean, variance = 0.01, scores.mean(), scores.var(ddof=1)
    assert lower_bound(scores, alpha, "hoeffding")[0] == pytest.approx(mean - math.sqrt(math.log(100) / 100), abs=1e-12)
    bernstein = mean - math.sqrt(2 * variance * math.log(200) / 50) - 7 * math.log(200) / (3 * 49)
    assert lower_bound(scores, alpha, "empirical_bernstein")[0] == pytest.approx(bernstein, abs=1e-12)
    kl = lower_bound(scores, alpha, "kl")[0]
    divergence = mean * math.log(mean / kl) + (1 - mean) * math.log((1 - mean) / (1 - kl))
    assert divergence == pytest.approx(math.log(100) / 50, rel=1e-6)


def test_betting_bound_is_where_a_plain_loop_finds_the_capital_at_one_over_alpha():
    scores, alpha = np.random.default_rng(2).beta(9, 1, 40), 1e-3
    bound = lower_bound(scores, alpha)[0]
    stakes = [1 / (1 + math.exp(6 - 11 * j / 30)) for j in range(31)] + [1.0]
    capital = logsumexp([sum(math.log(1 + s * (y / bound - 1)) for y in scores) for s in stakes]) - math.log(32)
    assert capital == pytest.approx(math.log(1 / alpha), abs=1e-6)


def test_betting_is_the_tightest_on_concentrated_scores():
    rng = np.random.default_rng(3)
    scores = beta_scores(rng, 0.95, 0.02, (1000, 10))
    means = {method: lower_bound(scores, 1e-3, method).mean() for method in METHODS}
    assert max(means, key=means.get) == "betting"
    assert means["betting"] == pytest.approx(0.942, abs=2e-3)
    assert means["hoeffding"] == pytest.approx(0.891, abs=2e-3)


def test_bounds_do_not_depend_on_the_order_of_samples():
    scores = np.random.default_rng(4).random(200)
    for method in METHODS:
        assert lower_bound(scores, 1e-3, method)[0] == pytest.approx(lower_bound(scores[::-1], 1e-3, method)[0], abs=1e-12)


@pytest.mark.parametrize("n", [8, 32, 1000])
def test_perfect_scores_stay_below_the_distribution_free_ceiling(n):
    for method in METHODS:
        bound = lower_bound(np.ones(n), 1e-3, method)[0]
        assert bound <= 1e-3 ** (1 / n) + 1e-12 < 1
    assert clopper_pearson(np.ones(n), 1e-3)[0] == pytest.approx(1e-3 ** (1 / n), rel=1e-9)


def test_minimum_samples_are_those_of_the_ceiling():
    assert [minimum_samples(s, 1e-3) for s in (0.5, 0.75, 0.9, 0.95, 0.99)] == [10, 25, 66, 135, 688]


def test_zero_scores_give_a_zero_bound():
    for method in METHODS:
        assert lower_bound(np.zeros(30), 1e-3, method)[0] < 1e-12


def test_columns_are_bounded_independently():
    scores = np.random.default_rng(5).random((60, 3))
    together = lower_bound(scores, 0.01)
    assert together == pytest.approx([lower_bound(scores[:, i], 0.01)[0] for i in range(3)], abs=1e-12)


def test_sequential_test_agrees_with_the_bound_whatever_the_chunks():
    scores = beta_scores(np.random.default_rng(6), 0.9, 0.05, 400)
    bound = lower_bound(scores, 1e-3)[0]
    for target, expected in ((bound - 1e-6, True), (bound + 1e-3, False)):
        whole, chunked = BettingTest(target, 1e-3, 400), BettingTest(target, 1e-3, 400)
        whole.update(scores[:, None])
        for chunk in np.array_split(scores[:, None], 7):
            chunked.update(chunk)
        assert whole.passed is expected
        assert chunked.passed is expected


def test_stopping_at_the_first_success_is_rarely_wrong():
    # mean exactly at the target: looking after every sample may succeed with probability alpha at most (Ville)
    alpha, target, runs = 0.05, 0.9, 1000
    outcomes = (np.random.default_rng(7).random((200, runs)) < target).astype(float)
    test = BettingTest(target, alpha, 200)
    for scores in outcomes:
        test.update(scores[None])
    assert 0 < test.accepted.mean() <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / runs)


def test_hopeless_is_only_said_when_perfect_samples_could_not_help():
    test = BettingTest(0.95, 1e-3, 200)
    test.update(np.full((60, 1), 0.2))
    assert test.hopeless
    test = BettingTest(0.6, 1e-3, 200)
    test.update(np.full((10, 1), 0.5))
    assert not test.hopeless
    test.update(np.ones((190, 1)))
    assert test.passed and not test.hopeless


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lower_bound(np.array([0.5, np.nan]), 0.01), "NaN"),
        (lambda: lower_bound(np.array([0.5, 1.1]), 0.01), "norm 1.2000 > 1"),
        (lambda: lower_bound(np.array([0.5, 0.6]), 1.5), r"alpha .* must lie in \(0, 1\)"),
        (lambda: lower_bound(np.array([0.5]), 0.1), "At least 2 samples"),
        (lambda: clopper_pearson(np.array([0.5, 1.0]), 0.1), "use betting"),
        (lambda: check_sample_count(8, 1e-3), r"n=8 samples at alpha=0.001; need n>=10"),
        (lambda: check_sample_count(100, 0.0), r"alpha .* must lie in \(0, 1\)"),
        (lambda: BettingTest(1.0, 0.1, 10), "target score"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_off_by_rounding_are_clipped():
    assert lower_bound(np.full(50, 1 + 5e-5), 0.01)[0] <= 1
