import math

import pytest
import torch

from visiongraft.geometry import cameras


def angles(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    scale = torch.tensor([math.pi, 1.5, math.pi], dtype=torch.float64)
    return ((torch.rand(n, 3, generator=g, dtype=torch.float64) * 2 - 1) * scale).unbind(-1)


def test_rotation_is_the_product_of_the_three_turns():
    yaw, pitch, roll = angles()
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)
    stack = lambda rows: torch.stack([torch.stack(r, -1) for r in rows], -2)
    ry = stack([(yaw.cos(), zero, yaw.sin()), (zero, one, zero), (-yaw.sin(), zero, yaw.cos())])
    rx = stack([(one, zero, zero), (zero, pitch.cos(), -pitch.sin()), (zero, pitch.sin(), pitch.cos())])
    rz = stack([(roll.cos(), -roll.sin(), zero), (roll.sin(), roll.cos(), zero), (zero, zero, one)])
    rotation = cameras.rotation_from_angles(yaw, pitch, roll)
    assert torch.allclose(rotation, ry @ rx @ rz, atol=1e-14)
    for found, expected in zip(cameras.angles_from_rotation(rotation), (yaw, pitch, roll), strict=True):
        assert torch.allclose(found, expected, atol=1e-9)


def test_signs_of_yaw_pitch_and_roll():
    t = lambda *v: torch.tensor(v, dtype=torch.float64)
    forward = cameras.rotation_from_angles(t(0.3), t(0.2), t(0.0))[0] @ t(0.0, 0.0, 1.0)
    assert forward[0] > 0 and forward[1] < 0  # right, and up because y points down
    right = cameras.rotation_from_angles(t(0.0), t(0.0), t(0.1))[0] @ t(1.0, 0.0, 0.0)
    assert right[1] > 0  # the right side of the camera goes down


def test_up_is_the_worlds_up_seen_by_the_camera():
    yaw, pitch, roll = angles(seed=1)
    rotation = cameras.rotation_from_angles(yaw, pitch, roll)
    up = rotation.mT @ torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(cameras.up_from_angles(pitch, roll), up, atol=1e-14)
    found_pitch, found_roll = cameras.angles_from_up(3 * up)
    assert torch.allclose(found_pitch, pitch, atol=1e-9) and torch.allclose(found_roll, roll, atol=1e-9)


def test_minimal_rotation_takes_source_to_target_by_the_angle_between_them():
    g = torch.Generator().manual_seed(2)
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, 3, generator=g, dtype=torch.float64), dim=-1)
    rotation = cameras.minimal_rotation(a, b)
    assert torch.allclose((rotation @ a[..., None])[..., 0], b, atol=1e-12)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(cameras.rotation_angle(rotation).cos(), (a * b).sum(-1), atol=1e-12)


@pytest.mark.parametrize("vector", [(0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.6, 0.0, 0.8)])
def test_minimal_rotation_of_opposite_vectors_is_half_a_turn(vector):
    a = torch.tensor(vector, dtype=torch.float64)
    rotation = cameras.minimal_rotation(a, -a)
    assert torch.allclose(rotation @ a, -a, atol=1e-12) and torch.linalg.det(rotation) > 0.999
    if vector[1] == 1:  # about x
        assert torch.allclose(rotation @ torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_minimal_rotation_refuses_vectors_of_another_length():
    with pytest.raises(ValueError, match="needs unit vectors; source has length 2"):
        cameras.minimal_rotation(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))


def test_rays_project_to_their_pixel_centres():
    hfov = torch.tensor([0.7, 1.5], dtype=torch.float64)
    rays = cameras.camera_rays(hfov, 6, 10)
    pixels, seen = cameras.project(rays.flatten(1, 2) * 3.7, hfov, 6, 10)
    grid = torch.stack(torch.meshgrid(torch.arange(10.0) + 0.5, torch.arange(6.0) + 0.5, indexing="xy"), -1).double().flatten(0, 1)
    assert torch.allclose(pixels, grid.expand(2, -1, -1)) and seen.all()
    by_matrix = cameras.intrinsics(hfov, 6, 10) @ rays.flatten(1, 2).mT
    assert torch.allclose(by_matrix[:, :2].mT, grid.expand(2, -1, -1))
    assert not cameras.project(-rays.flatten(1, 2), hfov, 6, 10)[1].any()


def test_field_of_view_is_horizontal_and_reaches_the_outer_edges():
    hfov = torch.tensor(math.radians(90), dtype=torch.float64)
    assert cameras.focal_length(hfov, 100) == pytest.approx(50)
    assert cameras.vertical_fov(hfov, 100, 100) == pytest.approx(math.radians(90))
    assert cameras.vertical_fov(hfov, 50, 100) == pytest.approx(2 * math.atan(0.5))


@pytest.mark.parametrize(("value", "message"), [(0, "in \\(0,180\\) degrees; got 0"), (180.0, "got 180"), (1.57, "did you pass radians")])
def test_fields_of_view_that_cannot_be(value, message):
    with pytest.raises(ValueError, match=message):
        cameras.check_hfov_deg(value)
    assert cameras.check_hfov_deg(90) == 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-3, 1e-5, 0.0])
def test_minimal_rotation_stays_a_rotation_however_close_to_opposite_its_vectors_are(distance, dtype):
    generator = torch.Generator().manual_seed(0)
    source = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=dtype), dim=-1)
    target = torch.nn.functional.normalize(-source + distance * torch.randn(200, 3, generator=generator, dtype=dtype), dim=-1)
    rotation = cameras.minimal_rotation(source, target)
    assert (rotation @ rotation.mT - torch.eye(3, dtype=dtype)).abs().max() < 2e-6
    assert (torch.linalg.det(rotation) - 1).abs().max() < 2e-6
    assert ((rotation @ source[..., None])[..., 0] - target).abs().max() < (2e-3 if dtype == torch.float32 else 1e-6)
