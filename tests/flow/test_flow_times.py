import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from scipy import stats
from scipy.special import logit

from visiongraft.flow.times import TimeDistribution, dimension_shift, resolution_shift, sample_times, shift_times, time_grid


def times(distribution, count=20_000, seed=0):
    return sample_times(count, distribution, torch.Generator().manual_seed(seed))


def truncated(cdf, low, high):
    return lambda t: (cdf(np.clip(t, low, high)) - cdf(low)) / (cdf(high) - cdf(low))


@pytest.mark.parametrize(
    ("distribution", "cdf"),
    [
        (TimeDistribution(kind="uniform"), stats.uniform.cdf),
        (TimeDistribution(kind="uniform", low=0.2, high=0.7), stats.uniform(0.2, 0.5).cdf),
        (TimeDistribution(), lambda t: stats.norm.cdf(logit(t))),
        (TimeDistribution(mean=0.8, std=0.5), lambda t: stats.norm(0.8, 0.5).cdf(logit(t))),
        (TimeDistribution(high=0.999), truncated(lambda t: stats.norm.cdf(logit(t)), 0.0, 0.999)),
        (TimeDistribution(mean=3.0, high=0.5), truncated(lambda t: stats.norm(3).cdf(logit(t)), 0.0, 0.5)),
        (TimeDistribution(kind="truncated_normal", mean=0.5, std=0.2), stats.truncnorm(-2.5, 2.5, 0.5, 0.2).cdf),
        (TimeDistribution(kind="truncated_normal", mean=0.95, std=0.1, low=0.6), stats.truncnorm(-3.5, 0.5, 0.95, 0.1).cdf),
    ],
)
def test_times_follow_the_distribution(distribution, cdf):
    drawn = times(distribution)
    # Kolmogorov: the distance of 20,000 draws exceeds 1.95 / sqrt(n) in 1 of 1000 cases
    assert stats.kstest(drawn.double().numpy(), cdf).statistic < 1.95 / math.sqrt(len(drawn))
    assert drawn.dtype == torch.float32 and distribution.low <= float(drawn.min()) and float(drawn.max()) <= distribution.high


def test_the_same_seed_gives_the_same_times_and_another_one_does_not():
    assert torch.equal(times(TimeDistribution(), 8), times(TimeDistribution(), 8))
    assert not torch.equal(times(TimeDistribution(), 8), times(TimeDistribution(), 8, seed=1))


def test_shifts_compose_and_are_undone_by_the_inverse():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(shift_times(shift_times(t, 3.0), 0.7), shift_times(t, 2.1))
    assert torch.allclose(shift_times(shift_times(t, 5.0), 1 / 5.0), t)
    assert torch.equal(shift_times(t, 1.0), t) and shift_times(t, 4.0)[[0, -1]].tolist() == [0, 1]
    assert bool((shift_times(t, 3.0)[1:-1] > t[1:-1]).all())


def test_dimension_shift_compensates_redundant_dimensions():
    # k copies of a signal, averaged, have 1/k of the noise's variance: at the shifted time their signal-to-noise ratio is the old one
    k = 7.0
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    shifted = shift_times(t, dimension_shift(7 * 4096))
    assert dimension_shift(7 * 4096) == pytest.approx(math.sqrt(k))
    assert torch.allclose((1 - shifted) * math.sqrt(k) / shifted, (1 - t) / t)
    assert dimension_shift(1024, base=256) == 2


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 8192])
def test_resolution_shift_is_that_of_flux(tokens):
    mu = calculate_shift(tokens)
    t = torch.linspace(0.1, 1, 10)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).time_shift(mu, 1.0, t)
    assert resolution_shift(tokens) == pytest.approx(math.exp(mu))
    assert torch.allclose(shift_times(t, resolution_shift(tokens)), theirs)
    assert resolution_shift(256) == pytest.approx(math.exp(0.5)) and resolution_shift(4096) == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 8.49])
def test_the_grid_is_even_before_the_shift(shift):
    grid = time_grid(10, shift)
    assert torch.allclose(shift_times(grid, 1 / shift), torch.linspace(1, 0, 11, dtype=torch.float64))
    assert float(grid[0]) == 1 and float(grid[-1]) == 0


def test_the_grid_of_diffusers_pipelines_without_its_second_shift():
    steps, shift = 12, 3.0
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))  # unshifted, as FluxPipeline passes them
    assert torch.allclose(time_grid(steps, shift).float(), theirs.sigmas)


def test_the_grid_of_rae_stops_before_data():
    shift = dimension_shift(768 * 256)
    end = float(shift_times(torch.tensor(0.001, dtype=torch.float64), shift))
    expected = shift_times(1 - torch.linspace(0, 0.999, 50, dtype=torch.float64), shift)
    assert torch.allclose(time_grid(49, shift, end=end), expected) and end == pytest.approx(0.006887, abs=1e-6)


def test_the_grid_starts_where_an_image_was_noised_to():
    grid = time_grid(5, 3.0, start=0.6)
    assert float(grid[0]) == 0.6 and len(grid) == 6 and bool((grid[1:] < grid[:-1]).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeDistribution(low=0.5, high=0.2), "0 <= low < high <= 1; got low=0.5, high=0.2"),
        (lambda: TimeDistribution(std=0.0), "std must be positive"),
        (lambda: TimeDistribution(kind="truncated_normal", mean=-5.0, std=0.1), "next to no mass"),
        (lambda: shift_times(torch.ones(1), 0.0), "shift must be a positive number; got 0"),
        (lambda: dimension_shift(0), "at least 1; got 0"),
        (lambda: resolution_shift(0), "at least 1"),
        (lambda: time_grid(0), "at least 1 step; got 0"),
        (lambda: time_grid(5, -1.0), "shift must be a positive number"),
        (lambda: time_grid(5, start=0.2, end=0.4), "got start=0.2, end=0.4"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
