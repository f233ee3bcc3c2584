import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from visiongraft.flow.paths import interpolate
from visiongraft.flow.sampling import Known, euler_scheduler, sample
from visiongraft.flow.times import shift_times, time_grid

MEAN, STD = 1.5, 0.3


def gaussian_velocity(y, t, mean=MEAN, std=STD):
    """E[noise - data | y_t] for data ~ N(mean, std^2)."""
    t = t.double().reshape(-1, *(1,) * (y.dim() - 1))
    variance = (1 - t) ** 2 * std**2 + t**2
    return (-mean + (t - (1 - t) * std**2) / variance * (y.double() - (1 - t) * mean)).to(y.dtype)


def gaussian_solution(noise, t):
    """Where the flow takes noise at time t: the mean and the standard deviation of y_t, the same quantile."""
    return (1 - t) * MEAN + ((1 - t) ** 2 * STD**2 + t**2) ** 0.5 * noise


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(solver, steps, shift=1.0):
    start = noise(64, 2)
    return float((sample(gaussian_velocity, start, time_grid(steps, shift), solver) - gaussian_solution(start, 0.0)).abs().max())


def test_the_solution_of_the_gaussian_flow_is_one():
    start, h = noise(8, 2), 1e-5
    for t in (0.2, 0.5, 0.9):
        slope = (gaussian_solution(start, t + h) - gaussian_solution(start, t - h)) / (2 * h)
        assert torch.allclose(slope, gaussian_velocity(gaussian_solution(start, t), torch.full((8,), t, dtype=torch.float64)), atol=1e-8)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order, shift):
    coarse, fine = error(solver, 64, shift), error(solver, 128, shift)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_one_step_is_exact_for_a_point_mass(solver):
    point = noise(4, 3, seed=1)

    def velocity(y, t):
        return (y - point) / t[:, None]  # every line leads to the point

    assert torch.allclose(sample(velocity, noise(4, 3), time_grid(1), solver), point, atol=1e-6)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_samples_have_the_moments_of_the_data(solver):
    drawn = sample(gaussian_velocity, noise(50_000, 1, dtype=torch.float32), time_grid(64), solver)
    # five standard errors, and the discretisation
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=5 * STD / 50_000**0.5 + 2e-3)
    assert float(drawn.std()) == pytest.approx(STD, rel=0.02 if solver == "heun" else 0.06)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_sampling_from_a_noised_image_starts_at_its_time(solver):
    t0 = 0.4
    at_t0 = gaussian_solution(noise(16, 2), t0)
    result = sample(gaussian_velocity, at_t0, time_grid(200, 3.0, start=t0), solver)
    assert torch.allclose(result, gaussian_solution(noise(16, 2), 0.0), atol=1e-2)


def test_sampling_stops_at_the_last_time():
    start = noise(16, 2)
    times = []
    result = sample(gaussian_velocity, start, time_grid(200, end=0.3), callback=lambda i, t, y: times.append(t))
    assert torch.allclose(result, gaussian_solution(start, 0.3), atol=1e-2) and times[-1] == 0.3 and len(times) == 200


def test_heun_takes_two_calls_a_step_and_one_for_the_last():
    seen = []

    def velocity(y, t):
        seen.append(float(t[0]))
        return gaussian_velocity(y, t)

    sample(velocity, noise(2, 2), time_grid(5), "heun")
    assert len(seen) == 9 and min(seen) > 0
    seen.clear()
    sample(velocity, noise(2, 2), time_grid(5))
    assert seen == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_euler_scheduler_has_the_times_it_was_given_and_no_second_shift():
    for shift in (1.0, 3.0, 8.49):
        grid = time_grid(20, shift)
        scheduler = euler_scheduler(grid)
        formula = shift_times(torch.linspace(1, 0, 21, dtype=torch.float64), shift)
        assert torch.allclose(scheduler.sigmas[:-1].double(), formula, atol=1e-6) and float(scheduler.sigmas[-1]) == 0
        assert torch.allclose(scheduler.timesteps.double(), 1000 * formula, atol=1e-3)


def test_a_scheduler_with_a_shift_would_apply_it_twice():
    grid = time_grid(20, 3.0)
    twice = FlowMatchEulerDiscreteScheduler(shift=3.0)
    twice.set_timesteps(sigmas=grid[:-1].tolist())
    assert torch.allclose(twice.sigmas, shift_times(grid, 3.0).float(), atol=1e-6) and float(twice.sigmas[-2]) > 1.5 * float(grid[-2])


def test_sigmas_of_a_pipelines_scheduler_serve_as_times():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    start = noise(4, 2, dtype=torch.float32)
    assert torch.allclose(
        sample(gaussian_velocity, start, scheduler.sigmas), sample(gaussian_velocity, start, time_grid(8, 3.0)), atol=1e-6
    )


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_condition_stays_clean_and_is_seen_so_at_every_call(solver):
    clean, mask = torch.full((2, 4), 7.0, dtype=torch.float64), torch.tensor([True, False, False, False])

    def velocity(y, t):
        assert bool((y[:, 0] == 7).all())
        return gaussian_velocity(y, t)

    start = noise(2, 4)
    result = sample(velocity, start, time_grid(100), solver, known=Known(clean, mask))
    assert bool((result[:, 0] == 7).all()) and torch.allclose(result[:, 1:], gaussian_solution(start, 0.0)[:, 1:], atol=2e-2)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_known_part_with_noise_follows_its_path_and_ends_clean(solver):
    values, eps, mask = noise(2, 4, seed=2), noise(2, 4, seed=3), torch.tensor([True, True, False, False])

    def velocity(y, t):
        assert torch.allclose(y[:, :2], interpolate(values, eps, t.double())[:, :2], atol=1e-6)
        return gaussian_velocity(y, t)

    result = sample(velocity, noise(2, 4), time_grid(10), solver, known=Known(values, mask, eps))
    assert torch.equal(result[:, :2].float(), values[:, :2].float())


def test_a_callback_sees_every_step_and_may_replace_the_sample():
    steps = []

    def callback(step, t, y):
        steps.append((step, round(t, 6)))
        return torch.zeros_like(y) if step == 3 else None

    result = sample(gaussian_velocity, noise(2, 2), time_grid(4), callback=callback)
    assert steps == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)] and bool((result == 0).all())


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_bfloat16_models_keep_a_float32_sample(solver):
    start = noise(64, 2, dtype=torch.float32).bfloat16()

    def velocity(y, t):
        assert y.dtype == torch.bfloat16 and t.dtype == torch.float32 and t.shape == (64,)
        return torch.full_like(y, 1 / 1024)

    moved = sample(velocity, start, time_grid(1000), solver)  # every step is far below the spacing of bfloat16 at 1
    assert moved.dtype == torch.bfloat16
    assert float((start.double() - moved.double() - 1 / 1024).abs().max()) <= 2.0**-7


def test_a_progress_bar_is_shown_only_on_demand(capsys):
    sample(gaussian_velocity, noise(1, 1), time_grid(2))
    assert "sampling" not in capsys.readouterr().err
    sample(gaussian_velocity, noise(1, 1), time_grid(2), progress=True)
    assert "sampling" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([0.0, 0.5, 1.0]), "must fall strictly .* got 3 times from 0 to 1"),
        (torch.tensor([1.0]), "at least two; got 1 times"),
        (torch.tensor([1000.0, 500.0, 0.0]), "at most 1 .* from 1000 to 0"),
    ],
)
def test_times_that_do_not_lead_to_data_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        sample(gaussian_velocity, noise(1, 1), times)
