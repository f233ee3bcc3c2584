import numpy as np
import pytest
import torch

from visiongraft.metrics.chamfer import chamfer_distance, motion_chamfer_distance, nearest_points, subsample_clouds


def cloud(num, seed=0):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed))


def lattice():
    return torch.cartesian_prod(*[torch.arange(6.0)] * 3)


@pytest.mark.parametrize("search", ["auto", "tree", "brute"])
def test_nearest_points_are_those_of_a_float64_matrix(search):
    queries, points = cloud(301), cloud(257, seed=1)
    pairs = (queries.double()[:, None] - points.double()[None]).norm(dim=-1)
    distance, index = nearest_points(queries, points, search, max_pairs=5000)
    assert torch.equal(index, pairs.argmin(1))
    torch.testing.assert_close(distance.double(), pairs.min(1).values, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("search", ["tree", "brute"])
def test_a_small_shift_of_a_lattice_counts_once_each_way(search):
    shift = torch.tensor([0.1, -0.2, 0.2])
    assert chamfer_distance(lattice() + shift, lattice(), search=search) == pytest.approx(2 * 0.3, rel=1e-5)
    assert chamfer_distance(lattice() + shift, lattice(), squared=True, search=search) == pytest.approx(2 * 0.09, rel=1e-5)


def test_a_missing_half_is_seen_by_the_truth_alone():
    # the truth's half at x >= 3 looks 1, 2 and 3 far; all of the prediction is in the truth
    half = lattice()[lattice()[:, 0] < 3]
    assert chamfer_distance(half, lattice()) == pytest.approx((1 + 2 + 3) / 6)
    assert chamfer_distance(lattice(), half) == pytest.approx(1.0)


def test_queries_are_drawn_by_random_state_and_all_points_answer():
    prediction, truth = cloud(900), cloud(700, seed=1)
    asks_p = np.random.RandomState(44).permutation(900)[:50]
    asks_t = np.random.RandomState(45).permutation(700)[:50]
    pairs = (prediction.double()[:, None] - truth.double()[None]).norm(dim=-1).numpy()
    expected = pairs[:, asks_t].min(0).mean() + pairs[asks_p].min(1).mean()
    assert chamfer_distance(prediction, truth, 50) == pytest.approx(expected, rel=1e-6)
    assert chamfer_distance(prediction, truth, 0) == pytest.approx(pairs.min(0).mean() + pairs.min(1).mean(), rel=1e-6)


def test_chamfer_does_not_see_that_two_points_changed_places_and_cd_m_does():
    truth = torch.tensor([[0.0, 0, 0], [1, 0, 0]]).expand(2, -1, -1)
    prediction = torch.stack([truth[0], truth[0].flip(0)])
    assert chamfer_distance(prediction[1], truth[1]) == 0
    # in one of two frames all points are 1 off, both ways
    assert motion_chamfer_distance(prediction, truth) == pytest.approx(1.0)


def test_cd_m_is_the_mean_over_frames_and_points_of_the_brief():
    prediction = torch.stack([cloud(80, seed) for seed in (0, 1, 2)])
    truth = torch.stack([cloud(60, seed) for seed in (3, 4, 5)])
    pairs = (prediction[0].double()[:, None] - truth[0].double()[None]).norm(dim=-1)
    of_truth, of_prediction = pairs.argmin(0), pairs.argmin(1)
    for squared, power in ((False, 1), (True, 2)):
        forth = (truth.double() - prediction.double()[:, of_truth]).norm(dim=-1) ** power
        back = (prediction.double() - truth.double()[:, of_prediction]).norm(dim=-1) ** power
        expected = float(forth.mean() + back.mean())
        for search in ("tree", "brute"):
            assert motion_chamfer_distance(prediction, truth, squared=squared, search=search) == pytest.approx(expected, rel=1e-6)


def test_every_frame_keeps_the_same_points():
    clouds = torch.stack([cloud(100), cloud(100) + 5])
    kept = subsample_clouds(clouds, 30)
    torch.testing.assert_close(kept[1], kept[0] + 5)
    assert torch.equal(kept[0], clouds[0, np.random.RandomState(44).permutation(100)[:30]])
    assert subsample_clouds(clouds, 100) is clouds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_points(cloud(3), cloud(3), "ball"), "search must be one of auto, tree, brute; got 'ball'"),
        (lambda: nearest_points(cloud(0), cloud(3)), r"queries must be at least one point .* got shape \(0, 3\)"),
        (lambda: chamfer_distance(cloud(3) * torch.nan, cloud(3)), "prediction: 3 of 3 points are not finite"),
        (lambda: chamfer_distance(cloud(3), cloud(0)), "truth must be at least one point"),
        (lambda: motion_chamfer_distance(cloud(3)[None], cloud(6).view(2, 3, 3)), "got 1 predicted and 2 true frames"),
    ],
)
def test_unusable_clouds_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
