import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.geometry import cameras, lifting
from visiongraft.geometry.lifting import lift_depth, lift_pixels, pixel_centers, project_points, triangulate

INTRINSICS = torch.tensor([[95.0, 3.0, 33.0], [0.0, 88.0, 22.0], [0.0, 0.0, 1.0]], dtype=torch.float64)  # with skew, not centred


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poses(n, seed=0):
    pose = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    pose[:, :3, :3] = cameras.rotation_from_angles(*(4 * random(3, n, seed=seed) - 2))
    pose[:, :3, 3] = random(n, 3, seed=seed + 1)
    return pose


def looking_at_origin(n, seed=0):
    """Base-to-camera of cameras two metres from the origin, which they see."""
    pose = poses(n, seed)
    pose[:, :3, 3] = torch.tensor([0.02, 0.01, 2.0])
    return pose


def test_pixel_centers_are_half_a_pixel_in():
    assert pixel_centers(torch.tensor([0, 7]), torch.tensor([0, 2])).tolist() == [[0.5, 0.5], [7.5, 2.5]]


def test_lifted_points_project_to_their_pixels():
    pixels = random(3, 50, 2) * 60
    depth = random(3, 50, seed=1) + 0.2
    camera_to_base = poses(3)
    points = lift_pixels(pixels, depth, INTRINSICS, camera_to_base)
    found, found_depth = project_points(points, INTRINSICS, torch.linalg.inv(camera_to_base))
    assert torch.allclose(found, pixels, atol=1e-10) and torch.allclose(found_depth, depth, atol=1e-12)
    homogeneous = torch.cat([pixels, torch.ones(3, 50, 1)], -1) * depth[..., None]
    in_camera = (torch.linalg.inv(INTRINSICS) @ homogeneous.mT).mT
    assert torch.allclose(lift_pixels(pixels, depth, INTRINSICS), in_camera, atol=1e-12)


def test_projection_is_that_of_the_homogeneous_matrix():
    points, base_to_camera = random(2, 20, 3), looking_at_origin(2)
    homogeneous = torch.cat([points, torch.ones(2, 20, 1)], -1) @ lifting.projection_matrix(INTRINSICS, base_to_camera).mT
    pixels, depth = project_points(points, INTRINSICS, base_to_camera)
    assert torch.allclose(pixels, homogeneous[..., :2] / homogeneous[..., 2:]) and torch.allclose(depth, homogeneous[..., 2])


def test_every_pixel_of_a_depth_map_is_lifted_at_its_center_and_row_comes_before_column():
    depth = random(2, 4, 7) + 1
    camera_to_base = poses(2)
    points = lift_depth(depth, INTRINSICS, camera_to_base)
    assert points.shape == (2, 4, 7, 3)
    one = lift_pixels(torch.tensor([[[5.5, 2.5]]], dtype=torch.float64), depth[1:, 2, 5, None], INTRINSICS, camera_to_base[1:])
    assert torch.allclose(points[1, 2, 5], one[0, 0])
    pixels, _ = project_points(points.flatten(1, 2), INTRINSICS, torch.linalg.inv(camera_to_base))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(7), indexing="ij")
    assert torch.allclose(pixels[0], pixel_centers(columns, rows, torch.float64).flatten(0, 1))


def test_lifting_agrees_with_the_rays_of_the_other_cameras_of_this_package():
    hfov = torch.tensor(1.1, dtype=torch.float64)
    rays = cameras.camera_rays(hfov, 6, 10)
    assert torch.allclose(lift_depth(torch.ones(6, 10, dtype=torch.float64), cameras.intrinsics(hfov, 6, 10)), rays)


def test_a_cube_off_the_axis_is_lifted_where_it_stands():
    """A face of 0.2 m at z = 1, from x 0.1 to 0.3 and y -0.4 to -0.2: rendered by hand, lifted, and measured."""
    focal, height, width = 200.0, 200, 300
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    u, v = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    x, y = (u - width / 2) / focal, (v - height / 2) / focal
    hit = ((y > -0.4) & (y < -0.2))[:, None] & ((x > 0.1) & (x < 0.3))[None]
    depth = torch.where(hit, 1.0, torch.inf).double()
    camera_to_base = torch.tensor([[0, 0, 1, 0.5], [-1, 0, 0, 0.1], [0, -1, 0, 0.3], [0, 0, 0, 1]], dtype=torch.float64)  # looks along +x
    points = lift_depth(depth, intrinsics, camera_to_base)[hit]
    assert int(hit.sum()) == 40 * 40
    # base x = 0.5 + z, base y = 0.1 - x, base z = 0.3 - y; the outermost centres lie half a pixel (2.5 mm) inside the face
    expected = torch.tensor([[1.5, -0.1975, 0.5025], [1.5, -0.0025, 0.6975]], dtype=torch.float64)
    assert torch.allclose(points.amin(0), expected[0]) and torch.allclose(points.amax(0), expected[1])
    assert torch.allclose(points.mean(0), torch.tensor([1.5, -0.1, 0.6], dtype=torch.float64))


def test_points_behind_the_camera_have_no_pixel():
    points = torch.tensor([[[0.1, 0.0, 1.0], [0.1, 0.0, 0.0], [0.1, 0.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    pixels, depth = project_points(points, INTRINSICS)
    assert pixels.isfinite().all(-1).tolist() == [[True, False, False]] and depth.tolist() == [[1.0, 0.0, -1.0]]
    pixels[0, 0].sum().backward()
    assert points.grad.isfinite().all() and points.grad[0, 1:].abs().max() == 0


def test_gradients_of_lifting_and_projecting_are_those_of_finite_differences():
    pixels, depth, points = random(2, 3, 2) * 50, random(2, 3, seed=1) + 0.5, random(2, 3, 3, seed=2)
    matrices = INTRINSICS.clone(), looking_at_origin(2)
    inputs = [t.requires_grad_() for t in (pixels, depth, *matrices)]
    assert torch.autograd.gradcheck(lift_pixels, inputs)
    assert torch.autograd.gradcheck(project_points, [points.requires_grad_(), *matrices])


def test_matrices_of_another_shape_are_named():
    pixels, depth = random(1, 3, 2), random(1, 3)
    with pytest.raises(ValueError, match=r"intrinsics must be \(\.\.\., 3, 3\), got \(3, 4\)"):
        lift_pixels(pixels, depth, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"camera_to_base must be \(\.\.\., 4, 4\), got \(3, 4\)"):
        lift_pixels(pixels, depth, INTRINSICS, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"base_to_camera must be \(\.\.\., 4, 4\), got \(4,\)"):
        project_points(random(1, 3, 3), INTRINSICS, torch.zeros(4))
    with pytest.raises(ValueError, match=r"projections must be \(\.\.\., 3, 4\), got \(3, 3\)"):
        triangulate(random(2, 2), INTRINSICS)


@given(near=st.floats(0.001, 0.5), far=st.floats(1.0, 100.0), z=st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_depth_buffer_is_undone(near, far, z):
    metres = torch.tensor([near + z * (far - near)], dtype=torch.float64)
    clip = (far + near - 2 * near * far / metres) / (far - near)  # OpenGL's perspective division, in [-1, 1]
    buffer = ((clip + 1) / 2).clamp(0, 1)
    assert torch.allclose(lifting.depth_from_buffer(buffer, near, far), metres, rtol=1e-9 * far / near)


def test_depth_buffer_says_what_is_wrong():
    with pytest.raises(ValueError, match="0 < near < far in metres; got near 2 and far 1"):
        lifting.depth_from_buffer(torch.zeros(2), 2.0, 1.0)
    with pytest.raises(ValueError, match="holds metres already"):
        lifting.depth_from_buffer(torch.tensor([0.5, 1.7]), 0.1, 10.0)


def test_disparity_gives_depth_and_infinity_where_the_right_camera_sees_nothing():
    disparity = torch.tensor([[2.0, 1.5, 0.0, -1.0, math.nan, math.inf, 4.0]], dtype=torch.float64)
    depth = lifting.depth_from_disparity(disparity, focal_length=100.0, baseline=0.12)
    assert depth[0].tolist() == [math.inf, 12 / 1.5, math.inf, math.inf, math.inf, math.inf, 3.0]  # column 0: 0.5 - 2 < 0
    wide = 3 + 3 * random(2, 5, 40)
    wide[..., :6] = math.nan
    wide.requires_grad_()
    lifting.depth_from_disparity(wide, 100.0, 0.12)[..., 6:].sum().backward()
    assert torch.allclose(wide.grad[..., 6:], -12 / wide[..., 6:] ** 2) and (wide.grad[..., :6] == 0).all()
    with pytest.raises(ValueError, match=r"must be positive; got 100 and -0\.12"):
        lifting.depth_from_disparity(disparity, 100.0, -0.12)


def test_disparity_of_a_stereo_pair_gives_back_the_depth():
    points = torch.tensor([[[0.1, 0.05, 1.2], [0.0, 0.0, 0.8]]], dtype=torch.float64)
    intrinsics = torch.tensor([[80.0, 0, 32], [0, 80, 24], [0, 0, 1]], dtype=torch.float64)
    right = torch.eye(4, dtype=torch.float64)
    right[0, 3] = -0.06  # the right camera stands 6 cm to the right
    (u, _), (u_right, _) = (project_points(points, intrinsics, m)[0].unbind(-1) for m in (torch.eye(4), right))
    disparity = torch.zeros(1, 48, 64, dtype=torch.float64)
    pixels = project_points(points, intrinsics)[0].long()[0]
    disparity[0, pixels[:, 1], pixels[:, 0]] = (u - u_right)[0]
    assert torch.allclose(lifting.depth_from_disparity(disparity, 80.0, 0.06)[0, pixels[:, 1], pixels[:, 0]], points[0, :, 2])


def views_of(points, n, seed=0):
    projections = lifting.projection_matrix(INTRINSICS, looking_at_origin(n, seed))
    pixels = torch.stack([(torch.cat([points, torch.ones(len(points), 1)], -1) @ p.T) for p in projections], 1)
    return pixels[..., :2] / pixels[..., 2:], projections


@pytest.mark.parametrize("views", [2, 3, 5])
def test_triangulation_recovers_points_from_their_pixels(views):
    points = 0.3 * random(20, 3)
    pixels, projections = views_of(points, views)
    found = triangulate(pixels, projections)
    assert torch.allclose(found, points, atol=1e-9)
    assert lifting.reprojection_error(found, pixels, projections).max() < 1e-8


def test_triangulation_leaves_out_views_that_do_not_see_the_point():
    points = 0.3 * random(6, 3)
    pixels, projections = views_of(points, 4)
    seen = torch.ones(6, 4, dtype=torch.bool)
    seen[:3, 1] = seen[2, 3] = False
    pixels = torch.where(seen[..., None], pixels, torch.nan)
    assert torch.allclose(triangulate(pixels, projections, seen), points, atol=1e-9)
    seen[4, :3] = False
    with pytest.raises(ValueError, match="at least 2 views of every point; one has 1"):
        triangulate(pixels, projections, seen)
    with pytest.raises(ValueError, match="one has 1"):
        triangulate(pixels[:, :1], projections[:1])
    with pytest.raises(ValueError, match=r"projections must be \(\.\.\., 4, 3, 4\) for pixels in 4 views"):
        triangulate(pixels, projections[:2])


def test_reprojection_error_is_in_pixels():
    points = 0.3 * random(5, 3)
    pixels, projections = views_of(points, 2)
    shifted = pixels + torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(lifting.reprojection_error(points, shifted, projections), torch.tensor([5.0, 0.0], dtype=torch.float64))


def test_gradient_of_triangulation_is_that_of_finite_differences():
    pixels, projections = views_of(0.3 * random(2, 3), 3)
    pixels = pixels + 0.3 * random(2, 3, 2, seed=9)  # with noise all singular values differ
    assert torch.autograd.gradcheck(triangulate, [pixels.requires_grad_(), projections.requires_grad_()])
