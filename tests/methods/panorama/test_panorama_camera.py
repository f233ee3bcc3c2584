import dataclasses
import math

import pytest
import torch

from visiongraft.geometry.cameras import rotation_from_angles, view_directions
from visiongraft.geometry.panoramas import panorama_rays, perspective_from_panorama
from visiongraft.methods.panorama.camera import CameraEstimates, SearchConfig, estimate_cameras, estimate_track, median_cameras
from visiongraft.methods.panorama.composite import border_distance, composite


def world(directions, seed):
    """Colour by latitude and plane waves: smooth, with no two views alike."""
    g = torch.Generator().manual_seed(seed)
    k, a, phase = 1.6 * torch.randn(6, 3, 3, generator=g), 0.16 * torch.randn(6, 3, generator=g), 6.28 * torch.rand(6, 3, generator=g)
    d = torch.nn.functional.normalize(directions, dim=-1)
    lat = torch.asin((-d[..., 1]).clamp(-1, 1))
    profile = torch.stack([0.5 + 0.35 * (2 * lat).sin(), 0.5 + 0.3 * (3 * lat).cos(), 0.5 - 0.35 * (3 * lat).tanh()], -1)
    waves = (a * torch.cos(torch.einsum("...d,kcd->...kc", d, k) + phase)).sum(-2)
    return (profile + waves).clamp(0, 1).movedim(-1, 0)


def pairs(cameras, size, height=64, seeds=None):
    """Images and panoramas of worlds, both evaluated exactly; cameras are rows of hfov, yaw, pitch, roll in degrees."""
    hfov, *angles = torch.tensor(cameras).deg2rad().unbind(-1)
    rays = view_directions(hfov, rotation_from_angles(*angles), *size).movedim(1, -1)
    seeds = range(len(cameras)) if seeds is None else seeds
    images = torch.stack([world(r, s) for r, s in zip(rays, seeds, strict=True)])
    return images, torch.stack([world(panorama_rays(height, 2 * height), s) for s in seeds])


def found(estimates):
    return torch.stack([estimates.hfov_deg, estimates.yaw_deg, estimates.pitch_deg, estimates.roll_deg], -1)


def test_cameras_are_found_to_a_fraction_of_a_degree_on_true_panoramas():
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([70.0, 8.0, 90.0, 28.0])
    cameras = (torch.rand(5, 4, generator=g) * scale + torch.tensor([40.0, -4.0, -45.0, -14.0])).tolist()
    images, panoramas = pairs(cameras, (32, 32))
    estimates = estimate_cameras(images, panoramas)
    error = (found(estimates) - torch.tensor(cameras)).abs()
    assert error.median(0).values.max() < 0.1 and error.max() < 0.5
    assert estimates.reliable.all() and estimates.psnr.min() > 40


def test_fields_of_view_are_horizontal_for_images_of_any_shape():
    cameras = [[80.0, 0.0, 10.0, 5.0]]
    for size in ((30, 53), (57, 31)):
        error = (found(estimate_cameras(*pairs(cameras, size))) - torch.tensor(cameras)).abs()
        assert error.max() < 0.25


def test_estimates_do_not_depend_on_the_batch_and_repeat_exactly():
    images, panoramas = pairs([[60.0, 0.0, 20.0, 0.0], [90.0, 3.0, -20.0, 8.0]], (24, 24), height=32)
    together = estimate_cameras(images, panoramas)
    again = estimate_cameras(images, panoramas)
    one_by_one = estimate_cameras(images, panoramas, SearchConfig(pairs_at_once=1))
    assert torch.equal(found(together), found(again))
    assert torch.allclose(found(together), found(one_by_one), atol=0.05)


def test_a_panorama_of_another_world_is_unreliable():
    images, _ = pairs([[70.0, 0.0, 0.0, 0.0]], (24, 24), height=32)
    noise = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    assert not estimate_cameras(images, noise).reliable.any()
    assert not estimate_cameras(torch.full_like(images, 0.5), noise).reliable.any()


def test_estimation_works_in_inference_mode_and_half_precision():
    images, panoramas = pairs([[70.0, 0.0, 10.0, -5.0]], (24, 24), height=32)
    with torch.inference_mode():
        estimates = estimate_cameras(images.bfloat16(), panoramas.bfloat16())
    assert (found(estimates) - torch.tensor([[70.0, 0.0, 10.0, -5.0]])).abs().max() < 2


def test_a_wide_yaw_range_finds_cameras_that_look_back():
    images, panoramas = pairs([[75.0, 172.0, 5.0, 0.0]], (32, 32))
    search = SearchConfig(yaw_half_range_deg=180.0, yaw_step_deg=15.0, pitch_half_range_deg=24.0)
    estimates = estimate_cameras(images, panoramas, search)
    assert float(estimates.yaw_deg) == pytest.approx(172, abs=0.3) and bool(estimates.reliable)


def test_a_track_follows_a_turning_camera_across_the_border_with_one_field_of_view():
    yaws = [0.0, 25.0, 60.0, 100.0, 140.0, 170.0, 195.0]
    cameras = [[70.0, y, 10.0 - y / 20, y / 40] for y in yaws]
    images, panoramas = pairs(cameras, (32, 32), seeds=[3] * len(yaws))
    track = estimate_track(images, panoramas[:1])
    assert track.hfov_deg.unique().numel() == 1 and float(track.hfov_deg[0]) == pytest.approx(70, abs=0.3)
    yaw_error = (track.yaw_deg - torch.tensor(yaws) + 180) % 360 - 180
    assert yaw_error.abs().max() < 0.3 and (found(track)[:, 2:] - torch.tensor(cameras)[:, 2:]).abs().max() < 0.3


def test_the_median_over_seeds_ignores_one_bad_panorama_and_wraps():
    def estimates(yaw, reliable):
        one = lambda v: torch.tensor([v])
        angles = {"hfov_deg": one(70.0), "yaw_deg": one(yaw), "pitch_deg": one(1.0), "roll_deg": one(0.0)}
        return CameraEstimates(**angles, psnr=one(30.0), ncc=one(0.9), reliable=torch.tensor([reliable]))

    median = median_cameras([estimates(179.0, True), estimates(-179.0, True), estimates(60.0, False)])
    assert abs(float(median.yaw_deg)) == pytest.approx(179) and bool(median.reliable)
    with pytest.raises(ValueError, match="at least one panorama; got none"):
        median_cameras([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hfov_deg": (1.0, 2.0, 0.1)}, "within \\[10, 160\\]"),
        ({"yaw_half_range_deg": 200.0}, "yaw_half_range_deg must be in \\[0, 180\\]"),
        ({"pitch_step_deg": 0.0}, "pitch_step_deg positive"),
        ({"pairs_at_once": 0}, "pairs_at_once must be at least 1"),
    ],
)
def test_searches_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**change)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="got 2 images and 1 panoramas"):
        estimate_cameras(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 16))
    with pytest.raises(ValueError, match="W = 2H; got 8x17"):
        estimate_cameras(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 17))


def true_camera(hfov, yaw, pitch, roll):
    one = lambda v: torch.tensor([float(v)])
    angles = {"hfov_deg": one(hfov), "yaw_deg": one(yaw), "pitch_deg": one(pitch), "roll_deg": one(roll)}
    return CameraEstimates(**angles, psnr=one(40), ncc=one(1), reliable=torch.tensor([True]))


def test_the_composite_shows_the_image_inside_and_the_panorama_outside():
    camera = true_camera(80, 20, 15, 5)
    images, panoramas = pairs([[80.0, 20.0, 15.0, 5.0]], (256, 256), height=128)
    grey = torch.full_like(panoramas, 0.5)
    pasted = composite(grey, images, camera, feather_deg=4.0)
    inside = perspective_from_panorama(pasted, camera.hfov, camera.rotation, (64, 64))
    truth = perspective_from_panorama(panoramas, camera.hfov, camera.rotation, (64, 64))
    assert (inside - truth)[..., 8:-8, 8:-8].abs().max() < 0.01
    assert float((pasted == grey).all(1).float().mean()) > 0.7
    # a hard cut takes all the camera sees, a blend less
    hard = composite(grey, images, camera, feather_deg=0.0)
    assert (hard - grey).abs().sum() > (pasted - grey).abs().sum()
    with pytest.raises(ValueError, match="angle of at least 0; got -1"):
        composite(grey, images, camera, feather_deg=-1.0)


def test_border_distance_is_half_the_field_of_view_in_the_middle():
    hfov = torch.tensor([math.radians(80.0)])
    middle = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    depth = border_distance(middle, hfov, 1.0)[0]
    assert float(depth[0]) == pytest.approx(math.radians(40), abs=1e-5) and float(depth[1]) < 0


def test_estimates_are_plain_tensors():
    assert all(isinstance(v, torch.Tensor) for v in vars(true_camera(70, 0, 0, 0)).values())
    assert {f.name for f in dataclasses.fields(CameraEstimates)} >= {"hfov_deg", "ncc", "reliable"}
