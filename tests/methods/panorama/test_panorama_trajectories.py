import json
import math

import pytest
import torch

from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.methods.panorama.augmentation import CameraRanges, View, training_pair
from visiongraft.methods.panorama.trajectories import (
    CameraPath,
    clip_from_panoramas,
    draw_path,
    hand_held_shake,
    read_paths,
    simulated_path,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def degrees(path: CameraPath) -> torch.Tensor:
    return torch.stack([path.yaw, path.pitch, path.roll], -1).rad2deg()


def still(generator: torch.Generator, frames: int = 33) -> CameraPath:
    return simulated_path(frames, generator, shake_probability=0.0)


def test_simulated_path_is_linear_and_keeps_to_its_ranges():
    generator = seeded()
    for _ in range(300):
        path = still(generator)
        angles = degrees(path)
        second_difference = angles[2:] - 2 * angles[1:-1] + angles[:-2]
        assert second_difference.abs().max() < 1e-4
        assert angles[0, 0] == 0
        assert angles[:, 1].abs().max() <= 60 + 1e-4 and angles[:, 2].abs().max() <= 15 + 1e-4
        change = (angles[-1] - angles[0]).abs()
        assert (change <= torch.tensor([90.0, 30.0, 10.0]) + 1e-4).all()
        assert 30 <= path.hfov.rad2deg() <= 120


def test_starts_and_turns_fill_their_ranges():
    generator = seeded(1)
    paths = [still(generator, 2) for _ in range(3000)]
    starts = torch.stack([degrees(p)[0] for p in paths])
    turns = torch.stack([degrees(p)[1] - degrees(p)[0] for p in paths])
    fov = torch.stack([p.hfov for p in paths]).rad2deg()

    quarters = torch.tensor([0.25, 0.75])
    assert torch.allclose(torch.quantile(starts[:, 1], quarters), torch.tensor([-30.0, 30.0]), atol=3)
    assert torch.allclose(torch.quantile(starts[:, 2], quarters), torch.tensor([-7.5, 7.5]), atol=0.8)
    assert torch.allclose(torch.quantile(turns[:, 0], quarters), torch.tensor([-45.0, 45.0]), atol=4)
    assert torch.allclose(torch.quantile(fov, quarters), torch.tensor([52.5, 97.5]), atol=3)


def test_shake_has_the_amplitudes_it_is_said_to_have():
    """In 3000 shakes of 1/6 s and of 2 s: jitter alone in frame 0, at most sway + drift + 5 sigma anywhere."""
    generator = seeded(2)
    shakes = torch.stack([hand_held_shake(33, generator) for _ in range(3000)])
    jitter = torch.tensor([0.15, 0.15, 0.1], dtype=torch.float64)
    limit = torch.tensor([1.0, 0.5, 0.2]) + 2 * torch.tensor([15.0, 3.0, 1.0]) + 5.5 * jitter

    assert torch.allclose(shakes[:, 0].std(0), jitter, rtol=0.05)
    assert (shakes.abs().amax((0, 1)) < limit).all()
    # the variance of a uniform drift over +-d, in two of three cases, after 2 s; sway is zero then
    drift = torch.tensor([15.0, 3.0, 1.0], dtype=torch.float64) * 2
    assert torch.allclose(shakes[:, 32].var(0), drift**2 / 3 * 2 / 3 + jitter**2, rtol=0.08)


def test_half_of_the_paths_are_shaken():
    generator = seeded(3)
    shaken = 0
    for _ in range(400):
        angles = degrees(simulated_path(9, generator))
        shaken += int((angles[2:] - 2 * angles[1:-1] + angles[:-2]).abs().max() > 1e-3)
    assert 160 < shaken < 240


def test_first_yaw_is_longitude_zero_even_when_shaken():
    generator = seeded(4)
    assert all(simulated_path(9, generator, shake_probability=1.0).yaw[0] == 0 for _ in range(20))


def test_path_is_a_function_of_the_seed():
    one, same, other = (simulated_path(9, seeded(s), shake_probability=1.0) for s in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.pitch, other.pitch)


def test_one_path_in_five_is_a_real_one():
    real = torch.stack([torch.arange(100.0) * 3 + 50, torch.full((100,), 77.0), torch.zeros(100)], -1)  # a pitch never simulated
    generator = seeded(7)
    paths = [draw_path(9, generator, real=[real, real[:5]]) for _ in range(1000)]
    taken = [degrees(p) for p in paths if abs(float(p.pitch[0].rad2deg()) - 77) < 1e-3]

    assert 160 < len(taken) < 240
    assert all(torch.allclose(angles[:, 0], torch.arange(9.0) * 3, atol=1e-4) for angles in taken)


def test_real_paths_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"No camera path has the 81 frames of a clip; the longest has 40\. Give longer ones"):
        draw_path(81, seeded(), real=[torch.zeros(40, 3)])


def test_clip_is_the_crop_of_each_frame():
    x, y, z = panorama_rays(32, 64).unbind(-1)
    frames = torch.stack([torch.stack([0.5 + 0.4 * torch.sin(2 * x + k), 0.5 + 0.4 * y, 0.5 + 0.4 * z]) for k in range(3)])
    path = CameraPath(torch.tensor(1.2), torch.tensor([0.0, 0.0, 0.3]), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.1, -0.1]))
    clip = clip_from_panoramas(frames, path, 16)

    for k in (0, 1):
        angles = {"hfov_deg": math.degrees(1.2), "pitch_deg": math.degrees(path.pitch[k]), "roll_deg": math.degrees(path.roll[k])}
        _, crop = training_pair(frames[k], View(yaw_pixels=0, **angles), 32, 16)
        assert torch.allclose(clip[k], crop, atol=1e-5)
    assert clip.shape == (3, 3, 16, 16)


def test_clip_and_path_of_different_length_are_refused():
    path = still(seeded(), 5)
    with pytest.raises(ValueError, match="The panorama video has 3 frames and the camera path 5; give one pose a frame"):
        clip_from_panoramas(torch.zeros(3, 3, 8, 16), path, 8)


def test_real_paths_are_read_unwrapped_and_resampled(tmp_path):
    seconds = torch.arange(31, dtype=torch.float64) / 30
    yaw = (170 + 40 * seconds + 180) % 360 - 180
    row = {"fps": 30, "yaw_deg": yaw.tolist(), "pitch_deg": (10 * seconds).tolist(), "roll_deg": [1.0] * 31}
    file = tmp_path / "paths.jsonl"
    file.write_text(json.dumps(row) + "\n\n" + json.dumps(row | {"fps": 15}) + "\n")
    first, second = read_paths(file)

    at = torch.arange(17, dtype=torch.float64) / 16
    assert torch.allclose(first, torch.stack([170 + 40 * at, 10 * at, torch.ones(17)], -1), atol=1e-9)
    assert len(second) == 33


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not a camera path"),
        ('{"fps": 16, "yaw_deg": [0, 1], "pitch_deg": [0, 1]}', "line 1 is not a camera path .*roll_deg.* of equal length"),
        ('{"fps": 0, "yaw_deg": [0, 1], "pitch_deg": [0, 1], "roll_deg": [0, 1]}', "fps must be positive"),
        ('{"fps": 16, "yaw_deg": [0, 1], "pitch_deg": [0], "roll_deg": [0, 1]}', "line 1 is not a camera path"),
        ("", "has no camera paths; write one JSON object a line"),
    ],
)
def test_file_that_holds_no_paths_is_named(text, message, tmp_path):
    (tmp_path / "paths.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_paths(tmp_path / "paths.jsonl")


def test_missing_file_of_paths_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file of camera paths .*gone\.jsonl"):
        read_paths(tmp_path / "gone.jsonl")


def test_ranges_bound_the_simulation():
    ranges = CameraRanges(hfov_deg=(90.0, 90.0), pitch_deg=(-5.0, 5.0), roll_deg=(0.0, 0.0))
    angles = degrees(simulated_path(9, seeded(8), ranges, shake_probability=0.0))
    assert angles[:, 1].abs().max() <= 5.0001 and angles[:, 2].abs().max() == 0
