import math

import pytest
import torch
import trimesh

from visiongraft.metrics.occupancy import grid_points, inside_field, inside_mesh, occupancy_iou


def solid(mesh):
    return torch.from_numpy(mesh.vertices.copy()).float(), torch.from_numpy(mesh.faces.copy()).long()


def ball(radius, shift=0.0):
    return lambda points: radius - (points - torch.tensor([shift, 0.0, 0.0])).norm(dim=-1)


def test_grid_has_the_volume_of_its_box_and_its_centre():
    points = grid_points(20, 1.5)
    assert len(points) == 8000 and float(points.abs().max()) == pytest.approx(1.5 * 0.95)
    torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    # z changes fastest
    assert torch.equal(points[0, :2], points[1, :2]) and points[1, 2] > points[0, 2]


def test_share_of_the_grid_is_the_volume_of_a_ball():
    inside = inside_field(ball(0.8), grid_points(48), chunk=10_000)
    assert float(inside.double().mean()) * 8 == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.01)


def test_iou_of_shifted_boxes_is_the_closed_form():
    points = grid_points(40)
    a = inside_field(lambda p: 0.5 - p.abs().amax(-1), points)
    b = inside_field(lambda p: 0.5 - (p - torch.tensor([0.25, 0.0, 0.0])).abs().amax(-1), points)
    assert float(occupancy_iou(a, b)) == pytest.approx(0.75 / 1.25, abs=1e-6)
    assert float(occupancy_iou(a, a)) == 1 and float(occupancy_iou(a, torch.zeros_like(a))) == 0
    assert occupancy_iou(torch.stack([a, b]), torch.stack([a, a])).tolist() == pytest.approx([1, 0.6], abs=1e-6)


def test_a_mesh_encloses_what_its_field_does():
    vertices, faces = solid(trimesh.creation.icosphere(3, 0.7))
    points = grid_points(16)
    radius = points.norm(dim=-1)
    far = (radius - 0.7).abs() > 0.01  # flat triangles cut corners
    inside = inside_mesh(vertices, faces, points, max_pairs=50_000)
    assert torch.equal(inside[far], (radius < 0.7)[far])


def test_overlapping_parts_are_one_solid_and_inverted_faces_enclose_nothing():
    a, b = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1))
    b.apply_translation([0.5, 0, 0])
    vertices, faces = solid(trimesh.util.concatenate([a, b]))
    points = torch.tensor([[0.25, 0.1, 0.1], [-0.4, 0, 0.1], [0.9, 0.1, 0], [1.1, 0, 0], [0, 0.6, 0]])
    assert inside_mesh(vertices, faces, points).tolist() == [True, True, True, False, False]
    assert not inside_mesh(vertices, faces.flip(1), points).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_points(0), "got resolution=0"),
        (lambda: inside_field(lambda p: p, grid_points(2)), r"one value a point; got shape \(8, 3\)"),
        (lambda: inside_field(lambda p: p[:, 0] * torch.nan, grid_points(2)), "8 values that are not finite"),
        (lambda: inside_mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.long), grid_points(2)), "without faces encloses nothing"),
        (lambda: occupancy_iou(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)), r"got \(3,\) and \(4,\)"),
        (lambda: occupancy_iou(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)), "Neither shape contains a point"),
    ],
)
def test_unusable_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
