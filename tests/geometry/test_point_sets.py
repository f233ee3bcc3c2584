import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.geometry import point_sets
from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.point_sets import align_points, farthest_points, inlier_mask, remove_outliers


def cloud(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rigid(batch, seed=0):
    angles = cloud(3, batch, seed=seed)
    return rotation_from_angles(*angles), cloud(batch, 3, seed=seed + 1)


def by_the_definition(points, num, start=0):
    """Each point's distance to every chosen one, anew each time."""
    chosen = [start]
    while len(chosen) < num:
        distances = np.linalg.norm(points[:, None] - points[chosen][None], axis=-1).min(1)
        chosen.append(int(distances.argmax()))
    return chosen


@pytest.mark.parametrize(("n", "num", "dim", "start"), [(200, 40, 3, 0), (57, 57, 2, 5), (1, 1, 3, 0), (300, 20, 1, 299)])
def test_farthest_points_are_those_of_the_definition(n, num, dim, start):
    points = cloud(4, n, dim)
    found = farthest_points(points, num, start)
    assert found.tolist() == [by_the_definition(p.numpy(), num, start) for p in points]


def test_pytorch_chooses_the_same_points_as_numpy(monkeypatch):
    grid = torch.cartesian_prod(*[torch.arange(9.0)] * 3)[None]  # full of ties: the first of equally far points wins in both
    with_numpy = farthest_points(grid, 100)
    monkeypatch.setattr(point_sets, "_farthest_on_cpu", lambda *_: pytest.fail("NumPy was used"))
    assert torch.equal(farthest_points(grid.bfloat16(), 100), with_numpy)  # whole numbers below 256 are exact there


def test_farthest_points_of_a_square_with_its_middle_are_the_corners_first():
    points = torch.tensor([[[0.5, 0.5], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.6]]])
    assert farthest_points(points, 5, start=1).tolist() == [[1, 4, 2, 3, 0]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60), num=st.integers(2, 20))
def test_chosen_points_cover_the_cloud_within_their_own_spacing(seed, n, num):
    points = cloud(1, n, 3, seed=seed)
    num = min(num, n)
    index = farthest_points(points, num)[0]
    chosen = points[0, index]
    spacing = torch.cdist(chosen, chosen).fill_diagonal_(math.inf).min()
    cover = torch.cdist(points[0], chosen).min(1).values.max()
    assert len(set(index.tolist())) == num and cover <= spacing + 1e-12


def test_farthest_points_do_not_depend_on_where_the_cloud_is():
    points = cloud(3, 100, 3)
    rotation, shift = rigid(3)
    moved = 2.5 * (points @ rotation.mT + shift[:, None])
    assert torch.equal(farthest_points(points, 30), farthest_points(moved, 30))


def test_each_cloud_of_a_ragged_batch_is_treated_as_if_alone():
    points = cloud(3, 50, 3)
    valid = torch.zeros(3, 50, dtype=torch.bool)
    valid[0], valid[1, ::2], valid[2, 10:30] = True, True, True
    points[2, :10] = math.nan  # what is not valid may be anything
    found = farthest_points(points, 15, start=2, valid=valid)
    for i in range(3):
        places = valid[i].nonzero()[:, 0]
        alone = farthest_points(points[i, places][None], 15, start=2)[0]
        assert torch.equal(found[i], places[alone])


def test_too_few_points_are_all_taken_and_then_repeated_by_the_generator():
    points = cloud(2, 6, 3)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 3:] = False
    draw = lambda seed: farthest_points(points, 400, valid=valid, generator=torch.Generator().manual_seed(seed))
    found = draw(0)
    assert sorted(found[0, :6].tolist()) == list(range(6)) and sorted(found[1, :3].tolist()) == [0, 1, 2]
    assert torch.equal(found, draw(0)) and not torch.equal(found, draw(1))
    for row, count in ((0, 6), (1, 3)):
        repeats = torch.bincount(found[row, count:], minlength=6)
        assert (repeats[count:] == 0).all() and (repeats[:count] > 0.6 * (400 - count) / count).all()
    assert torch.equal(farthest_points(points, 9), farthest_points(points, 9))


def test_gradients_flow_through_the_points_that_were_chosen():
    points = cloud(1, 30, 3).requires_grad_()
    index = farthest_points(points, 5)
    points.gather(1, index[..., None].expand(-1, -1, 3)).sum().backward()
    assert points.grad is not None and points.grad.sum() == 15 and (points.grad.abs().sum(-1) > 0).sum() == 5


def test_points_that_are_not_finite_are_counted_in_the_message():
    points = cloud(1, 1000, 3)
    points[0, 5:22, 1] = math.nan
    with pytest.raises(ValueError, match=r"^17 of 1000 points are not finite after lifting; check the depth map\.$"):
        farthest_points(points, 10)
    batch = cloud(3, 1000, 3)
    batch[2, 0, 0] = math.inf
    with pytest.raises(ValueError, match=r"1 of 1000 points are not finite after lifting; check the depth map \(cloud 2 of 3\)"):
        farthest_points(batch, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num=0), "at least 1 point; num is 0"),
        (dict(num=3, start=8), "start is 8, but the smallest cloud has 8 points"),
        (dict(num=3, start=-1), "start is -1"),
        (dict(num=3, valid=torch.zeros(2, 8, dtype=torch.bool)), "Cloud 0 of 2 has no points to choose from"),
    ],
)
def test_farthest_points_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        farthest_points(cloud(2, 8, 3), **options)
    with pytest.raises(ValueError, match="has no points to choose from"):
        farthest_points(torch.zeros(1, 0, 3), 3)


def test_outliers_are_beyond_three_deviations_and_the_slack():
    # distances to the median point 0: 0, .1, .1, .2, .2 (the MAD is .1), and a point just within and one just beyond
    limit = 3 * 1.4826 * 0.1 + 0.02
    x = torch.tensor([0.0, 0.1, -0.1, 0.1, -0.1, limit - 1e-6, -limit - 1e-6], dtype=torch.float64)
    points = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], -1)
    assert inlier_mask(points).tolist() == [True] * 6 + [False]
    assert torch.equal(remove_outliers(points), points[:6])
    assert inlier_mask(points, slack=0.03).all()
    assert inlier_mask(points, spread=0.0).tolist() == [True] + [False] * 6


def test_depth_and_points_that_are_not_finite_are_dropped_before_the_median():
    points = 0.01 * cloud(2, 40, 3)
    depth = torch.full((2, 40), 0.7, dtype=torch.float64)
    depth[0, :3], depth[0, 3:5], depth[1, :30] = 0.1, 2.0, 5.0  # open interval; most of the second object is out of reach
    points[1, :30] += 9.0
    points[0, 5] = math.inf
    points[0, 6, 2] = math.nan
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[:, 39] = False
    keep = inlier_mask(points, depth, valid=valid)
    assert keep[0].tolist() == [False] * 7 + [True] * 32 + [False]
    assert keep[1].tolist() == [False] * 30 + [True] * 9 + [False]
    assert not inlier_mask(torch.full((1, 5, 3), math.nan)).any()
    assert inlier_mask(torch.zeros(2, 0, 3)).shape == (2, 0)


def test_inliers_do_not_depend_on_where_the_cloud_is():
    points = cloud(2, 100, 3) ** 3
    rotation, shift = rigid(2)
    keep = inlier_mask(points, spread=1.0, neighbors=5, neighbor_spread=1.0)
    assert torch.equal(keep, inlier_mask(points @ rotation.mT + shift[:, None], spread=1.0, neighbors=5, neighbor_spread=1.0))
    assert 0 < keep.sum() < 200


def test_neighbor_filter_is_that_of_brute_force():
    points = torch.cat([0.1 * cloud(200, 3), cloud(20, 3, seed=1)])
    wide = dict(spread=1e6)
    keep = inlier_mask(points, neighbors=8, neighbor_spread=1.5, **wide)
    mean = torch.cdist(points, points).sort(1).values[:, 1:9].mean(1)
    assert torch.equal(keep, mean <= mean.mean() + 1.5 * mean.std())
    assert inlier_mask(points[:9], neighbors=8, **wide).all()  # nine points are each other's neighbours


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(depth_range=(2.0, 0.1)), "nearest below farthest"), (dict(spread=-1.0), "must not be negative")],
)
def test_inlier_mask_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        inlier_mask(cloud(5, 3), **options)


def test_alignment_recovers_a_rigid_motion():
    source = cloud(5, 20, 3)
    rotation, shift = rigid(5)
    found = align_points(source, source @ rotation.mT + shift[:, None])
    assert torch.allclose(found[:, :3, :3], rotation, atol=1e-12) and torch.allclose(found[:, :3, 3], shift, atol=1e-12)
    assert torch.equal(found[:, 3], torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64).expand(5, 4))


def test_alignment_of_noisy_points_has_no_better_neighbor():
    source, target = cloud(12, 3), cloud(12, 3, seed=5)
    weights = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cost = lambda pose: (weights * (source @ pose[:3, :3].T + pose[:3, 3] - target).square().sum(-1)).sum()
    found = align_points(source, target, weights)
    for seed in range(30):
        turn = rotation_from_angles(*(0.02 * cloud(3, seed=seed)))
        other = found.clone()
        other[:3, :3], other[:3, 3] = turn @ found[:3, :3], found[:3, 3] + 0.02 * cloud(3, seed=seed + 99)
        assert cost(other) > cost(found)


def test_alignment_stays_a_rotation_where_a_mirror_would_fit_better():
    source = cloud(1, 10, 3)
    found = align_points(source, source * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.allclose(torch.linalg.det(found[:, :3, :3]), torch.ones(1, dtype=torch.float64))
    flat = source * torch.tensor([1.0, 1.0, 0.0])  # points of a plane have two exact motions, of which one is a mirror
    rotation, _ = rigid(1)
    assert torch.allclose(align_points(flat, flat @ rotation.mT)[:, :3, :3], rotation, atol=1e-12)


def test_points_of_weight_zero_do_not_count():
    source = cloud(10, 3)
    rotation, shift = rigid(1)
    target = source @ rotation[0].T + shift
    target[7:] += 5
    weights = torch.tensor([1.0] * 7 + [0.0] * 3, dtype=torch.float64)
    assert torch.allclose(align_points(source, target, weights)[:3, :3], rotation[0], atol=1e-12)


def test_gradient_of_alignment_is_that_of_finite_differences():
    source, target = cloud(2, 6, 3), cloud(2, 6, 3, seed=3)
    weights = torch.rand(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(align_points, [t.requires_grad_() for t in (source, target, weights)])


@pytest.mark.parametrize(
    ("source", "weights", "message"),
    [
        (cloud(2, 3), None, "at least 3 points, got 2"),
        (torch.arange(5.0)[:, None] * torch.ones(5, 3), None, "on one line"),
        (torch.ones(5, 3), None, "on one line, or all at one place"),
        (cloud(4, 3), -torch.ones(4, dtype=torch.float64), "must not be negative"),
        (cloud(4, 3), torch.zeros(4, dtype=torch.float64), "not all of them zero"),
        (cloud(4, 3) * math.inf, None, "not finite"),
    ],
)
def test_alignment_says_what_is_wrong(source, weights, message):
    with pytest.raises(ValueError, match=message):
        align_points(source, source, weights)
