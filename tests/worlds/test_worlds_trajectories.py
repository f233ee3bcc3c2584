import math

import pytest
import torch

from visiongraft.geometry.cameras import angles_from_rotation, rotation_angle
from visiongraft.worlds.trajectories import dolly, hand_held, look_at, orbit, pan

ORIGIN = torch.zeros(3)


def test_a_dolly_goes_from_start_to_end_and_keeps_its_direction():
    end = torch.tensor([0.0, 0.0, 3.0])
    path = dolly(ORIGIN, end, 9, yaw=0.3, pitch=-0.1)
    assert torch.equal(path.positions[0], ORIGIN)
    assert torch.equal(path.positions[-1], end)
    steps = path.positions.diff(dim=0)[:, 2]
    assert (steps > 0).all()
    assert steps[0] < steps[4]
    yaw, pitch, roll = angles_from_rotation(path.rotations)
    assert torch.allclose(yaw, torch.tensor(0.3), atol=1e-6)
    assert torch.allclose(pitch, torch.tensor(-0.1), atol=1e-6)
    assert roll.abs().max() < 1e-6


def test_a_pan_stays_and_turns():
    path = pan(torch.tensor([1.0, -1.6, 2.0]), 5, -0.5, 0.5)
    assert torch.equal(path.positions, torch.tensor([1.0, -1.6, 2.0]).expand(5, 3))
    yaw = angles_from_rotation(path.rotations)[0]
    assert torch.allclose(yaw[[0, 2, 4]], torch.tensor([-0.5, 0.0, 0.5]), atol=1e-6)


def test_an_orbit_keeps_its_distance_and_sees_the_target_in_the_middle():
    target = torch.tensor([1.0, -1.0, 4.0])
    path = orbit(target, 3.0, 1.0, 12)
    offset = target - path.positions
    assert torch.allclose(offset.norm(dim=1), torch.tensor(math.sqrt(10.0)))
    assert torch.allclose(offset[:, 1], torch.tensor(1.0))
    seen = torch.einsum("fji,fj->fi", path.rotations, offset)
    assert torch.allclose(seen, torch.tensor([0.0, 0.0, math.sqrt(10.0)]), atol=1e-5)
    # a whole turn loops: the step from the last frame to the first is as long as the others
    steps = (path.positions - path.positions.roll(1, 0)).norm(dim=1)
    assert torch.allclose(steps, steps[0].expand(12), atol=1e-5)


def test_looking_at_something_keeps_the_camera_level():
    rotation = look_at(torch.zeros(1, 3), torch.tensor([[1.0, -0.5, 1.0]]))
    yaw, pitch, roll = angles_from_rotation(rotation)
    assert yaw.item() == pytest.approx(math.pi / 4)
    assert pitch.item() == pytest.approx(math.atan(0.5 / math.sqrt(2)))
    assert abs(roll.item()) < 1e-6


def test_a_hand_sways_as_much_as_asked_smoothly_and_the_same_for_the_same_seed():
    still = pan(ORIGIN, 2000, 0.0, 0.0)
    shaken = hand_held(still, 3, fps=16, sway=0.02, shake_deg=1.0)
    assert shaken.positions.std(0).mean().item() == pytest.approx(0.02, rel=0.25)
    angles = torch.stack(angles_from_rotation(shaken.rotations))
    assert math.degrees(angles.std(1).mean()) == pytest.approx(1.0, rel=0.25)
    # neighbouring frames are much closer to each other than frames at random
    assert shaken.positions.diff(dim=0).std() < 0.7 * shaken.positions.std(0).mean() * math.sqrt(2)
    assert torch.equal(hand_held(still, 3).positions, shaken.positions)
    assert not torch.equal(hand_held(still, 4).positions, shaken.positions)


def test_a_still_hand_changes_nothing():
    path = orbit(ORIGIN, 2.0, 0.5, 7)
    same = hand_held(path, 0, sway=0.0, shake_deg=0.0)
    assert torch.equal(path.positions, same.positions)
    assert rotation_angle(path.rotations.mT @ same.rotations).max() < 1e-6


def test_times_follow_the_frame_rate():
    assert pan(ORIGIN, 3, 0.0, 1.0).times(8).tolist() == [0.0, 0.125, 0.25]


def test_paths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a trajectory needs at least 1 frame; got 0"):
        pan(ORIGIN, 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="radius must be positive; got 0"):
        orbit(ORIGIN, 0.0, 1.0, 4)
    with pytest.raises(ValueError, match="fps must be positive"):
        hand_held(pan(ORIGIN, 2, 0.0, 1.0), 0, fps=0.0)
