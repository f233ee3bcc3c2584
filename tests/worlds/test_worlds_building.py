import math

import pytest
import torch

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.worlds.building import block, egg, placed, post, rod, sheet, turn
from visiongraft.worlds.scenes import Material

LOOK = Material()


@pytest.mark.parametrize(
    "solid", [block(1, 2, 0.5, (0.4, 0.6, 0.8), LOOK), post(1, 2, 0.5, 0.2, 0.6, LOOK), egg(1, 2, 0.5, (0.1, 0.3, 0.1), LOOK)]
)
def test_things_stand_on_their_base_and_reach_up(solid):
    assert solid.position[0] == 1
    assert solid.position[2] == 2
    assert solid.position[1] + solid.half_size[1] == pytest.approx(-0.5)
    assert solid.position[1] - solid.half_size[1] == pytest.approx(-1.1)


@pytest.mark.parametrize(
    "end", [(0.0, -2.0, 0.0), (0.0, 2.0, 0.0), (1.0, 0.5, -0.7), (1.0, 0.0, 0.0), (-0.3, -1e-9, 0.2), (-1.0, -0.5, 0.3)]
)
def test_a_rod_ends_where_it_should(end):
    start = (0.2, -0.1, 0.4)
    solid = rod(start, tuple(a + b for a, b in zip(start, end, strict=True)), 0.05, LOOK)
    assert torch.allclose(solid.rotation @ solid.rotation.T, torch.eye(3), atol=1e-6)
    assert torch.linalg.det(solid.rotation).item() == pytest.approx(1.0, abs=1e-5)
    arm = solid.rotation[:, 1] * solid.half_size[1]
    ends = sorted([(torch.tensor(solid.position) + s * arm).tolist() for s in (-1, 1)])
    expected = sorted([list(start), [a + b for a, b in zip(start, end, strict=True)]])
    assert torch.allclose(torch.tensor(ends), torch.tensor(expected), atol=1e-5)


def test_turns_are_those_of_the_cameras():
    angles = (0.4, -0.2, 0.9)
    assert torch.allclose(turn(*angles), rotation_from_angles(*(torch.tensor(a) for a in angles)))
    assert torch.allclose(turn(0.4), rotation_from_angles(torch.tensor(0.4), torch.zeros(()), torch.zeros(())))


def test_placing_turns_about_the_origin_and_then_moves():
    (solid,) = placed([block(0, 1, 0, (0.2, 0.4, 0.6), LOOK)], 5, 7, math.pi / 2, height=1)
    # a quarter turn takes what lies ahead to the right
    assert torch.allclose(torch.tensor(solid.position), torch.tensor([6.0, -1.2, 7.0]))
    assert torch.allclose(solid.rotation, turn(math.pi / 2), atol=1e-6)


def test_sheets_cast_no_shadow():
    assert not sheet(0, 0, 0, 1, 1, LOOK).casts_shadow
