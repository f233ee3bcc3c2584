import math

import pytest
import torch

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_rays, perspective_from_panorama, sample_panorama
from visiongraft.methods.panorama.augmentation import CameraRanges, View, draw_view, resize_panorama, training_pair


def waves(height: int) -> torch.Tensor:
    """A smooth function on the sphere, seen as a panorama."""
    x, y, z = panorama_rays(height, 2 * height).unbind(-1)
    return torch.stack([0.5 + 0.3 * torch.sin(3 * x + y), 0.5 + 0.3 * torch.cos(2 * z - x), 0.5 + 0.4 * y * x])


def view(**changed) -> View:
    return View(**{"yaw_pixels": 0, "hfov_deg": 80.0, "pitch_deg": 20.0, "roll_deg": -7.0, **changed})


def radians(*degrees: float) -> list[torch.Tensor]:
    return [torch.tensor([math.radians(d)]) for d in degrees]


@pytest.mark.parametrize("yaw", [0, 1, 37, 64, 127])
def test_crop_is_the_view_at_yaw_zero_of_the_turned_panorama(yaw):
    panorama = waves(64)
    turned, crop = training_pair(panorama, view(yaw_pixels=yaw), 64, 32)

    again = perspective_from_panorama(turned[None], radians(80)[0], rotation_from_angles(*radians(0, 20, -7)), (32, 32))

    assert torch.equal(turned, panorama.roll(-yaw, -1))
    assert (again[0] - crop).abs().max() < 1e-4


def test_turning_after_the_crop_would_lose_longitude_zero():
    """The mistake that the order guards against: the crop's centre would look elsewhere than the panorama's."""
    panorama, yaw = waves(64), 40
    turned, crop = training_pair(panorama, view(yaw_pixels=yaw, pitch_deg=0.0, roll_deg=0.0), 64, 33)
    straight_ahead = torch.tensor([[[0.0, 0.0, 1.0]]])

    def middle(picture):
        return sample_panorama(picture[None], straight_ahead)[0, :, 0]

    assert torch.allclose(middle(turned), crop[:, 16, 16], atol=2e-3)
    assert (middle(panorama) - crop[:, 16, 16]).abs().max() > 0.1


@pytest.mark.parametrize("hfov", [35.0, 110.0])
def test_crop_of_a_large_panorama_is_that_of_the_world(hfov):
    """Also where the panorama is reduced first: 512 x 1024 pixels seen in 16 x 16."""
    _, crop = training_pair(waves(512), view(hfov_deg=hfov, yaw_pixels=10), 64, 16)
    hfov_radians, pitch, roll, yaw = radians(hfov, 20, -7, 360 * 10 / 128)
    fine = perspective_from_panorama(waves(1024)[None], hfov_radians, rotation_from_angles(yaw, pitch, roll), (64, 64))

    assert (torch.nn.functional.avg_pool2d(fine, 4)[0] - crop).abs().max() < 3e-3


def test_views_are_uniform_in_their_ranges():
    generator = torch.Generator().manual_seed(0)
    views = [draw_view(128, CameraRanges(), generator) for _ in range(4000)]
    drawn = {name: torch.tensor([float(getattr(v, name)) for v in views]) for name in ("yaw_pixels", "hfov_deg", "pitch_deg", "roll_deg")}

    for name, (low, high) in {"yaw_pixels": (0, 127), "hfov_deg": (30, 120), "pitch_deg": (-60, 60), "roll_deg": (-15, 15)}.items():
        values = drawn[name]
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
        quantiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75]))
        assert torch.allclose(quantiles, low + (high - low) * torch.tensor([0.25, 0.5, 0.75]), atol=0.035 * (high - low))
    correlation = torch.corrcoef(torch.stack([*drawn.values()])) - torch.eye(4)
    assert correlation.abs().max() < 0.06


def test_view_is_a_function_of_the_seed():
    views = [draw_view(128, CameraRanges(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert views[0] == views[1] != views[2]


def test_yaw_keeps_to_whole_tokens_when_asked():
    generator = torch.Generator().manual_seed(0)
    yaws = {draw_view(128, CameraRanges(), generator, yaw_multiple=16).yaw_pixels for _ in range(200)}
    assert yaws == set(range(0, 128, 16))
    with pytest.raises(ValueError, match="yaw_multiple must divide the panorama's width 128; got 48"):
        draw_view(128, CameraRanges(), generator, yaw_multiple=48)


def test_degenerate_ranges_give_a_fixed_camera():
    ranges = CameraRanges(hfov_deg=(90.0, 90.0), pitch_deg=(0.0, 0.0), roll_deg=(0.0, 0.0))
    drawn = draw_view(128, ranges, torch.Generator().manual_seed(0))
    assert (drawn.hfov_deg, drawn.pitch_deg, drawn.roll_deg) == (90, 0, 0)


@pytest.mark.parametrize(("height", "new_height"), [(64, 32), (60, 32), (100, 64), (32, 64), (50, 7)])
def test_resizing_commutes_with_half_a_turn(height, new_height):
    """No column is at a border."""
    panorama = torch.rand(3, height, 2 * height, generator=torch.Generator().manual_seed(0))
    resized = resize_panorama(panorama, new_height)
    half = resize_panorama(panorama.roll(height, -1), new_height)

    assert resized.shape == (3, new_height, 2 * new_height)
    assert torch.allclose(half, resized.roll(new_height, -1), atol=1e-5)


def test_pair_keeps_dtype_and_batches_of_one():
    target, crop = training_pair(waves(64).double(), view(yaw_pixels=5), 32, 16)
    assert target.dtype == crop.dtype == torch.float64
    assert (target.shape, crop.shape) == ((3, 32, 64), (3, 16, 16))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hfov_deg": (0.5, 2.0)}, "hfov must be in .* did you pass radians"),
        ({"hfov_deg": (90.0, 190.0)}, r"hfov_deg must be \(lowest, highest\) within -180 to 180 degrees; got \(90, 190\)"),
        ({"pitch_deg": (30.0, -30.0)}, r"pitch_deg must be \(lowest, highest\) within -90 to 90 degrees; got \(30, -30\)"),
        ({"roll_deg": (-200.0, 15.0)}, "roll_deg must be"),
    ],
)
def test_ranges_that_no_camera_has_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        CameraRanges(**changed)


def test_picture_that_is_not_a_panorama_is_refused():
    with pytest.raises(ValueError, match="ERP must have W = 2H"):
        training_pair(torch.zeros(3, 64, 100), view(), 64, 32)
