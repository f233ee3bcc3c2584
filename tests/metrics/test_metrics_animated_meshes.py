import numpy as np
import pytest
import torch
import trimesh

from visiongraft.geometry.surfaces import Mesh
from visiongraft.metrics.animated_meshes import (
    VARIANTS,
    AnimationProtocol,
    animation_frames,
    cloud_flicker,
    find_variant,
    sample_frames,
    sample_tracked,
    score_animation,
    vertex_flicker,
)
from visiongraft.metrics.registration import IcpOptions, register

QUICK = AnimationProtocol(points=400, icp_points=80, queries=300, icp=IcpOptions(steps=25, lr=0.02, distinct=True, keep=3, prune_after=6))


def bent_bar(num_frames=4, flip=()):
    """A tapered bar whose end is lifted more and more; in the frames of ``flip`` it is turned by 180 degrees about x."""
    bar = trimesh.creation.box((1.6, 0.5, 0.24)).subdivide().subdivide()
    rest = torch.from_numpy(bar.vertices.copy()).float()
    rest[:, 1:] *= 1 - 0.5 * rest[:, :1]
    frames = []
    for k in range(num_frames):
        moved = rest.clone()
        moved[:, 1] += (0.4 + 0.15 * k) * (rest[:, 0] + 0.8).square()
        frames.append(moved * torch.tensor([1.0, -1, -1]) if k in flip else moved)
    return torch.stack(frames), torch.from_numpy(bar.faces.copy()).long()


def tracked_truth(num=500, **options):
    return sample_tracked(animation_frames(*bent_bar(**options)), num, seed=1)


def test_distances_are_those_of_the_brief():
    meshes, truth = animation_frames(*bent_bar(2)), tracked_truth(num_frames=2)
    protocol = AnimationProtocol(points=150, icp_points=40, queries=60, icp=IcpOptions(steps=5))
    scores = score_animation(truth, meshes, protocol)
    rows = np.random.RandomState(44).permutation(150)
    clouds = sample_frames(meshes, 150)
    kept = clouds[:, rows[:40]]
    asked = truth[:, np.random.RandomState(44).permutation(500)[:40]]
    poses = register(kept, asked, protocol.icp)

    def chamfer(a, b):
        pairs = np.linalg.norm(a[:, None].numpy().astype(float) - b[None].numpy(), axis=-1)
        asks = np.random.RandomState(45).permutation(500)[:60]
        return pairs[:, asks].min(0).mean() + pairs[rows[:60]].min(1).mean()

    per_frame = [chamfer(a, b) for a, b in zip(poses.apply(clouds), truth, strict=True)]
    in_place = [chamfer(a, b) for a, b in zip(poses.frame(0).apply(clouds), truth, strict=True)]
    assert scores.cd_3d == pytest.approx(np.mean(per_frame), rel=1e-5)
    assert scores.cd_4d == pytest.approx(np.mean(in_place), rel=1e-5)
    tracked = poses.frame(0).apply(sample_tracked(meshes, 150))
    pairs = (tracked[0][:, None] - truth[0][None]).norm(dim=-1)
    forth = (tracked[:, pairs.argmin(0)] - truth).norm(dim=-1).mean()
    back = (truth[:, pairs.argmin(1)] - tracked).norm(dim=-1).mean()
    assert scores.cd_motion == pytest.approx(float(forth + back), rel=1e-4)


def test_cd_4d_sees_a_turned_frame_that_cd_3d_forgives():
    vertices, faces = bent_bar()
    good = score_animation(tracked_truth(), animation_frames(vertices, faces), QUICK)
    turned = score_animation(tracked_truth(), animation_frames(bent_bar(flip=(2, 3))[0], faces), QUICK)
    assert turned.cd_3d == pytest.approx(good.cd_3d, abs=0.03)
    assert turned.cd_4d > good.cd_4d + 0.2
    assert turned.cd_motion > good.cd_motion + 0.2


def test_cd_motion_alone_sees_a_surface_that_slides():
    ball = trimesh.creation.icosphere(3, 0.8)
    rest, faces = torch.from_numpy(ball.vertices.copy()).float(), torch.from_numpy(ball.faces.copy()).long()
    quarter = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    still, sliding = torch.stack([rest, rest]), torch.stack([rest, rest @ quarter])
    truth = sample_tracked(animation_frames(still, faces), 500, seed=1)
    fixed, turned = (score_animation(truth, animation_frames(v, faces), QUICK) for v in (still, sliding))
    assert turned.cd_4d == pytest.approx(fixed.cd_4d, abs=0.02)
    # both ways, in one of two frames, the mean chord of a quarter turn; in the other, what sampling leaves
    chord = (rest - rest @ quarter).norm(dim=-1).mean()
    assert turned.cd_motion == pytest.approx(fixed.cd_motion / 2 + float(chord), abs=0.05)


def test_paper_variant_is_rigid_and_squared():
    paper, released = VARIANTS["paper"], VARIANTS["released"]
    assert (paper.squared, paper.icp.scale) == (True, False) and (released.squared, released.icp.scale) == (False, True)
    assert (released.points, released.icp_points, released.queries, released.seed) == (100_000, 10_000, 10_000, 44)
    assert (released.icp.steps, released.icp.lr, released.icp.keep, released.icp.mixed) == (200, 0.01, None, True)
    assert find_variant(QUICK) is QUICK
    meshes, truth = animation_frames(*bent_bar(2)), tracked_truth(num_frames=2)
    same = dict(points=200, icp_points=40, queries=200, icp=IcpOptions(steps=3, scale=False))
    plain, squared = (score_animation(truth, meshes, AnimationProtocol(**same, squared=value)) for value in (False, True))
    assert torch.equal(squared.pose.scale, torch.ones(1, 3))
    assert squared.cd_3d < plain.cd_3d and squared.cd_motion < plain.cd_motion


def test_meshes_without_common_faces_have_no_cd_motion():
    vertices, faces = bent_bar(2)
    meshes = [Mesh(vertices[0], faces), Mesh(vertices[1], faces.flip(0))]
    assert score_animation(tracked_truth(num_frames=2), meshes, QUICK, motion=False).cd_motion is None
    with pytest.raises(ValueError, match=r"Frame 1 has 98 vertices and 192 faces that are not those of frame 0 .* motion=False"):
        score_animation(tracked_truth(num_frames=2), meshes, QUICK)


def test_tracked_points_follow_an_affine_motion_exactly():
    vertices, faces = bent_bar(1)
    matrix = torch.tensor([[1.0, 0.2, 0], [0, 0.8, 0.1], [0.3, 0, 1.1]])
    points = sample_tracked(animation_frames(torch.stack([vertices[0], vertices[0] @ matrix + 0.5]), faces), 300)
    torch.testing.assert_close(points[1], points[0] @ matrix + 0.5, atol=1e-5, rtol=1e-5)


def test_tracked_points_are_uniform_by_area():
    vertices = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    points = sample_tracked([Mesh(vertices, faces)], 20_000)[0]
    low = points[points[:, 2] < 1]
    assert len(low) / 20_000 == pytest.approx(0.8, abs=0.02)
    torch.testing.assert_close(low.mean(0), torch.tensor([4 / 3, 1 / 3, 0]), atol=0.03, rtol=0)


def test_every_frame_has_points_of_its_own_seed():
    vertices, faces = bent_bar(1)
    mesh = Mesh(vertices[0], faces)
    clouds = sample_frames([mesh, mesh], 50, seed=7)
    shape = trimesh.Trimesh(vertices[0].numpy(), faces.numpy(), process=False)
    for k in range(2):
        torch.testing.assert_close(clouds[k], torch.from_numpy(trimesh.sample.sample_surface(shape, 50, seed=7 + k)[0]).float())
    assert not torch.equal(clouds[0], clouds[1])


def test_flicker_is_zero_for_uniform_motion_and_four_times_the_amplitude_of_jumps():
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(5.0)[:, None, None]
    assert vertex_flicker(points + steps * torch.tensor([0.1, 0.2, 0])) == pytest.approx(0, abs=1e-6)
    jumps = torch.tensor([1.0, -1, 1, -1, 1])[:, None, None] * torch.tensor([0.0, 0.03, 0.04])
    assert vertex_flicker(points + jumps) == pytest.approx(4 * 0.05, rel=1e-4)
    quadratic = steps.square() * torch.tensor([0.0, 0, 0.01])
    assert vertex_flicker(points + quadratic) == pytest.approx(0.02, rel=1e-4)


def test_cloud_flicker_tells_jumps_from_steady_motion():
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    step = torch.tensor([0.1, 0.0, 0.0])
    steady = torch.stack([lattice + k * step for k in range(4)])
    jumping = torch.stack([lattice + (k % 2) * step for k in range(4)])
    # a shift by d is at chamfer distance 2 d
    assert cloud_flicker(steady) == pytest.approx((0.2, 0.0), abs=1e-5)
    assert cloud_flicker(jumping) == pytest.approx((0.2, 0.4), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, f: score_animation(tracked_truth(), animation_frames(v, f), "loose"), "one of released, paper, light; got 'loose'"),
        (lambda v, f: score_animation(tracked_truth(), animation_frames(v, f)[:3], QUICK), "truth has 4 frames and the prediction 3"),
        (lambda v, f: sample_frames([Mesh(v[0], f[:0])], 5), "frame 0 has no faces"),
        (lambda v, f: sample_frames([Mesh(v[0], f), Mesh(v[1] * torch.nan, f)], 5), "frame 1 has vertices that are not finite"),
        (lambda v, f: sample_frames([Mesh(v[0] * 0, f)], 5), "192 faces but no area"),
        (lambda v, f: vertex_flicker(v[:2]), "at least 3 frames; got 2"),
        (lambda v, f: cloud_flicker(v[:2]), "at least 3 frames; got 2"),
    ],
)
def test_unusable_animations_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*bent_bar())
