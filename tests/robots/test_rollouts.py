import json
from functools import partial

import numpy as np
import pytest
from rollout_cell import BlindObserver, CountingObserver, PointCell, Reacher, make_cell

from visiongraft.robots.actions import absolute_action
from visiongraft.robots.results import EvaluationResult
from visiongraft.robots.rollout_episode import EpisodeRules, EpisodeSlot, EpisodeSpec, Recording, View, Waiting
from visiongraft.robots.rollouts import EvaluationTask, episode_seed, evaluate

run = partial(evaluate, environment_factory=make_cell, progress=False)
TASKS = ["fake/reach", EvaluationTask("fake/reach", {"far": True}), EvaluationTask("fake/other", label="other")]


def rows(folder):
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


class Broken(Reacher):
    """NaN in the episodes whose goal is to the left, from a step on."""

    def __init__(self, step, side=0.0):
        super().__init__()
        self.step, self.side = step, side

    def act_batch(self, observations, slots):
        chunks = super().act_batch(observations, slots)
        for chunk, observation, slot in zip(chunks, observations, slots, strict=True):
            if self.seen[slot] > self.step and observation["object_poses"]["goal"][1, 3] < self.side:
                chunk[1] = np.nan
        return chunks


def test_success_and_time_out_are_told_apart():
    result = run(TASKS, Reacher(), episodes=3)
    by_task = result.by_task()
    assert list(by_task) == ["fake/reach", "fake/reach far=True", "other"]
    assert by_task["fake/reach"].success() == 1 and by_task["fake/reach far=True"].reasons() == {"time out": 3}
    assert all(episode.steps == 30 for episode in by_task["fake/reach far=True"].episodes)
    # at most 0.4 m at 0.04 m a step, and the ensemble lags
    assert all(7 <= episode.steps <= 25 for episode in by_task["fake/reach"].episodes)


@pytest.mark.parametrize("execute", ["ensemble", 3])
def test_results_do_not_depend_on_slots(execute):
    one, many = (run(TASKS, Reacher(), episodes=5, execute=execute, slots=slots) for slots in (1, 7))
    assert one == many
    assert len({episode.steps for episode in one.episodes}) > 1


def test_seeds_depend_on_seed_task_and_index_alone():
    seeds = {episode_seed(seed, task, index) for seed in range(3) for task in ("a/b", "a/c") for index in range(50)}
    assert len(seeds) == 300 and all(0 <= seed < 2**31 for seed in seeds)
    assert episode_seed(0, "tabletop/stack", 1) == 1171897753  # stored evaluations rely on it
    result = run(TASKS[:2], Reacher(), episodes=2)
    near, far = result.by_task().values()
    assert [e.seed for e in near.episodes] == [e.seed for e in far.episodes]  # the same starts under other options


def test_policy_is_asked_in_batches_of_one_task():
    policy = Reacher()
    run(["fake/reach", "fake/other"], policy, episodes=4, slots=8)
    assert sorted(policy.batches[:2]) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_chunks_that_run_for_k_steps_ask_the_policy_k_times_less():
    policy = Reacher()
    result = run(["fake/reach"], policy, episodes=4, execute=4, slots=1)
    assert sum(map(len, policy.batches)) == sum(-(-episode.steps // 4) for episode in result.episodes)


def test_observer_sees_every_frame_even_when_the_policy_is_not_asked():
    frames = []

    class Watching(Reacher):
        def plan(self, observation):
            frames.append(observation["frames"])
            return super().plan(observation)

    run(["fake/reach"], Watching(), episodes=1, execute=3, observer_factory=CountingObserver)
    assert frames[:3] == [1, 4, 7]


def test_hold_keeps_the_pose_with_an_open_gripper_and_costs_no_steps():
    made = []

    def make(task, **options):
        made.append(make_cell(task, **options))
        return made[-1]

    held = run(["fake/reach"], Reacher(), episodes=1, hold=10, environment_factory=make)
    actions = np.array(made[0].actions)
    np.testing.assert_allclose(actions[:10], [[0, 0, 0, 0, 0, 0, -1]] * 10, atol=1e-12)
    assert np.abs(actions[10:, :3]).max() > 0.1 and (actions[10:, 6] == 1).all()
    assert held.episodes[0].steps == len(actions) - 10
    assert held.episodes[0].steps == run(["fake/reach"], Reacher(), episodes=1).episodes[0].steps
    assert made[0].closed


def test_nan_action_fails_its_episode_only():
    result = run(["fake/reach"], Broken(step=3), episodes=12, slots=5)
    failed = [episode for episode in result.episodes if not episode.success]
    assert 0 < len(failed) < 12
    assert {(e.reason, e.steps) for e in failed} == {("policy error", 3)}
    assert "not finite; the policy" in failed[0].detail
    assert result == run(["fake/reach"], Broken(step=3), episodes=12, slots=1)


def test_error_of_the_first_step_in_some_episodes_is_counted():
    result = run(["fake/reach"], Broken(step=0), episodes=12, slots=4)
    assert result.reasons().keys() == {"success", "policy error"}


def test_error_that_all_episodes_share_at_the_first_step_is_raised_and_not_kept(tmp_path):
    with pytest.raises(ValueError, match="numbers that are not finite; the policy"):
        run(["fake/reach"], Broken(step=0, side=9), episodes=20, slots=3, output=tmp_path)
    assert not (tmp_path / "episodes.jsonl").exists()
    assert run(["fake/reach"], Reacher(), episodes=2, output=tmp_path).success() == 1


def test_error_that_all_episodes_share_later_is_counted():
    assert run(["fake/reach"], Broken(step=2, side=9), episodes=3).reasons() == {"policy error": 3}


def test_exception_in_a_batch_fails_only_the_episode_it_belongs_to():
    class Raising(Reacher):
        def plan(self, observation):
            if observation["object_poses"]["goal"][1, 3] < 0:
                raise KeyError("left")
            return super().plan(observation)

    result = run(["fake/reach"], Raising(), episodes=12)
    failed = [episode for episode in result.episodes if not episode.success]
    assert 0 < len(failed) < 12 and failed[0].detail == "KeyError: 'left'"


def test_policy_that_fails_on_batches_only_is_warned_about():
    class Single(Reacher):
        def act_batch(self, observations, slots):
            if len(slots) > 1:
                raise ValueError("one at a time")
            return super().act_batch(observations, slots)

    with pytest.warns(UserWarning, match="fails on a batch of 4 observations .one at a time. and not on each alone"):
        assert run(["fake/reach"], Single(), episodes=4).success() == 1


def test_rotation_that_degenerates_in_the_ensemble_is_a_policy_error():
    class Flipping(Reacher):
        def plan(self, observation):
            chunk = super().plan(observation)
            chunk[:, 3:9] = [1, 0, 0, 1, 0, 0]
            return chunk

    result = run([TASKS[1]], Flipping(), episodes=2)
    assert result.reasons() == {"policy error": 2} and "6D rotation" in result.episodes[0].detail


def test_gone_policy_server_ends_the_evaluation_and_keeps_what_is_done(tmp_path):
    class Vanishing(Reacher):
        def act_batch(self, observations, slots):
            if len(self.batches) == 30:
                raise ConnectionError("the server is gone")
            return super().act_batch(observations, slots)

    with pytest.raises(ConnectionError, match="the server is gone"):
        run(["fake/reach"], Vanishing(), episodes=6, slots=1, output=tmp_path)
    assert 0 < len(rows(tmp_path)) < 6
    assert run(["fake/reach"], Reacher(), episodes=6, output=tmp_path) == run(["fake/reach"], Reacher(), episodes=6)


def test_stale_points_end_an_episode_after_k_frames_in_a_row():
    observer = partial(CountingObserver, stale_after=4)
    result = run(["fake/reach"], Reacher(), episodes=2, observer_factory=observer, max_stale=3)
    assert {(e.reason, e.steps) for e in result.episodes} == {("stale points", 6)}  # frames 5, 6, 7 are stale
    assert "points of goal are 3 frames old" in result.episodes[0].detail
    assert run(["fake/reach"], Reacher(), episodes=2, observer_factory=observer).success() == 1


def test_observer_that_fails_everywhere_is_raised():
    with pytest.raises(ValueError, match="17 of 1000 points"):
        run(["fake/reach"], Reacher(), episodes=3, observer_factory=BlindObserver)


def test_finished_episodes_are_not_repeated(tmp_path):
    class Interrupted(Reacher):
        def reset(self, slot=0):
            if len(self.batches) > 60:
                raise KeyboardInterrupt
            super().reset(slot)

    with pytest.raises(KeyboardInterrupt):
        run(TASKS, Interrupted(), episodes=4, slots=2, output=tmp_path)
    kept = rows(tmp_path)
    assert 0 < len(kept) < 12

    policy = Reacher()
    result = run(TASKS, policy, episodes=4, slots=5, output=tmp_path)

    assert result == run(TASKS, Reacher(), episodes=4)
    assert rows(tmp_path)[: len(kept)] == kept and len(rows(tmp_path)) == 12
    assert EvaluationResult.from_dict(json.loads((tmp_path / "result.json").read_text())) == result
    policy.batches.clear()
    assert run(TASKS, policy, episodes=4, output=tmp_path) == result and not policy.batches
    assert len(run(TASKS[:1], policy, episodes=6, output=tmp_path).episodes) == 6


def test_line_that_a_kill_cut_off_is_run_again(tmp_path):
    result = run(["fake/reach"], Reacher(), episodes=3, output=tmp_path)
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="unfinished"):
        assert run(["fake/reach"], Reacher(), episodes=3, output=tmp_path) == result
    assert len(rows(tmp_path)) == 3


def test_rows_that_are_no_episodes_are_told(tmp_path):
    run(["fake/reach"], Reacher(), episodes=1, output=tmp_path)
    path = tmp_path / "episodes.jsonl"
    path.write_text(json.dumps({name: value for name, value in rows(tmp_path)[0].items() if name != "video"}) + "\n")
    with pytest.raises(ValueError, match=r"holds a row that is no episode \('video'\); choose another folder"):
        run(["fake/reach"], Reacher(), episodes=1, output=tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"execute": 2}, "execute was 'ensemble' and is 2"),
        ({"hold": 1}, "hold was 0 and is 1"),
        ({"identity": {"policy": "another"}}, "identity was {'policy': 'reacher'} and is {'policy': 'another'}"),
        ({"observer_factory": CountingObserver}, "observer was None and is '.*CountingObserver'"),
        ({"observer_factory": partial(CountingObserver, stale_after=99)}, r"CountingObserver\(stale_after=99\)'"),
        ({"tasks": [EvaluationTask("fake/reach", {"far": True}, "fake/reach")]}, "with other options"),
    ],
)
def test_folder_of_another_evaluation_is_refused(tmp_path, changed, message):
    run(["fake/reach"], Reacher(), episodes=1, output=tmp_path)
    tasks = changed.pop("tasks", ["fake/reach"])
    with pytest.raises(ValueError, match=message):
        run(tasks, Reacher(), episodes=1, output=tmp_path, **changed)


def test_environment_that_cannot_be_made_is_raised_as_it_is():
    with pytest.raises(TypeError, match="colour"):
        run([EvaluationTask("fake/reach", {"colour": 1})], Reacher(), episodes=2)


def test_delta_policies_act_as_they_say():
    class Delta(Reacher):
        convention = "delta"

        def plan(self, observation):
            way = observation["object_poses"]["goal"][:3, 3] - observation["gripper_pose"][:3, 3]
            return np.concatenate([np.clip(way / 0.05, -1, 1), np.zeros(3), [1]])[None]

    assert run(["fake/reach"], Delta(), episodes=3, execute=1).success() == 1


def test_slot_reuses_its_environment_while_the_task_stays():
    made = []

    def make(task, **options):
        made.append(task)
        return PointCell(task)

    slot = EpisodeSlot(EpisodeRules(convention="absolute"), make, None, View(), Recording())
    for task in ("a/a", "a/a", "b/b"):
        event = slot.start(EpisodeSpec(label=task, task=task, options={}, index=0, seed=1))
        assert isinstance(event, Waiting)
        assert isinstance(slot.advance(absolute_action(np.eye(4)[None], np.ones(1))), Waiting)
    assert made == ["a/a", "b/b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "fake/reach"}, r"write \['fake/reach'\]"),
        ({"tasks": []}, "at least one task and one episode; got 0"),
        ({"episodes": 0}, "one episode; got 1 and 0"),
        ({"tasks": ["a/b", "a/b"]}, "'a/b' is given twice"),
        ({"slots": 0}, "slots must be at least 1"),
        ({"execute": 0}, "execute must be at least 1 action"),
        ({"hold": -1}, "hold must be 0 or more steps"),
        ({"max_steps": 0}, "max_steps must be at least 1, or None"),
        ({"max_stale": 0}, "max_stale must be at least 1, or None"),
        ({"video": Recording()}, "Videos are written to the output folder"),
        ({"execute": 5}, "predicts 4 actions at a time, and 5 of them were to be run"),
        ({"workers": 1, "environment_factory": lambda task, **options: None}, "by name, and one cannot be"),
    ],
)
def test_bad_input_is_told(arguments, message):
    arguments = {"tasks": ["fake/reach"], **arguments}
    with pytest.raises(ValueError, match=message):
        run(arguments.pop("tasks"), Reacher(), **arguments)


def test_policy_that_does_not_say_which_it_is_gets_no_folder(tmp_path):
    policy = Reacher()
    policy.fingerprint = None
    with pytest.raises(ValueError, match="pass identity"):
        run(["fake/reach"], policy, output=tmp_path)


def test_policy_of_an_unknown_convention_is_refused():
    policy = Reacher()
    policy.convention = "joints"
    with pytest.raises(ValueError, match="convention is 'joints'; there are delta, absolute"):
        run(["fake/reach"], policy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Recording(size=(33, 32)), "even height and width"),
        (lambda: Recording(first=0), "at least 1"),
        (lambda: EpisodeRules(convention="delta", execute=True), "execute must be 'ensemble' or a number"),
    ],
)
def test_bad_rules_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
