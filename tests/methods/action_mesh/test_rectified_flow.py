import pytest
import torch

from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler


@pytest.mark.parametrize(("shift", "expected"), [(1.0, [1000, 750, 500, 250]), (3.0, [1000, 900, 750, 500])])
def test_times_fall_from_noise_to_exactly_zero(shift, expected):
    scheduler = RectifiedFlowScheduler(shift=shift)
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([*expected, 0]) / 1000)
    assert float(scheduler.sigmas[-1]) == 0.0


def test_the_true_velocity_leads_to_the_data_in_any_number_of_steps():
    """Towards the data: v = data - noise, with a plus."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    for steps, shift in ((1, 1.0), (7, 3.0)):
        scheduler, x = RectifiedFlowScheduler(shift=shift), noise
        scheduler.set_timesteps(steps)
        for i, t in enumerate(scheduler.timesteps):
            torch.testing.assert_close(x, scheduler.scale_noise(data, t.expand(3), noise), rtol=1e-5, atol=1e-5)
            x = scheduler.step(data - noise, t, x).prev_sample if i % 2 else scheduler.step(data - noise, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, data, rtol=1e-6, atol=1e-6)


def test_euler_steps_converge_on_a_curved_flow():
    """dx/dsigma = x has x(0) = x(1) / e; the error of Euler's steps halves with their size."""
    errors = []
    for steps in (50, 100):
        scheduler, x = RectifiedFlowScheduler(), torch.ones(1, dtype=torch.float64)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(-x, t, x).prev_sample
        errors.append(abs(float(x) - torch.tensor(-1.0).exp().item()))
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


def test_half_precision_steps_are_added_in_float32():
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(1000)
    x, v = torch.full((4,), 100.0).half(), torch.full((4,), 1.0).half()
    sample = x.float()
    for t in scheduler.timesteps[:100]:  # steps of 0.001 are lost beside 100 in half precision
        sample = scheduler.step(v.float(), t, sample).prev_sample
    torch.testing.assert_close(sample, torch.full((4,), 100.1), rtol=1e-5, atol=1e-4)
    scheduler.set_timesteps(10)
    assert scheduler.step(v, scheduler.timesteps[0], x).prev_sample.dtype == torch.float16


def test_sampling_may_start_midway_and_does_not_write_to_its_inputs():
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(4)
    x, v = torch.zeros(3), torch.ones(3)
    after = scheduler.step(v, scheduler.timesteps[2], x).prev_sample
    torch.testing.assert_close(after, torch.full((3,), 0.25))
    assert scheduler.step_index == 3 and not x.any() and bool(v.all())


def test_released_configuration_comes_back(tmp_path):
    scheduler = RectifiedFlowScheduler.from_config({"num_train_timesteps": 1000, "shift": 1, "use_dynamic_shifting": False})
    scheduler.save_pretrained(tmp_path)
    assert RectifiedFlowScheduler.from_pretrained(tmp_path).config.shift == 1


def test_wrong_uses_are_named():
    scheduler = RectifiedFlowScheduler()
    with pytest.raises(ValueError, match="at least 1; got 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"333.0 is not a time of this schedule"):
        scheduler.step(torch.zeros(1), 333.0, torch.zeros(1))
    for t in scheduler.timesteps:
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    with pytest.raises(ValueError, match="All 2 steps are done"):
        scheduler.step(torch.zeros(1), 0.0, torch.zeros(1))
    with pytest.raises(ValueError, match="fixed shift"):
        RectifiedFlowScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="shift must be positive; got 0"):
        RectifiedFlowScheduler(shift=0.0)
