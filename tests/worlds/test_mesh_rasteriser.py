import math

import pytest
import torch

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.worlds.mesh_cameras import MeshCamera, orbit_camera
from visiongraft.worlds.mesh_rasteriser import rasterise, render_animation, render_mesh, silhouette, turntable
from visiongraft.worlds.solid_meshes import box_mesh, sphere_mesh

SQUARE = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
SQUARE_FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])


def sphere(rings=60, segments=80, radius=0.6):
    vertices, faces = sphere_mesh(rings, segments)
    return (radius * vertices).float(), faces


def slow_raster(vertices, faces, camera, size):
    """One ray for each pixel against every triangle (Möller and Trumbore), float64."""
    transform = camera.world_to_camera
    points = vertices.double() @ transform[:3, :3].T + transform[:3, 3]
    a, b, c = points[faces].unbind(1)
    depth, index = torch.full((size, size), torch.inf, dtype=torch.float64), torch.full((size, size), -1)
    for row in range(size):
        for column in range(size):
            u, v = (column + 0.5) / size * 2 - 1, (row + 0.5) / size * 2 - 1
            if camera.is_perspective:
                spread = math.tan(camera.hfov / 2)
                origin, way = torch.zeros(3, dtype=torch.float64), torch.tensor([u * spread, v * spread, 1.0], dtype=torch.float64)
            else:
                origin = torch.tensor([u * camera.half_width, v * camera.half_width, 0.0], dtype=torch.float64)
                way = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
            cross = torch.linalg.cross(way.expand_as(a), c - a)
            area = ((b - a) * cross).sum(-1)
            first = ((origin - a) * cross).sum(-1) / area
            other = torch.linalg.cross(origin - a, b - a)
            second = (other @ way) / area
            along = ((c - a) * other).sum(-1) / area
            along[~((first >= 0) & (second >= 0) & (first + second <= 1) & (along > 0))] = torch.inf
            depth[row, column], best = along.min(0)
            index[row, column] = best if depth[row, column] < torch.inf else -1
    return depth, index


@pytest.mark.parametrize("hfov_deg", [None, 50.0])
def test_the_buffer_is_what_rays_meet(hfov_deg, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    vertices = 1.6 * torch.rand(60, 3, generator=generator) - 0.8
    faces = torch.randint(60, (40, 3), generator=generator)
    camera = orbit_camera(35, 20, hfov_deg=hfov_deg)
    monkeypatch.setattr("visiongraft.worlds.mesh_rasteriser.PAIRS_AT_ONCE", 300)  # several chunks
    found = rasterise(vertices, faces, camera, 24)
    depth, index = slow_raster(vertices, faces, camera, 24)
    assert torch.equal(found.face, index) and (index >= 0).any() and (index < 0).any()
    assert torch.allclose(found.depth.double(), depth, atol=1e-5)
    seen = found.face >= 0
    points = (vertices[faces[found.face[seen]]] * found.barycentric[seen][..., None]).sum(1)
    pixel, reached = camera.project(points.double(), 24, 24)
    grid = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij"), -1).flip(-1)[seen] + 0.5
    assert torch.allclose(pixel, grid.double(), atol=1e-4) and torch.allclose(reached.float(), found.depth[seen], atol=1e-5)


def test_result_does_not_depend_on_the_chunks(monkeypatch):
    vertices, faces = sphere(12, 16)
    whole = rasterise(vertices, faces, orbit_camera(10, 5), 40)
    monkeypatch.setattr("visiongraft.worlds.mesh_rasteriser.PAIRS_AT_ONCE", 1)
    pieces = rasterise(vertices, faces, orbit_camera(10, 5), 40)
    assert torch.equal(whole.face, pieces.face) and torch.equal(whole.depth, pieces.depth)


def test_a_plane_has_the_depth_of_its_equation():
    """z = 0.3 x - 0.2 y seen from +z at distance 3: orthographic depth is 3 - z, and in perspective 3 / (1 + 0.3 u - 0.2 v)."""
    vertices = SQUARE.clone()
    vertices[:, 2] = 0.3 * vertices[:, 0] - 0.2 * vertices[:, 1]
    size = 32
    grid = ((torch.arange(size) + 0.5) / size * 2 - 1).double()
    found = rasterise(vertices, SQUARE_FACES, orbit_camera(distance=3, half_width=0.9), size)
    x, y = 0.9 * grid[None], -0.9 * grid[:, None]
    assert torch.allclose(found.depth.double(), 3 - (0.3 * x - 0.2 * y), atol=1e-5)
    found = rasterise(vertices, SQUARE_FACES, orbit_camera(distance=3, hfov_deg=30), size)
    spread = math.tan(math.radians(15))
    u, v = spread * grid[None], -spread * grid[:, None]
    assert torch.allclose(found.depth.double(), 3 / (1 + 0.3 * u - 0.2 * v), atol=1e-5)


def test_shared_edges_leave_no_holes_and_the_nearest_wins():
    vertices, faces = sphere(31, 37)
    mask = rasterise(vertices, faces, orbit_camera(13, 7), 200).face >= 0
    y, x = mask.nonzero().T
    assert all(mask[row, x[y == row].min() : x[y == row].max() + 1].all() for row in y.unique())
    near, far = SQUARE * 0.5 + torch.tensor([0, 0, 0.5]), SQUARE
    stacked = rasterise(torch.cat([far, near]), torch.cat([SQUARE_FACES, SQUARE_FACES + 4]), orbit_camera(half_width=1), 16)
    assert (stacked.face[4:12, 4:12] >= 2).all() and (stacked.face[:4] < 2).all()


def test_the_silhouette_of_a_sphere_has_the_area_of_a_disc():
    vertices, faces = sphere(160, 200)
    covered = silhouette(vertices, faces, orbit_camera(half_width=1), 64)
    assert float(covered.sum()) * (2 / 64) ** 2 == pytest.approx(math.pi * 0.36, rel=2e-3)
    # in perspective the outline is a cone of half angle asin(r / d), whose tangent is its radius at depth 1
    covered = silhouette(vertices, faces, orbit_camera(40, 30, distance=3, hfov_deg=40), 64)
    radius = math.tan(math.asin(0.6 / 3)) / math.tan(math.radians(20)) * 32
    assert float(covered.sum()) == pytest.approx(math.pi * radius**2, rel=4e-3)


def test_azimuth_zero_shows_x_to_the_right_and_y_up_and_ninety_stands_on_x():
    spots = torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])
    pixel, depth = orbit_camera(half_width=1, distance=2).project(spots, 100, 100)
    assert torch.allclose(pixel, torch.tensor([[75.0, 50], [50, 25], [50, 50]]), atol=1e-4)
    assert torch.allclose(depth, torch.tensor([2, 2, 1.5]))
    side = orbit_camera(90, half_width=1, distance=2)
    assert torch.allclose(side.position, torch.tensor([2.0, 0, 0], dtype=torch.float64), atol=1e-12)
    pixel, depth = side.project(spots, 100, 100)
    assert torch.allclose(pixel, torch.tensor([[50.0, 50], [50, 25], [25, 50]]), atol=1e-4) and float(depth[0]) == 1.5
    above = orbit_camera(0, 90, distance=2)
    assert torch.allclose(above.position, torch.tensor([0.0, 2, 0], dtype=torch.float64), atol=1e-12)
    rotation = orbit_camera(33, -21).world_to_camera[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64)) and float(torch.linalg.det(rotation)) == pytest.approx(
        1
    )


def test_cameras_look_at_their_target_and_agree_with_the_angles_of_the_house():
    target = torch.tensor([0.2, -0.1, 0.3])
    pixel, depth = orbit_camera(50, 25, target=target, hfov_deg=45).project(target[None], 64, 64)
    assert torch.allclose(pixel, torch.full((1, 2), 32.0), atol=1e-4) and float(depth) == pytest.approx(3.2)
    # geometry.cameras has y down: the same world turned by half a turn about x
    flip = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    yaw, pitch = torch.tensor(-0.5, dtype=torch.float64), torch.tensor(-0.3, dtype=torch.float64)
    camera_to_world = rotation_from_angles(yaw, pitch, torch.zeros((), dtype=torch.float64))
    found = orbit_camera(math.degrees(0.5), math.degrees(0.3)).world_to_camera[:3, :3].T
    assert torch.allclose(flip @ camera_to_world, found)


def test_a_turned_world_looks_like_a_turned_camera():
    vertices, faces = box_mesh(torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64), (2, 2, 2))
    angle = math.radians(30)
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    still = rasterise(vertices.float() @ turn.T, faces, orbit_camera(40), 50)
    moved = rasterise(vertices.float(), faces, orbit_camera(10), 50)
    differs = ((still.face >= 0) != (moved.face >= 0)).sum()
    assert int(differs) <= 2


def test_shading_of_a_square_is_lamberts():
    lit = (torch.tensor([0.4, 0.6, 1.0]) / torch.tensor([0.4, 0.6, 1.0]).norm())[2]  # the light in world axes against the normal z
    for shading in ("smooth", "flat"):
        picture = render_mesh(SQUARE, SQUARE_FACES, orbit_camera(half_width=0.9), 4, shading=shading, color=(1.0, 0.5, 0.0))
        expected = torch.tensor([1.0, 0.5, 0.0]) * (0.35 + 0.65 * lit)
        assert torch.allclose(picture[:3, 1, 1], expected, atol=1e-5) and torch.equal(picture[3], torch.ones(4, 4))
    # seen from behind it is lit as well
    back = render_mesh(SQUARE, SQUARE_FACES, orbit_camera(180, half_width=0.9), 4, color=(1.0, 0.5, 0.0))
    assert torch.allclose(back[:3, 1, 1], expected, atol=1e-5)
    normals = render_mesh(SQUARE, SQUARE_FACES, orbit_camera(half_width=0.9), 4, shading="normals")
    assert torch.allclose(normals[:3, 2, 2], torch.tensor([0.5, 0.5, 1.0]), atol=1e-5)


def test_smooth_normals_of_a_sphere_are_its_radii():
    vertices, faces = sphere(60, 80)
    picture = render_mesh(vertices, faces, orbit_camera(half_width=1), 41, shading="normals", supersample=1)
    grid = (torch.arange(41) + 0.5) / 41 * 2 - 1
    x, y = grid.expand(41, 41) / 0.6, -grid[:, None].expand(41, 41) / 0.6
    inner = x**2 + y**2 < 0.9
    exact = torch.stack([x, y, (1 - x**2 - y**2).clamp(min=0).sqrt()])
    assert torch.allclose(2 * picture[:3, inner] - 1, exact[:, inner], atol=0.02)


def test_vertex_colours_are_interpolated_in_space():
    colors = torch.stack([SQUARE[:, 0] * 0.5 + 0.5, SQUARE[:, 1] * 0.5 + 0.5, torch.zeros(4)], -1)
    tilted = SQUARE.clone()
    tilted[:, 2] = 0.8 * SQUARE[:, 0]
    camera = orbit_camera(distance=3, hfov_deg=25)
    raster = rasterise(tilted, SQUARE_FACES, camera, 20)
    picture = render_mesh(tilted, SQUARE_FACES, camera, 20, shading="none", color=colors, supersample=1)
    x = (tilted[SQUARE_FACES[raster.face]] * raster.barycentric[..., None]).sum(-2)[..., 0]
    assert torch.allclose(picture[0], x * 0.5 + 0.5, atol=1e-5)


def test_partly_covered_pixels_have_the_pure_colour_and_a_share_of_alpha():
    half = SQUARE * torch.tensor([0.5, 1.0, 1.0]) - torch.tensor([0.5, 0.0, 0.0])  # x from -1 to 0
    picture = render_mesh(half, SQUARE_FACES, orbit_camera(half_width=1), 3, shading="none", color=(0.2, 0.4, 0.6), supersample=4)
    assert torch.allclose(picture[3], torch.tensor([1.0, 0.5, 0.0]).expand(3, 3))
    assert torch.allclose(picture[:3, :, 1], torch.tensor([0.2, 0.4, 0.6])[:, None].expand(3, 3), atol=1e-6)
    assert torch.equal(picture[:3, :, 2], torch.zeros(3, 3))


def test_triangles_behind_the_camera_and_without_area_are_not_seen():
    vertices = torch.cat([SQUARE + torch.tensor([0, 0, 5.0]), torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1, 0, 0]])])
    faces = torch.cat([SQUARE_FACES, torch.tensor([[4, 5, 6], [4, 4, 5]])])
    seen = rasterise(vertices, faces, orbit_camera(hfov_deg=40), 16)
    assert (seen.face == -1).all() and seen.depth.isinf().all() and (seen.barycentric == 0).all()
    assert torch.equal(render_mesh(vertices, faces[:0], orbit_camera(), 5), torch.zeros(4, 5, 5))


def test_pictures_may_be_oblong():
    vertices, faces = sphere(40, 40)
    covered = silhouette(vertices, faces, orbit_camera(half_width=2), (20, 40))
    assert covered.shape == (20, 40) and float(covered.sum()) * 0.01 == pytest.approx(math.pi * 0.36, rel=0.02)


def test_a_turntable_turns_and_plays():
    vertices, faces = box_mesh(torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64), (1, 1, 1))
    moving = torch.stack([vertices, vertices * torch.tensor([1.0, 2.0, 1.0])]).float()
    frames = turntable(moving, faces, 4, 24, turns=1, loops=2)
    options = {"hfov_deg": 40.0}
    for k, (azimuth, index) in enumerate(((0, 0), (90, 1), (180, 0), (270, 1))):
        assert torch.equal(frames[k], render_mesh(moving[index], faces, orbit_camera(azimuth, 15, **options), 24))
    assert torch.equal(turntable(moving[:1], faces, size=24), frames[:1])
    still = render_animation(moving, faces, orbit_camera(0, 15, **options), 24)
    assert torch.equal(still[0], frames[0]) and not torch.equal(still[1], still[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: render_mesh(SQUARE, SQUARE_FACES, size=0), "at least 1x1 pixels; got 0x0"),
        (lambda: render_mesh(SQUARE * torch.nan, SQUARE_FACES), "vertices that are not finite"),
        (lambda: render_mesh(SQUARE, SQUARE_FACES + 1), "name vertices 1 to 4, but the mesh has 4"),
        (lambda: render_mesh(SQUARE, SQUARE_FACES, shading="toon"), "shading is one of smooth, flat, normals, none"),
        (lambda: render_mesh(SQUARE, SQUARE_FACES, supersample=0), "supersample at least 1; got 'smooth' and 0"),
        (lambda: render_mesh(SQUARE, SQUARE_FACES, color=torch.ones(3, 3)), r"Colours of vertices are \(4, 3\)"),
        (lambda: turntable(SQUARE[None], SQUARE_FACES, 0), "at least one frame and loop; got 0 frames of 1"),
        (lambda: orbit_camera(distance=0), "distance > 0"),
        (lambda: orbit_camera(elevation_deg=91), "elevation from -90 to 90 degrees; got 3.2, 1.1 and 91"),
        (lambda: orbit_camera(hfov_deg=0.7), "did you pass radians"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_camera_is_a_plain_record():
    camera = MeshCamera(torch.eye(4, dtype=torch.float64), hfov=math.pi / 2)
    pixel, depth = camera.project(torch.tensor([[1.0, 0.0, 2.0]]), 10, 10)
    assert torch.allclose(pixel, torch.tensor([[7.5, 5.0]])) and float(depth) == 2
