import math
import warnings

import numpy as np
import pytest
import torch
import trimesh

from visiongraft.geometry.meshes import signed_volume, vertex_normals
from visiongraft.media import meshes
from visiongraft.media.animated_glb import write_animated_glb
from visiongraft.media.meshes import check_mesh, clean_mesh, is_watertight, merge_vertices, num_parts, read_mesh, write_mesh


def ball(subdivisions=2, radius=1.0, center=(0.0, 0.0, 0.0)):
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.from_numpy(shape.vertices.astype(np.float32)) + torch.tensor(center), torch.from_numpy(shape.faces.astype(np.int64))


def joined(*shapes):
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in shapes)])
    faces = [faces + int(start) for (_, faces), start in zip(shapes, starts[:-1], strict=True)]
    return torch.cat([vertices for vertices, _ in shapes]), torch.cat(faces)


def soup(vertices, faces):
    return vertices[faces].reshape(-1, 3), torch.arange(3 * len(faces)).reshape(-1, 3)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".off", ".stl"])
def test_a_mesh_comes_back_from_every_kind_of_file(tmp_path, suffix):
    vertices, faces = ball()
    mesh = read_mesh(write_mesh(tmp_path / f"ball{suffix}", vertices, faces))
    assert torch.allclose(mesh.vertices[mesh.faces], vertices[faces], atol=1e-6)
    if suffix != ".stl":  # has triangles without common vertices
        assert torch.equal(mesh.faces, faces)


def test_parts_of_a_scene_stand_in_the_world_and_a_mirror_keeps_the_outside_out(tmp_path):
    scene = trimesh.Scene()
    box = trimesh.creation.box((1, 1, 1))
    scene.add_geometry(box, transform=np.diag([-2.0, 1, 1, 1]))
    moved = np.eye(4)
    moved[:3, 3] = [5, 0, 0]
    scene.add_geometry(box, transform=moved)
    volumes = []
    for name in ("scene.glb", "scene.gltf"):
        scene.export(str(tmp_path / name))
        with pytest.warns(UserWarning, match="has 2 parts that are not connected"):
            mesh = read_mesh(tmp_path / name)
        assert mesh.vertices.amin(0).tolist() == pytest.approx([-1, -0.5, -0.5]) and float(mesh.vertices.max()) == pytest.approx(5.5)
        volumes.append(float(signed_volume(mesh.vertices, mesh.faces)))
    assert volumes == pytest.approx([3.0, 3.0])


def test_seams_stay_double_and_the_first_frame_of_an_animation_is_read(tmp_path):
    vertices, faces = soup(*ball(1))
    path = write_animated_glb(tmp_path / "a.glb", torch.stack([vertices, vertices + 1]), faces)
    mesh = read_mesh(path)
    assert torch.equal(mesh.vertices, vertices) and torch.equal(mesh.faces, faces)


def test_merging_joins_what_stands_in_one_place_and_drops_what_is_unused():
    vertices, faces = ball(1)
    doubled, index = soup(vertices, faces)
    doubled = torch.where(doubled == 0, -0.0, doubled) if bool((doubled == 0).any()) else doubled
    merged, joint = merge_vertices(torch.cat([doubled, torch.full((3, 3), 9.0)]), index)
    assert len(merged) == len(vertices)
    assert torch.equal(merged[joint], vertices[faces] + 0.0)
    assert is_watertight(joint) and not is_watertight(index)
    # signed zeros are one place
    two, _ = merge_vertices(torch.tensor([[0.0, 0, 0], [-0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 2, 3], [1, 3, 2]]))
    assert len(two) == 3


def test_watertight_means_that_neighbours_agree_on_the_outside():
    _, faces = ball(1)
    assert is_watertight(faces)
    assert not is_watertight(faces[1:])
    assert not is_watertight(torch.cat([faces[:1].flip(-1), faces[1:]]))
    assert not is_watertight(torch.cat([faces, faces[:1]]))
    assert not is_watertight(faces[:0])
    vertices, both = joined(ball(0), ball(0))
    assert num_parts(both, len(vertices)) == 2 and num_parts(faces, 42) == 1


def test_cleaning_tidies_decimates_and_drops_crumbs():
    vertices, faces = joined(ball(4), ball(0, 0.02, (1.5, 0.0, 0.0)))
    vertices, faces = soup(vertices, faces)
    faces = torch.cat([faces, faces[:5].roll(1, -1), torch.tensor([[0, 0, 1], [0, 1, 1]])])
    kept, given = vertices.clone(), faces.clone()
    mesh = clean_mesh(vertices, faces, max_faces=1000)
    assert torch.equal(vertices, kept) and torch.equal(faces, given)
    assert 900 <= len(mesh.faces) <= 1000
    assert float(mesh.vertices[:, 0].max()) < 1.1 and is_watertight(mesh.faces)
    assert float(signed_volume(mesh.vertices, mesh.faces)) == pytest.approx(4 / 3 * math.pi, rel=0.02)
    assert float((vertex_normals(mesh.vertices, mesh.faces).norm(dim=-1) - 1).abs().max()) < 1e-4
    whole = clean_mesh(vertices, faces, max_faces=None, min_part=0)
    assert len(whole.faces) == 5120 + 20 and num_parts(whole.faces, len(whole.vertices)) == 2


def test_of_parts_those_below_two_percent_of_the_largest_go():
    mesh = clean_mesh(*joined(ball(3), ball(1, 0.1, (2.0, 0, 0)), ball(0, 0.1, (-2.0, 0, 0))))  # 1280, 80 and 20 faces
    assert len(mesh.faces) == 1280 + 80


def test_files_that_are_no_meshes_have_an_error_each(tmp_path):
    vertices, faces = ball(0)
    trimesh.PointCloud(vertices.numpy()).export(tmp_path / "cloud.ply")
    (tmp_path / "cloud.obj").write_text("v 0 0 0\nv 1 0 0\n")
    (tmp_path / "empty.obj").write_text("# nothing\n")
    (tmp_path / "junk.ply").write_bytes(b"junk")
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (tmp_path / "mesh.fbx").write_bytes(b"")
    for name, message in {
        "cloud.ply": "is a point cloud, not a mesh: it has 12 points but no faces",
        "cloud.obj": "is a point cloud, not a mesh: it has 2 points",
        "empty.obj": "cannot be read as a mesh|has no faces",
        "junk.ply": r"cannot be read as a mesh .*Export it again",
        "nan.obj": "has 1 of 3 vertices that are not finite",
        "point.obj": "has no extent",
        "line.obj": "is degenerate: none of its 1 faces has an area",
        "mesh.fbx": r"a mesh file is one of \.glb, .*; got '\.fbx'",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_mesh(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no mesh file .*none\.glb"):
        read_mesh(tmp_path / "none.glb")
    with pytest.raises(ValueError, match=r"written as one of .*; got '\.fbx'"):
        write_mesh(tmp_path / "b.fbx", vertices, faces)
    with pytest.raises(ValueError, match="faces that name vertices 0 to 99, but 12 vertices"):
        check_mesh(vertices, torch.tensor([[0, 1, 99]]))
    with pytest.raises(ValueError, match="The mesh has no faces"):
        clean_mesh(vertices, faces[:0])
    with pytest.raises(ValueError, match="max_faces must be at least 4"):
        clean_mesh(vertices, faces, max_faces=2)


def test_open_and_huge_meshes_are_warned_of_and_good_ones_are_not(tmp_path, monkeypatch):
    vertices, faces = ball(1)
    with pytest.warns(UserWarning, match="is not watertight"):
        read_mesh(write_mesh(tmp_path / "open.obj", vertices, faces[:-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_mesh(write_mesh(tmp_path / "closed.stl", vertices, faces))
        read_mesh(tmp_path / "open.obj", warn=False)
    monkeypatch.setattr(meshes, "HUGE_FACES", 50)
    with pytest.warns(UserWarning, match=r"is huge \(80 faces\); decimate it"):
        read_mesh(tmp_path / "closed.stl")
