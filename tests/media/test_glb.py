import json
import struct
import warnings

import numpy as np
import pytest
import torch
import trimesh
from glb_checker import morph_frames, problems
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from visiongraft.geometry.meshes import signed_volume
from visiongraft.media.animated_glb import read_animated_glb, write_animated_glb
from visiongraft.media.glb import accessor_array, local_matrix, placements, read_glb, view_bytes, write_glb
from visiongraft.media.glb_building import GlbBuilder


def ball(subdivisions=1):
    shape = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.from_numpy(shape.vertices.astype(np.float32)), torch.from_numpy(shape.faces.astype(np.int64))


def animation(num_frames=5, subdivisions=1):
    vertices, faces = ball(subdivisions)
    generator = torch.Generator().manual_seed(0)
    return vertices + 0.1 * torch.randn(num_frames, len(vertices), 3, generator=generator).cumsum(0), faces


@pytest.fixture
def textured(tmp_path):
    """A scene of a ball, the same ball elsewhere, and a mirrored box, with one texture."""
    squares = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")

    def with_texture(shape):
        material = PBRMaterial(baseColorTexture=squares, metallicFactor=0.0, roughnessFactor=0.9, name="squares")
        shape.visual = TextureVisuals(uv=shape.vertices[:, :2] * 0.5 + 0.5, material=material)
        return shape

    turned = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])
    turned[:3, :3] *= 1.7
    turned[:3, 3] = [0.5, 0.1, 0]
    mirrored = np.diag([-1.0, 1, 2, 1])
    mirrored[:3, 3] = [-2, 0, 0.2]
    scene = trimesh.Scene()
    ball = with_texture(trimesh.creation.icosphere(subdivisions=1, radius=0.5))
    scene.add_geometry(ball, geom_name="ball", node_name="first", transform=turned)
    scene.add_geometry(with_texture(trimesh.creation.box((0.4, 0.9, 0.3))), geom_name="box", node_name="second", transform=mirrored)
    scene.add_geometry(ball, geom_name="ball", node_name="third", transform=np.linalg.inv(turned))
    scene.export(tmp_path / "textured.glb")
    return tmp_path / "textured.glb"


def rewritten(path, change):
    """The GLB with a changed description."""
    glb = read_glb(path)
    change(glb.gltf)
    return write_glb(path, glb.gltf, glb.binary)


@pytest.mark.parametrize("normals", [True, False])
def test_an_animation_comes_back_and_the_file_keeps_the_rules(tmp_path, normals):
    vertices, faces = animation()
    path = write_animated_glb(tmp_path / "a.glb", vertices, faces, fps=4, normals=normals)
    assert problems(path) == []
    found = read_animated_glb(path)
    assert float((found.vertices - vertices).abs().max()) < 1e-6
    assert torch.equal(found.faces, faces)
    assert torch.equal(found.times, torch.arange(5) / 4)
    assert np.abs(morph_frames(path)[0] - vertices.numpy()).max() < 1e-6


def test_normals_are_smooth_and_turn_with_the_frames(tmp_path):
    vertices, faces = ball(2)
    stretched = torch.stack([vertices, vertices * torch.tensor([1.0, 3.0, 1.0])])
    glb = read_glb(write_animated_glb(tmp_path / "a.glb", stretched, faces))
    primitive = glb.gltf["meshes"][0]["primitives"][0]
    base = accessor_array(glb, primitive["attributes"]["NORMAL"])
    turned = base + accessor_array(glb, primitive["targets"][0]["NORMAL"])
    normal = vertices / torch.tensor([1.0, 3.0, 1.0])  # of an ellipsoid
    assert ((torch.from_numpy(base.copy()) * vertices).sum(-1) > 0.99).all()
    assert ((torch.from_numpy(turned) * torch.nn.functional.normalize(normal, dim=-1)).sum(-1) > 0.98).all()


def test_one_frame_is_a_mesh_that_stands_still(tmp_path):
    vertices, faces = animation(1)
    path = write_animated_glb(tmp_path / "a.glb", vertices, faces, color=(1.0, 0.0, 0.0))
    assert problems(path) == [] and "animations" not in read_glb(path).gltf
    found = read_animated_glb(path)
    assert torch.equal(found.vertices, vertices) and found.times.tolist() == [0.0]
    assert read_glb(path).gltf["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] == [1.0, 0.0, 0.0, 1.0]


def test_many_vertices_take_wide_indices(tmp_path):
    vertices = torch.rand(2, 70_000, 3, generator=torch.Generator().manual_seed(0))
    faces = torch.tensor([[0, 1, 2], [69_997, 69_998, 69_999]])
    path = write_animated_glb(tmp_path / "a.glb", vertices, faces, normals=False)
    assert torch.equal(read_animated_glb(path).faces, faces)
    glb = read_glb(path)
    assert glb.gltf["accessors"][glb.gltf["meshes"][0]["primitives"][0]["indices"]]["componentType"] == 5125


def test_uneven_times_are_kept_and_trimesh_reads_the_first_frame(tmp_path):
    vertices, faces = animation(3)
    path = write_animated_glb(tmp_path / "a.glb", vertices, faces, times=[0.5, 0.75, 2.0])
    assert read_animated_glb(path).times.tolist() == [0.5, 0.75, 2.0]
    read = next(iter(trimesh.load_scene(path, process=False).geometry.values()))
    assert np.allclose(read.vertices, vertices[0], atol=1e-6) and np.array_equal(read.faces, faces)


def test_a_textured_scene_keeps_its_pictures_and_moves_in_the_world(textured, tmp_path):
    still = read_animated_glb(textured)
    assert still.vertices.shape[0] == 1 and float(signed_volume(still.vertices[0], still.faces)) > 0
    box = slice(42, 50)
    inside = ((still.faces >= box.start) & (still.faces < box.stop)).all(-1)
    assert float(signed_volume(still.vertices[0], still.faces[inside])) > 0  # the mirror's faces are turned round
    moved = still.vertices + 0.2 * torch.linspace(0, 1, 4)[:, None, None] * torch.sin(3 * still.vertices.roll(1, -1))
    path = write_animated_glb(tmp_path / "moving.glb", moved, still.faces, template=textured)
    assert problems(path) == []
    found = read_animated_glb(path)
    assert float((found.vertices - moved).abs().max()) < 1e-5 and torch.equal(found.faces, still.faces)
    clouds = np.concatenate(morph_frames(path), 1)
    assert np.abs(clouds - moved.numpy()).max() < 1e-5
    before, after = read_glb(textured), read_glb(path)
    assert view_bytes(after, after.gltf["images"][0]["bufferView"]) == view_bytes(before, before.gltf["images"][0]["bufferView"])
    assert after.gltf["materials"] == before.gltf["materials"]
    for mine, (node, mesh, _) in zip(placements(after), placements(before), strict=True):
        new = after.gltf["meshes"][mine.mesh]["primitives"][0]["attributes"]
        old = before.gltf["meshes"][mesh]["primitives"][0]["attributes"]
        assert mine.node == node
        assert np.array_equal(accessor_array(after, new["TEXCOORD_0"]), accessor_array(before, old["TEXCOORD_0"]))


def test_normals_of_a_mirrored_and_stretched_node_point_outward(textured, tmp_path):
    still = read_animated_glb(textured)
    glb = read_glb(write_animated_glb(tmp_path / "still.glb", still.vertices, still.faces, template=textured))
    placement = placements(glb)[1]
    attributes = glb.gltf["meshes"][placement.mesh]["primitives"][0]["attributes"]
    linear = placement.matrix[:3, :3]
    normals = accessor_array(glb, attributes["NORMAL"]) @ np.linalg.inv(linear)  # the inverse transposed, as viewers do
    places = accessor_array(glb, attributes["POSITION"]) @ linear.T
    assert np.linalg.det(linear) < 0
    assert ((normals * places).sum(1) > 0).all()


def test_a_seam_is_shaded_smoothly_and_a_hard_edge_stays(tmp_path):
    """Two faces meet at a seam (same normals stored) or at an edge (different normals stored)."""
    places = np.array([[0, 0, 0], [1, 0, 0], [0, 0, -1], [0, 0, 0], [1, 0, 0], [0, -1, 0]], np.float32)
    for stored, smooth in (([[0, 1, 0]] * 6, True), ([[0, 1, 0]] * 3 + [[0, 0, 1]] * 3, False)):
        builder = GlbBuilder({"asset": {"version": "2.0"}, "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]})
        attributes = {"POSITION": builder.add_vectors(places), "NORMAL": builder.add_vectors(np.array(stored, np.float32))}
        primitive = {"attributes": attributes, "indices": builder.add_indices(np.array([0, 1, 2, 3, 5, 4]), 6)}
        builder.gltf["meshes"] = [{"primitives": [primitive]}]
        source = write_glb(tmp_path / "seam.glb", *builder.finish())
        still = read_animated_glb(source)
        glb = read_glb(write_animated_glb(tmp_path / "out.glb", still.vertices, still.faces, template=source))
        normals = accessor_array(glb, glb.gltf["meshes"][0]["primitives"][0]["attributes"]["NORMAL"])
        assert np.allclose(normals[0], normals[3]) is smooth


def test_lines_beside_the_triangles_of_a_template_go(tmp_path):
    vertices, faces = animation(2)

    def add_lines(gltf):
        gltf["meshes"][0]["primitives"].append({"attributes": dict(gltf["meshes"][0]["primitives"][0]["attributes"]), "mode": 1})

    source = rewritten(write_animated_glb(tmp_path / "lines.glb", vertices[:1], faces), add_lines)
    with pytest.warns(UserWarning, match=r"lines.glb has primitives beside its triangles, which are left out: lines \(1\)\.$"):
        assert torch.equal(read_animated_glb(source).faces, faces)
    with pytest.warns(UserWarning, match=r"lines.glb: primitives .* are left out of the new file: lines \(1\)\.$"):
        path = write_animated_glb(tmp_path / "a.glb", vertices, faces, template=source)
    assert problems(path) == []


def test_strips_and_fans_beside_triangles_are_read_and_move(tmp_path):
    """A square as two triangles, one as a strip of two pieces (its stitches are flat), a pentagon as a fan without indices."""
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32)
    angles = np.arange(5) * 0.4 * np.pi
    pentagon = np.stack([np.cos(angles) + 5, np.sin(angles), 0 * angles], 1).astype(np.float32)
    builder = GlbBuilder({"asset": {"version": "2.0"}, "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]})
    strip = np.concatenate([square, square + [2, 0, 0]])
    parts = [(4, square, [0, 1, 2, 2, 1, 3]), (5, strip, [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]), (6, pentagon, None)]
    builder.gltf["meshes"] = [{"primitives": []}]
    for mode, places, indices in parts:
        primitive = {"mode": mode, "attributes": {"POSITION": builder.add_vectors(places)}}
        if indices is not None:
            primitive["indices"] = builder.add_indices(np.array(indices), len(places))
        builder.gltf["meshes"][0]["primitives"].append(primitive)
    source = write_glb(tmp_path / "mixed.glb", *builder.finish())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        still = read_animated_glb(source)
        moved = still.vertices + torch.tensor([0.0, 0.0, 1.0]) * torch.arange(3)[:, None, None]
        path = write_animated_glb(tmp_path / "a.glb", moved, still.faces, template=source)
    a, b, c = still.vertices[0][still.faces].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    assert len(still.faces) == 2 + 4 + 3 and bool((normals[:, 2] > 0).all())  # all seen from the same side, and none is flat
    assert float(normals.norm(dim=-1).sum() / 2) == pytest.approx(3 + 2.5 * np.sin(0.4 * np.pi), rel=1e-5)
    found = read_animated_glb(path)
    assert torch.equal(found.faces, still.faces) and float((found.vertices - moved).abs().max()) < 1e-6
    assert [primitive["mode"] for primitive in read_glb(path).gltf["meshes"][0]["primitives"]] == [4, 5, 6]


def test_animations_and_skeletons_of_the_template_go_with_a_warning(textured, tmp_path):
    vertices, faces = animation()
    source = write_animated_glb(tmp_path / "moving.glb", vertices, faces)

    def add_skin(gltf):
        gltf["skins"] = [{"joints": [0]}]
        gltf["nodes"][0]["skin"] = 0

    rewritten(source, add_skin)
    with pytest.warns(UserWarning, match="has a skeleton, which is left out"):
        still = read_animated_glb(source)
    with pytest.warns(UserWarning, match="own animations and skeletons are left out"):
        path = write_animated_glb(tmp_path / "again.glb", still.vertices[1:3], still.faces, template=source)
    assert problems(path) == []
    assert "skins" not in read_glb(path).gltf
    assert float((read_animated_glb(path).vertices - still.vertices[1:3]).abs().max()) < 1e-6


def test_nothing_that_is_given_is_changed(textured, tmp_path):
    still = read_animated_glb(textured)
    moved = still.vertices.repeat(3, 1, 1)
    kept, content = moved.clone(), textured.read_bytes()
    write_animated_glb(tmp_path / "b.glb", moved, still.faces, template=textured)
    assert torch.equal(moved, kept) and textured.read_bytes() == content


def test_matrices_of_nodes_agree_with_scipy():
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec([0.3, -1.1, 0.7])
    node = {"rotation": turn.as_quat().tolist(), "scale": [1, 2, -3], "translation": [4, 5, 6]}
    matrix = local_matrix(node)
    assert np.allclose(matrix[:3, :3], turn.as_matrix() @ np.diag([1, 2, -3])) and matrix[:3, 3].tolist() == [4, 5, 6]
    assert np.allclose(local_matrix({"matrix": matrix.T.reshape(-1).tolist()}), matrix)


def test_strided_normalised_and_sparse_accessors(tmp_path):
    rows = np.zeros(4, [("place", "<f4", 3), ("tint", "u1", 4)])
    rows["place"], rows["tint"] = np.arange(12).reshape(4, 3), np.arange(16).reshape(4, 4) * 17
    sparse = np.array([1, 3], "<u2").tobytes() + np.full((2, 3), 9, "<f4").tobytes()
    binary = rows.tobytes() + sparse
    gltf = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": [
            {"buffer": 0, "byteLength": 64, "byteStride": 16},
            {"buffer": 0, "byteOffset": 64, "byteLength": 4},
            {"buffer": 0, "byteOffset": 68, "byteLength": 24},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 0, "byteOffset": 12, "componentType": 5121, "normalized": True, "count": 4, "type": "VEC4"},
            {"componentType": 5126, "count": 4, "type": "VEC3"},
        ],
    }
    part = {"count": 2, "indices": {"bufferView": 1, "componentType": 5123}, "values": {"bufferView": 2}}
    gltf["accessors"].append({**gltf["accessors"][0], "sparse": part})
    glb = read_glb(write_glb(tmp_path / "a.glb", gltf, binary))
    assert np.array_equal(accessor_array(glb, 0), rows["place"])
    assert np.allclose(accessor_array(glb, 1), rows["tint"] / 255)
    assert not accessor_array(glb, 2).any()
    filled = rows["place"].copy()
    filled[[1, 3]] = 9
    assert np.array_equal(accessor_array(glb, 3), filled)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"glTX" + data[4:], "does not begin with 'glTF'"),
        (lambda data: data[:10], "not a GLB file"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "GLB version 1; version 2 is read"),
        (lambda data: data[:-40], "corrupt: its header says .* bytes, but the file has"),
        (lambda data: data[:12] + struct.pack("<I", 10**6) + data[16:], "a chunk reaches beyond the end"),
        (lambda data: data[:20] + b"nonsense" + data[28:], "description is missing or is not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = write_animated_glb(tmp_path / "a.glb", *animation(2))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_animated_glb(path)


def _set(value, *where):
    def change(gltf):
        place = gltf
        for key in where[:-1]:
            place = place[key]
        place[where[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(10**6, "accessors", 1, "count"), "corrupt: accessor 1 needs more bytes than its bufferView"),
        (_set(10**9, "bufferViews", 1, "byteLength"), "corrupt: bufferView 1 reaches to byte"),
        (_set(77, "nodes", 0, "mesh"), r"corrupt: it names meshes\[77\], but has 1"),
        (_set([0], "nodes", 0, "children"), "no triangles|node 0 hangs below two nodes"),
        (_set("VEC9", "accessors", 1, "type"), "accessor 1 has an unknown type"),
        (_set({}, "meshes", 0, "primitives", 0, "attributes"), "has no faces"),
        (_set(1, "meshes", 0, "primitives", 0, "mode"), "has no faces"),
        (_set(0, "meshes", 0, "primitives", 0, "mode"), "is a point cloud"),
        (_set(["KHR_draco_mesh_compression"], "extensionsRequired"), "uses Draco compression, which is not read"),
        (_set("other.bin", "buffers", 0, "uri"), "lies in another file"),
        (_set("data:;base64,AAAAA", "buffers", 0, "uri"), r"a\.glb is corrupt: its buffer 0 is not base64 \("),
        (_set("data:;base64,AA*A", "buffers", 0, "uri"), r"a\.glb is corrupt: its buffer 0 is not base64 \("),
        (_set("data:;base64,ü", "buffers", 0, "uri"), r"a\.glb is corrupt: its buffer 0 is not base64 \("),
        (_set([{"channels": [{"sampler": 0}]}], "animations"), "its description is not glTF 2.0"),
        (_set({"version": "2.0"}, "nodes", 0, "children"), "corrupt"),
        (_set(None, "asset"), "has no 'asset'"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, change, message):
    path = rewritten(write_animated_glb(tmp_path / "a.glb", *animation(2)), change)
    with pytest.raises(ValueError, match=message):
        read_animated_glb(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vertices": torch.zeros(0, 4, 3)}, "needs frames, vertices and faces; got 0, 4 and 80"),
        ({"faces": torch.zeros(0, 3, dtype=torch.long)}, "got 5, 42 and 0"),
        ({"faces": torch.tensor([[0, 1, 42]])}, "name vertices 0 to 42, but the mesh has 42"),
        ({"vertices": animation()[0] * torch.tensor([1.0, 1, float("inf"), 1, 1])[:, None, None]}, "Frame 2 .* not finite"),
        ({"fps": 0}, "fps must be positive; got 0"),
        ({"times": [0.0, 1.0]}, "times must be 5 increasing numbers"),
        ({"times": [0.0, 1.0, 1.0, 2.0, 3.0]}, "times must be 5 increasing numbers"),
        ({"times": [-1.0, 1.0, 1.5, 2.0, 3.0]}, "from 0 on"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, arguments, message):
    vertices, faces = animation()
    with pytest.raises(ValueError, match=message):
        write_animated_glb(**{"path": tmp_path / "a.glb", "vertices": vertices, "faces": faces, **arguments})
    assert not list(tmp_path.iterdir())


def test_a_change_of_topology_is_refused(textured, tmp_path):
    still = read_animated_glb(textured)
    with pytest.raises(ValueError, match=r"has 42 vertices, but the template .* has 92; the topology of a template cannot change"):
        write_animated_glb(tmp_path / "a.glb", *animation(2), template=textured)
    with pytest.raises(ValueError, match="faces of the animation are not those of the template"):
        write_animated_glb(tmp_path / "a.glb", still.vertices, still.faces.flip(0), template=textured)
    with pytest.raises(FileNotFoundError, match=r"no GLB file .*missing\.glb"):
        write_animated_glb(tmp_path / "a.glb", still.vertices, still.faces, template=tmp_path / "missing.glb")


def test_meshes_with_different_times_and_flattened_nodes_are_refused(textured, tmp_path):
    still = read_animated_glb(textured)
    source = write_animated_glb(tmp_path / "two.glb", still.vertices.repeat(2, 1, 1), still.faces, template=textured)
    glb = read_glb(source)
    builder = GlbBuilder(glb.gltf, glb.binary)
    sampler = builder.gltf["animations"][0]["samplers"][0]
    builder.gltf["animations"][0]["samplers"].append({**sampler, "input": builder.add_scalars(np.array([0.0, 9.0]))})
    builder.gltf["animations"][0]["channels"][1]["sampler"] = 1
    write_glb(source, *builder.finish())
    with pytest.raises(ValueError, match="different times; bake them"):
        read_animated_glb(source)
    flat = rewritten(textured, lambda gltf: [node.update(matrix=np.diag([1.0, 0, 1, 1]).reshape(-1).tolist()) for node in gltf["nodes"]])
    squashed = read_animated_glb(flat)
    with pytest.raises(ValueError, match="scales its mesh to nothing"):
        write_animated_glb(tmp_path / "c.glb", squashed.vertices, squashed.faces, template=flat)


def test_no_warning_for_an_ordinary_file(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_animated_glb(write_animated_glb(tmp_path / "a.glb", *animation(2)))


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_glb(tmp_path / "a.glb", {"asset": {"version": "2.0"}, "extras": float("nan")}, b"")
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(read_glb(write_glb(tmp_path / "b.glb", {"asset": {"version": "2.0"}}, b"")).gltf)) == {
        "asset": {"version": "2.0"}
    }
