import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from visiongraft.cli import main
from visiongraft.geometry.point_sets import project_points
from visiongraft.media.point_clouds import read_ply
from visiongraft.methods.point_bridge.commands import EvaluateOptions, TrainOptions
from visiongraft.methods.point_bridge.observing import Eyes, eyes_by_name
from visiongraft.methods.point_bridge.small import load_policy
from visiongraft.robots.demonstrations import read_demonstrations
from visiongraft.robots.environment import View
from visiongraft.robots.environments import make_environment

TASK = "tabletop/put_on_plate"


def run(*words):
    return main(["point_bridge", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The whole path: collect, generate, train."""
    folder = tmp_path_factory.mktemp("point_bridge")
    images = ("--image_size", "[32, 32]")
    assert run("collect", TASK, "--pairs", "[0]", "--num", 2, "--output", folder / "plate-source.hdf5", *images) == 0
    assert run("generate", f"[{folder}]", "--num", 3, *images) == 0
    assert run("train", f"[{folder}]", "--size", "tiny", "--steps", 4, "--output", folder / "run", "--logger", "none") == 0
    return folder


def test_the_path_from_collect_to_train_leaves_files_that_read_back(folder):
    demonstrations = read_demonstrations(folder / "plate-0.hdf5")
    assert len(demonstrations) == 3 and demonstrations.environment_args["env_name"] == TASK
    assert demonstrations[0].observations["object_points"].shape[1:] == (2, 128, 3)
    policy = load_policy(folder / "run" / "policy", tasks=[TASK])
    assert policy.card.tasks == (TASK,) and policy.card.object_counts == (2,) and not policy.model.config.use_language
    losses = [json.loads(line) for line in (folder / "run" / "losses.jsonl").read_text().splitlines()]
    assert losses and all(np.isfinite(row["actions"]) for row in losses if "actions" in row)


def test_generated_points_lie_where_their_objects_are(folder):
    for demonstration in read_demonstrations(folder / "plate-0.hdf5"):
        for index, poses in enumerate(demonstration.object_poses.values()):
            points = demonstration.observations["object_points"][:, index]
            # seen from one side, and pixels of the gripper in front of an object belong to the gripper
            distance = np.linalg.norm(np.median(points, axis=1) - poses[:, :3, 3], axis=1)
            assert np.median(distance) < 0.05


def test_evaluate_prints_an_interval_and_resumes(folder, capsys):
    words = ("evaluate", "--weights", folder / "run" / "policy", "--pairs", "[0]", "--episodes", 2, "--max_steps", 4, "--twin", "true")
    words += ("--image_size", "[72, 96]", "--output", folder / "rollouts")
    assert run(*words) == 0
    first = capsys.readouterr().out
    assert "0/2" in first and "[" in first and "time out" in first
    rows = (folder / "rollouts" / "episodes.jsonl").read_bytes()
    assert run(*words) == 0
    assert capsys.readouterr().out == first and (folder / "rollouts" / "episodes.jsonl").read_bytes() == rows
    assert run(*words[:-2], "--output", folder / "rollouts", "--camera_error", "0.05", "--seed", "1") == 2
    assert "seed" in capsys.readouterr().err


def test_a_served_policy_rolls_out_as_the_local_one(folder, capsys):
    from visiongraft.methods.point_bridge.evaluation import served
    from visiongraft.robots.server import background_server

    rolled = ("--pairs", "[0]", "--episodes", 2, "--max_steps", 3)
    assert run("evaluate", "--weights", folder / "run" / "policy", *rolled) == 0
    local = capsys.readouterr().out
    with background_server(served(load_policy(folder / "run" / "policy"))) as address:
        assert run("evaluate", "--weights", address, *rolled) == 0
        assert capsys.readouterr().out == local
        assert run("evaluate", "--weights", address, "--tasks", "[tabletop/stack]") == 2
        assert "was trained on tabletop/put_on_plate, not on tabletop/stack" in capsys.readouterr().err
    assert threading.active_count() < 20


@pytest.mark.parametrize(
    "words, message",
    [
        (("evaluate", "--weights", "{}/run/policy", "--tasks", "[tabletop/stack]"), "was trained on tabletop/put_on_plate"),
        (("evaluate", "--weights", "{}/nothing"), "holds no policy"),
        (("evaluate", "--weights", "{}/run/policy", "--execute", "soon"), "ensemble or a number"),
        (("evaluate", "--weights", "{}/run/policy", "--perception", "smell"), "perception"),
        (("evaluate", "--weights", "{}/run/policy", "--pairs", "[7]", "--episodes", "1"), "pair"),
        (("evaluate", "--weights", "{}/run/policy", "--video", "2"), "--output"),
        (("evaluate", "--weights", "{}/run/policy", "--perception", "images", "--episodes", "1"), "robot_points"),
        (("collect", "tabletop/put_on_plat"), "did you mean tabletop/put_on_plate"),
        (("collect", "metaworld/reach-v3", "--pairs", "[0]"), "Only tabletop tasks"),
        (("collect", TASK, "--camera", "ceiling", "--output", "{}/x.hdf5"), "ceiling"),
        (("collect", TASK, "--output", "{}/x.zip"), ".hdf5"),
        (("generate", "[{}/none]"), "no file or folder"),
        (("generate", "[{}]", "--pairs", "[2]", "--output", "{}/pairs"), "No source demonstrations are of pairs [2]; these are of 0."),
        (("generate", "[{}]", "--num", "3", "--image_size", "[32, 32]", "--points", "64"), "was begun with another recipe"),
        (("train", "[{}/run]"), "no .hdf5 files"),
        (("train", "[{}/plate-0.hdf5]", "--held_out", "3"), "held out"),
        (("train", "[{}/plate-0.hdf5]", "--observed", "image"), "cameras"),
        (("train", "[{}/plate-0.hdf5]", "--observed", "scene", "--output", "{}/scene"), "scene_points"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(*(word.format(folder) for word in words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "Traceback" not in error


def test_a_truncated_file_of_demonstrations_is_named(folder, tmp_path, capsys):
    whole = (folder / "plate-0.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    assert run("train", f"[{tmp_path / 'cut.hdf5'}]", "--output", tmp_path / "run") == 2
    assert "cut.hdf5" in capsys.readouterr().err


def test_image_and_cloud_policies_are_shown_by_default_what_they_were_trained_with(tmp_path, capsys):
    common = ("--pairs", "[0]", "--num", 2, "--output", tmp_path / "plate-source.hdf5")
    trained = ("--size", "tiny", "--steps", 2, "--logger", "none", "--output", tmp_path / "run")
    rolled = ("--weights", tmp_path / "run" / "policy", "--pairs", "[0]", "--episodes", 1, "--max_steps", 2)
    assert run("collect", TASK, *common, "--perception", "images", "--image_size", "[32, 32]") == 0
    assert run("train", f"[{tmp_path}]", *trained, "--observed", "image", "--cameras", "[left]") == 0
    assert run("evaluate", *rolled) == 0 and "0/1  (1 time out)" in capsys.readouterr().out
    for perception, points, size in (("scene", 512, (120, 160)), ("aligned", 128, (120, 160)), ("stereo", 128, (480, 640))):
        eyes = eyes_by_name(perception, size=None, points=None, camera="left", seed=0)
        assert (eyes.points, eyes.size) == (points, size)
    assert eyes_by_name("stereo", size=(8, 8), points=5, camera="left", seed=0) == Eyes("stereo", size=(8, 8), points=5)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Files of a camera, and the true pixels of the objects' middles."""
    folder = tmp_path_factory.mktemp("scene")
    view = View(cameras=("left", "right"), modalities=("images", "depth"), size=(120, 160), renderer="raycast")
    environment = make_environment(TASK, pair=2, view=view)
    observation, _ = environment.reset(seed=3)
    camera = observation["cameras"]["left"]
    for name in ("left", "right"):
        Image.fromarray(observation["images"][name]).save(folder / f"{name}.png")
    depth = observation["depth"]["left"]
    Image.fromarray(np.where(np.isfinite(depth), 1000 * depth, 0).astype(np.uint16)).save(folder / "depth.png")
    np.save(folder / "depth.npy", depth)
    np.savetxt(folder / "pose.txt", camera.camera_to_base)
    middles = np.stack([observation["object_poses"][name][:3, 3] for name in environment.object_names])
    pixels, _ = project_points(torch.from_numpy(middles), torch.from_numpy(camera.intrinsics), torch.from_numpy(camera.base_to_camera))
    clicks = ", ".join(f"{name}: [{u:.1f}, {v:.1f}]" for name, (u, v) in zip(environment.object_names, pixels.tolist(), strict=True))
    k = camera.intrinsics
    intrinsics = f"[{k[0, 0]}, {k[1, 1]}, {k[0, 2]}, {k[1, 2]}]"
    return folder, "{" + clicks + "}", intrinsics, middles


@pytest.mark.parametrize("depth, unit", [("depth.png", "mm"), ("depth.npy", "m")])
def test_perceive_puts_points_where_the_objects_are(scene, tmp_path, capsys, depth, unit):
    folder, clicks, intrinsics, middles = scene
    words = ["perceive", folder / "left.png", "--depth", folder / depth, "--depth_unit", unit, "--intrinsics", intrinsics]
    assert run(*words, "--clicks", clicks, "--camera_to_base", folder / "pose.txt", "-o", tmp_path / "scene.ply") == 0
    cloud = read_ply(tmp_path / "scene.ply")
    for index, middle in enumerate(middles):
        assert np.linalg.norm(np.median(cloud.points[cloud.labels == index], axis=0) - middle) < 0.045
    assert (tmp_path / "scene.png").is_file() and "128 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (("--clicks", "{mug: [10, 10]}"), "either --depth or"),
        (("--depth", "{}/depth.png"), "which objects"),
        (("--depth", "{}/depth.png", "--names", "[mug]"), "where the objects are"),
        (("--depth", "{}/left.png", "--clicks", "{mug: [10, 10]}"), "16-bit or float map"),
        (("--depth", "{}/depth.npy", "--depth_unit", "mm", "--clicks", "{mug: [10, 10]}"), "metres"),
        (("--depth", "{}/depth.png", "--clicks", "{mug: [1000, 10]}"), "1000"),
        (("--right", "{}/right.png", "--clicks", "{mug: [10, 10]}"), "--baseline"),
        (("--depth", "{}/depth.png", "--camera_to_base", "[1, 2, 3]", "--clicks", "{mug: [10, 10]}"), "16 numbers"),
        (("--depth", "{}/depth.png", "--namer", "gemini"), "--instruction"),
        (("--depth", "{}/depth.png", "--namer", "http://localhost:9/v1", "--instruction", "lift the mug"), "--namer_model"),
    ],
)
def test_perceive_says_what_is_missing(scene, tmp_path, capsys, words, message):
    folder, _, intrinsics, _ = scene
    given = [word.replace("{}", str(folder)) for word in words]
    assert run("perceive", folder / "left.png", "--intrinsics", intrinsics, "-o", tmp_path / "x.ply", *given) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x.ply").exists()


def test_options_are_light_and_eyes_refuse_unknown_perception():
    assert TrainOptions(data=[]).size == "official" and EvaluateOptions().weights == "small"
    with pytest.raises(ValueError, match="Unknown perception 'ears'"):
        Eyes("ears")
    assert Eyes("simulator").view.cameras == () and Eyes("stereo").view.cameras == ("left", "right")
