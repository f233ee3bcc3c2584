import pytest
import torch
from scipy.spatial.transform import Rotation

from visiongraft.metrics.registration import LIGHT, PAPER, Alignment, IcpOptions, canonical_rotations, register, rotation_from_6d


def shape(num=120, seed=0):
    """Points of an ellipsoid with a bump: no symmetry."""
    points = torch.nn.functional.normalize(torch.randn(num, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    points = points * torch.tensor([0.9, 0.5, 0.25])
    return torch.where((points[:, :1] > 0.5) & (points[:, 1:2] > 0), points * 1.5, points)


def turned(points, angles_deg, scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)):
    rotation = torch.from_numpy(Rotation.from_euler("XYZ", angles_deg, degrees=True).as_matrix()).float()
    return (points * torch.tensor(scale)) @ rotation + torch.tensor(shift)


def plain_icp(prediction, truth, steps, lr):
    """The formulas of the brief with the optimiser of PyTorch, one matrix of distances, and nothing clever."""
    starts = canonical_rotations()
    t = torch.zeros(24, 3, requires_grad=True)
    r = torch.tensor([[1.0, 0, 0, 0, 1, 0]]).repeat(24, 1).requires_grad_()
    s = torch.ones(24, 3, requires_grad=True)
    optimizer = torch.optim.Adam([t, r, s], lr=lr)
    best = (float("inf"),)
    for _ in range(steps):
        rotation = starts @ rotation_from_6d(r)
        pairs = ((s[:, None] * prediction) @ rotation + t[:, None])[:, :, None] - truth[None, None]
        pairs = pairs.square().sum(-1)
        loss = pairs.min(2).values.mean(1) + pairs.min(1).values.mean(1)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        loss = loss.detach()
        i = int(loss.argmin())
        if float(loss[i]) < best[0]:
            best = (float(loss[i]), rotation[i].detach().clone(), t[i].detach().clone(), s[i].detach().clone())
    return best


@pytest.mark.parametrize("search", ["tree", "brute"])
def test_alignment_is_that_of_the_plain_formulas(search):
    prediction, truth = shape(70), turned(shape(60, seed=1), (100, -10, 8), (1.1, 0.9, 1.0), (0.1, 0.0, -0.05))
    loss, rotation, translation, scale = plain_icp(prediction, truth, 25, 0.01)
    pose = register(prediction[None], truth[None], IcpOptions(steps=25), search=search, max_pairs=3000)
    assert float(pose.loss) == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(pose.rotation[0], rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close(pose.translation[0], translation, atol=1e-4, rtol=0)
    torch.testing.assert_close(pose.scale[0], scale, atol=1e-4, rtol=0)


def test_starts_are_right_angles_of_which_two_repeat():
    starts = canonical_rotations()
    assert starts.shape == (24, 3, 3) and canonical_rotations(distinct=True).shape == (22, 3, 3)
    torch.testing.assert_close(starts.abs().round().sum(-1), torch.ones(24, 3))
    torch.testing.assert_close(torch.linalg.det(starts), torch.ones(24))
    reference = Rotation.from_euler("XYZ", [[90, 0, 180], [0, 90, 90], [90, -90, 90]], degrees=True).as_matrix()
    torch.testing.assert_close(starts[[6, 17, 23]], torch.from_numpy(reference).float(), atol=1e-6, rtol=0)


def test_six_numbers_make_a_proper_rotation_and_the_identity_is_exact():
    values = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = rotation_from_6d(values)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))
    assert torch.equal(rotation_from_6d(torch.tensor([1.0, 0, 0, 0, 1, 0])), torch.eye(3))


def test_a_known_pose_with_scale_is_found():
    truth = turned(shape(), (170, 12, -100), (1.2, 0.8, 1.1), (0.1, -0.05, 0.08))
    pose = register(shape()[None], truth[None], IcpOptions(mixed=False))
    assert float(pose.loss) < 1e-5
    torch.testing.assert_close(pose.apply(shape()[None])[0], truth, atol=0.01, rtol=0)


def test_rigid_pose_keeps_sizes():
    truth = turned(shape(), (5, 95, 3), (1.3, 1.3, 1.3))
    pose = register(shape()[None], truth[None], PAPER)
    assert torch.equal(pose.scale, torch.ones(1, 3))
    torch.testing.assert_close(pose.rotation @ pose.rotation.mT, torch.eye(3)[None], atol=1e-5, rtol=0)


def test_released_code_records_translation_and_scale_one_step_late():
    prediction, truth = shape()[None], shape(seed=1)[None] + 0.2
    one_step = [register(prediction, truth, IcpOptions(steps=1, mixed=mixed)) for mixed in (True, False)]
    assert all(any(torch.allclose(pose.rotation[0], start) for start in canonical_rotations()) for pose in one_step)
    late, consistent = one_step
    assert float(late.translation.abs().min()) == pytest.approx(0.01, rel=1e-3)  # Adam's first step
    assert torch.equal(consistent.translation, torch.zeros(1, 3)) and torch.equal(consistent.scale, torch.ones(1, 3))


def test_light_preset_ends_where_all_starts_end():
    prediction, truth = shape(150), turned(shape(150, seed=1), (95, 5, 170), shift=(0.05, 0, 0))
    light = register(prediction[None], truth[None], LIGHT)
    full = register(prediction[None], truth[None], IcpOptions(steps=60, lr=0.02, distinct=True))
    assert float(light.loss) == pytest.approx(float(full.loss), rel=0.02)


def test_frames_do_not_see_each_other():
    prediction, truth = torch.stack([shape(), shape(seed=1)]), torch.stack([shape(seed=2), turned(shape(seed=3), (0, 90, 0))])
    options = IcpOptions(steps=12, lr=0.02, keep=4, prune_after=5)
    both = register(prediction, truth, options)
    for k in range(2):
        alone = register(prediction[k : k + 1], truth[k : k + 1], options)
        for a, b in zip(both.frame(k), alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_undo_inverts_apply_for_any_number_of_frames():
    generator = torch.Generator().manual_seed(0)
    rotation = rotation_from_6d(torch.randn(1, 6, generator=generator))
    pose = Alignment(rotation, torch.randn(1, 3, generator=generator), torch.rand(1, 3, generator=generator) + 0.5, torch.zeros(1))
    points = torch.randn(4, 10, 3, generator=generator)
    torch.testing.assert_close(pose.undo(pose.apply(points)), points, atol=1e-5, rtol=1e-5)


def test_inputs_are_left_alone_and_steps_are_told():
    prediction, truth, told = shape()[None], shape(seed=1)[None], []
    before = prediction.clone(), truth.clone()
    register(prediction, truth, IcpOptions(steps=3), progress=lambda *step: told.append(step))
    assert torch.equal(prediction, before[0]) and torch.equal(truth, before[1]) and told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: register(shape()[None], shape()[None].expand(2, -1, -1)), "got 1 predicted and 2 true frames"),
        (lambda: register(shape()[None] * torch.inf, shape()[None]), "prediction: 120 of 120 points are not finite"),
        (lambda: IcpOptions(steps=0), "at least 1 step and a positive lr; got steps=0"),
        (lambda: IcpOptions(keep=4), "prune_after from 1 to below steps=200; got keep=4, prune_after=0"),
    ],
)
def test_unusable_alignments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
