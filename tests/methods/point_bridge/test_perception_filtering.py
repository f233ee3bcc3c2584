"""The scene filter on the rendered tabletop: points lie on the true surfaces, the same seed gives the same points, lost objects end it."""

import mujoco
import numpy as np
import pytest
import torch

from visiongraft.media.images import read_image, save_image
from visiongraft.methods.point_bridge.depth import CameraDepth
from visiongraft.methods.point_bridge.filtering import LostObjectError, SceneFilter, plane_filter, simulator_filter
from visiongraft.methods.point_bridge.naming import given_names, rule_namer
from visiongraft.methods.point_bridge.perception import Perception, perceive, perception_picture, write_points
from visiongraft.methods.point_bridge.perception_noise import PerceptionNoise
from visiongraft.methods.point_bridge.plane_removal import PlaneRemoval
from visiongraft.methods.point_bridge.pointing import GivenPoints
from visiongraft.methods.point_bridge.region_growing import RegionGrowing
from visiongraft.methods.point_bridge.simulated import InstancePointer, InstanceSegmenter, InstanceTracker
from visiongraft.methods.point_bridge.stereo import SemiGlobalMatcher, StereoDepth
from visiongraft.robots.environment import RobotEnvironment, View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.key_points import GripperKeyPoints, robot_key_points
from visiongraft.robots.observers import Observer
from visiongraft.robots.policy import Observation
from visiongraft.robots.poses import transform_points

PERFECT = PerceptionNoise(depth=0.0, offset=0.0, holes=0.0)


def make(size: tuple[int, int] = (128, 128), cameras: tuple[str, ...] = ("left",), seed: int = 1) -> tuple[RobotEnvironment, Observation]:
    view = View(cameras=cameras, modalities=("images", "depth", "segmentation"), size=size, renderer="raycast")
    environment = make_environment("tabletop/put_on_plate", twin=True, view=view)
    return environment, environment.reset(seed=seed)[0]


@pytest.fixture(scope="module")
def scene() -> tuple[RobotEnvironment, Observation]:
    return make()


def surface_distance(environment: RobotEnvironment, name: str, points: np.ndarray) -> np.ndarray:
    """Distance of points in the base frame to the true surface of a box or cylinder, from its closed form."""
    model, data = environment.model, environment.data
    body = model.body(environment.object_bodies[name][0]).id
    geom = int(np.flatnonzero(model.geom_bodyid == body)[0])
    local = (transform_points(environment.base_to_world(), points.astype(np.float64)) - data.geom_xpos[geom]) @ data.geom_xmat[
        geom
    ].reshape(3, 3)
    size = model.geom_size[geom]
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX:
        beyond = np.abs(local) - size
    else:
        beyond = np.stack([np.hypot(local[:, 0], local[:, 1]) - size[0], np.abs(local[:, 2]) - size[1]], 1)
    return np.abs(np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0))


def errors(environment: RobotEnvironment, observed: Observation) -> list[np.ndarray]:
    return [surface_distance(environment, *pair) for pair in zip(environment.object_names, observed["object_points"], strict=True)]


def run(scene_filter: SceneFilter, observation: Observation) -> Observation:
    scene_filter.reset(observation)
    return scene_filter(observation)


def test_perfect_depth_puts_every_point_on_the_true_surface(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    scene_filter = simulator_filter(environment.object_names, "left", noise=PERFECT)
    assert isinstance(scene_filter, Observer)
    before = dict(observation)
    observed = run(scene_filter, observation)
    assert observed["object_points"].shape == (2, 128, 3) and observed["object_points"].dtype == np.float32
    assert max(error.max() for error in errors(environment, observed)) < 1e-4
    assert observed["stale"] == () and observation == before and "object_points" not in observation
    expected = robot_key_points(observation["gripper_pose"], float(observation["proprioception"][9]))
    assert np.array_equal(observed["robot_points"], expected) and observed["robot_points"].shape == (8, 3)


def test_another_gripper_has_other_key_points(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    tip = GripperKeyPoints(opened=((0.0, 0.0, 0.1),), closed=())
    names = environment.object_names
    parts = {"pointer": InstancePointer(names), "segmenter": InstanceSegmenter(), "tracker": InstanceTracker(names), "depth": CameraDepth()}
    observed = run(SceneFilter(namer=given_names(names), camera="left", key_points=tip, **parts), observation)
    assert np.allclose(observed["robot_points"], transform_points(observation["gripper_pose"], np.array([[0, 0, 0.1]])), atol=1e-6)


def test_points_lie_within_the_noise_of_the_depth(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    found = np.concatenate(errors(environment, run(simulator_filter(environment.object_names, "left"), observation)))
    assert 0.0003 < np.median(found) < 0.01 and np.percentile(found, 95) < 0.02


def test_the_plane_needs_no_segmentation(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    clicks = {name: InstancePointer(environment.object_names)(_frame(observation), name) for name in environment.object_names}
    blind = {key: value for key, value in observation.items() if key not in ("segmentation", "object_poses")}
    scene_filter = plane_filter(given_names(environment.object_names), GivenPoints(clicks), "left")  # type: ignore[arg-type]
    found = errors(environment, run(scene_filter, blind))
    assert all(np.median(error) < 1e-4 for error in found) and np.percentile(np.concatenate(found), 95) < 0.004


def test_stereo_depth_finds_the_objects() -> None:
    environment, observation = make((192, 256), ("left", "right"))
    scene_filter = simulator_filter(
        environment.object_names, "left", depth=StereoDepth(SemiGlobalMatcher(disparities=32)), right_camera="right"
    )
    found = errors(environment, run(scene_filter, {key: value for key, value in observation.items() if key != "depth"}))
    assert np.median(np.concatenate(found)) < 0.025


def _frame(observation: Observation):
    from visiongraft.methods.point_bridge.frames import frame_of

    return frame_of(observation, "left")


def test_an_episode_gives_the_same_points_whatever_ran_before(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    other = make(seed=5)[1]
    one = simulator_filter(environment.object_names, "left")
    alone = [run(one, observation), one(dict(observation))]
    two = simulator_filter(environment.object_names, "left")
    run(two, other)
    after = [run(two, observation), two(dict(observation))]
    assert all(np.array_equal(a["object_points"], b["object_points"]) for a, b in zip(alone, after, strict=True))
    assert not np.array_equal(alone[0]["object_points"], alone[1]["object_points"])  # noise is fresh in every frame
    third = run(simulator_filter(environment.object_names, "left", seed=1), observation)
    assert not np.array_equal(third["object_points"], alone[0]["object_points"])


def hidden(observation: Observation, number: int) -> Observation:
    ids = observation["segmentation"]["left"]
    return {**observation, "segmentation": {"left": np.where(ids == number, -1, ids)}}


def test_a_hidden_object_keeps_its_last_points_and_is_named_then_ends_the_episode(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    scene_filter = simulator_filter(environment.object_names, "left", max_stale=3)
    first = run(scene_filter, observation)
    for _ in range(3):
        later = scene_filter(hidden(observation, 0))
        assert later["stale"] == (environment.object_names[0],)
        assert np.array_equal(later["object_points"][0], first["object_points"][0])
        assert not np.array_equal(later["object_points"][1], first["object_points"][1])
    assert scene_filter(dict(observation))["stale"] == ()
    for _ in range(3):
        scene_filter(hidden(observation, 0))
    with pytest.raises(LostObjectError, match=rf"'{environment.object_names[0]}' has not been seen for 4 frames \(its mask has 0 pixels\)"):
        scene_filter(hidden(observation, 0))


def test_what_the_closed_gripper_holds_moves_with_it_while_it_is_hidden(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    closed = np.array(observation["proprioception"])
    closed[9] = 1.0
    scene_filter = simulator_filter(environment.object_names, "left")
    first = run(scene_filter, observation)["object_points"]
    pose = observation["gripper_pose"].copy()
    pose[:3, 3] = np.median(first[0], axis=0) + [0.0, 0.0, 0.02]
    held = scene_filter({**observation, "gripper_pose": pose, "proprioception": closed})["object_points"][0]
    moved = pose.copy()
    moved[:3, 3] += [0.02, -0.01, 0.03]
    later = scene_filter({**hidden(observation, 0), "gripper_pose": moved, "proprioception": closed})
    assert later["stale"] == (environment.object_names[0],)
    assert np.allclose(later["object_points"][0], held + np.float32([0.02, -0.01, 0.03]), atol=1e-6)
    away = moved.copy()
    away[:3, 3] += 0.1
    dropped = scene_filter({**hidden(observation, 0), "gripper_pose": away})  # an open gripper carries nothing
    assert np.array_equal(dropped["object_points"][0], later["object_points"][0])


def test_depth_that_is_nan_under_an_object_is_told_or_makes_it_stale(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    name = environment.object_names[1]
    broken = np.where(observation["segmentation"]["left"] == 1, np.nan, observation["depth"]["left"]).astype(np.float32)
    lost = {**observation, "depth": {"left": broken}}
    scene_filter = simulator_filter(environment.object_names, "left", noise=PERFECT)
    with pytest.raises(ValueError, match=rf"'{name}' has no points in the first frame \(none of its pixels has depth\)"):
        run(scene_filter, lost)
    run(scene_filter, observation)
    assert scene_filter(lost)["stale"] == (name,)


def test_a_frame_without_any_depth_makes_everything_stale_and_the_next_one_goes_on(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    names = environment.object_names
    dark = {**observation, "depth": {"left": np.full((128, 128), np.inf, np.float32)}}
    for scene_filter in (simulator_filter(names, "left", noise=PERFECT), plane_filter(given_names(names), InstancePointer(names), "left")):
        seen = run(scene_filter, observation)
        lost = scene_filter(dark)
        assert lost["stale"] == names
        np.testing.assert_array_equal(lost["object_points"], seen["object_points"])
        assert scene_filter(observation)["stale"] == ()


def test_what_is_not_there_is_told(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    names = environment.object_names
    with pytest.raises(ValueError, match="does not know the scene yet; call reset"):
        simulator_filter(names, "left")(observation)
    with pytest.raises(ValueError, match="no images of camera 'wrist'; there are 'left'"):
        simulator_filter(names, "wrist").reset(observation)
    with pytest.raises(ValueError, match="This camera has no depth"):
        simulator_filter(names, "left").reset({key: value for key, value in observation.items() if key != "depth"})
    with pytest.raises(ValueError, match=f"'{names[0]}' is not found in the first image"):
        simulator_filter(names, "left").reset(hidden(observation, 0))
    with pytest.raises(ValueError, match="no object 'teapot' in the scene; the scene holds"):
        SceneFilter(
            namer=given_names(["teapot"]),
            pointer=InstancePointer(names),
            segmenter=InstanceSegmenter(),
            tracker=InstanceTracker(names),
            depth=CameraDepth(),
            camera="left",
        ).reset(observation)
    with pytest.raises(ValueError, match=r"mask of 'table' at \(u=3, v=125\) is empty"):
        plane_filter(given_names(["table"]), GivenPoints({"table": (3.0, 125.0)}), "left").reset(observation)
    with pytest.raises(ValueError, match="as many candidates as points; got 2000 and 1000"):
        simulator_filter(names, "left", num_points=2000)


def test_a_crop_changes_no_point_on_a_surface(scene: tuple[RobotEnvironment, Observation]) -> None:
    environment, observation = scene
    names = environment.object_names
    scene_filter = SceneFilter(
        namer=rule_namer(names),
        pointer=InstancePointer(names),
        segmenter=InstanceSegmenter(),
        tracker=InstanceTracker(names),
        depth=CameraDepth(),
        camera="left",
        crop=((0.2, 0.95), (0.05, 1.0)),
    )
    observed = run(scene_filter, observation)
    assert scene_filter.names == names  # by the instruction alone
    assert max(error.max() for error in errors(environment, observed)) < 1e-4


@pytest.fixture(scope="module")
def perceived(scene: tuple[RobotEnvironment, Observation]) -> Perception:
    environment, observation = scene
    pointer = InstancePointer(environment.object_names)
    clicks = {name: pointer(_frame(observation), name) for name in environment.object_names}
    millimetres = np.nan_to_num(observation["depth"]["left"] * 1000, posinf=0).round().astype(np.uint16)
    return perceive(observation["images"]["left"], observation["cameras"]["left"], depth=millimetres, unit="mm", clicks=clicks)  # type: ignore[arg-type]


def test_an_image_with_depth_in_millimetres_becomes_labelled_points(
    scene: tuple[RobotEnvironment, Observation], perceived: Perception
) -> None:
    environment, observation = scene
    assert perceived.names == environment.object_names and perceived.points.shape == (2, 128, 3)
    found = np.concatenate([surface_distance(environment, *pair) for pair in zip(perceived.names, perceived.points, strict=True)])
    assert np.median(found) < 0.001 and np.percentile(found, 95) < 0.004
    for number, mask in enumerate(perceived.masks):
        truth = observation["segmentation"]["left"] == number
        assert (mask & truth).sum() / mask.sum() > 0.9


def test_the_picture_marks_objects_where_they_are(
    scene: tuple[RobotEnvironment, Observation], perceived: Perception, tmp_path: object
) -> None:
    image = scene[1]["images"]["left"]
    picture = perception_picture(image, perceived, scale=3)
    assert picture.shape == (3, 384, 384)
    plain = torch.from_numpy(image).permute(2, 0, 1).float().div(255).repeat_interleave(3, 1).repeat_interleave(3, 2)
    changed = ((picture - plain).abs().amax(0) > 0.02).numpy()
    masks = perceived.masks.any(0).repeat(3, 0).repeat(3, 1)
    assert changed[masks].mean() > 0.95 and changed[300:, :60].mean() == 0
    assert read_image(save_image(picture, f"{tmp_path}/picture.png")).shape == picture.shape


def test_points_are_written_as_ply(perceived: Perception, tmp_path) -> None:
    path = write_points(tmp_path / "scene.ply", perceived)
    header, body = path.read_bytes().split(b"end_header\n", 1)
    assert f"comment label 0 is {perceived.names[0]}".encode() in header and b"element vertex 256" in header
    rows = np.frombuffer(body, [("p", "<f4", 3), ("c", "u1", 3), ("label", "<i4")])
    assert np.array_equal(rows["p"].reshape(2, 128, 3), perceived.points) and rows["label"].tolist() == [0] * 128 + [1] * 128
    with pytest.raises(ValueError, match=r"written as \.ply, got scene\.obj"):
        write_points(tmp_path / "scene.obj", perceived)


def test_perceive_says_what_it_lacks(scene: tuple[RobotEnvironment, Observation]) -> None:
    observation = scene[1]
    image, camera, depth = (observation[key]["left"] for key in ("images", "cameras", "depth"))
    click = {"box": (64.0, 120.0)}
    with pytest.raises(ValueError, match="Nothing says which objects to look for"):
        perceive(image, camera, depth=depth)
    with pytest.raises(ValueError, match="Nothing says where the objects are"):
        perceive(image, camera, depth=depth, names=["box"])
    with pytest.raises(ValueError, match="This camera has no depth"):
        perceive(image, camera, clicks=click)
    with pytest.raises(ValueError, match="these are metres: give the unit 'm'"):
        perceive(image, camera, depth=depth, unit="mm", clicks=click)
    with pytest.raises(ValueError, match="calibrated for 128x128 pixels"):
        perceive(image[:100], camera, depth=depth[:100], clicks=click)
    with pytest.raises(ValueError, match=r"The mask of 'box' .* is empty"):
        perceive(image, camera, depth=depth, clicks=click)
    with pytest.raises(ValueError, match="no click on 'mug'; there are clicks on box"):
        perceive(image, camera, depth=depth, names=["mug"], clicks=click)
    assert perceive(image, camera, depth=depth, clicks=click, segmenter=RegionGrowing()).points.shape == (1, 128, 3)
    with pytest.raises(ValueError, match="too few for a table plane"):
        perceive(image, camera, depth=np.where(depth < 0.6, depth, np.nan), clicks=click, segmenter=PlaneRemoval())
