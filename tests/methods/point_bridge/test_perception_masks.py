"""Masks, lifting and the noise of depth: closed forms, one convention for rows and columns, parameters that are found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.methods.point_bridge.lifting import base_points, object_points
from visiongraft.methods.point_bridge.masks import clean_mask, draw_pixels, erode_mask, shrink_mask
from visiongraft.methods.point_bridge.perception_noise import PerceptionNoise, measure_noise
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.poses import look_at

SIZE = (60, 90)


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def top_camera(height: float = 0.8) -> Camera:
    """Looks down from above (0.5, 0, height), its x along the base's -y."""
    pose = np.array([[0, -1, 0, 0.5], [-1, 0, 0, 0.0], [0, 0, -1, height], [0, 0, 0, 1.0]])
    return Camera(intrinsics_from_fovy(0.9, SIZE), pose, SIZE)


def test_cleaning_drops_specks_and_hairs_and_keeps_the_object() -> None:
    body = rectangle(10, 40, 10, 40)
    dirty = body | rectangle(50, 55, 60, 65) | rectangle(20, 21, 40, 80)
    assert np.array_equal(clean_mask(dirty, 100), body)
    assert not clean_mask(rectangle(0, 9, 0, 9), 100).any()


def test_cleaning_counts_diagonal_neighbours_as_one_piece() -> None:
    two = rectangle(5, 12, 5, 13) | rectangle(12, 19, 13, 21)
    assert clean_mask(two, 100).sum() == two.sum() == 112


@pytest.mark.parametrize("amount", [0.1, 0.2, 0.5])
def test_shrinking_a_rectangle_scales_it_about_its_centre(amount: float) -> None:
    shrunken = shrink_mask(rectangle(10, 50, 20, 80), amount)
    rows, columns = np.nonzero(shrunken)
    assert abs((rows.min() + rows.max()) / 2 - 29.5) <= 0.5 and abs((columns.min() + columns.max()) / 2 - 49.5) <= 0.5
    assert abs(np.ptp(rows) + 1 - 40 * (1 - amount)) <= 2 and abs(np.ptp(columns) + 1 - 60 * (1 - amount)) <= 2
    assert shrunken.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.6))
def test_a_shrunken_mask_lies_in_the_mask_and_is_never_empty(seed: int, amount: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((12, 15)) < rng.uniform(0.05, 0.9)
    shrunken = shrink_mask(mask, amount)
    assert not (shrunken & ~mask).any()
    assert shrunken.any() == mask.any()


def test_shrinking_keeps_holes_and_treats_pieces_apart() -> None:
    ring = rectangle(10, 50, 10, 50) & ~rectangle(28, 32, 28, 32)
    shrunken = shrink_mask(ring | rectangle(20, 40, 60, 80), 0.2)
    assert not shrunken[28:32, 28:32].any() and not shrunken[:, 50:60].any()
    assert abs(shrunken[:, 60:80].sum() - 256) <= 40


def test_shrinking_by_nothing_and_by_too_much() -> None:
    mask = rectangle(3, 9, 4, 30)
    assert np.array_equal(shrink_mask(mask, 0.0), mask)
    with pytest.raises(ValueError, match=r"at least 0 and below 1; got 1\.0"):
        shrink_mask(mask, 1.0)


def test_erosion_takes_a_pixel_off_but_not_at_the_image_border() -> None:
    assert np.array_equal(erode_mask(rectangle(10, 20, 10, 30)), rectangle(11, 19, 11, 29))
    assert np.array_equal(erode_mask(rectangle(0, 20, 0, 30), 2), rectangle(0, 18, 0, 28))
    assert np.array_equal(erode_mask(rectangle(5, 9, 5, 9), 0), rectangle(5, 9, 5, 9))


def test_pixels_are_drawn_once_each_while_there_are_enough() -> None:
    mask, rng = rectangle(10, 20, 30, 50), np.random.default_rng(0)
    drawn = draw_pixels(mask, 150, rng)
    assert len(np.unique(drawn, axis=0)) == 150 and mask[tuple(drawn.T)].all()
    more = draw_pixels(mask, 500, rng)
    assert len(more) == 500 and len(np.unique(more, axis=0)) == 200
    with pytest.raises(ValueError, match="empty mask"):
        draw_pixels(np.zeros((3, 3), bool), 5, rng)


def test_a_box_under_a_camera_is_lifted_to_its_place() -> None:
    camera = top_camera()
    depth = np.full(SIZE, 0.8, np.float32)
    mask = rectangle(20, 30, 50, 70)  # right of the middle: towards -y; its columns are not its rows
    depth[mask] = 0.75
    points = object_points(mask, depth, camera, np.random.default_rng(0), num=64, shrink=0.0)
    assert points is not None and points.shape == (64, 3) and points.dtype == np.float32
    focal = camera.intrinsics[0, 0]
    assert np.allclose(points[:, 2], 0.05, atol=1e-6)
    assert np.isclose(points[:, 1].min(), -(69.5 - 45) * 0.75 / focal, atol=1e-5)
    assert np.isclose(points[:, 1].max(), -(50.5 - 45) * 0.75 / focal, atol=1e-5)
    assert np.isclose(points[:, 0].max(), 0.5 - (20.5 - 30) * 0.75 / focal, atol=1e-5)
    assert np.isclose(points[:, 0].min(), 0.5 - (29.5 - 30) * 0.75 / focal, atol=1e-5)


def test_lifting_agrees_with_a_plane_seen_at_an_angle() -> None:
    camera = Camera(intrinsics_from_fovy(0.9, SIZE), look_at(np.array([0.0, 0.4, 0.7]), np.array([0.5, 0.0, 0.0])), SIZE)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    rays = np.stack([columns, rows, np.ones(SIZE)], -1) @ np.linalg.inv(camera.intrinsics).T @ camera.camera_to_base[:3, :3].T
    depth = -camera.camera_to_base[2, 3] / rays[..., 2]
    assert np.allclose(base_points(depth, camera)[..., 2], 0, atol=1e-9)


def test_unknown_depth_and_flying_pixels_do_not_become_points() -> None:
    depth, mask = np.full(SIZE, 0.75, np.float32), rectangle(20, 35, 40, 55)
    rng = np.random.default_rng(1)
    for value in (np.nan, np.inf, 0.0, -1.0, 1.9, 0.15):
        depth[mask & (rng.random(SIZE) < 0.08)] = value
    points = object_points(mask, depth, top_camera(), np.random.default_rng(0))
    assert points is not None and np.allclose(points[:, 2], 0.05, atol=1e-6)


def test_nothing_to_lift_is_none_and_few_pixels_repeat() -> None:
    rng, camera = np.random.default_rng(0), top_camera()
    assert object_points(np.zeros(SIZE, bool), np.ones(SIZE, np.float32), camera, rng) is None
    assert object_points(rectangle(5, 9, 5, 9), np.full(SIZE, np.nan, np.float32), camera, rng) is None
    points = object_points(rectangle(5, 7, 5, 8), np.full(SIZE, 0.8, np.float32), camera, rng, shrink=0.0)
    assert points is not None and points.shape == (128, 3) and len(np.unique(points, axis=0)) == 6
    with pytest.raises(ValueError, match="must have one size"):
        object_points(np.zeros((4, 4), bool), np.ones(SIZE, np.float32), camera, rng)


def test_the_same_seed_gives_the_same_points() -> None:
    depth = np.random.default_rng(3).uniform(0.7, 0.72, SIZE).astype(np.float32)
    one, other, third = (object_points(rectangle(5, 55, 5, 80), depth, top_camera(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, other) and not np.array_equal(one, third)


def test_noise_is_measured_as_it_was_drawn() -> None:
    noise = PerceptionNoise(depth=0.006, offset=0.005, holes=0.07, outliers=0.03, outlier_depth=0.2)
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.5, 1.2, (400, 30, 40)).astype(np.float32)
    measured = measure_noise(clean, np.stack([noise.apply(frame, noise.draw_offset(rng), rng) for frame in clean]))
    assert measured.depth == pytest.approx(noise.depth, rel=0.06)
    assert measured.offset == pytest.approx(noise.offset, rel=0.1)
    assert measured.holes == pytest.approx(noise.holes, abs=0.003)
    assert measured.outliers == pytest.approx(noise.outliers, abs=0.006)
    assert measured.outlier_depth == pytest.approx(noise.outlier_depth, rel=0.1)


def test_perfect_depth_has_no_noise_and_no_noise_changes_nothing() -> None:
    clean = np.random.default_rng(0).uniform(0.5, 1.2, (2, 8, 9)).astype(np.float32)
    clean[0, 0, 0] = np.inf
    none = PerceptionNoise(depth=0.0, offset=0.0, holes=0.0)
    assert np.array_equal(none.apply(clean[0], 0.0, np.random.default_rng(0)), clean[0])
    found = measure_noise(clean, clean)
    assert (found.depth, found.offset, found.holes, found.outliers) == (0, 0, 0, 0)


def test_bad_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="no negative numbers"):
        PerceptionNoise(holes=1.2)
    with pytest.raises(ValueError, match="must have the same shape"):
        measure_noise(np.ones((1, 2, 3)), np.ones((1, 2, 4)))
    with pytest.raises(ValueError, match="Frame 1 has no pixel"):
        measure_noise(np.ones((2, 2, 3)), np.stack([np.ones((2, 3)), np.full((2, 3), np.nan)]))
