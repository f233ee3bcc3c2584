import torch

from visiongraft.worlds.waves import WaveWorlds, wave_worlds


def test_a_world_without_waves_is_its_profile_by_latitude():
    zeros = torch.zeros(1, 1, 3)
    world = WaveWorlds(wave=zeros, phase=torch.zeros(1, 1), amplitude=zeros)
    latitude = torch.linspace(-1.4, 1.4, 9)
    directions = torch.stack([latitude.cos(), -latitude.sin(), torch.zeros(9)], -1)[None]
    color = world.color(directions)[0]
    expected = [0.5 + 0.35 * (2 * latitude).sin(), 0.5 + 0.3 * (3 * latitude).cos(), 0.5 - 0.35 * (3 * latitude).tanh()]
    assert torch.allclose(color, torch.stack(expected), atol=1e-5)


def test_colour_does_not_depend_on_the_length_of_a_direction():
    worlds = wave_worlds(3, torch.Generator().manual_seed(0))
    directions = torch.randn(3, 5, 7, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(worlds.color(directions), worlds.color(4 * directions), atol=1e-5)
    assert worlds.color(directions).shape == (3, 3, 5, 7)


def test_one_wave_is_a_cosine_of_the_direction_along_it():
    wave = torch.tensor([[[0.0, 0.0, 2.0]]])
    world = WaveWorlds(wave=wave, phase=torch.zeros(1, 1), amplitude=torch.tensor([[[0.1, 0.0, 0.0]]]))
    still = WaveWorlds(wave=wave, phase=torch.zeros(1, 1), amplitude=torch.zeros(1, 1, 3))
    directions = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    added = (world.color(directions) - still.color(directions))[0]
    assert torch.allclose(added[0], 0.1 * torch.tensor([2.0, 0.0]).cos(), atol=1e-6)
    assert torch.equal(added[1:], torch.zeros(2, 2))
