import mujoco
import numpy as np
import pytest
import torch

from visiongraft.robots.body_surfaces import body_surfaces, sample_body

# a wedge that is neither centred nor aligned with its principal axes, so that the compiler moves and turns it
WEDGE = np.array([[1, 1, 1], [3, 1, 1], [1, 2, 1], [1, 1, 5.0]])
SCENE = """
<mujoco>
  <asset><mesh name="wedge" vertex="{vertices}" scale="0.1 0.1 0.1" refpos="0.5 0.2 0.1" refquat="0.8 0.6 0 0"/></asset>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1"/>
    <body name="wedge" pos="1 2 3" euler="10 20 30"><freejoint/><geom type="mesh" mesh="wedge" pos="0.2 0 0.1" euler="0 40 0"/></body>
    <body name="shapes" pos="0 0 1"><freejoint/>
      <geom name="a" type="box" size="0.1 0.2 0.3" pos="5 0 0"/>
      <geom name="b" type="sphere" size="0.1" pos="-5 0 0"/>
      <geom name="c" type="capsule" size="0.1 0.3" pos="0 5 0" euler="90 0 0"/>
      <geom name="d" type="ellipsoid" size="0.1 0.2 0.3" pos="0 -5 0"/>
      <geom name="e" type="cylinder" size="0.1 0.3" pos="0 0 5"/>
    </body>
    <body name="doubled"><geom type="box" size="0.1 0.1 0.1"/><geom type="sphere" size="0.3" group="1" contype="0" conaffinity="0"/></body>
    <body name="visual"><geom type="sphere" size="0.3" group="1"/></body>
    <body name="flat"><geom type="plane" size="1 1 1"/></body>
    <body name="frame"><site name="s"/></body>
  </worldbody>
</mujoco>
""".format(vertices=" ".join(map(str, WEDGE.reshape(-1))))


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


def drawn(model, body, num=4000, seed=0, **options):
    return sample_body(model, body, num, torch.Generator().manual_seed(seed), **options)


def test_mesh_points_lie_where_mujoco_puts_the_mesh(model):
    """Rays from outside hit MuJoCo's mesh at the points that were drawn on it."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    points = drawn(model, "wedge", 200)
    points = points @ data.body("wedge").xmat.reshape(3, 3).T + data.body("wedge").xpos
    geom = int(model.body_geomadr[model.body("wedge").id])
    vertices = model.mesh_vert @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
    center = vertices.mean(0)
    for point in points:
        outside = center + 10 * (point - center)
        direction = point - outside
        distance = mujoco.mj_rayMesh(model, data, geom, outside, direction / np.linalg.norm(direction))
        assert distance == pytest.approx(np.linalg.norm(direction), abs=1e-5)  # convex: the first hit is the point itself


def test_mesh_is_that_of_the_asset_up_to_its_pose(model):
    surface, _ = body_surfaces(model, "wedge")[0]
    lengths = lambda vertices: np.sort(np.linalg.norm(vertices[:, None] - vertices, axis=-1).reshape(-1))
    assert np.allclose(lengths(surface.vertices.numpy()), lengths(0.1 * WEDGE), atol=1e-6)


def test_geoms_of_a_body_share_points_by_area_and_stand_where_they_are(model):
    points = drawn(model, "shapes", 20_000)
    surfaces = body_surfaces(model, "shapes")
    total = sum(surface.area for surface, _ in surfaces)
    for (surface, pose), center in zip(surfaces, ([5, 0, 0], [-5, 0, 0], [0, 5, 0], [0, -5, 0], [0, 0, 5]), strict=True):
        assert np.allclose(pose[:3, 3], center)
        near = np.linalg.norm(points - center, axis=1) < 1
        assert near.mean() == pytest.approx(surface.area / total, abs=0.02)
    capsule = points[np.linalg.norm(points - [0, 5, 0], axis=1) < 1] - [0, 5, 0]
    assert np.abs(capsule[:, 1]).max() == pytest.approx(0.4, abs=0.01) and np.abs(capsule[:, 2]).max() == pytest.approx(0.1, abs=0.005)


def test_analytic_points_lie_on_mujocos_shapes(model):
    """Rays from the middle of every geom outwards hit it at the points."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    first = int(model.body_geomadr[model.body("shapes").id])
    points = drawn(model, "shapes", 500) + data.body("shapes").xpos
    owners = np.linalg.norm(points[:, None] - data.geom_xpos[first : first + 5], axis=-1).argmin(1)
    for point, owner in zip(points, owners, strict=True):
        center = data.geom_xpos[first + owner]
        direction = (point - center) / np.linalg.norm(point - center)
        distance = mujoco.mju_rayGeom(
            center, data.geom_xmat[first + owner], model.geom_size[first + owner], center, direction, int(model.geom_type[first + owner])
        )
        assert distance == pytest.approx(np.linalg.norm(point - center), abs=1e-6)


def test_visual_groups_are_left_out_only_where_something_else_is_there(model):
    assert np.abs(drawn(model, "doubled")).max() <= 0.1 + 1e-9
    assert np.abs(drawn(model, "doubled", skip_groups=())).max() > 0.25
    assert np.abs(drawn(model, "doubled", skip_groups=(0,))).max() > 0.25
    assert np.allclose(np.linalg.norm(drawn(model, "visual"), axis=1), 0.3)


def test_the_same_generator_draws_the_same_points(model):
    assert np.array_equal(drawn(model, "shapes"), drawn(model, "shapes")) and not np.array_equal(
        drawn(model, "shapes"), drawn(model, "shapes", seed=1)
    )


@pytest.mark.parametrize("body", ["flat", "frame"])
def test_bodies_without_a_surface_are_named(model, body):
    with pytest.raises(ValueError, match=f"Body '{body}' has no box, sphere"):
        drawn(model, body)


def test_unknown_bodies_are_answered_with_the_known(model):
    with pytest.raises(ValueError, match="no body 'mug'; its bodies are: world, wedge, shapes"):
        drawn(model, "mug")
