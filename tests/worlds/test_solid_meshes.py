import math

import pytest
import torch

from visiongraft.worlds.solid_meshes import box_mesh, capsule_mesh, join, revolved_mesh, sphere_mesh


def volume(vertices, faces):
    a, b, c = vertices[faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def area(vertices, faces):
    a, b, c = vertices[faces].unbind(1)
    return float(torch.linalg.cross(b - a, c - a).norm(dim=-1).sum() / 2)


def is_closed(faces):
    """Every edge is used once in each direction, so that the surface has no border and one orientation."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = int(faces.max()) + 1
    forth, back = edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0]
    return len(forth.unique()) == len(forth) and torch.equal(forth.sort().values, back.sort().values)


def test_a_box_has_its_volume_and_area_for_any_grid():
    half = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for cells in ((1, 1, 1), (3, 1, 4)):
        vertices, faces = box_mesh(half, cells)
        x, y, z = cells
        assert len(faces) == 4 * (x * y + y * z + z * x) and is_closed(faces)
        assert len(vertices) - len(faces) // 2 == 2  # Euler: V - E + F = 2 with E = 3 F / 2
        assert volume(vertices, faces) == pytest.approx(8 * 0.2 * 0.5 * 0.3)
        assert area(vertices, faces) == pytest.approx(8 * (0.2 * 0.5 + 0.5 * 0.3 + 0.3 * 0.2))


def test_spheres_and_capsules_approach_their_volumes_from_inside():
    vertices, faces = sphere_mesh(60, 80)
    assert is_closed(faces) and torch.allclose(vertices.norm(dim=-1), torch.ones(len(vertices), dtype=torch.float64))
    assert 0.995 * 4 / 3 * math.pi < volume(vertices, faces) < 4 / 3 * math.pi
    vertices, faces = capsule_mesh(0.7, 0.1, 9, 64)
    exact = math.pi * 0.01 * 0.7 + 4 / 3 * math.pi * 0.001
    assert is_closed(faces) and 0.99 * exact < volume(vertices, faces) < exact
    assert float(vertices[:, 0].min()) == pytest.approx(-0.1) and float(vertices[:, 0].max()) == pytest.approx(0.8)


def test_joined_meshes_keep_their_volumes_and_know_their_vertices():
    box = box_mesh(torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64), (1, 1, 1))
    ball = sphere_mesh(8, 9)
    vertices, faces, part = join([box, ball])
    assert volume(vertices, faces) == pytest.approx(volume(*box) + volume(*ball))
    assert torch.equal(part, torch.tensor([0] * len(box[0]) + [1] * len(ball[0])))
    assert (part[faces] == part[faces][:, :1]).all()


def test_meshes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"at least one cell along each axis; got \(0, 1, 1\)"):
        box_mesh(torch.ones(3, dtype=torch.float64), (0, 1, 1))
    with pytest.raises(ValueError, match="at least 3 profile rows and 3 segments; got 2 and 8"):
        revolved_mesh(torch.zeros(2, 2), 8)
