import numpy as np
import pytest
import torch
import trimesh

from visiongraft.geometry.meshes import signed_volume, vertex_normals
from visiongraft.media.animated_glb import read_animated_glb, write_animated_glb
from visiongraft.media.meshes import is_watertight
from visiongraft.methods.action_mesh.given_mesh import take_mesh
from visiongraft.methods.action_mesh.user_mesh import prepare_user_mesh


def seamed():
    """A stretched ball far from the origin, every face with corners of its own, and one vertex that no face uses."""
    shape = trimesh.creation.icosphere(subdivisions=1)
    corners = torch.from_numpy((shape.vertices[shape.faces] * [3.0, 1, 2] + [10, -4, 7]).astype(np.float32)).reshape(-1, 3)
    faces = torch.arange(len(corners)).reshape(-1, 3)
    return torch.cat([corners, torch.tensor([[99.0, 99, 99]])]), faces


@pytest.mark.parametrize(("fit_scale", "yaw_deg"), [(1, 0), (0.8, 90), (0.5, -37.5)])
def test_the_way_into_the_box_and_back(fit_scale, yaw_deg):
    vertices, faces = seamed()
    kept = vertices.clone()
    mesh = prepare_user_mesh(vertices, faces, fit_scale, yaw_deg)
    assert torch.equal(vertices, kept)
    assert len(mesh.vertices) == 42 and is_watertight(mesh.faces)
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    assert torch.allclose(low, -high, atol=1e-6) and float(high.max()) == pytest.approx(fit_scale)
    assert float(signed_volume(mesh.vertices, mesh.faces)) > 0
    assert float((vertex_normals(mesh.vertices, mesh.faces).norm(dim=-1) - 1).abs().max()) < 1e-5
    still = mesh.restore(mesh.vertices.repeat(3, 1, 1))
    assert still.shape == (3, *vertices.shape)
    assert float((still - vertices).abs().max()) < 2e-5
    # a shift of the box along its x axis is one along the turned axis in the file, as far as the scale says
    moved = mesh.restore((mesh.vertices + torch.tensor([0.1, 0, 0]))[None])[0, :-1] - vertices[:-1]
    angle = np.radians(yaw_deg)
    expected = torch.tensor([np.cos(angle), 0, np.sin(angle)]) * 0.1 / mesh.fit.scale
    assert float((moved - expected).abs().max()) < 1e-5


def test_seams_move_together_and_unused_vertices_stay():
    vertices, faces = seamed()
    mesh = prepare_user_mesh(vertices, faces)
    generator = torch.Generator().manual_seed(0)
    moved = mesh.restore(mesh.vertices + 0.1 * torch.randn(2, 42, 3, generator=generator))
    for place in range(42):
        same = moved[:, :-1][:, mesh.merged[:-1] == place]
        assert same.shape[1] >= 5 and torch.equal(same, same[:, :1].expand_as(same))
    assert int(mesh.merged[-1]) == -1 and torch.equal(moved[:, -1], vertices[-1].expand(2, 3))


def test_positive_yaw_turns_front_to_the_right():
    vertices, faces = seamed()
    marked = vertices - vertices.mean(0)
    front = int(marked[:-1, 2].argmax())
    mesh = prepare_user_mesh(vertices[:-1], faces, yaw_deg=90)
    assert int(mesh.vertices[:, 0].argmax()) == int(mesh.merged[front])


def test_a_file_keeps_its_path_and_takes_its_animation_back(tmp_path):
    vertices, faces = seamed()
    path = write_animated_glb(tmp_path / "ball.glb", vertices[None, :-1], faces)
    mesh = take_mesh(path, fit_scale=0.8)
    assert mesh.path == path
    animation = mesh.restore(torch.stack([mesh.vertices, mesh.vertices * 0.9]))
    moving = read_animated_glb(write_animated_glb(tmp_path / "moving.glb", animation, mesh.original.faces, template=mesh.path))
    assert torch.allclose(moving.vertices, animation, atol=1e-5)


def test_faces_that_merging_flattens_go():
    vertices, faces = seamed()
    flat = torch.cat([faces, torch.tensor([[0, 0, 1]])])
    assert is_watertight(prepare_user_mesh(vertices, flat).faces)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, f: prepare_user_mesh(v, f, fit_scale=0), "fit_scale must be above 0 and at most 1.*; got 0"),
        (lambda v, f: prepare_user_mesh(v, f, fit_scale=1.5), "got 1.5"),
        (lambda v, f: prepare_user_mesh(v, f[:0]), "has no faces"),
        (lambda v, f: prepare_user_mesh(v * 0, f), "has no extent"),
        (lambda v, f: prepare_user_mesh(v * float("nan"), f), "not finite"),
        (lambda v, f: prepare_user_mesh(v, f).restore(v[None]), "has 42 merged vertices; got an animation of 241"),
    ],
)
def test_bad_meshes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*seamed())
