import math

import pytest
import torch

from visiongraft.geometry import panoramas as erp
from visiongraft.geometry.cameras import camera_rays, rotation_from_angles


def field(directions):
    """A smooth analytic function on the sphere, three channels in [0, 1]."""
    d = torch.nn.functional.normalize(directions.double(), dim=-1)
    x, y, z = d.unbind(-1)
    return torch.stack([0.5 + 0.5 * (2 * x + y).sin(), 0.5 + 0.5 * x * z, 0.5 + 0.5 * (2 * y - z).cos()], 0).to(directions.dtype)


def panorama(height, dtype=torch.float64):
    return field(erp.panorama_rays(height, 2 * height, dtype))[None]


def angle(*degrees, dtype=torch.float64):
    return torch.tensor([math.radians(v) for v in degrees], dtype=dtype)


def test_pixel_and_direction_are_inverse():
    rays = erp.panorama_rays(8, 16, torch.float64)
    u, v = erp.pixel_from_direction(rays * 2.5, 8, 16)
    assert torch.allclose(u, torch.arange(16.0).double().expand(8, 16))
    assert torch.allclose(v, torch.arange(8.0).double()[:, None].expand(8, 16))
    assert torch.allclose(rays.norm(dim=-1), torch.ones(8, 16, dtype=torch.float64))
    middle = erp.direction_from_angles(torch.zeros(()), torch.zeros(()))
    assert middle.tolist() == [0, 0, 1] and rays[0, :, 1].max() < -0.9  # the middle looks forward, row 0 up


@pytest.mark.parametrize("camera", [(0, 0, 0), (170, 0, 10), (30, 60, -15), (-90, 88, 0), (10, -90, 20)])
def test_views_agree_with_the_analytic_function_also_across_border_and_poles(camera):
    rotation = rotation_from_angles(*(angle(a) for a in camera))
    hfov = angle(90)
    view = erp.perspective_from_panorama(panorama(256), hfov, rotation, (64, 64), antialias=False)
    truth = field(torch.einsum("bij,bhwj->bhwi", rotation, camera_rays(hfov, 64, 64))[0])
    assert float((view[0] - truth).abs().max()) < 1e-3


def test_a_single_precision_view_is_as_good():
    rotation = rotation_from_angles(*(angle(a, dtype=torch.float32) for a in (175, 80, 5)))
    hfov = angle(100, dtype=torch.float32)
    view = erp.perspective_from_panorama(panorama(256, torch.float32), hfov, rotation, (64, 64), antialias=False)
    truth = field(torch.einsum("bij,bhwj->bhwi", rotation, camera_rays(hfov, 64, 64))[0])
    assert float((view[0] - truth).abs().max()) < 1e-3


def test_panorama_to_view_and_back_within_the_mask():
    rotation, hfov = rotation_from_angles(angle(150), angle(20), angle(-10)), angle(80)
    source = panorama(128)
    view = erp.perspective_from_panorama(source, hfov, rotation, (256, 256))
    back, mask = erp.panorama_from_perspective(view, hfov, rotation, 128)
    inner = ~torch.nn.functional.max_pool2d((~mask).double(), 3, 1, 1).bool()
    assert 0.05 < float(mask.double().mean()) < 0.2
    assert float(((back - source) * inner).abs().max()) < 1e-3
    assert float((back * ~mask).abs().max()) == 0


def test_mask_has_the_cameras_solid_angle():
    # solid angle of a square pyramid of half-angle a: 4 asin(sin(a)^2)
    _, mask = erp.panorama_from_perspective(
        torch.ones(1, 1, 8, 8, dtype=torch.float64), angle(90), torch.eye(3, dtype=torch.float64)[None], 256
    )
    lat = (0.5 - (torch.arange(256, dtype=torch.float64) + 0.5) / 256) * math.pi
    area = (mask[0, 0] * lat.cos()[:, None]).sum() * (math.pi / 256) ** 2
    assert float(area) == pytest.approx(4 * math.asin(0.5), rel=5e-3)


def test_rotation_is_out_of_d_equals_source_of_r_d():
    rotation = rotation_from_angles(angle(33), angle(-50), angle(70))
    turned = erp.rotate_panorama(panorama(128), rotation)
    truth = field(torch.einsum("bij,hwj->bhwi", rotation, erp.panorama_rays(128, 256, torch.float64))[0])
    assert float((turned[0] - truth).abs().max()) < 2e-3


def test_whole_pixel_yaw_is_a_roll_and_equals_the_rotation():
    source = panorama(64)
    pixels = 17
    rotation = rotation_from_angles(torch.tensor([pixels / 128 * 2 * math.pi], dtype=torch.float64), angle(0), angle(0))
    assert torch.allclose(erp.rotate_panorama(source, rotation), erp.yaw_panorama(source, pixels), atol=1e-9)
    assert torch.equal(erp.yaw_panorama(erp.yaw_panorama(source, pixels), -pixels), source)


def test_antialiasing_averages_what_a_coarse_view_would_skip():
    stripes = (torch.arange(2048) % 2).double().expand(1, 1, 1024, 2048).contiguous()
    identity = torch.eye(3, dtype=torch.float64)[None]
    smooth = erp.perspective_from_panorama(stripes, angle(100), identity, (16, 16))
    rough = erp.perspective_from_panorama(stripes, angle(100), identity, (16, 16), antialias=False)
    assert float((smooth - 0.5).abs().mean()) < 0.05 < float((rough - 0.5).abs().mean())
    assert erp.supersampling(1000.0, 1024) == 1


def test_cubemap_and_back():
    source = panorama(128)
    faces = erp.cubemap_from_panorama(source, 128)
    middle = faces[0, :, :, 63:65, 63:65].mean((-1, -2))
    axes = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, -1, 0], [0, 1, 0]], dtype=torch.float64)
    assert torch.allclose(middle, field(axes).T, atol=1e-3)
    assert float((erp.panorama_from_cubemap(faces, 128) - source).abs().max()) < 0.01


def test_gradients_agree_with_finite_differences():
    source = panorama(16)

    def view(hfov, yaw, pitch, roll):
        return erp.perspective_from_panorama(source, hfov, rotation_from_angles(yaw, pitch, roll), (4, 4), antialias=False)

    inputs = [angle(a).requires_grad_() for a in (70.3, 12.1, 5.2, 3.3)]
    assert torch.autograd.gradcheck(view, inputs, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize(("shape", "message"), [((1, 3, 512, 1025), "W = 2H; got 512x1025.*repeat the first"), ((1, 3, 8, 15), "got 8x15")])
def test_pictures_that_are_no_panoramas_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        erp.check_panorama(torch.zeros(shape))
