import math

import pytest
import torch

from visiongraft.geometry.planes import fit_plane


def table_with_clutter(share=0.4, n=3000, noise=0.002, seed=0):
    """A table at height 0.1 + 0.2 x with objects above it, and its normal and offset."""
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, generator=g, dtype=torch.float64)
    on = torch.arange(n) < share * n
    points[on, 2] = 0.1 + 0.2 * points[on, 0] + noise * torch.randn(int(on.sum()), generator=g, dtype=torch.float64)
    normal = torch.tensor([-0.2, 0.0, 1.0], dtype=torch.float64)
    return points, on, normal / normal.norm(), 0.1 / normal.norm()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_plane_is_found_among_other_points(share):
    points, on, normal, offset = table_with_clutter(share)
    found, height, near = fit_plane(points)
    assert torch.allclose(found, normal, atol=2e-3) and abs(float(height - offset)) < 1e-3
    assert near[on].all() and near[~on].double().mean() < 0.05 if share < 1 else near.all()
    assert torch.equal(near, (points @ found - height).abs() <= 0.008)


def test_exact_plane_is_found_exactly_in_float32_too():
    points, _, normal, offset = table_with_clutter(0.6, noise=0)
    found, height, _ = fit_plane(points, tolerance=1e-6)
    assert torch.allclose(found, normal, atol=1e-9) and abs(float(height - offset)) < 1e-9
    found, height, near = fit_plane(points.float())
    assert found.dtype == torch.float32 and torch.allclose(found.double(), normal, atol=2e-3) and near.dtype == torch.bool


def test_plane_moves_with_its_points():
    points, _, normal, offset = table_with_clutter()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
    turn = turn * torch.linalg.det(turn)
    shift = torch.tensor([3.0, -20.0, 5.0], dtype=torch.float64)
    expected = turn @ normal
    found, height, _ = fit_plane(points @ turn.T + shift, up=tuple(expected.tolist()))
    first, at, _ = fit_plane(points)
    assert torch.allclose(found, turn @ first, atol=1e-6)
    assert abs(float(height - (at + turn @ first @ shift))) < 1e-5 and abs(float(at - offset)) < 1e-3


def test_normal_looks_to_the_given_side_and_heights_follow():
    points, on, normal, _ = table_with_clutter()
    up, height, _ = fit_plane(points)
    down, depth, _ = fit_plane(points, up=(0.0, 0.0, -1.0))
    assert up[2] > 0 and torch.allclose(down, -up) and torch.allclose(depth, -height)
    assert torch.allclose((points + 0.05 * normal)[on] @ up - height, torch.tensor(0.05, dtype=torch.float64), atol=0.012)


def test_the_same_generator_gives_the_same_plane():
    points, *_ = table_with_clutter()
    draw = lambda seed: fit_plane(points, hypotheses=8, generator=torch.Generator().manual_seed(seed))[0]
    assert torch.equal(draw(3), draw(3))


def test_points_that_are_not_finite_are_ignored():
    points, _, normal, _ = table_with_clutter()
    points[::7, 2], points[1::7, 0] = math.inf, math.nan
    found, _, near = fit_plane(points)
    assert torch.allclose(found, normal, atol=2e-3) and not near[::7].any() and not near[1::7].any()


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (torch.rand(2, 3), {}, "A plane needs 3 points; 2 of 2 are finite"),
        (torch.full((50, 3), math.nan), {}, "0 of 50 are finite. Check the depth map"),
        (torch.arange(50.0)[:, None] * torch.ones(50, 3), {}, "lie on a line or at one place"),
        (torch.ones(50, 3), {}, "lie on a line or at one place"),
        (torch.rand(50, 3), dict(tolerance=0.0), r"must be positive; got 0 and 1000"),
        (torch.rand(50, 3), dict(hypotheses=0), r"must be positive; got 0.008 and 0"),
    ],
)
def test_fit_plane_says_what_is_wrong(points, options, message):
    with pytest.raises(ValueError, match=message):
        fit_plane(points, **options)
