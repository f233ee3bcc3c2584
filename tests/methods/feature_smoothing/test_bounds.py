import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import norm

from visiongraft.methods.feature_smoothing.bounds import (
    BOUNDS,
    certified_radius,
    cosine_bound,
    deployed_bound,
    dot_bound,
    dot_upper_bound,
    score_for_radius,
)

# score, ratio -> plain, reference, smoothed; computed independently with 4,001 nodes and 40 bisections
TABLE = {
    (0.75, 0.25): (0.3288, 0.4534, 0.9293),
    (0.85, 0.1): (0.6509, 0.6963, 0.9958),
    (0.85, 1.0): (0.0291, 0.1492, 0.2575),
    (0.95, 0.5): (0.7477, 0.8709, 0.9706),
    (0.95, 1.5): (0.1152, 0.3802, 0.4441),
    (0.99, 1.0): (0.8153, 0.9487, 0.9692),
}


@pytest.mark.parametrize(("case", "expected"), TABLE.items())
def test_bounds_equal_independently_computed_values_and_err_on_the_safe_side(case, expected):
    for bound, value in zip(BOUNDS, expected, strict=True):
        ours = float(cosine_bound(*case, bound))
        assert value - 1.5e-3 <= ours <= value + 1e-4


def test_plain_bound_is_attained_by_a_half_space_encoder():
    # f = u on {w.x > 0}, -u elsewhere: the smoothed feature is 2 Phi(b / sigma) - 1 at distance b from the plane
    sigma, b = 0.25, 0.4
    for eps in (0.0, 0.1, 0.3, 0.6):
        attained = 2 * ndtr((b - eps) / sigma) - 1
        assert float(dot_bound(ndtr(b / sigma), eps / sigma)) == pytest.approx(attained, abs=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.25, 0.4])
def test_smoothed_bound_holds_and_is_nearly_tight_on_a_rotating_encoder(eps):
    # f(x) = (cos kx, sin kx): ||g|| = exp(-k^2 sigma^2 / 2) and cos(g(x), g(x')) = cos(k eps)
    k, sigma = 1.0, 0.5
    score = (1 + math.exp(-((k * sigma) ** 2) / 2)) / 2
    truth = math.cos(k * eps)
    plain, reference, smoothed = (float(cosine_bound(score, eps / sigma, b)) for b in BOUNDS)
    assert plain < reference < smoothed <= truth
    assert truth - smoothed < 0.03


def test_reference_bound_holds_for_a_two_level_encoder_by_numerical_integration():
    # a 1-D encoder that turns by an angle beyond a threshold: g is integrated numerically at x and x'
    sigma, angle = 0.3, 1.9
    encoder = lambda x: np.array([np.where(x < 0.35, 1.0, math.cos(angle)), np.where(x < 0.35, 0.0, math.sin(angle))])

    def smoothed_feature(x):
        return np.array([quad(lambda y, i=i: encoder(y)[i] * norm.pdf(y, x, sigma), -3, 3, points=[0.35])[0] for i in (0, 1)])

    u, g = np.array([1.0, 0.0]), smoothed_feature(0.0)
    score = (1 + u @ g) / 2
    for eps in (0.05, 0.1, 0.2, 0.3):
        moved = smoothed_feature(eps)
        assert float(cosine_bound(score, eps / sigma, "reference")) <= u @ moved / np.linalg.norm(moved)
        both = g @ moved / np.linalg.norm(moved) / np.linalg.norm(g)
        assert float(cosine_bound((1 + np.linalg.norm(g)) / 2, eps / sigma, "smoothed")) <= both


def test_all_bounds_reach_zero_at_the_same_ratio_and_never_lie_between_minus_one_and_zero():
    score = 0.9
    last = norm.ppf(score)
    for bound in BOUNDS:
        assert float(cosine_bound(score, last + 1e-6, bound)) == -1
        assert 0 <= float(cosine_bound(score, last - 1e-3, bound)) < 0.1


def test_limits_at_zero_ratio_and_at_extreme_scores():
    assert float(cosine_bound(0.8, 0.0, "reference")) == pytest.approx(0.6, abs=1e-3)
    assert float(cosine_bound(0.8, 0.0, "smoothed")) == pytest.approx(1.0, abs=1e-3)
    assert float(dot_bound(1.0, 3.0)) == 1 and float(dot_bound(0.0, 0.0)) == -1


@settings(max_examples=25, deadline=None)
@given(score=st.floats(0.5, 0.999), ratio=st.sampled_from([0.1, 0.4, 1.0]), more=st.floats(0, 0.05))
def test_bounds_are_ordered_and_grow_with_the_score(score, ratio, more):
    plain, reference, smoothed = (float(cosine_bound(score, ratio, b)) for b in BOUNDS)
    assert plain <= reference + 1e-9 and reference <= smoothed + 2e-3
    for bound, value in zip(BOUNDS, (plain, reference, smoothed), strict=True):
        assert float(cosine_bound(min(score + more, 0.9999), ratio, bound)) >= value - 2e-3


@pytest.mark.parametrize("bound", BOUNDS)
def test_radius_is_where_the_bound_meets_tau(bound):
    sigma, tau = 0.25, 0.5
    for score in (0.85, 0.95):
        radius = float(certified_radius(score, sigma, tau, bound))
        assert float(cosine_bound(score, radius / sigma, bound)) >= tau - 1e-3
        assert float(cosine_bound(score, (radius + 0.01) / sigma, bound)) < tau + 1e-3
    assert float(certified_radius(0.6, sigma, tau)) <= 0


def test_radius_table_in_units_of_sigma():
    expected = {0.85: (0.362, 0.694, 0.899), 0.95: (0.970, 1.398, 1.461), 0.999: (2.416, 2.915, 2.916)}
    for score, values in expected.items():
        for bound, value in zip(BOUNDS, values, strict=True):
            assert value - 0.012 <= float(certified_radius(score, 1.0, 0.5, bound)) <= value + 1e-3


def test_score_for_radius_inverts_the_plain_radius():
    assert float(certified_radius(score_for_radius(0.2, 0.25), 0.25)) == pytest.approx(0.2, abs=1e-12)


def test_upper_bound_mirrors_the_lower_bound():
    assert float(dot_upper_bound(0.3, 0.4)) == pytest.approx(-float(dot_bound(0.7, 0.4)), abs=1e-12)


def test_deployed_bound_equals_known_values_and_its_failure_rate_is_within_beta():
    assert float(deployed_bound(0.95, 0.0, 8)) == pytest.approx(-0.02, abs=5e-3)
    assert float(deployed_bound(0.95, 0.0, 64)) == pytest.approx(0.64, abs=5e-3)
    assert float(deployed_bound(0.98, 0.0, 8)) == pytest.approx(0.22, abs=5e-3)
    means = np.random.default_rng(0).binomial(16, 0.9, 20_000) / 16  # the worst case: scores of 0 and 1
    assert np.mean(2 * means - 1 <= float(deployed_bound(0.9, 0.0, 16, beta=0.05))) <= 0.05


def test_the_transcribed_formula_without_the_outer_normal_is_no_bound():
    # 2 Phi^-1(S) - eps - 1, as sometimes quoted, exceeds 1 for S above Phi(1)
    assert 2 * norm.ppf(0.9) - 0.0 - 1 > 1 > float(dot_bound(0.9, 0.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_bound(1.2, 0.1), r"Scores must lie in \[0, 1\]"),
        (lambda: cosine_bound(float("nan"), 0.1), r"Scores must lie in \[0, 1\]"),
        (lambda: cosine_bound(0.9, -0.1), "must be non-negative"),
        (lambda: certified_radius(0.9, 0.0), "sigma must be positive"),
        (lambda: certified_radius(0.9, 0.25, 1.0), "tau must be a cosine"),
        (lambda: deployed_bound(0.9, 0.1, 0), "n0 must be at least 1"),
        (lambda: deployed_bound(0.9, 0.1, 8, 2.0), "beta in"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
