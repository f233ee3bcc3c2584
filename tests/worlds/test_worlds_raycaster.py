import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.worlds.generation import make_scene
from visiongraft.worlds.raycaster import cast
from visiongraft.worlds.scenes import Light, Material, Sky, Solid, Thing, assemble, poses_at

GREY = Material()
TURN = rotation_from_angles(torch.tensor(0.7), torch.tensor(-0.4), torch.tensor(0.3))
SUN = Light((0.9, 0.9, 0.9), (0.0, -1.0, 0.0))
NO_SKY = Sky(ambient_up=(0.1, 0.1, 0.1), ambient_down=(0.1, 0.1, 0.1), clouds=0.0, haze=0.0)


def scene_of(*solids, **thing):
    things = [Thing(f"thing {i}", [solid], **thing) for i, solid in enumerate(solids)]
    return assemble("test", "a test", (0.0, 0.0, 0.0), things, [SUN], NO_SKY)


def rays_towards(target, count=400, spread=1.0, seed=0):
    """Origins around a target and unit directions past it, many of which hit."""
    generator = torch.Generator().manual_seed(seed)
    origins = 4 * F.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=1) + torch.tensor(target)
    aims = torch.tensor(target) + spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return origins, F.normalize(aims - origins, dim=1)


def signed_distance(solid, points):
    """Textbook signed distance functions, an independent account of the same shapes."""
    rotation = solid.rotation.double()
    local = (points - torch.tensor(solid.position).double()) @ rotation
    size = torch.tensor(solid.half_size).double()
    if solid.shape == "box":
        q = local.abs() - size
        return q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)
    if solid.shape == "ellipsoid":
        return local.norm(dim=1) - size[0]
    if solid.shape == "capsule":
        axial = local[:, 1].clamp(-size[1], size[1])
        return (local - torch.stack([axial * 0, axial, axial * 0], 1)).norm(dim=1) - size[0]
    q = torch.stack([torch.hypot(local[:, 0], local[:, 2]) - size[0], local[:, 1].abs() - size[1]], 1)
    return q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)


def march(solid, origins, directions, steps=3000, far=20.0):
    t = torch.zeros(len(origins), dtype=torch.float64)
    closest = torch.full_like(t, math.inf)
    for _ in range(steps):
        gap = signed_distance(solid, origins + t[:, None] * directions).abs()
        closest = torch.minimum(closest, gap)
        t = torch.where((gap < 1e-10) | (t > far), t, t + gap)
    return torch.where(t > far, torch.inf, t), closest


SOLIDS = {
    "sphere": Solid("ellipsoid", (0.5, -0.2, 3.0), (0.8, 0.8, 0.8), GREY),
    "box": Solid("box", (0.5, -0.2, 3.0), (0.9, 0.5, 0.7), GREY, TURN),
    "cylinder": Solid("cylinder", (0.5, -0.2, 3.0), (0.6, 0.9, 0.6), GREY, TURN),
    "capsule": Solid("capsule", (0.5, -0.2, 3.0), (0.5, 0.7, 0.5), GREY, TURN),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_distances_agree_with_marching_through_the_signed_distance(name):
    solid = SOLIDS[name]
    origins, directions = rays_towards(solid.position)
    expected, closest = march(solid, origins, directions)
    clear = expected.isfinite() | (closest > 1e-3)  # grazing rays take for ever
    found = cast(scene_of(solid), origins.float(), directions.float(), color=False).distance.double()
    assert 100 < expected.isfinite().sum() < 390
    assert torch.equal(found.isinf()[clear], expected.isinf()[clear])
    hit = clear & expected.isfinite()
    # float32 within 1e-4 of a slanted surface; float64 to its own precision
    assert (found - expected)[hit].abs().median() < 1e-6
    precise = cast(scene_of(solid).to(torch.float64), origins, directions, color=False).distance
    assert (precise - expected)[hit].abs().max() < 1e-6


@pytest.mark.parametrize("name", SOLIDS)
def test_a_ray_from_inside_meets_the_far_wall(name):
    solid = SOLIDS[name]
    directions = panorama_rays(8, 16).reshape(-1, 3)
    center = torch.tensor(solid.position)
    hits = cast(scene_of(solid), center, directions, color=False)
    surface = center + directions * hits.distance[:, None]
    assert signed_distance(solid, surface.double()).abs().max() < 1e-5
    assert ((hits.normal * directions).sum(-1) < 0).all()


def test_an_ellipsoid_solves_its_quadratic():
    size = torch.tensor([1.2, 0.5, 0.8], dtype=torch.float64)
    solid = Solid("ellipsoid", (0.0, 0.0, 0.0), (1.2, 0.5, 0.8), GREY, TURN)
    origins, directions = rays_towards((0.0, 0.0, 0.0), spread=0.5)
    o, d = origins @ TURN.double() / size, directions @ TURN.double() / size
    a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1
    expected = (-b - (b * b - a * c).sqrt()) / a
    found = cast(scene_of(solid).to(torch.float64), origins, directions, color=False)
    assert torch.equal(found.distance.isinf(), expected.isnan())
    hit = expected.isfinite()
    assert (found.distance - expected)[hit].abs().max() < 1e-6
    gradient = ((o + expected[:, None] * d) / size) @ TURN.double().T
    assert (found.normal - F.normalize(gradient, dim=1))[hit].abs().max() < 1e-5


def test_a_small_sphere_far_away_keeps_its_depth():
    hits = cast(scene_of(Solid("ellipsoid", (0.0, 0.0, 2000.0), (0.5, 0.5, 0.5), GREY)), torch.zeros(3), torch.tensor([[0.0, 0.0, 1.0]]))
    assert hits.distance.item() == pytest.approx(1999.5, abs=1e-3)


def test_planes_are_two_sided_and_end_where_they_should():
    scene = scene_of(Solid("plane", (0.0, 1.0, 0.0), (2.0, 1.0, 3.0), GREY))
    directions = torch.tensor([[0.0, 1.0, 0.0], [1.9, 1.0, 0.0], [2.1, 1.0, 0.0], [0.0, 1.0, 2.9], [0.0, 1.0, 3.1], [0.0, -1.0, 0.0]])
    hits = cast(scene, torch.zeros(3), directions)
    assert hits.instance.tolist() == [0, 0, -1, 0, -1, -1]
    assert torch.allclose(hits.distance[:2], torch.tensor([1.0, math.hypot(1.9, 1.0)]))
    below = cast(scene, torch.tensor([0.0, 2.0, 0.0]), torch.tensor([[0.0, -1.0, 0.0]]))
    assert below.distance.item() == pytest.approx(1.0)
    assert below.normal[0].tolist() == [0.0, 1.0, 0.0]


def test_the_ground_reaches_the_horizon_and_no_farther():
    scene = scene_of(Solid("plane", (0.0, 1.6, 0.0), (math.inf, 1.0, math.inf), GREY))
    slope = torch.tensor([-1e-3, 0.0, 1e-4, 1e-2])
    directions = F.normalize(torch.stack([torch.zeros(4), slope, torch.ones(4)], 1), dim=1)
    hits = cast(scene, torch.zeros(3), directions)
    assert hits.instance.tolist() == [-1, -1, 0, 0]
    assert torch.allclose(hits.distance[2:] * directions[2:, 1], torch.tensor(1.6), rtol=1e-5)


def test_the_nearest_of_all_shapes_wins_as_in_a_loop_over_them():
    scene = make_scene("tabletop", 3)
    directions = panorama_rays(16, 32)
    whole = cast(scene, scene.viewpoint, directions, color=False)
    best = torch.full((16, 32), math.inf)
    start = 0
    for shape, count in enumerate(scene.counts):
        for i in range(start, start + count):
            alone = only(scene, i, shape)
            best = torch.minimum(best, cast(alone, scene.viewpoint, directions, color=False).distance)
        start += count
    assert torch.allclose(whole.distance, best, rtol=1e-4)


def only(scene, index, shape):
    one = {
        name: getattr(scene, name)[index : index + 1]
        for name in ("position", "rotation", "half_size", "velocity", "spin", "pivot", "instance", "casts_shadow", "pattern", "material")
    }
    return dataclasses.replace(scene, counts=tuple(int(k == shape) for k in range(5)), **one)


@pytest.mark.parametrize("kind", ["room", "landscape"])
def test_results_do_not_depend_on_tiles_nor_on_the_shape_of_the_bundle(kind):
    scene = make_scene(kind, 5)
    directions = panorama_rays(16, 32)
    whole = cast(scene, scene.viewpoint, directions, footprint=0.05)
    for tile in (37, 300):
        part = cast(scene, scene.viewpoint, directions, footprint=0.05, tile=tile)
        assert torch.equal(part.solid, whole.solid)
        assert torch.allclose(part.color, whole.color, atol=2e-3)
    flat = cast(scene, scene.viewpoint, directions.reshape(-1, 3), footprint=0.05)
    batched = cast(scene, scene.viewpoint, directions.reshape(2, 2, 4, 32, 3), footprint=0.05)
    spread = cast(scene, scene.viewpoint.expand(16, 32, 3).contiguous(), directions, footprint=0.05)
    for other in (flat, batched, spread):
        assert torch.equal(other.solid.reshape(-1), whole.solid.reshape(-1))
        assert torch.allclose(other.distance.reshape(-1), whole.distance.reshape(-1), rtol=1e-4)
        assert torch.allclose(other.color.reshape(-1, 3), whole.color.reshape(-1, 3), atol=2e-3)


@pytest.mark.parametrize("kind", ["room", "street", "landscape", "tabletop"])
def test_normals_are_unit_and_face_the_ray_and_colors_are_finite(kind):
    scene = make_scene(kind, 1)
    directions = panorama_rays(32, 64)
    hits = cast(scene, scene.viewpoint, directions)
    seen = hits.instance >= 0
    assert torch.allclose(hits.normal.norm(dim=-1)[seen], torch.tensor(1.0), atol=1e-4)
    assert ((hits.normal * directions).sum(-1)[seen] <= 1e-6).all()
    assert (hits.normal[~seen] == 0).all()
    assert (hits.distance[~seen] == math.inf).all()
    assert hits.color.isfinite().all()
    assert (hits.color >= 0).all()


def test_directions_need_not_be_of_unit_length():
    scene = scene_of(SOLIDS["sphere"])
    direction = torch.tensor([[0.5, -0.2, 3.0]])
    unit, long = cast(scene, torch.zeros(3), F.normalize(direction, dim=1)), cast(scene, torch.zeros(3), 7 * direction)
    assert torch.allclose(unit.distance, long.distance)


def test_a_solid_that_stands_above_shades_the_ground():
    ground = Solid("plane", (0.0, 2.0, 0.0), (9.0, 1.0, 9.0), GREY)
    lid = Solid("box", (0.0, -3.0, 5.0), (1.0, 0.1, 1.0), GREY)
    directions = torch.tensor([[0.0, 2.0, 5.0], [0.0, 2.0, 7.0], [0.9, 2.0, 5.9], [1.1, 2.0, 5.9]])
    colors = cast(scene_of(ground, lid), torch.zeros(3), directions).color[:, 0]
    # half of it reflected: the ambient light alone, or with the sun
    assert torch.allclose(colors, torch.tensor([0.05, 0.5, 0.05, 0.5]), atol=1e-6)
    assert torch.allclose(cast(scene_of(ground, lid), torch.zeros(3), directions, shadows=False).color, torch.tensor(0.5), atol=1e-6)


def test_a_lamp_is_hidden_by_what_stands_between_and_not_by_what_stands_behind():
    lamp = Light((1.0, 1.0, 1.0), None, (0.0, -2.0, 5.0), 2.0)
    ground = Solid("plane", (0.0, 2.0, 0.0), (9.0, 1.0, 9.0), GREY)
    between, behind = Solid("ellipsoid", (0.0, 0.5, 5.0), (0.4, 0.4, 0.4), GREY), Solid("box", (0.0, -4.0, 5.0), (2.0, 0.1, 2.0), GREY)
    things = [Thing(str(i), [solid]) for i, solid in enumerate((ground, between, behind))]
    scene = assemble("test", "a test", (0.0, 0.0, 0.0), things, [lamp], NO_SKY)
    colors = cast(scene, torch.zeros(3), torch.tensor([[0.0, 2.0, 5.0], [2.0, 2.0, 5.0]])).color[:, 0]
    # at the distance of 4 m straight below: 2 * 2^2 / (4^2 + 2^2) of the lamp, were it not hidden
    square = 4.0**2 + 2.0**2
    assert torch.allclose(colors, torch.tensor([0.05, 0.05 + 0.5 * (4 / math.sqrt(square)) * 8 / (square + 4)]), atol=1e-5)


def test_a_moving_thing_is_where_its_motion_takes_it():
    solid = Solid("box", (2.0, 0.0, 6.0), (0.5, 0.5, 0.5), GREY)
    scene = scene_of(solid, velocity=(0.0, 0.0, 2.0), spin=(0.0, math.pi / 2, 0.0), pivot=(0.0, 0.0, 6.0))
    position, rotation = poses_at(scene, 1.0)
    # a quarter turn about the pivot takes +x to -z
    assert torch.allclose(position[0], torch.tensor([0.0, 0.0, 6.0 - 2.0 + 2.0]), atol=1e-5)
    assert torch.allclose(rotation[0], rotation_from_angles(torch.tensor(math.pi / 2), torch.zeros(()), torch.zeros(())), atol=1e-6)
    ahead = torch.tensor([[0.0, 0.0, 1.0]])
    assert cast(scene, torch.zeros(3), ahead, time=0.0).instance.item() == -1
    assert cast(scene, torch.zeros(3), ahead, time=1.0).distance.item() == pytest.approx(5.5, abs=1e-5)


def test_rays_that_are_not_finite_or_have_no_direction_are_refused():
    scene = scene_of(SOLIDS["sphere"])
    with pytest.raises(ValueError, match="rays must be finite; got NaN or infinity"):
        cast(scene, torch.zeros(3), torch.tensor([[0.0, math.nan, 1.0]]))
    with pytest.raises(ValueError, match="every ray needs a direction; got one of length 0"):
        cast(scene, torch.zeros(3), torch.zeros(2, 3))


def test_solids_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="shape must be one of box, ellipsoid, cylinder, capsule, plane; got 'cone' in thing 0"):
        scene_of(Solid("cone", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), GREY))
    with pytest.raises(ValueError, match="half sizes must be positive"):
        scene_of(Solid("box", (0.0, 0.0, 0.0), (1.0, 0.0, 1.0), GREY))
    with pytest.raises(ValueError, match="a cylinder has one radius"):
        scene_of(Solid("cylinder", (0.0, 0.0, 0.0), (1.0, 1.0, 2.0), GREY))
    with pytest.raises(ValueError, match="pattern must be one of plain"):
        scene_of(Solid("box", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Material(pattern="dots")))
    with pytest.raises(ValueError, match="image must be one of astronaut"):
        scene_of(Solid("box", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Material(image="dog")))
    with pytest.raises(ValueError, match="a scene needs at least one thing; got none"):
        assemble("test", "a test", (0.0, 0.0, 0.0), [], [SUN], NO_SKY)
