import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import visiongraft.training.trainer as trainer
from visiongraft.methods.point_bridge.baselines import BASELINES
from visiongraft.methods.point_bridge.dataset import PolicyDataset, TaskEpisodes, action_targets, policy_statistics
from visiongraft.methods.point_bridge.episodes import Episode
from visiongraft.methods.point_bridge.language import HashedWords
from visiongraft.methods.point_bridge.model import create_model
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard
from visiongraft.methods.point_bridge.recipe import PointBridgeRecipe
from visiongraft.methods.point_bridge.released import load
from visiongraft.robots.normalisation import MinMax
from visiongraft.robots.poses import rotation_6d, rotation_from_6d, rotation_from_vector, transform_points
from visiongraft.training import TrainerConfig, train

KEY_POINTS = np.array(
    [[0, 0.04, 0], [0, -0.04, 0], [0, 0, -0.08], [0, 0.05, -0.08], [0, -0.05, -0.08], [0, 0, -0.04], [0, 0.05, -0.04], [0, -0.05, -0.04]]
)


def make_episode(seed=0, steps=5, objects=2, instruction="put it there", key_points=8):
    """A gripper on a smooth way, with the key points that belong to its pose."""
    rng = np.random.default_rng(seed)
    start, end, turn = rng.uniform(0.2, 0.6, 3), rng.uniform(0.2, 0.6, 3), rng.normal(size=3)
    along = np.linspace(0, 1, steps)[:, None]
    rotations = rotation_from_vector(along * turn)
    positions = start + along * (end - start)
    gripper = np.where(along > 0.5, 1.0, -1.0)
    keys = np.broadcast_to(KEY_POINTS, (steps, 8, 3)).copy()
    keys[gripper[:, 0] > 0, :2, 1] *= 0.015 / 0.04
    poses = np.zeros((steps, 4, 4))
    poses[:, :3, :3], poses[:, :3, 3], poses[:, 3, 3] = rotations, positions, 1
    return Episode(
        instruction=instruction,
        proprioception=np.concatenate([positions, rotation_6d(rotations), gripper], axis=1).astype(np.float32),
        robot_points=transform_points(poses, keys)[:, :key_points].astype(np.float32),
        object_points=rng.uniform(0.2, 0.6, (1, objects, 6, 3)).repeat(steps, axis=0).astype(np.float32),
        scene_points=rng.uniform(0.2, 0.6, (steps, 20, 3)).astype(np.float32),
        images={"left": rng.integers(255, size=(steps, 32, 32, 3), dtype=np.uint8)},
    )


def observe(episode, step):
    names = ("proprioception", "robot_points", "object_points", "scene_points")
    images = {camera: image[step] for camera, image in episode.images.items()}
    return {"instruction": episode.instruction, "images": images} | {name: getattr(episode, name)[step] for name in names}


def make_policy(seed=0, card=None, **options):
    torch.manual_seed(seed)
    model = create_model("tiny", **options)
    episodes = [make_episode(s, key_points=model.config.num_key_points) for s in range(3)]
    tasks = [TaskEpisodes(task="suite/a", episodes=episodes)]
    card = card or PolicyCard(tasks=("suite/a",), object_counts=(2,), cameras=("left",))
    return PointBridgePolicy(model, policy_statistics(tasks, model, range_floor=0.1), card)


@pytest.mark.parametrize("action_mode", ["pose", "points"])
@pytest.mark.parametrize("observed", ["points", "scene", "image"])
def test_observation_keys_are_all_that_it_needs(observed, action_mode):
    policy = make_policy(observed=observed, action_mode=action_mode, use_language=False)
    full = observe(make_episode(), 0)
    cut = {name: full[name] for name in policy.observation_keys}
    assert np.array_equal(policy.act(cut), policy.act(full, slot=1)) and "instruction" not in cut
    for name in cut:
        with pytest.raises(ValueError, match=name):
            policy.act({other: value for other, value in cut.items() if other != name}, slot=2)


class Windows(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def overfit(folder, steps=200, settings=None, **options):
    """Trains on every window of two episodes, all in each batch: (policy, episodes, losses, recipe)."""
    torch.manual_seed(0)
    model = create_model("tiny", token_dim=64, hidden_size=64, num_layers=1, point_widths=(32, 64), head_feedforward=128, **options)
    tasks = [TaskEpisodes(task="suite/a", episodes=[make_episode(s) for s in range(2)], point_noise=0.0)]
    statistics = policy_statistics(tasks, model, range_floor=0.1)
    data = PolicyDataset(tasks, model, statistics, text_encoder=HashedWords(), cameras=("left",))
    recipe = PointBridgeRecipe(model, data, data, learning_rate=4e-3, schedule="cosine", warmup_steps=10, validation_samples=20)
    rng = np.random.default_rng(0)
    recipe.samples = Windows([data.window(episode, t, 0.0, rng) for episode in tasks[0].episodes for t in range(5)])
    options = {"logger": "none", "progress": False, "log_every": 1, **(settings or {})}
    trained = train(recipe, TrainerConfig(output=folder, steps=steps, batch_size=10, **options))["model"]
    losses = [json.loads(line)["actions"] for line in (folder / "losses.jsonl").read_text().splitlines()]
    card = PolicyCard(tasks=("suite/a",), object_counts=(2,), cameras=("left",))
    return PointBridgePolicy(trained, statistics, card), tasks[0].episodes, losses, recipe


def test_a_tiny_set_is_learnt_by_heart_and_acted_out(tmp_path):
    policy, episodes, losses, recipe = overfit(tmp_path / "run")
    assert losses[0] > 0.05 and np.mean(losses[-10:]) < 2e-3
    assert recipe.validate({"model": policy.model})["actions"] < 2e-3
    for episode in episodes:
        targets = action_targets(episode, "pose")
        for step in (0, 2, 4):
            chunk = policy.act(observe(episode, step))
            expected = targets[np.minimum(step + np.arange(4), 4)]
            assert np.abs(chunk - expected)[:, :3].max() < 0.04 and np.abs(chunk - expected)[:, 3:9].max() < 0.15
            assert (np.sign(chunk[:, 9]) == expected[:, 9]).all()


def test_future_points_are_learnt_and_give_poses_too(tmp_path):
    policy, episodes, losses, _ = overfit(tmp_path / "run", action_mode="points")
    assert np.mean(losses[-10:]) < 4e-3 < losses[0] / 100
    for episode in episodes:
        policy.reset()
        for step in range(5):
            chunk = policy.act(observe(episode, step))
            expected = action_targets(episode, "pose")[min(step, 4)]
            assert np.abs(chunk[0, :3] - expected[:3]).max() < 0.05
            between = rotation_from_6d(chunk[0, 3:9]) @ rotation_from_6d(expected[3:9]).T
            assert np.trace(between) > 1 + 2 * np.cos(0.45)


def test_a_killed_training_gives_the_same_weights(tmp_path, monkeypatch):
    whole, *_ = overfit(tmp_path / "whole", steps=6)
    step, calls = trainer._step, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        overfit(tmp_path / "killed", steps=6, settings={"checkpoint_every": 2})
    monkeypatch.setattr(trainer, "_step", step)
    again, *_ = overfit(tmp_path / "killed", steps=6, settings={"checkpoint_every": 2})
    for (name, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("key_points", [8, 5])
def test_exact_points_give_back_exact_poses(key_points):
    policy = make_policy(action_mode="points", num_key_points=key_points)
    episode = make_episode(4, steps=6, key_points=key_points)
    policy.slots.push(0, policy._seen(observe(episode, 0)))
    targets = action_targets(episode, "points").astype(np.float64)
    made = policy._from_points(targets[None], [0])[0]
    np.testing.assert_allclose(made, action_targets(episode, "pose"), atol=2e-6)


@pytest.mark.parametrize(
    "options", [{}, {"head": "mixture"}, {"head": "diffusion"}, {"observed": "image"}, {"observed": "scene"}, {"history": 3}]
)
def test_a_policy_comes_back_from_its_folder_and_acts_the_same(options, tmp_path):
    policy, episode = make_policy(**options), make_episode(7)
    folder = policy.save_pretrained(tmp_path / "policy")
    assert sorted(path.name for path in folder.iterdir()) == ["model", "policy.json", "statistics.json"]
    again = load(folder, tasks=["suite/a"])
    assert again.card == policy.card and again.convention == "absolute"
    for step in range(4):
        np.testing.assert_allclose(again.act(observe(episode, step)), policy.act(observe(episode, step)), rtol=1e-4, atol=1e-5)
    assert policy.save_pretrained(folder) == folder  # an earlier policy is replaced


def test_saved_in_half_precision_and_moved(tmp_path):
    policy, episode = make_policy(), make_episode(7)
    folder = policy.save_pretrained(tmp_path / "policy")
    half = PointBridgePolicy.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    assert half.model.dtype == torch.bfloat16
    np.testing.assert_allclose(half.act(observe(episode, 0)), policy.act(observe(episode, 0)), atol=0.05)


@pytest.mark.parametrize("options", [{}, {"head": "diffusion"}, {"observed": "image"}, {"tokens": "per_object"}])
def test_acting_in_a_batch_is_acting_alone(options):
    policy, alone = make_policy(history=2, **options), make_policy(history=2, **options)
    episodes = [make_episode(seed) for seed in (3, 4)]
    for step in range(3):
        together = policy.act_batch([observe(episode, step) for episode in episodes], [5, 9])
        for slot, episode, chunk in zip((5, 9), episodes, together, strict=True):
            np.testing.assert_allclose(alone.act(observe(episode, step), slot), chunk, rtol=1e-5, atol=1e-5)


def test_a_slot_remembers_until_it_is_reset():
    policy, episode = make_policy(history=3), make_episode(3)
    fresh = policy.act(observe(episode, 2))
    policy.reset()
    for step in range(3):
        after = policy.act(observe(episode, step))
    assert np.abs(after - fresh).max() > 1e-6
    policy.reset()
    np.testing.assert_array_equal(policy.act(observe(episode, 2)), fresh)


def test_the_policys_window_is_the_data_sets(tmp_path):
    policy, episode = make_policy(history=3), make_episode(1)
    tasks = [TaskEpisodes(task="suite/a", episodes=[episode], point_noise=0.0)]
    data = PolicyDataset(tasks, policy.model, policy.statistics, text_encoder=HashedWords())
    for step in range(4):
        chunk = policy.act(observe(episode, step))
    item = data.window(episode, 3, 0.0, np.random.default_rng(0))
    with torch.no_grad():
        expected = policy.model({name: value[None] for name, value in item.items()})[0, -1]
    np.testing.assert_allclose(chunk, policy.statistics["actions"].denormalise(expected.double().numpy()), atol=1e-6)


def test_tasks_of_other_sizes_are_padded_as_in_training():
    card = PolicyCard(tasks=("a", "b"), object_counts=(2, 3))
    for tokens in ("shared", "per_object"):
        policy = make_policy(card=card, tokens=tokens)
        two, three = observe(make_episode(3, objects=2), 0), observe(make_episode(3, objects=3), 0)
        together = policy.act_batch([two, three], [0, 1])
        np.testing.assert_allclose(policy.act(two, 2), together[0], atol=2e-6)


def spoilt(**changes):
    return {name: value for name, value in (observe(make_episode(3), 0) | changes).items() if value is not None}


def with_nan():
    points = make_episode(3).object_points[0].copy()
    points[1, :3, 0] = np.nan
    return points


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, {"object_points": None, "robot_points": None}, "needs robot_points, object_points, and the observation has instruction"),
        ({}, {"object_points": make_episode(3, objects=1).object_points[0]}, "trained with 2 objects; the observation has 1"),
        ({}, {"object_points": with_nan()}, "3 of 12 points of object_points are not finite after lifting"),
        (
            {},
            {"object_points": np.zeros((2, 6, 2), np.float32)},
            r"object_points .* must have the shape \(objects, points, 3\); got \(2, 6, 2\)",
        ),
        ({}, {"object_points": np.zeros((2, 0, 3), np.float32)}, "object_points of an observation must have the shape"),
        ({}, {"proprioception": np.zeros(7, np.float32)}, r"proprioception .* must have the shape \(10,\); got \(7,\)"),
        ({"observed": "image"}, {"images": {"right": np.zeros((32, 32, 3), np.uint8)}}, "sees images of left; the observation has right"),
        ({"observed": "image"}, {"images": {"left": np.zeros((32, 32, 3), np.float32)}}, r"must be \(height, width, 3\) uint8"),
        ({"observed": "image"}, {"images": {"left": np.zeros((16, 16, 3), np.uint8)}}, "sees 1 cameras of 32x32 pixels; got 1 of 16x16"),
        ({"observed": "scene", "action_mode": "points"}, {"robot_points": None}, "predicts points needs robot_points and proprioception"),
        ({"action_mode": "points", "num_key_points": 5}, {}, "predicts 5 points of the robot; the observation has 8"),
    ],
)
def test_bad_observations_are_refused(options, changes, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**options).act(spoilt(**changes))


def test_bad_batches_are_refused():
    policy, observation = make_policy(), observe(make_episode(3), 0)
    with pytest.raises(ValueError, match=r"one slot for each observation, none twice; got 2 observations and slots \[0, 0\]"):
        policy.act_batch([observation, observation], [0, 0])
    fewer = observation | {"object_points": observation["object_points"][:, :4]}
    with pytest.raises(ValueError, match="object_points of one batch must have one shape"):
        policy.act_batch([observation, fewer], [1, 2])
    with pytest.raises(ValueError, match="call reset when an episode begins"):
        policy.act(fewer, 1)


def test_a_policy_of_other_tasks_is_refused(tmp_path):
    folder = make_policy().save_pretrained(tmp_path / "policy")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (folder, *folder.rglob("*")))  # a server's user reads it too
    with pytest.raises(ValueError, match=r"trained on suite/a, not on suite/b; choose one of its tasks, or train it on these"):
        load(folder, tasks=["suite/a", "suite/b"])


def test_damaged_folders_are_refused(tmp_path):
    folder = make_policy().save_pretrained(tmp_path / "policy")

    def damaged(name: str, change) -> Path:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    weights = "model/diffusion_pytorch_model.safetensors"
    for name, change, message in (
        ("cut", lambda f: (f / weights).write_bytes((f / weights).read_bytes()[:100]), "is damaged"),
        ("lost", lambda f: (f / weights).unlink(), "is damaged"),
        ("nonsense", lambda f: (f / "statistics.json").write_text("{"), "statistics.json is damaged or missing"),
        ("keys", lambda f: (f / "statistics.json").write_text('{"points": {}}'), "keys minimum, maximum and range_floor"),
        ("fewer", lambda f: (f / "statistics.json").write_text("{}"), "needs statistics of 10 dimensions for proprioception; got none"),
        ("format", lambda f: (f / "policy.json").write_text('{"format": "x"}'), "of another format; this release reads"),
        ("card", lambda f: (f / "policy.json").write_text('{"format": "point_bridge-policy-1", "x": 1}'), "policy.json is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            load(damaged(name, change))
    with pytest.raises(FileNotFoundError, match="holds no policy"):
        load(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="exists and holds no policy; choose a new folder"):
        make_policy().save_pretrained(tmp_path / "full")


def test_statistics_of_another_action_mode_are_refused():
    policy = make_policy()
    statistics = policy.statistics | {"actions": MinMax(np.zeros(27), np.ones(27))}
    with pytest.raises(ValueError, match="needs statistics of 10 dimensions for actions; got 27"):
        PointBridgePolicy(policy.model, statistics)


def test_a_recipe_needs_validation_samples():
    with pytest.raises(ValueError, match="validation_samples must be at least 1"):
        policy = make_policy()
        tasks = [TaskEpisodes(task="a", episodes=[make_episode()])]
        data = PolicyDataset(tasks, policy.model, policy.statistics, text_encoder=HashedWords())
        PointBridgeRecipe(policy.model, data, validation_samples=0)


def test_baselines_act_through_the_same_policy():
    for options in BASELINES.values():
        chunk = make_policy(**options).act(observe(make_episode(3), 0))
        assert chunk.shape == (4, 10) and np.isfinite(chunk).all()
