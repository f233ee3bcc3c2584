"""Ray casting against closed forms: planes, spheres, boxes and the rest at known places."""

import mujoco
import numpy as np
import pytest

from visiongraft.robots.cameras import intrinsics_from_fovy
from visiongraft.robots.mujoco_bodies import camera_pose
from visiongraft.robots.raycasting import RaycastRenderer, cast_camera, pixel_rays
from visiongraft.robots.surface_normals import pixel_normals, primitive_normals

SIZE = (31, 41)


def scene(geoms: str, camera: str = 'pos="0 0 2"', assets: str = "", lights: str = "") -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><visual><headlight ambient="0 0 0" diffuse="1 1 1" specular="0 0 0"/><map znear="0.01" zfar="100"/></visual>
        <statistic extent="1"/><asset>{assets}</asset>
        <worldbody>{lights}<camera name="eye" fovy="50" {camera}/>{geoms}</worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def points_seen(model, data) -> tuple[np.ndarray, np.ndarray]:
    """World points of all pixels, and the geoms."""
    depth, geoms = cast_camera(model, data, 0, SIZE)
    pose = camera_pose(data, 0)
    local = pixel_rays(float(model.cam_fovy[0]), SIZE) * np.where(np.isfinite(depth), depth, 0)[..., None]
    return local @ pose[:3, :3].T + pose[:3, 3], geoms


def test_depth_of_a_plane_is_measured_along_the_axis_and_not_along_the_ray():
    model, data = scene('<geom type="plane" size="9 9 1"/>')
    depth, geoms = cast_camera(model, data, 0, SIZE)
    np.testing.assert_allclose(depth, 2.0, atol=1e-9)
    assert (geoms == 0).all()


def test_depth_of_a_tilted_camera_over_a_plane_is_the_closed_form():
    model, data = scene('<geom type="plane" size="90 90 1"/>', 'pos="0.3 -1 1.5" xyaxes="1 0 0 0 0.6 0.8"')
    depth, _ = cast_camera(model, data, 0, SIZE)
    rotation = camera_pose(data, 0)[:3, :3]
    np.testing.assert_allclose(rotation, [[1, 0, 0], [0, -0.6, 0.8], [0, -0.8, -0.6]], atol=1e-6)
    expected = -1.5 / (pixel_rays(50.0, SIZE) @ rotation.T)[..., 2]
    np.testing.assert_allclose(depth, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("geom", "residual"),
    [
        ('type="sphere" size="0.4"', lambda p: np.linalg.norm(p, axis=-1) - 0.4),
        ('type="ellipsoid" size="0.5 0.3 0.2"', lambda p: np.linalg.norm(p / [0.5, 0.3, 0.2], axis=-1) - 1),
        ('type="box" size="0.3 0.2 0.1"', lambda p: np.max(np.abs(p) - [0.3, 0.2, 0.1], axis=-1)),
        (
            'type="cylinder" size="0.3 0.2"',
            lambda p: np.maximum(np.hypot(p[..., 0], p[..., 1]) - 0.3, np.abs(p[..., 2]) - 0.2),
        ),
        (
            'type="capsule" size="0.2 0.3"',
            lambda p: np.linalg.norm(p - np.stack([0 * p[..., 0], 0 * p[..., 0], np.clip(p[..., 2], -0.3, 0.3)], -1), axis=-1) - 0.2,
        ),
    ],
)
def test_every_primitive_is_met_on_its_surface_also_off_the_axis(geom, residual):
    model, data = scene(f'<body pos="0.1 0.2 0.1" euler="20 -35 50"><geom {geom}/></body>', 'pos="0.4 -0.5 1.6" xyaxes="1 0 0 0 0.9 0.4"')
    points, geoms = points_seen(model, data)
    local = (points[geoms == 0] - data.geom_xpos[0]) @ data.geom_xmat[0].reshape(3, 3)
    assert len(local) > 40
    np.testing.assert_allclose(residual(local), 0, atol=1e-6)


def test_a_mesh_is_met_where_the_same_box_is():
    corners = " ".join(f"{x} {y} {z}" for x in (-0.3, 0.3) for y in (-0.2, 0.2) for z in (-0.1, 0.1))
    asset = f'<mesh name="crate" vertex="{corners}"/>'
    turn = 'pos="0 0.1 0" euler="10 20 30"'
    of_mesh = scene(f'<body {turn}><geom type="mesh" mesh="crate"/></body>', assets=asset)
    of_box = scene(f'<body {turn}><geom type="box" size="0.3 0.2 0.1"/></body>')
    mesh_depth, box_depth = (cast_camera(*each, 0, SIZE)[0] for each in (of_mesh, of_box))
    same = np.isfinite(mesh_depth) == np.isfinite(box_depth)
    assert same.mean() > 0.99
    both = np.isfinite(mesh_depth) & np.isfinite(box_depth)
    np.testing.assert_allclose(mesh_depth[both], box_depth[both], atol=1e-6)


def test_rows_run_down_and_columns_run_right():
    model, data = scene('<geom type="sphere" size="0.1" pos="0.5 0.4 0"/>')  # right and up of a camera that looks down with y up
    _, geoms = cast_camera(model, data, 0, SIZE)
    rows, columns = np.nonzero(geoms == 0)
    assert rows.mean() < SIZE[0] / 2 < SIZE[0]
    assert columns.mean() > SIZE[1] / 2
    intrinsics = intrinsics_from_fovy(np.deg2rad(50), SIZE)
    u, v = intrinsics[0, 0] * 0.5 / 2 + intrinsics[0, 2], -intrinsics[1, 1] * 0.4 / 2 + intrinsics[1, 2]
    assert abs(columns.mean() + 0.5 - u) < 0.6
    assert abs(rows.mean() + 0.5 - v) < 0.6


def test_geoms_that_are_clear_or_of_hidden_groups_are_looked_through():
    model, data = scene(
        '<geom type="plane" size="9 9 1"/><geom type="box" size="1 1 0.1" rgba="1 0 0 0"/><geom type="box" size="1 1 0.2" group="3"/>'
    )
    assert (cast_camera(model, data, 0, SIZE)[1] == 0).all()
    assert (cast_camera(model, data, 0, SIZE, groups=(3,))[1][15, 20]) == 2


def test_parts_that_collide_with_nothing_are_seen_on_turned_bodies():
    # MuJoCo 3.3's bounds by body miss this column
    model, data = scene(
        '<body quat="0 1 0 0"><geom type="box" size="0.05 0.05 0.05"/>'
        '<geom type="box" size="0.02 0.5 0.02" pos="0 0.6 0" contype="0" conaffinity="0"/></body>'
    )
    assert (cast_camera(model, data, 0, SIZE)[1] == 1).sum() > 10
    assert (model.body_bvhadr >= 0).any()  # and the model is as it was


def test_segmentation_shows_owners_and_minus_one_elsewhere():
    model, data = scene('<geom type="plane" size="0.5 0.5 1"/><geom type="sphere" size="0.2"/>')
    shown = RaycastRenderer().render(model, data, 0, ("segmentation",), SIZE, np.array([-1, 7], np.int32))["segmentation"]
    assert shown.dtype == np.int32
    assert shown[15, 20] == 7
    assert shown[15, 12] == -1
    assert shown[0, 0] == -1


def test_depth_beyond_the_far_plane_and_of_nothing_is_infinite_and_the_picture_black():
    model, data = scene('<geom type="plane" size="0.2 0.2 1"/><geom type="box" size="1 1 1" pos="0 0 -200"/>')
    shown = RaycastRenderer().render(model, data, 0, ("images", "depth"), SIZE, np.full(2, -1, np.int32))
    assert shown["depth"][15, 20] == pytest.approx(2.0)
    assert np.isinf(shown["depth"][0, 0])
    assert (shown["images"][0, 0] == 0).all()


def test_headlight_on_a_sphere_follows_lamberts_cosine():
    model, data = scene('<geom type="sphere" size="0.4" rgba="1 0.5 0.25 1"/>')
    shown = RaycastRenderer().render(model, data, 0, ("images",), SIZE, np.full(1, -1, np.int32))["images"].astype(float)
    points, geoms = points_seen(model, data)
    cosine = points[..., 2] / 0.4
    expected = 255 * np.maximum(cosine, 0)[..., None] * [1, 0.5, 0.25]
    np.testing.assert_allclose(shown[geoms == 0], expected[geoms == 0], atol=0.51)


def test_a_lamp_falls_off_with_attenuation_and_its_cone():
    lamp = '<light pos="0 0 1" dir="0 0 -1" diffuse="1 1 1" cutoff="30" exponent="2" attenuation="1 0 1"/>'
    model, data = scene('<geom type="plane" size="9 9 1" rgba="1 1 1 1"/>', lights=lamp)
    model.vis.headlight.active = 0
    shown = RaycastRenderer().render(model, data, 0, ("images",), SIZE, np.full(1, -1, np.int32))["images"][..., 0].astype(float)
    points, _ = points_seen(model, data)
    distance = np.linalg.norm(points - [0, 0, 1], axis=-1)
    cosine = 1 / distance
    expected = 255 * np.where(cosine >= np.cos(np.deg2rad(30)), cosine**3, 0) / (1 + distance**2)
    np.testing.assert_allclose(shown, expected, atol=0.51)


def test_a_plane_shows_its_checker_at_the_right_pitch():
    assets = (
        '<texture name="c" type="2d" builtin="checker" rgb1="1 1 1" rgb2="0 0 0" width="64" height="64"/>'
        '<material name="c" texture="c" texrepeat="4 4" texuniform="true"/>'
    )
    model, data = scene('<geom type="plane" size="9 9 1" material="c"/>', assets=assets)
    shown = RaycastRenderer().render(model, data, 0, ("images",), (101, 101), np.full(1, -1, np.int32))["images"][..., 0]
    row = shown[40] > 0
    edges = np.flatnonzero(np.diff(row.astype(int)))
    metres = 2 * 2 * np.tan(np.deg2rad(25)) / 101
    np.testing.assert_allclose(np.diff(edges).mean() * metres, 0.25, atol=metres)  # repeat 4 over two metres: tiles of a quarter metre


def test_normals_of_primitives_are_gradients_of_their_surfaces():
    rng = np.random.default_rng(0)
    kinds = mujoco.mjtGeom
    fields = {
        kinds.mjGEOM_SPHERE: lambda p: np.linalg.norm(p, axis=0),
        kinds.mjGEOM_ELLIPSOID: lambda p: np.linalg.norm(p / np.array([[0.3], [0.2], [0.4]]), axis=0),
        kinds.mjGEOM_BOX: lambda p: np.max(np.abs(p) - np.array([[0.3], [0.2], [0.4]]), axis=0),
        kinds.mjGEOM_CYLINDER: lambda p: np.maximum(np.hypot(p[0], p[1]) - 0.3, np.abs(p[2]) - 0.2),
        kinds.mjGEOM_CAPSULE: lambda p: np.linalg.norm(p - np.stack([0 * p[0], 0 * p[0], np.clip(p[2], -0.2, 0.2)]), axis=0),
    }
    size = np.array([0.3, 0.2, 0.4])
    for kind, field in fields.items():
        points = rng.normal(size=(3, 50)) * 0.4
        gradient = np.stack([(field(points + 1e-6 * axis[:, None]) - field(points - 1e-6 * axis[:, None])) / 2e-6 for axis in np.eye(3)])
        normal = primitive_normals(int(kind), size, points)
        assert normal is not None
        normal = normal / np.linalg.norm(normal, axis=0)
        np.testing.assert_allclose(normal, gradient / np.linalg.norm(gradient, axis=0), atol=1e-5, err_msg=str(kind))
    assert primitive_normals(int(kinds.mjGEOM_MESH), size, np.zeros((3, 1))) is None


def test_normals_from_pixels_are_those_of_a_plane_and_keep_to_their_geom():
    rays = np.moveaxis(pixel_rays(50.0, SIZE), -1, 0)
    normal = np.array([0.2, -0.3, -0.933])
    offsets = rays * (-1.5 / np.einsum("i,ihw->hw", normal, rays))
    geoms = np.zeros(SIZE, np.int32)
    geoms[:, 20:] = 1
    offsets[:, :, 20:] *= 3
    found = pixel_normals(geoms, offsets)
    found /= np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(found, np.broadcast_to(normal[:, None, None] / np.linalg.norm(normal), found.shape), atol=1e-6)
