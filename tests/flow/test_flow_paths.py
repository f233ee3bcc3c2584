import pytest
import torch

from visiongraft.flow.paths import data_from_velocity, interpolate, noise_from_velocity, velocity


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ends_of_the_path_are_data_and_noise():
    data, noise = draw(3, 2, 4), draw(3, 2, 4, seed=1)
    assert torch.equal(interpolate(data, noise, torch.zeros(3)), data)
    assert torch.equal(interpolate(data, noise, torch.ones(3)), noise)


def test_velocity_is_the_derivative_of_the_path():
    data, noise, t = draw(3, 5), draw(3, 5, seed=1), torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    slope = (interpolate(data, noise, t + 1e-4) - interpolate(data, noise, t - 1e-4)) / 2e-4
    assert torch.allclose(slope, velocity(data, noise), atol=1e-9)


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.0, 0.4, 1.0]), torch.rand(3, 1, 4, 1, 1, generator=torch.manual_seed(0))])
def test_both_ends_come_back_from_the_velocity(t):
    data, noise = draw(3, 2, 4, 2, 2), draw(3, 2, 4, 2, 2, seed=1)
    y, v = interpolate(data, noise, t.double()), velocity(data, noise)
    assert torch.allclose(data_from_velocity(y, v, t.double()), data) and torch.allclose(noise_from_velocity(y, v, t.double()), noise)


def test_times_may_differ_from_frame_to_frame():
    data, noise = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    t = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.75, 0.0]])
    assert torch.equal(interpolate(data, noise, t)[:, :, 0], t)


def test_bfloat16_is_mixed_in_the_precision_of_the_times():
    data, noise = draw(2, 100).bfloat16(), draw(2, 100, seed=1).bfloat16()
    t = torch.tensor([0.301, 0.702])
    exact = interpolate(data.double(), noise.double(), t.double())
    mixed = interpolate(data, noise, t)
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, exact.float().bfloat16())


def test_times_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Times of shape \(4,\) do not fit values of shape \(3, 2\)"):
        interpolate(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4))
