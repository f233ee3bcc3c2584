from collections import Counter

import numpy as np
import pytest
import torch

from visiongraft.methods.point_bridge.dataset import (
    PolicyDataset,
    TaskEpisodes,
    action_targets,
    co_training,
    pad_objects,
    policy_statistics,
    subset,
)
from visiongraft.methods.point_bridge.episodes import Episode, episode_from_demonstration, read_episodes, write_episodes
from visiongraft.methods.point_bridge.language import HashedWords
from visiongraft.methods.point_bridge.model import create_model
from visiongraft.robots.actions import absolute_action
from visiongraft.robots.episodes import Demonstration
from visiongraft.robots.poses import make_pose, rotation_from_vector


def make_episode(steps=7, objects=2, seed=0, points=12, instruction="put it there", images=False):
    rng = np.random.default_rng(seed)
    return Episode(
        instruction=instruction,
        proprioception=rng.normal(size=(steps, 10)).astype(np.float32),
        robot_points=rng.normal(size=(steps, 8, 3)).astype(np.float32),
        object_points=rng.normal(size=(steps, objects, points, 3)).astype(np.float32),
        scene_points=rng.normal(size=(steps, 20, 3)).astype(np.float32),
        images={"left": rng.integers(255, size=(steps, 32, 32, 3), dtype=np.uint8)} if images else None,
    )


def make_data(tasks=None, model=None, **options):
    model = model or create_model("tiny")
    tasks = tasks or [TaskEpisodes(task="a", episodes=[make_episode(seed=s) for s in range(3)], point_noise=0.0)]
    return PolicyDataset(tasks, model, policy_statistics(tasks, model), text_encoder=HashedWords(), **options)


def test_targets_are_the_next_pose_and_command_and_the_last_repeats():
    episode = make_episode()
    targets = action_targets(episode, "pose")
    np.testing.assert_array_equal(targets[:-1], episode.proprioception[1:])
    np.testing.assert_array_equal(targets[-1], targets[-2])
    points = action_targets(episode, "points")
    assert points.shape == (7, 27)
    np.testing.assert_array_equal(points[2, :24].reshape(8, 3), episode.robot_points[3])
    np.testing.assert_array_equal(points[2, 24:], np.repeat(episode.proprioception[3, 9], 3))


@pytest.mark.parametrize("time", [0, 3, 6])
def test_chunks_begin_at_their_step_and_repeat_the_last_action(time):
    model = create_model("tiny", history=3)
    data, episode = make_data(model=model), make_episode(seed=1)
    item = data.window(episode, time, 0.0, np.random.default_rng(0))
    targets = data.statistics["actions"].normalise(action_targets(episode, "pose"))
    for step in range(3):
        seen = max(time - 2 + step, 0)
        for k in range(4):
            np.testing.assert_allclose(item["actions"][step, k], targets[min(seen + k, 6)], rtol=1e-6)
        np.testing.assert_allclose(item["proprioception"][step], data.statistics["proprioception"].normalise(episode.proprioception[seen]))


def test_object_points_are_normalised_by_the_robots_points():
    data, episode = make_data(), make_episode(seed=2)
    item = data.window(episode, 4, 0.0, np.random.default_rng(0))
    robot = np.concatenate([e.robot_points.reshape(-1, 3) for e in data.tasks[0].episodes])
    low, high = robot.min(0), robot.max(0)
    np.testing.assert_allclose(item["object_points"][0], (episode.object_points[4] - low) / (high - low + 1e-5), atol=1e-5)


def test_items_are_functions_of_seed_and_index():
    data, again, other = make_data(points_per_object=5), make_data(points_per_object=5), make_data(points_per_object=5, seed=1)
    torch.manual_seed(5)
    for index in (0, 17, 999):
        first, second = data[index], again[index]
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(data[i]["actions"], other[i]["actions"]) for i in range(4))
    assert len({float(data[i]["actions"].sum()) for i in range(30)}) > 10


def test_noise_falls_on_object_points_of_simulated_tasks_only():
    episode = make_episode(points=400)
    data = make_data([TaskEpisodes(task="a", episodes=[episode])])
    clean = data.window(episode, 3, 0.0, np.random.default_rng(0))
    noisy = data.window(episode, 3, 0.01, np.random.default_rng(0))
    metres = data.statistics["points"].range + 1e-5
    difference = (noisy["object_points"] - clean["object_points"]).numpy() * metres
    assert abs(difference.std() - 0.01) < 5e-4 and abs(difference.mean()) < 1e-3
    assert torch.equal(noisy["robot_points"], clean["robot_points"])
    tasks = co_training([TaskEpisodes(task="sim", episodes=[episode])], [TaskEpisodes(task="real", episodes=[episode])])
    assert [task.point_noise for task in tasks] == [0.01, 0.0]


def test_co_training_draws_by_the_given_shares():
    sims = [TaskEpisodes(task=f"sim{i}", episodes=[make_episode(seed=i, steps=2)]) for i in range(2)]
    reals = [TaskEpisodes(task="real", episodes=[make_episode(seed=9, steps=2)])]
    tasks = co_training(sims, reals)
    data = make_data(tasks)
    drawn = Counter()
    kinds = {
        float(data.statistics["proprioception"].normalise(t.episodes[0].proprioception)[k].sum()): t.task for t in tasks for k in (0, 1)
    }
    for index in range(1500):
        value = float(data[index]["proprioception"].double().sum())
        drawn[kinds[min(kinds, key=lambda known: abs(known - value))]] += 1
    for name, share in (("sim0", 0.4), ("sim1", 0.4), ("real", 0.2)):
        assert abs(drawn[name] / 1500 - share) < 4 * (share * (1 - share) / 1500) ** 0.5, drawn


def test_times_are_uniform_within_an_episode():
    data = make_data([TaskEpisodes(task="a", episodes=[make_episode(steps=4)], point_noise=0.0)])
    times = Counter(round(float(data[i]["proprioception"].sum()), 4) for i in range(800))
    assert len(times) == 4 and all(abs(n / 800 - 0.25) < 0.07 for n in times.values())


def test_subset_takes_the_same_points_at_every_step():
    points = np.arange(2 * 3 * 10 * 3, dtype=np.float32).reshape(2, 3, 10, 3)
    chosen = subset(points, 4, np.random.default_rng(0))
    assert chosen.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(chosen[1] - chosen[0], np.full((3, 4, 3), 90))  # step 1 is step 0 plus 90 in this array
    for k in range(3):
        rows = {tuple(row) for row in points[0, k]}
        assert {tuple(row) for row in chosen[0, k]} <= rows and len({tuple(row) for row in chosen[0, k]}) == 4
    assert subset(points, 99, np.random.default_rng(0)) is points


def test_tasks_of_different_numbers_of_objects_are_padded_and_masked_or_refused():
    tasks = [TaskEpisodes(task="A", episodes=[make_episode(objects=2)]), TaskEpisodes(task="B", episodes=[make_episode(objects=3, seed=1)])]
    data = make_data(tasks)
    masks = {tuple(data[i]["object_mask"].tolist()) for i in range(20)}
    assert masks == {(True, True, False), (True, True, True)}
    batch = torch.utils.data.default_collate([data[i] for i in range(8)])
    assert batch["object_points"].shape == (8, 1, 3, 12, 3) and batch["object_mask"].dtype == torch.bool
    with pytest.raises(ValueError, match="Task A has 2 objects, task B 3: pad or train separately"):
        make_data(tasks, pad_objects=False)
    padded, mask = pad_objects(np.arange(6.0).reshape(1, 2, 1, 3), 3)
    np.testing.assert_array_equal(padded[0, 2], padded[0, 1])
    assert mask.tolist() == [True, True, False]


def test_images_and_scenes_are_what_the_baselines_see():
    tasks = [TaskEpisodes(task="a", episodes=[make_episode(images=True)], point_noise=0.0)]
    episode = tasks[0].episodes[0]
    item = make_data(tasks, create_model("tiny", observed="image"), cameras=["left"]).window(episode, 2, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(item["images"][0, 0].permute(1, 2, 0), episode.images["left"][2] / 255, atol=1e-6)
    assert "object_points" not in item
    shifted = make_data(tasks, create_model("tiny", observed="image"), cameras=["left"], image_shift=3).window(
        episode, 2, 0.0, np.random.default_rng(2)
    )
    assert shifted["images"].shape == item["images"].shape and not torch.equal(shifted["images"], item["images"])
    scene = make_data(tasks, create_model("tiny", observed="scene")).window(episode, 2, 0.0, np.random.default_rng(0))
    assert scene["scene_points"].shape == (1, 20, 3) and "robot_points" not in scene


def test_episodes_come_back_from_a_file(tmp_path):
    episodes = [make_episode(seed=0, images=True), make_episode(seed=1, steps=3, objects=3, instruction="stäck")]
    write_episodes(tmp_path / "episodes.safetensors", episodes)
    back = read_episodes(tmp_path / "episodes.safetensors")
    assert len(back) == 2 and back[1].instruction == back[-1].instruction == "stäck"
    np.testing.assert_array_equal(back[0].images["left"], episodes[0].images["left"])
    for name in ("proprioception", "robot_points", "object_points", "scene_points"):
        np.testing.assert_array_equal(getattr(back[1], name), getattr(episodes[1], name))
    with pytest.raises(IndexError):
        back[2]


def make_demonstration(observations):
    rng = np.random.default_rng(0)
    poses = make_pose(rotation_from_vector(rng.normal(size=(5, 3))), rng.normal(size=(5, 3)))
    actions = np.concatenate([np.zeros((5, 6)), np.array([-1, -1, 1, 1, -1.0])[:, None]], axis=1)
    return Demonstration(actions, np.zeros((5, 2)), observations, poses, poses, {}, {}, "stack", 0)


def test_demonstrations_become_episodes():
    rng = np.random.default_rng(1)
    points = {"robot_points": rng.normal(size=(5, 8, 3)), "object_points": rng.normal(size=(5, 2, 6, 3))}
    demonstration = make_demonstration(points | {"left_image": np.zeros((5, 4, 4, 3), np.uint8)})
    episode = episode_from_demonstration(demonstration, ["left"])
    commands = np.array([-1, -1, -1, 1, 1.0])  # the last command, open at first
    np.testing.assert_allclose(episode.proprioception, absolute_action(demonstration.gripper_poses, commands), atol=1e-6)
    targets = action_targets(episode, "pose")
    np.testing.assert_allclose(targets[:-1, 9], demonstration.actions[:-1, 6])  # the command given at this step
    assert episode.images["left"].shape == (5, 4, 4, 3) and episode.object_points.dtype == np.float32
    with pytest.raises(ValueError, match="no images of 'right', only robot_points, object_points, left_image; record it with that camera"):
        episode_from_demonstration(demonstration, ["right"])


def bad_points():
    points = make_episode().object_points.copy()
    points[0, 0, :5] = np.nan
    return points


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"object_points": bad_points()}, "5 of 168 points of object_points are not finite after lifting; check the depth map"),
        (
            {"robot_points": np.zeros((7, 9, 2), np.float32)},
            r"robot_points of an episode must have the shape \(steps, any, 3\); got \(7, 9, 2\)",
        ),
        ({"proprioception": np.zeros((0, 10), np.float32)}, "needs at least one step"),
        ({"robot_points": np.zeros((6, 8, 3), np.float32)}, "7 steps of proprioception but 6 of robot_points"),
    ],
)
def test_bad_episodes_are_refused(changes, message):
    episode = make_episode()
    values = {name: getattr(episode, name) for name in ("instruction", "proprioception", "robot_points", "object_points")}
    with pytest.raises(ValueError, match=message):
        Episode(**values | changes)


def test_bad_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="The task a has no episodes"):
        TaskEpisodes(task="a", episodes=[])
    with pytest.raises(ValueError, match="weight and point_noise must be 0 or more"):
        TaskEpisodes(task="a", episodes=[make_episode()], weight=-1.0)
    task = TaskEpisodes(task="a", episodes=[make_episode()])
    with pytest.raises(ValueError, match="Co-training needs simulated and real tasks"):
        co_training([task], [])
    with pytest.raises(ValueError, match="at least one task with a positive weight"):
        make_data([TaskEpisodes(task="a", episodes=[make_episode()], weight=0.0)])
    model = create_model("tiny")
    with pytest.raises(ValueError, match="language token; give a text_encoder"):
        PolicyDataset([task], model, policy_statistics([task], model))
    with pytest.raises(ValueError, match="sees 1 cameras; name as many, got none"):
        make_data([task], create_model("tiny", observed="image"))
    with pytest.raises(ValueError, match="no images of 'left', only of no camera"):
        make_data([task], create_model("tiny", observed="image"), cameras=["left"])[0]
    with pytest.raises(ValueError, match="An episode has 3 objects; the first of each task: a has 2"):
        mixed = TaskEpisodes(task="a", episodes=[make_episode(), make_episode(objects=3)])
        [make_data([mixed])[i] for i in range(20)]
    with pytest.raises(ValueError, match="points_per_object must be at least 1"):
        make_data(points_per_object=0)[0]
    bare = TaskEpisodes(task="a", episodes=[Episode(instruction="x", proprioception=make_episode().proprioception)])
    with pytest.raises(ValueError, match="no robot_points; record it with an observer"):
        policy_statistics([bare], model)
    still = make_episode()
    still.proprioception[:, 9] = -1
    with pytest.raises(ValueError, match=r"dimension 9 \(gripper\) have zero range: the data never changes there; pass range_floor"):
        policy_statistics([TaskEpisodes(task="a", episodes=[still])], model)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_episodes(tmp_path / "none")
    with pytest.raises(ValueError, match="There are no episodes to write"):
        write_episodes(tmp_path / "empty.safetensors", [])
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no safetensors file, or is damaged"):
        read_episodes(tmp_path / "bad.safetensors")
