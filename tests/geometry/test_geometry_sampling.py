import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.geometry import cameras
from visiongraft.geometry import panoramas as erp

angles = st.floats(-180, 180)


def field(directions):
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    return torch.stack([0.5 + 0.5 * (2 * x + y).sin(), 0.5 + 0.5 * x * z, 0.5 + 0.5 * (2 * y - z).cos()], -3)


def rotation(*degrees, dtype=torch.float64):
    return cameras.rotation_from_angles(*torch.tensor(degrees, dtype=dtype).deg2rad()[:, None])


@settings(max_examples=30, deadline=None)
@given(angles, st.floats(-90, 90), angles, st.floats(5, 150))
def test_views_of_any_camera_agree_with_the_analytic_function(yaw, pitch, roll, hfov_deg):
    source = field(erp.panorama_rays(256, 512, torch.float64))[None]
    hfov, turn = torch.tensor([math.radians(hfov_deg)], dtype=torch.float64), rotation(yaw, pitch, roll)
    view = erp.perspective_from_panorama(source, hfov, turn, (24, 32), antialias=False)
    truth = field(cameras.view_directions(hfov, turn, 24, 32).movedim(1, -1))
    assert float((view - truth).abs().max()) < 1e-3


@settings(max_examples=30, deadline=None)
@given(angles, st.floats(-90, 90), angles)
def test_the_fast_look_up_equals_the_padded_one(yaw, pitch, roll):
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 2, 8, 16, generator=g, dtype=torch.float64)
    planes = cameras.view_directions(torch.tensor([1.7], dtype=torch.float64), rotation(yaw, pitch, roll), 16, 16)
    coordinates = erp._sphere_coordinates(*planes.unbind(1))
    found, gradients = [], []
    for look_up in (erp._look_up_mended, erp._look_up_padded):
        inputs = [t.clone().requires_grad_() for t in (noise, coordinates)]
        values = look_up(*inputs)
        found.append(values)
        gradients.append(torch.autograd.grad(values.sin().sum(), inputs))
    assert torch.allclose(found[0], found[1], atol=1e-9)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_the_poles_and_at_the_border(dtype):
    directions = torch.tensor([[0.0, -1, 0], [0, 1, 0], [0, 0, -1], [-0.0, 0, -1], [1e-30, -1, 1e-30], [0, 0, 1]], dtype=dtype)[None]
    directions.requires_grad_()
    panorama = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    erp.sample_panorama(panorama, directions).sum().backward()
    assert torch.isfinite(directions.grad).all() and torch.isfinite(panorama.grad).all()


@pytest.mark.parametrize("degrees", [(180.0, 3.0, 20.0), (20.0, 85.0, 10.0), (-70.0, -88.0, 0.0)])
def test_gradients_across_the_border_and_near_the_poles_agree_with_finite_differences(degrees):
    panorama = field(erp.panorama_rays(4, 8, torch.float64))[None, :1].requires_grad_()

    def view(source, hfov, yaw, pitch, roll):
        return erp.perspective_from_panorama(source, hfov, cameras.rotation_from_angles(yaw, pitch, roll), (3, 4), antialias=False)

    inputs = [torch.tensor([math.radians(a)], dtype=torch.float64, requires_grad=True) for a in (65.3, *(d + 0.123 for d in degrees))]
    assert torch.autograd.gradcheck(view, [panorama, *inputs], eps=1e-7, atol=1e-4)


def test_many_views_of_one_panorama_and_several_of_each_equal_single_views():
    g = torch.Generator().manual_seed(1)
    source = torch.rand(2, 3, 16, 32, generator=g)
    hfov = 0.5 + torch.rand(2, 3, generator=g)
    turns = cameras.rotation_from_angles(*torch.randn(3, 2, 3, generator=g))
    several = erp.perspective_from_panorama(source, hfov, turns, (6, 8), antialias=False)
    assert several.shape == (2, 3, 3, 6, 8)
    for i in range(2):
        of_one = erp.perspective_from_panorama(source[i : i + 1], hfov[i], turns[i], (6, 8), antialias=False)
        assert torch.allclose(of_one, several[i], atol=1e-5)
        for j in range(3):
            single = erp.perspective_from_panorama(source[i : i + 1], hfov[i, j : j + 1], turns[i, j : j + 1], (6, 8), antialias=False)
            assert torch.allclose(single[0], several[i, j], atol=1e-5)


def test_blocks_do_not_change_a_view(monkeypatch):
    source = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hfov, turn = torch.tensor([2.0], dtype=torch.float64), rotation(170, 40, 10)
    whole = erp.perspective_from_panorama(source, hfov, turn, (10, 10))
    monkeypatch.setattr(erp, "BLOCK_SAMPLES", 100)
    assert torch.allclose(erp.perspective_from_panorama(source, hfov, turn, (10, 10)), whole, atol=1e-12)
    factor = erp.supersampling(float(cameras.focal_length(hfov, 10)), 128)
    fine = erp.perspective_from_panorama(source, hfov, turn, (10 * factor, 10 * factor), antialias=False)
    assert factor > 1 and torch.allclose(torch.nn.functional.avg_pool2d(fine, factor), whole, atol=1e-12)


def test_half_precision_keeps_exact_coordinates():
    source = field(erp.panorama_rays(256, 512))[None]
    hfov, turn = torch.tensor([1.2]), rotation(10, 20, 5, dtype=torch.float32)
    exact = erp.perspective_from_panorama(source, hfov, turn, (32, 32))
    half = erp.perspective_from_panorama(source.bfloat16(), hfov, turn, (32, 32))
    assert half.dtype == torch.bfloat16 and (half - exact).abs().max() < 0.01
    assert erp.rotate_panorama(source.bfloat16(), turn).dtype == torch.bfloat16
    assert erp.panorama_from_perspective(half, hfov, turn, 64)[0].dtype == torch.bfloat16


def test_view_directions_are_turned_rays():
    hfov = torch.tensor([0.8, 1.9], dtype=torch.float64)
    turns = torch.cat([rotation(10, 20, 30), rotation(-100, 5, 0)])
    planes = cameras.view_directions(hfov, turns, 5, 7)
    rays = torch.einsum("bij,bhwj->bihw", turns, cameras.camera_rays(hfov, 5, 7))
    assert torch.allclose(planes, rays, atol=1e-12)
    assert torch.equal(cameras.view_directions(hfov, turns, 5, 7, (2, 4)), planes[..., 2:4, :])


def test_cubemap_and_back_is_as_exact_at_the_edges_as_elsewhere():
    source = field(erp.panorama_rays(256, 512, torch.float64))[None]
    back = erp.panorama_from_cubemap(erp.cubemap_from_panorama(source, 192), 256)
    assert float((back - source).abs().max()) < 1e-3
    faces = torch.rand(1, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    erp.panorama_from_cubemap(faces, 16).sum().backward()
    assert torch.isfinite(faces.grad).all()


@settings(max_examples=50, deadline=None)
@given(angles, st.floats(-90, 90), angles)
def test_quaternions_and_rotations_are_inverse(yaw, pitch, roll):
    turn = rotation(yaw, pitch, roll)
    quaternion = cameras.quaternion_from_rotation(turn)
    assert float(quaternion[0, 0]) >= 0 and float(quaternion.norm()) == pytest.approx(1)
    assert torch.allclose(cameras.rotation_from_quaternion(quaternion), turn, atol=1e-12)


def test_quaternions_of_half_turns_and_of_a_known_rotation():
    for axis in torch.eye(3, dtype=torch.float64):
        half = cameras.rotation_from_vector(axis * math.pi)
        assert torch.allclose(cameras.rotation_from_quaternion(cameras.quaternion_from_rotation(half)), half, atol=1e-12)
    third = cameras.rotation_from_vector(torch.tensor([0.0, 0.6, 0.0], dtype=torch.float64))
    assert torch.allclose(third, rotation(math.degrees(0.6), 0, 0)[0], atol=1e-12)  # about y is yaw
    expected = torch.tensor([math.cos(0.3), 0, math.sin(0.3), 0], dtype=torch.float64)
    assert torch.allclose(cameras.quaternion_from_rotation(third), expected, atol=1e-12)
