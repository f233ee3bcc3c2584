import pytest
import torch

from visiongraft.worlds.patterns import pulse
from visiongraft.worlds.textures import IMAGES, SIDE, _image, image_index, look_up, tone


def test_a_pulse_is_the_average_of_the_train_over_the_footprint():
    x = torch.linspace(-2.3, 3.1, 41, dtype=torch.float64)
    ratio, width = torch.full_like(x, 0.4), 0.2
    offsets = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5
    expected = (((x[:, None] + width * offsets) % 1) < 0.4).double().mean(1)
    assert torch.allclose(pulse(x, ratio, torch.full_like(x, width)), expected, atol=2e-3)


def test_a_pulse_is_its_mean_where_a_footprint_covers_a_period():
    x = torch.linspace(0, 1, 20)
    assert torch.allclose(pulse(x, torch.full_like(x, 0.3), torch.ones_like(x)), torch.tensor(0.3))


@pytest.mark.parametrize("name", ["astronaut", "clouds"])
def test_looking_up_the_middle_of_a_texel_gives_the_texel(name):
    image = _image(name)
    x, y = torch.tensor([0, 17, 511, 300]), torch.tensor([0, 400, 511, 5])
    index = torch.full((4,), image_index(name))
    found = look_up(index, (x + 0.5) / SIDE, (y + 0.5) / SIDE, torch.full((4,), 1e-4))
    assert torch.allclose(found, image[:, y, x], atol=1e-6)
    # a period on, and a period back
    assert torch.allclose(look_up(index, (x + 0.5) / SIDE + 1, (y + 0.5) / SIDE - 1, torch.full((4,), 1e-4)), found, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_a_footprint_of_a_period_gives_nearly_the_mean(name):
    index = torch.full((1,), image_index(name))
    quarter = _image(name).view(3, 2, SIDE // 2, 2, SIDE // 2).mean((2, 4)).mean((1, 2))
    found = look_up(index, torch.tensor([0.5]), torch.tensor([0.5]), torch.tensor([1.0]))[:, 0]
    assert torch.allclose(found, quarter, atol=1e-3)


def test_tones_are_spread_over_the_unit_interval_and_fixed():
    values = tone(torch.arange(100)[:, None].expand(100, 100).reshape(-1), torch.arange(100).repeat(100))
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)
    assert tone(torch.tensor([3]), torch.tensor([-7])).item() == tone(torch.tensor([3]), torch.tensor([-7])).item()


def test_an_unknown_image_is_refused():
    with pytest.raises(ValueError, match="image must be one of astronaut, cat"):
        image_index("dog")
