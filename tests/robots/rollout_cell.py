"""A robot cell without physics, for roll-outs: the gripper goes where it is told, and the task is to bring it to the goal."""

import os
import time

import numpy as np

from visiongraft.robots.actions import ActionScale, absolute_action, target_of_delta
from visiongraft.robots.environment import RobotEnvironment, View
from visiongraft.robots.policy import Policy
from visiongraft.robots.poses import make_pose, rotation_from_vector

NOTHING = View()


class PointCell(RobotEnvironment):
    """Goal drawn from the seed; option ``far`` puts it out of reach within the episode."""

    def __init__(self, task="fake/reach", view=NOTHING, far=False, crash_at=None):
        self.task, self.view, self.far, self.crash_at = task, view, far, crash_at
        self.instruction = f"reach the goal of {task}"
        self.object_names, self.object_bodies = ("goal",), {"goal": ("goal",)}
        self.scale, self.control_frequency, self.max_steps = ActionScale(0.05, 0.5), 20.0, 30
        self.closed = False

    def _reset(self, seed, options):
        rng = np.random.default_rng(seed)
        self._pose = make_pose(rotation_from_vector(rng.normal(0, 0.2, 3)), np.zeros(3))
        self._goal = np.array([2.0 if self.far else 0.3, *rng.uniform(-0.2, 0.2, 2)])
        self._command, self.steps, self.actions = -1.0, 0, []

    def _step(self, action):
        self.steps += 1
        if self.steps == self.crash_at:
            os._exit(7)
        self.actions.append(action)
        self._pose, self._command = target_of_delta(action, self._pose, self.scale), float(action[6])

    def gripper_pose(self):
        return self._pose

    @property
    def gripper_command(self):
        return self._command

    def base_to_world(self):
        return np.eye(4)

    def object_pose(self, name):
        return make_pose(np.eye(3), self._goal)

    def is_success(self):
        return bool(np.linalg.norm(self._pose[:3, 3] - self._goal) < 0.02)

    def subtask_signals(self):
        return {"reach": self.is_success()}

    def get_state(self):
        return self._pose.ravel().copy()

    def set_state(self, state):
        self._pose = state.reshape(4, 4).copy()

    def camera(self, name, size):
        raise ValueError(f"No camera {name!r}.")

    def camera_names(self):
        return ("side", "overview")

    def render_view(self, camera, modalities, size):
        picture = np.zeros((*size, 3), np.uint8)
        picture[:, : min(size[1], 4 * self.steps)] = 255
        return {"images": picture}

    def close(self):
        self.closed = True


def make_cell(task, *, view=NOTHING, **options):
    return PointCell(task, view, **options)


class Reacher(Policy):
    """Absolute targets on the straight way to the goal; remembers how many steps each slot has seen."""

    convention = "absolute"
    fingerprint = "reacher"

    def __init__(self, chunk=4, speed=0.04):
        self.chunk, self.speed = chunk, speed
        self.seen, self.batches = {}, []

    def reset(self, slot=0):
        self.seen[slot] = 0

    def act_batch(self, observations, slots):
        self.batches.append(list(slots))
        for slot in slots:
            self.seen[slot] += 1
        return np.stack([self.plan(observation) for observation in observations])

    def plan(self, observation):
        pose, goal = observation["gripper_pose"], observation["object_poses"]["goal"][:3, 3]
        way = goal - pose[:3, 3]
        length = np.linalg.norm(way)
        reach = np.minimum(self.speed * np.arange(1, self.chunk + 1), length)
        positions = pose[:3, 3] + reach[:, None] * way / max(length, 1e-9)
        poses = make_pose(np.broadcast_to(pose[:3, :3], (self.chunk, 3, 3)), positions)
        return absolute_action(poses, np.ones(self.chunk))


class Sleepy(Reacher):
    """Answers late."""

    fingerprint = "sleepy"

    def __init__(self, seconds=0.01):
        super().__init__()
        self.seconds = seconds

    def act_batch(self, observations, slots):
        time.sleep(self.seconds)
        return super().act_batch(observations, slots)


class CountingObserver:
    """Adds what it was shown; the goal's points grow stale after some frames."""

    def __init__(self, environment, stale_after=None):
        self.environment, self.stale_after = environment, stale_after

    def reset(self, observation):
        self.frames = 0

    def __call__(self, observation):
        self.frames += 1
        stale = ("goal",) if self.stale_after is not None and self.frames > self.stale_after else ()
        return observation | {"frames": self.frames, "stale": stale, "counted_by": self.environment.task}


class BlindObserver(CountingObserver):
    def __call__(self, observation):
        raise ValueError("17 of 1000 points are not finite")
