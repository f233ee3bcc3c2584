import math

import pytest
import torch

from visiongraft.geometry.cameras import minimal_rotation, rotation_angle, rotation_from_angles
from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.methods.panorama import canonicalisation as canon


def world(directions):
    """Plane waves of many orientations and wavelengths, a smooth function on the sphere."""
    g = torch.Generator().manual_seed(5)
    k, phase = 3 * torch.randn(8, 3, 3, generator=g), 6.28 * torch.rand(8, 3, generator=g)
    return (0.5 + 0.09 * torch.cos(torch.einsum("...d,kcd->...kc", directions, k) + phase).sum(-2)).movedim(-1, 0)


def video(rotations, height=64):
    """Frames of a camera rig that only turns; rotations take a frame's directions to the world's."""
    return torch.stack([world(panorama_rays(height, 2 * height) @ r.mT) for r in rotations])


def turns(*degrees):
    return torch.cat([rotation_from_angles(*torch.tensor([d]).deg2rad().T) for d in degrees])


SHAKY = turns((0.0, 0.0, 0.0), (6.0, -4.0, 3.0), (14.0, 3.0, -2.0), (20.0, 9.0, 5.0), (16.0, -2.0, 11.0))


def relative(rotations):
    return rotations[:1].mT @ rotations


def test_alignment_finds_the_turns_of_a_shaky_rig():
    start = turns((30.0, 20.0, -10.0))
    alignment = canon.align_frames(video(start @ SHAKY))
    error = rotation_angle(alignment.rotations.mT @ relative(start @ SHAKY)).rad2deg()
    assert error.max() < 0.2 and alignment.correlations.min() > 0.99


def test_alignment_is_not_misled_by_a_thing_that_moves_with_the_rig():
    frames = video(SHAKY)
    frames[:, :, 50:, 20:60] = 0.1  # a tripod
    error = rotation_angle(canon.align_frames(frames).rotations.mT @ relative(SHAKY)).rad2deg()
    assert error.max() < 0.5


def test_a_cut_shows_as_a_low_correlation():
    frames = video(SHAKY)
    frames[3:] = frames[3:].flip(1, 2)
    correlations = canon.align_frames(frames).correlations
    assert correlations[3] < 0.8 < correlations[[1, 2, 4]].min()


def test_stabilised_frames_equal_the_first():
    frames = video(SHAKY)
    by_estimate, by_truth = canon.canonicalise(frames), canon.canonicalise(frames, SHAKY)
    assert (by_truth - frames[:1]).abs().max() < 0.02
    assert (by_estimate - frames[:1]).abs().max() < 0.03
    assert torch.allclose(by_truth[0], frames[0], atol=1e-5)


def test_up_points_up_after_canonicalisation():
    tilt = turns((0.0, 25.0, 10.0))  # of the rig in an upright world
    rotations = tilt @ SHAKY
    up = canon.up_from_pitch_roll(25.0, 10.0)
    assert torch.allclose(tilt[0].mT @ torch.tensor([0.0, -1.0, 0.0]), up, atol=1e-6)
    out = canon.canonicalise(video(rotations), rotations, up)
    # the smallest levelling turn may leave a yaw, which is the same for all frames
    upright = tilt[0] @ minimal_rotation(up, torch.tensor([0.0, -1.0, 0.0])).mT
    assert torch.allclose(upright @ torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, -1.0, 0.0]), atol=1e-6)
    assert (out - video(upright[None])).abs().max() < 0.02


def test_up_is_gathered_from_crops_of_turned_frames():
    rotations = turns((0.0, 20.0, -8.0)) @ SHAKY
    expected = canon.up_from_pitch_roll(20.0, -8.0)
    frames = video(rotations, 16)
    # a calibrator that knows the world: it is told by the order of calls which crop it sees
    yaw = torch.arange(4.0) * math.pi / 2
    crops = rotation_from_angles(yaw, torch.zeros(4), torch.zeros(4))
    answers = iter([(rotations[f] @ crops[v]).mT @ torch.tensor([0.0, -1.0, 0.0]) for f in (0, 2, 4) for v in range(4)])
    up, spread = canon.estimate_up(frames, relative(rotations), lambda crop: next(answers), every=2, size=8)
    assert torch.allclose(up, expected, atol=1e-4) and spread < 0.1


def test_up_ignores_a_few_wrong_crops_and_refuses_disagreement():
    g = torch.Generator().manual_seed(0)
    good = torch.tensor([0.1, -1.0, 0.2]) + 0.01 * torch.randn(20, 3, generator=g)
    bad = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    up, spread = canon.robust_up(torch.cat([good, bad]))
    truth = torch.nn.functional.normalize(torch.tensor([0.1, -1.0, 0.2]), dim=0)
    assert float(torch.arccos((up @ truth).clamp(max=1)).rad2deg()) < 1 and 0.3 < spread < 3
    with pytest.raises(ValueError, match="more than 5: gravity is not known well enough"):
        canon.robust_up(torch.randn(30, 3, generator=g))
    with pytest.raises(ValueError, match="at least one up direction"):
        canon.robust_up(torch.zeros(0, 3))


def test_turns_follow_the_definition_and_numbers_must_match():
    turn = canon.canonical_turns(SHAKY)
    assert torch.allclose(turn, SHAKY.mT @ SHAKY[0], atol=1e-6)
    with pytest.raises(ValueError, match="got 2 frames and 5 rotations"):
        canon.canonicalise(torch.rand(2, 3, 8, 16), SHAKY)
    with pytest.raises(ValueError, match="W = 2H"):
        canon.canonicalise(torch.rand(2, 3, 8, 15), SHAKY[:2])
    with pytest.raises(ValueError, match="needs unit vectors"):
        canon.canonical_turns(SHAKY, torch.tensor([0.0, -2.0, 0.0]))
