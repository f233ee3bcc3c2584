import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.geometry.meshes import (
    bounding_box,
    face_areas,
    face_normals,
    fit_to_box,
    points_on_faces,
    signed_volume,
    surface_samples,
    vertex_normals,
)

BOX = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)], dtype=torch.float64)
BOX_FACES = torch.tensor(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)


NUM = 60_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def near(found, expected, num=NUM):
    """Whether a share of samples is what it should be, within five standard deviations."""
    found, expected = float(found.double().mean()), float(expected)
    return abs(found - expected) < 5 * math.sqrt(max(expected * (1 - expected), 1e-9) / num) + 1e-9


def ball(steps=24, dtype=torch.float64):
    """A unit ball: rings about Y with one vertex at each pole."""
    rings = torch.arange(1, steps, dtype=dtype) * math.pi / steps
    turns = torch.arange(2 * steps, dtype=dtype) * math.pi / steps
    ring, turn = torch.meshgrid(rings, turns, indexing="ij")
    middle = torch.stack([ring.sin() * turn.sin(), ring.cos(), ring.sin() * turn.cos()], -1).reshape(-1, 3)
    vertices = torch.cat([torch.tensor([[0, 1, 0], [0, -1, 0]], dtype=dtype), middle])
    number = lambda i, j: 2 + i * 2 * steps + j % (2 * steps)
    faces = []
    for j in range(2 * steps):
        faces += [[0, number(0, j), number(0, j + 1)], [1, number(steps - 2, j + 1), number(steps - 2, j)]]
        for i in range(steps - 2):
            a, b, c, d = number(i, j), number(i + 1, j), number(i + 1, j + 1), number(i, j + 1)
            faces += [[a, b, c], [a, c, d]]
    return vertices, torch.tensor(faces)


def test_volume_of_box_and_ball_and_its_sign():
    assert float(signed_volume(BOX * torch.tensor([1.0, 2.0, 0.5]), BOX_FACES)) == pytest.approx(8.0)
    assert float(signed_volume(BOX, BOX_FACES.flip(-1))) == pytest.approx(-8.0)
    vertices, faces = ball(60)
    assert float(signed_volume(vertices, faces)) == pytest.approx(4 / 3 * math.pi, rel=2e-3)


def test_volume_does_not_change_with_the_place_even_far_away_in_float32():
    vertices, faces = ball(12, torch.float32)
    near, far = signed_volume(vertices, faces), signed_volume(vertices + torch.tensor([300.0, -200.0, 100.0]), faces)
    assert float(far) == pytest.approx(float(near), rel=1e-4)


def test_normals_of_a_ball_point_away_from_its_middle_and_those_of_a_box_along_axes():
    vertices, faces = ball(40)
    assert float((vertex_normals(vertices, faces) * vertices).sum(-1).min()) > 0.999
    normals = face_normals(BOX, BOX_FACES)
    centers = BOX[BOX_FACES].mean(1)
    outward = torch.zeros_like(centers).scatter(1, centers.abs().argmax(1, keepdim=True), 1.0) * centers.sign()
    assert torch.allclose(normals, outward)


def test_vertex_normals_weigh_faces_by_their_area():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2.0]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 3, 1]])  # areas 1/2 along z and 1 along y
    assert torch.allclose(vertex_normals(vertices, faces)[0], torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64) / math.sqrt(5))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_normals_are_unit_at_any_scale_and_zero_for_unused_vertices(scale):
    vertices, faces = ball(8, torch.float32)
    normals = vertex_normals(torch.cat([vertices, vertices[:1]]) * scale, faces)
    assert torch.allclose(normals[:-1].norm(dim=-1), torch.ones(len(vertices)), atol=1e-5)
    assert not normals[-1].any()


def test_gradients_stay_finite_where_a_face_has_no_area():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]], requires_grad=True)
    vertex_normals(vertices, torch.tensor([[0, 1, 2], [0, 1, 3]])).sum().backward()
    assert vertices.grad is not None and bool(vertices.grad.isfinite().all())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3))
def test_normals_turn_with_the_mesh_and_frames_are_independent(angles):
    generator = torch.Generator().manual_seed(0)
    skew = torch.tensor([[0.0, -angles[2], angles[1]], [angles[2], 0.0, -angles[0]], [-angles[1], angles[0], 0.0]], dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(skew)
    bumpy = BOX + 0.1 * torch.randn(8, 3, generator=generator, dtype=torch.float64)
    both = torch.stack([bumpy, bumpy @ rotation.T])
    normals = vertex_normals(both, BOX_FACES)
    assert torch.allclose(normals[0] @ rotation.T, normals[1], atol=1e-9)
    assert torch.allclose(signed_volume(both, BOX_FACES)[0], signed_volume(both, BOX_FACES)[1])
    assert torch.equal(face_normals(both, BOX_FACES)[1], face_normals(both[1], BOX_FACES))


def test_fit_centres_scales_the_longest_side_and_undoes_itself():
    animation = torch.stack([BOX, BOX * torch.tensor([3.0, 1, 1]) + 5]) * 7
    fitted, fit = fit_to_box(animation, 0.8)
    low, high = bounding_box(fitted.reshape(-1, 3))
    assert torch.allclose(low, -high)
    assert float(high.max()) == pytest.approx(0.8)
    assert torch.allclose(fit.undo(fitted), animation) and torch.allclose(fit.apply(animation), fitted)


def test_samples_lie_on_their_faces_uniformly_and_follow_the_animation():
    stretched = BOX * torch.tensor([1.0, 1.0, 4.0])
    points, face, barycentrics, normals = surface_samples(stretched, BOX_FACES, 20_000, seeded(1))
    assert torch.allclose(barycentrics.sum(-1), torch.ones(len(points), dtype=torch.float64))
    assert float(barycentrics.min()) >= 0
    assert torch.equal(normals, face_normals(stretched, BOX_FACES)[face])
    assert float(((points - stretched[BOX_FACES[face, 0]]) * normals).sum(-1).abs().max()) < 1e-12
    ends = (points[:, 2].abs() > 4 - 1e-9).double().mean()  # 2 ends of 4 square units, 4 sides of 16
    assert float(ends) == pytest.approx(8 / 72, abs=0.01)
    assert float((points[:, 2].abs() < 2).double().mean()) == pytest.approx(0.5 * 64 / 72, abs=0.015)
    moved = torch.stack([stretched, stretched * 2 + 1])
    followed = points_on_faces(moved, BOX_FACES, face, barycentrics)
    assert torch.equal(followed[0], points) and torch.allclose(followed[1], points * 2 + 1)


def test_mesh_points_lie_on_their_faces_in_proportion_to_area():
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3.0], [2, 2, 5]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [1, 2, 4], [0, 0, 1]])  # the last has no area
    points, face, *_ = surface_samples(vertices, faces, NUM, seeded())
    areas = face_areas(vertices, faces)
    assert torch.allclose(areas[:2], torch.tensor([0.5, 1.5], dtype=torch.float64)) and areas[3] == 0
    for i in range(4):
        assert near(face == i, areas[i] / areas.sum())
    a, b, c = vertices[faces[face]].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    assert ((points - a) * normal).sum(-1).abs().max() < 1e-12
    inside = [torch.linalg.cross(q - p, points - p) for p, q in ((a, b), (b, c), (c, a))]
    assert all(((n * normal).sum(-1) >= -1e-12).all() for n in inside)


def test_points_of_a_triangle_are_uniform():
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]], dtype=torch.float64)
    points = surface_samples(vertices, torch.tensor([[0, 1, 2]]), NUM, seeded()).points
    for corner in (points[:, 0] > 0.5, points[:, 1] > 0.5, points[:, :2].sum(1) < 0.5):  # each is a quarter, as is the middle
        assert near(corner, 0.25)
    assert torch.allclose(points.mean(0), torch.tensor([1 / 3, 1 / 3, 0], dtype=torch.float64), atol=5e-3)


def test_mesh_samples_are_seeded_and_differentiable_in_the_vertices():
    vertices, faces = torch.rand(5, 3, generator=seeded(), dtype=torch.float64), torch.tensor([[0, 1, 2], [2, 3, 4]])
    first, other = (surface_samples(vertices, faces, 9, seeded(seed)).points for seed in (1, 2))
    assert torch.equal(first, surface_samples(vertices, faces, 9, seeded(1)).points) and not torch.equal(first, other)
    vertices.requires_grad_()
    points = surface_samples(vertices, faces, 9, seeded(1)).points
    points.sum().backward()
    assert float(vertices.grad.sum()) == pytest.approx(27)  # every point's weights add up to one, three coordinates each


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vertex_normals(BOX[:5], BOX_FACES), "faces name vertices 0 to 7, but the mesh has 5"),
        (lambda: face_normals(BOX, BOX_FACES - 1), "faces name vertices -1 to 6"),
        (lambda: signed_volume(BOX[:5], BOX_FACES), "but the mesh has 5"),
        (lambda: surface_samples(BOX * 0, BOX_FACES, 5, torch.Generator()), "12 faces and no area"),
        (lambda: surface_samples(BOX, BOX_FACES[:0], 5, torch.Generator()), "0 faces and no area"),
        (lambda: surface_samples(BOX[:3], BOX_FACES[:1] + 4, 5, torch.Generator()), "name vertices 4 to 7, but the mesh has 3"),
        (lambda: face_areas(BOX[:3], BOX_FACES - 1), "name vertices -1 to 6"),
        (lambda: bounding_box(BOX[:0]), "no bounding box"),
        (lambda: fit_to_box(BOX * 0 + 1), "no extent"),
        (lambda: fit_to_box(BOX * math.nan), "not finite"),
        (lambda: fit_to_box(BOX, 0), "half_extent must be positive; got 0"),
    ],
)
def test_bad_meshes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
