import itertools
import math
import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from scipy import linalg

from visiongraft.metrics.frechet import (
    cubemap_features,
    faed_features,
    frechet_distance,
    gaussian_frechet_distance,
    kernel_distance,
    omni_fid,
    squared_discrepancy,
)

pytestmark = pytest.mark.filterwarnings("ignore:A Fréchet distance from")


def features(n, dim, seed=0, scale=1.0, shift=0.0):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def covariance(dim, seed):
    a = features(dim, dim, seed)
    return a @ a.T / dim


def test_commuting_gaussians_have_the_closed_form():
    a, b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.0]).double()
    mean = torch.tensor([1.0, -2.0, 0.5]).double()
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    rotation = torch.linalg.qr(features(3, 3, 5)).Q
    turned = [rotation @ torch.diag(x) @ rotation.T for x in (a, b)]
    assert gaussian_frechet_distance(mean, turned[0], torch.zeros(3).double(), turned[1]) == pytest.approx(expected, rel=1e-7)


def test_general_gaussians_agree_with_the_matrix_root():
    s, t, zero = covariance(8, 1), covariance(8, 2), torch.zeros(8).double()
    root = linalg.sqrtm((s @ t).numpy())
    expected = float(np.trace(s.numpy() + t.numpy() - 2 * root.real))
    assert gaussian_frechet_distance(zero, s, zero, t) == pytest.approx(expected, rel=1e-8)
    assert gaussian_frechet_distance(zero, s, zero, t) == pytest.approx(gaussian_frechet_distance(zero, t, zero, s), rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(20, 30), (40, 12), (40, 50)])
def test_few_and_many_samples_agree_with_their_gaussians(n, m):
    x, y = features(n, 40, 1), features(m, 40, 2, scale=0.5, shift=0.3)
    direct = gaussian_frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(direct, rel=1e-6)


def test_covariances_are_unbiased():
    x, y = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[0.0], [4.0]]).double()
    # variances 2 and 8 with the divisor n - 1, means 1 and 2
    assert frechet_distance(x, y) == pytest.approx(1 + (math.sqrt(2) - math.sqrt(8)) ** 2)


def test_equal_sets_have_no_distance_even_with_singular_covariances():
    x = features(50, 6)
    x[:, 3:] = x[:, :3]
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 4, rel=1e-6)


def test_few_samples_are_warned_of_and_many_are_not():
    with pytest.warns(UserWarning, match="from 100 samples is biased upwards"):
        frechet_distance(features(100, 2), features(3000, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(features(2048, 2), features(2048, 2, 1))


def test_kernel_discrepancy_is_the_double_sum():
    x, y = features(4, 3, 1), features(5, 3, 2)

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    within = [sum(k(a, b) for a, b in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    across = sum(k(a, b) for a in x for b in y) / 20
    assert float(squared_discrepancy(x, y)) == pytest.approx(sum(within) - 2 * across)


def test_kernel_discrepancy_of_subsets_averages_to_that_of_the_whole():
    x, y = features(5, 2, 1), features(5, 2, 2, shift=0.5)
    pairs = itertools.product(itertools.combinations(range(5), 3), repeat=2)
    mean = np.mean([float(squared_discrepancy(x[list(i)], y[list(j)])) for i, j in pairs])
    assert mean == pytest.approx(float(squared_discrepancy(x, y)))


def test_kernel_discrepancy_is_zero_on_average_for_one_distribution():
    values = torch.stack([squared_discrepancy(features(20, 4, 2 * s), features(20, 4, 2 * s + 1)) for s in range(400)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20  # four standard errors
    assert float((values < 0).double().mean()) > 0.3


def test_kernel_distance_is_seeded_and_sees_a_shift():
    x, y = features(300, 4, 1), features(300, 4, 2)
    options = dict(subsets=50, subset_size=100)
    same, shifted = kernel_distance(x, y, **options), kernel_distance(x, y + 1, **options)
    assert same == kernel_distance(x, y, **options) != kernel_distance(x, y, seed=1, **options)
    assert abs(same.mean) < 3 * same.std and shifted.mean > 5 * shifted.std


def test_kernel_distance_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(60, 8, 1), features(60, 8, 2, shift=0.3)
    assert float(squared_discrepancy(x, y)) == pytest.approx(float(torchmetrics.poly_mmd(x, y)), rel=1e-9)


def test_faed_features_weight_rows_by_hand():
    maps = torch.arange(2 * 3 * 4, dtype=torch.float64).reshape(1, 2, 3, 4)
    seen = []

    def encoder(images):
        seen.append((float(images.min()), float(images.max())))
        return maps

    panorama = torch.tensor([0.0, 1.0]).double().repeat(1, 3, 4, 4)
    # rows at +90, 0, -90 degrees: only the middle one counts, with its mean over the width
    assert torch.allclose(faed_features(panorama, encoder), torch.tensor([[0, 5.5, 0, 0, 17.5, 0]]).double(), atol=1e-12)
    assert seen == [(-1, 1)]


def test_faed_weights_of_sixteen_rows_are_the_cosine_of_latitude():
    weights = faed_features(torch.rand(1, 3, 16, 32), lambda x: torch.ones(1, 1, 16, 2))[0]
    assert torch.allclose(weights, torch.from_numpy(np.cos(np.linspace(np.pi / 2, -np.pi / 2, 16))).float(), atol=1e-6)


def test_faed_features_do_not_depend_on_yaw():
    panorama = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))

    def encoder(x):
        return torch.nn.functional.avg_pool2d(x, 4)

    assert torch.allclose(faed_features(panorama, encoder), faed_features(panorama.roll(8, -1), encoder), atol=1e-6)


def test_omni_fid_is_the_mean_over_its_groups():
    real, fake = features(30, 6 * 2, 1).reshape(30, 6, 2), features(30, 6 * 2, 2, shift=0.5).reshape(30, 6, 2)
    result = omni_fid(real, fake)
    assert result.up == pytest.approx(frechet_distance(real[:, 4], fake[:, 4]))
    assert result.down == pytest.approx(frechet_distance(real[:, 5], fake[:, 5]))
    assert result.horizontal == pytest.approx(frechet_distance(real[:, :4].mean(1), fake[:, :4].mean(1)))
    assert result.mean == pytest.approx((result.up + result.down + result.horizontal) / 3)


def test_cubemap_features_keep_faces_and_panoramas_apart():
    height, width = 16, 32
    panorama = torch.zeros(2, 3, height, width)
    panorama[0, :, : height // 2] = 1  # the upper half of the first one
    result = cubemap_features(panorama, lambda faces: faces.mean((2, 3)), 8)
    assert result.shape == (2, 6, 3) and bool((result[1] == 0).all())
    assert torch.allclose(result[0, :, 0], torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 0.0]), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x * float("nan"), x), "real features contain NaN"),
        (lambda x: frechet_distance(x, x[:1]), "at least 2 samples"),
        (lambda x: frechet_distance(x, x[:, :2]), "features of one encoder; got 3 and 2 dimensions"),
        (lambda x: kernel_distance(x, x[:4], subset_size=5), "smaller set .4 samples.*got subset_size=5"),
        (lambda x: faed_features(torch.rand(1, 3, 8, 17), lambda p: p), "W = 2H; got 8x17"),
        (lambda x: faed_features(torch.rand(1, 3, 8, 16), lambda p: p.mean((2, 3))), "batch x channels x rows x columns; got .1, 3."),
    ],
)
def test_unusable_features_are_refused(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the type checker
    with pytest.raises(ValueError, match=message):
        call(features(10, 3))
