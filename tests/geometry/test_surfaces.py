import math

import pytest
import torch
from scipy.integrate import dblquad

from visiongraft.geometry.surfaces import Box, Capsule, Cylinder, Ellipsoid, Mesh

NUM = 60_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(shape, num=NUM):
    return shape.sample(num, generator())


def near(found, expected, num=NUM):
    """Whether a share of samples is what it should be, within five standard deviations."""
    found, expected = float(found.double().mean()), float(expected)
    return abs(found - expected) < 5 * math.sqrt(max(expected * (1 - expected), 1e-9) / num) + 1e-9


def test_box_points_lie_on_its_sides_in_proportion_to_area():
    box = Box(0.1, 0.2, 0.4)
    points = sampled(box)
    half = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    assert box.area == pytest.approx(8 * (0.02 + 0.08 + 0.04)) and (points.abs() <= half + 1e-12).all()
    on = (points.abs() - half).abs() < 1e-12
    assert on.any(1).all()
    for axis, share in enumerate((0.08, 0.04, 0.02)):
        for sign in (-1, 1):
            assert near(on[:, axis] & (points[:, axis] * sign > 0), share / 0.28)
    side = points[on[:, 0]]
    assert near((side[:, 1] > 0.1) & (side[:, 2] < -0.2), 1 / 16, len(side))


def test_sphere_is_uniform():
    sphere = Ellipsoid(0.3, 0.3, 0.3)
    points = sampled(sphere)
    assert sphere.area == pytest.approx(4 * math.pi * 0.09)
    assert torch.allclose(points.norm(dim=-1), torch.tensor(0.3, dtype=torch.float64))
    for axis in range(3):
        for height in (-0.8, 0.0, 0.5):
            assert near(points[:, axis] > 0.3 * height, (1 - height) / 2)  # Archimedes


def test_ellipsoid_is_uniform_by_area():
    a, b, c = 0.1, 0.25, 0.5
    shape = Ellipsoid(a, b, c)
    points = sampled(shape)
    assert torch.allclose((points / torch.tensor([a, b, c])).norm(dim=-1), torch.ones(NUM, dtype=torch.float64))

    def piece(phi, theta):
        x, y, z = math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)
        return math.sin(theta) * math.sqrt((b * c * x) ** 2 + (a * c * y) ** 2 + (a * b * z) ** 2)

    octant = lambda top, bottom: 8 * dblquad(piece, top, bottom, 0, math.pi / 2, epsabs=1e-7)[0]
    total = octant(0, math.pi / 2)
    assert shape.area == pytest.approx(total, rel=0.011)
    # directions are drawn twice, so that the share of a cap varies a little more than it would by itself
    for height in (0.3, 0.6, 0.9):
        assert abs(float((points[:, 2].abs() > c * height).double().mean()) - octant(0, math.acos(height)) / total) < 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_cylinder_and_capsule_are_uniform_by_area(seed):
    radius, z = 0.2, 0.35
    shape = Cylinder(radius, z)
    points = shape.sample(NUM, generator(seed))
    side, cap = 4 * math.pi * radius * z, math.pi * radius**2
    assert shape.area == pytest.approx(side + 2 * cap)
    distance = points[:, :2].norm(dim=-1)
    top, bottom = points[:, 2] == z, points[:, 2] == -z
    around = ~top & ~bottom
    assert (distance <= radius + 1e-12).all() and torch.allclose(distance[around], torch.tensor(radius, dtype=torch.float64))
    assert near(top, cap / shape.area) and near(bottom, cap / shape.area)
    assert near(distance[top] < radius / 2, 0.25, int(top.sum())) and near(points[around, 2] > z / 2, 0.25, int(around.sum()))
    assert near(points[:, 0] > 0, 0.5) and near(points[:, 1] > 0, 0.5)

    shape = Capsule(radius, z)
    points = shape.sample(NUM, generator(seed))
    assert shape.area == pytest.approx(side + 4 * cap)
    beyond = (points[:, 2].abs() - z).clamp(min=0)
    assert torch.allclose(torch.hypot(points[:, :2].norm(dim=-1), beyond), torch.tensor(radius, dtype=torch.float64))
    assert near(points[:, 2] > z, 2 * cap / shape.area) and near(points[:, 2] < -z, 2 * cap / shape.area)
    assert near(points[:, 2] > z + radius / 2, cap / shape.area)
    assert near(points[:, 2].abs() < z / 2, side / 2 / shape.area)


def test_mesh_of_a_cube_samples_like_the_box():
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3) * torch.tensor([0.1, 0.2, 0.3])
    quads = torch.tensor([[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]])
    mesh = Mesh(corners, torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]))
    box = Box(0.1, 0.2, 0.3)
    assert mesh.area == pytest.approx(box.area)
    for shape in (mesh, box):
        moments = sampled(shape).square().mean(0)
        expected = torch.tensor([0.01 * (1 / 3 + 2 / 3 * 12 / 22), 0.04 * (1 / 3 + 2 / 3 * 6 / 22), 0.09 * (1 / 3 + 2 / 3 * 4 / 22)])
        assert torch.allclose(moments, expected.double(), rtol=0.02)
