import pytest
import torch
from scipy.spatial import cKDTree

from visiongraft.worlds.animated_shapes import KINDS, clip_times, make_shape

TIMES = clip_times(5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=KINDS)
def shape(request):
    return make_shape(request.param, 3)


def corners(vertices, faces):
    return vertices[:, faces].double().unbind(2)


def test_meshes_are_closed_and_oriented_outwards_at_all_times(shape):
    faces = shape.faces
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert torch.equal(edges.unique(dim=0), edges.flip(1).unique(dim=0)) and len(edges.unique(dim=0)) == len(edges)
    a, b, c = corners(shape.vertices(TIMES), faces)
    assert ((a * torch.linalg.cross(b, c)).sum((-2, -1)) / 6 > 1e-3).all()
    assert (torch.linalg.cross(b - a, c - a).norm(dim=-1) > 1e-8).all()


def test_shapes_stay_in_the_box_and_move(shape):
    vertices = shape.vertices(torch.linspace(0, 1, 41))
    assert float(vertices.abs().max()) <= 1
    if shape.kind != "creature":  # whose size is the study's
        low, high = vertices.flatten(0, 1).aminmax(dim=0)
        assert 1.7 < float((high - low).max()) <= 1.81 and float((low + high).abs().max()) < 0.05
    assert float((vertices[1:] - vertices[:-1]).norm(dim=-1).amax()) > 1e-3
    assert float((vertices - vertices[:1]).norm(dim=-1).amax()) > 0.1


def test_tracked_points_are_on_the_surface_and_their_normals_are_the_gradient(shape):
    surface = shape.surface(300, TIMES, generator())
    points, normals = surface[..., :3], surface[..., 3:]
    assert torch.allclose(normals.norm(dim=-1), torch.ones(5, 300), atol=1e-5)
    distance = shape.sdf(points, TIMES)
    seen = distance > -1e-5
    assert float(distance[seen].abs().max()) < 1e-5 and float(seen.float().mean()) > 0.95 and seen.any(0).all()
    # one step along the normal is one step away; at edges and at the seam of two parts less
    for step in (0.01, -0.01):
        off = (shape.sdf(points + step * normals, TIMES) - step)[seen]
        assert float(off.abs().quantile(0.9)) < 1e-3


def test_points_follow_the_mesh(shape):
    """A tracked point keeps its place relative to the mesh: its nearest vertex at one time stays near at the others."""
    points, vertices = shape.surface(200, TIMES, generator(1))[..., :3], shape.vertices(TIMES)
    distance, nearest = cKDTree(vertices[0].numpy()).query(points[0].numpy())
    later = (points[3] - vertices[3, torch.from_numpy(nearest)]).norm(dim=-1)
    assert float((later - torch.from_numpy(distance)).abs().max()) < 0.12 and float((points[3] - points[0]).norm(dim=-1).max()) > 0.05


def test_the_distance_field_changes_sign_at_the_mesh(shape):
    vertices = shape.vertices(TIMES)
    a, b, c = corners(vertices, shape.faces)
    center, normal = (a + b + c) / 3, torch.linalg.cross(b - a, c - a)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    step = 0.012
    out = shape.sdf((center + step * normal).float(), TIMES)
    inside = shape.sdf((center - step * normal).float(), TIMES)
    buried = out < 0  # a triangle inside another part
    assert float(buried.float().mean()) < 0.25 and (inside[~buried] < 0).all()


@pytest.mark.parametrize("kind", ["bend", "twist", "cloth", "blob"])
def test_distances_agree_with_dense_samples(kind):
    shape = make_shape(kind, 11)
    dense = shape.surface(60_000, TIMES[:1], generator())[0, :, :3]
    queries = dense[:400] + 0.05 * torch.randn(400, 3, generator=generator(2))
    exact, _ = cKDTree(dense.numpy()).query(queries.numpy())
    near = torch.from_numpy(exact) < 0.08
    found = shape.sdf(queries[None], TIMES[:1])[0].abs().double()
    error = (found - torch.from_numpy(exact)).abs()[near]
    assert float(error.quantile(0.9)) < 0.012  # first order: worse beside edges, by the bend of the field


def test_rigid_boxes_keep_their_sizes():
    shape = make_shape("walk", 2)
    vertices, part = shape.vertices(TIMES), shape.solid.part
    for i in range(5):
        piece = vertices[:, part == i]
        across = torch.cdist(piece, piece)
        assert torch.allclose(across, across[:1].expand_as(across), atol=1e-3)
    body = vertices[:, part == 0].mean(1)
    legs = torch.stack([vertices[:, part == i].mean(1) for i in range(1, 5)], 1)
    assert (legs[..., 1] < body[:, None, 1] - 0.2).all()  # y is up


def test_shapes_are_pure_functions_of_their_seed(shape):
    again, other = make_shape(shape.kind, 3), make_shape(shape.kind, 4)
    assert torch.equal(shape.vertices(TIMES), again.vertices(TIMES)) and shape.caption == again.caption
    assert not torch.equal(shape.vertices(TIMES), other.vertices(TIMES))
    assert torch.equal(shape.surface(20, TIMES, generator(1)), again.surface(20, TIMES, generator(1)))


def test_captions_say_what_is_seen():
    captions = {kind: make_shape(kind, 1).caption for kind in KINDS}
    assert captions["walk"] == "an orange animal made of boxes that walks" and "twists" in captions["twist"]
    assert len(set(captions.values())) == len(KINDS)


def test_clip_times_begin_at_0_and_end_before_1():
    assert torch.equal(clip_times(4), torch.tensor([0.0, 0.25, 0.5, 0.75]))


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match=r"of kind bend, twist, walk, cloth, blob, creature .* got kind 'cube'"):
        make_shape("cube", 0)
    with pytest.raises(ValueError, match=r"motion mixed or const; got kind 'creature', motion 'wild'"):
        make_shape("creature", 0, "wild")
    with pytest.raises(ValueError, match=r"at least 1 frame; got 0"):
        clip_times(0)
