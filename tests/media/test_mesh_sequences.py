import numpy as np
import pytest
import torch
import trimesh

from visiongraft.media.animated_glb import write_animated_glb
from visiongraft.media.mesh_sequences import (
    mesh_files,
    natural_sorted,
    read_animation,
    read_mesh_folder,
    read_npz,
    stack_meshes,
    write_npz,
    write_obj_sequence,
)
from visiongraft.media.meshes import write_mesh


def animation(num_frames=3):
    shape = trimesh.creation.icosphere(subdivisions=1)
    vertices = torch.from_numpy(shape.vertices.astype(np.float32))
    return vertices * torch.linspace(1, 2, num_frames)[:, None, None], torch.from_numpy(shape.faces.astype(np.int64))


def test_numbers_in_names_sort_by_value(tmp_path):
    names = ["mesh_10.obj", "mesh_2.obj", "mesh_1.obj", "a3b10.obj", "a3b9.obj", "mesh.obj"]
    assert [path.name for path in natural_sorted([tmp_path / name for name in names])] == [
        "a3b9.obj", "a3b10.obj", "mesh.obj", "mesh_1.obj", "mesh_2.obj", "mesh_10.obj",
    ]  # fmt: skip
    for k in (10, 9, 1):
        write_mesh(tmp_path / f"mesh_{k}.obj", animation()[0][0], animation()[1])
    (tmp_path / "notes.txt").write_text("no mesh")
    assert [path.stem for path in mesh_files(tmp_path)] == ["mesh_1", "mesh_9", "mesh_10"]


@pytest.mark.parametrize("kind", ["folder", "glbs", "glb", "npz"])
def test_an_animation_comes_back_from_every_form(tmp_path, kind):
    vertices, faces = animation(11)
    path = tmp_path / {"folder": "frames", "glbs": "frames", "glb": "a.glb", "npz": "a.npz"}[kind]
    if kind in ("folder", "glbs"):
        files = write_obj_sequence(path, vertices, faces, *([".glb"] if kind == "glbs" else []))
        assert [file.stem for file in files] == [f"frame_{k:04d}" for k in range(11)]
    elif kind == "glb":
        write_animated_glb(path, vertices, faces, fps=5)
    else:
        write_npz(path, vertices, faces, torch.arange(11) / 5)
    found = read_animation(path, fps=5)
    assert torch.allclose(found.vertices, vertices, atol=1e-6) and torch.equal(found.faces, faces)
    assert torch.allclose(found.times, torch.arange(11) / 5)


def test_npz_has_plain_arrays_of_narrow_types_and_frame_numbers_for_times(tmp_path):
    vertices, faces = animation()
    with np.load(write_npz(tmp_path / "a.npz", vertices.double(), faces)) as stored:
        assert {name: stored[name].dtype.name for name in stored.files} == {"times": "float32", "vertices": "float32", "faces": "int32"}
        assert stored["times"].tolist() == [0, 1, 2]
    np.savez(tmp_path / "bare.npz", vertices=vertices.numpy(), faces=faces.numpy())
    assert read_npz(tmp_path / "bare.npz").times.tolist() == [0, 1, 2]


def test_meshes_of_different_topology_are_read_but_not_stacked(tmp_path):
    vertices, faces = animation()
    write_mesh(tmp_path / "mesh_1.obj", vertices[0], faces)
    write_mesh(tmp_path / "mesh_2.obj", vertices[0], faces[:-4])
    meshes = read_mesh_folder(tmp_path)
    assert [len(mesh.faces) for mesh in meshes] == [80, 76]
    with pytest.raises(ValueError, match="Mesh 1 has 42 vertices and 76 faces that are not those of the first mesh"):
        stack_meshes(meshes)
    with pytest.raises(ValueError, match="one topology"):
        read_animation(tmp_path)


def test_bad_files_and_folders_are_named(tmp_path):
    vertices, faces = animation()
    arrays = {"vertices": vertices.numpy(), "faces": faces.numpy()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "a.mp4").write_bytes(b"")
    np.savez(tmp_path / "no_faces.npz", vertices=arrays["vertices"])
    np.savez(tmp_path / "flat.npz", vertices=arrays["vertices"][0], faces=arrays["faces"])
    np.savez(tmp_path / "times.npz", **arrays, times=np.arange(9))
    np.savez(tmp_path / "nan.npz", vertices=arrays["vertices"] * np.nan, faces=arrays["faces"])
    np.savez(tmp_path / "pickle.npz", vertices=np.array([object()]), faces=arrays["faces"])
    for name, message in {
        "missing.npz": "no animation .*missing.npz",
        "missing": "give a GLB, an NPZ or a folder",
        "empty": "has no mesh files",
        "junk.npz": "cannot be read as an NPZ file",
        "a.mp4": r"an animation is a \.glb, a \.npz or a folder of meshes; got '\.mp4'",
        "no_faces.npz": r"needs the arrays 'vertices' .*; it has \['vertices'\]",
        "flat.npz": r"vertices must be \(t, v, 3\)",
        "times.npz": r"one for each of 3 frames; got shape \(9,\)",
        "nan.npz": "vertices that are not finite",
        "pickle.npz": "cannot be read as an NPZ file",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_animation(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no animation"):
        read_npz(tmp_path / "missing.npz")
    with pytest.raises(FileNotFoundError, match="no folder"):
        mesh_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least one mesh"):
        stack_meshes([])
    with pytest.raises(ValueError, match="at least one frame"):
        write_obj_sequence(tmp_path / "x", vertices[:0], faces)
    with pytest.raises(ValueError, match=r"written to a \.npz file; got 3 frames and 'a\.npy'"):
        write_npz(tmp_path / "a.npy", vertices, faces)
