"""The whole way on a real simulator: expert, evaluation, worker process, policy server, video."""

import numpy as np
import pytest

from visiongraft.robots.actions import absolute_action, target_of_delta
from visiongraft.robots.experts import scripted_expert
from visiongraft.robots.hosting import InProcessTransport, policy_backend
from visiongraft.robots.policy import Policy
from visiongraft.robots.rollout_episode import Recording
from visiongraft.robots.rollouts import EvaluationTask, evaluate


class Whisper:
    """An observer that tells what the expert would do; experts need the environment, which policies do not see."""

    def __init__(self, environment):
        self.environment = environment
        self.expert = scripted_expert(environment)

    def reset(self, observation):
        self.expert.reset()

    def __call__(self, observation):
        action = self.expert.act(self.environment)
        target = target_of_delta(action, observation["gripper_pose"], self.environment.scale)
        return observation | {"advice": absolute_action(target[None], action[6:])}


class Obedient(Policy):
    """Does what is whispered."""

    convention = "absolute"
    fingerprint = "obedient"

    def act_batch(self, observations, slots):
        return np.stack([observation["advice"] for observation in observations])


@pytest.fixture(scope="module")
def tasks():
    return ["tabletop/put_on_plate", EvaluationTask("tabletop/stack", {"pair": 1})]


@pytest.fixture(scope="module")
def local(tasks):
    return evaluate(tasks, Obedient(), episodes=4, execute=1, observer_factory=Whisper, slots=3, hold=10, progress=False)


def test_expert_as_a_policy_succeeds(local):
    assert local.success() == 1, str(local)
    assert all(10 < episode.steps < 120 for episode in local.episodes)


def test_worker_process_and_wire_change_nothing(local, tasks):
    from visiongraft.robots.client import RemotePolicy

    remote = RemotePolicy(InProcessTransport(policy_backend(Obedient(), observation_keys=["advice"])))
    there = evaluate(tasks, remote, episodes=4, execute=1, observer_factory=Whisper, slots=2, workers=1, hold=10, progress=False)
    assert there == local


def test_overview_is_filmed(tmp_path):
    recording = Recording(first=1, size=(32, 48), stride=20)
    evaluate(
        ["tabletop/put_on_plate"],
        Obedient(),
        episodes=1,
        execute=1,
        observer_factory=Whisper,
        output=tmp_path,
        video=recording,
        progress=False,
    )
    (video,) = (tmp_path / "videos").iterdir()
    assert video.name == "tabletop_put_on_plate-0000-success.mp4"
