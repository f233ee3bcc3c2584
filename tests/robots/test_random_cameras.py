import numpy as np
import pytest

from visiongraft.robots.random_cameras import INNER, OUTER, TARGET, random_cameras


def test_cameras_stand_over_the_corners_and_look_at_the_target():
    poses = random_cameras(20, np.random.default_rng(0))
    positions = poses[:, :3, 3]
    for axis in range(3):
        low, high = OUTER[axis]
        assert (positions[:, axis] >= low).all() and (positions[:, axis] <= high).all()
        assert ((positions[:, axis] < INNER[axis][0]) | (positions[:, axis] > INNER[axis][1])).all()
    corners = {(x > 0.4, y > 0) for x, y, _ in positions}
    assert len(corners) == 4
    forward = np.array(TARGET) - positions
    assert np.allclose(poses[:, :3, 2], forward / np.linalg.norm(forward, axis=1, keepdims=True))
    assert (poses[:, 2, 1] < 0).all()  # y of the camera points down
    gaps = np.linalg.norm(positions[:, None] - positions, axis=-1) + np.eye(20)
    assert gaps.min() > 0.05


def test_the_real_camera_of_the_paper_stands_in_such_a_place():
    position = np.array([-0.01391, 0.35517, 0.65610])
    assert all((low <= p <= high) and not (a <= p <= b) for p, (low, high), (a, b) in zip(position, OUTER, INNER, strict=True))


def test_draws_are_seeded_and_without_repetition():
    draw = lambda seed: random_cameras(5, np.random.default_rng(seed))
    assert np.array_equal(draw(1), draw(1)) and not np.array_equal(draw(1), draw(2))
    assert len(np.unique(random_cameras(20, np.random.default_rng(0))[:, :3, 3], axis=0)) == 20


def test_impossible_draws_are_refused():
    with pytest.raises(ValueError, match="From 20 places 1 to 20 cameras can be drawn, not 21"):
        random_cameras(21, np.random.default_rng(0))
    with pytest.raises(ValueError, match="leaves fewer than 20 places"):
        random_cameras(1, np.random.default_rng(0), inner=((-1.0, 2.0),) * 3)
