"""One episode under a policy, from its start to its reason of end; the policy itself lives elsewhere, so that it can see many at once.

An :class:`EpisodeSlot` runs its simulator until the policy has to be asked, and hands out the observation; the answer takes it on.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from visiongraft.robots.actions import delta_to_target, to_delta
from visiongraft.robots.ensembling import ChunkQueue, TemporalEnsemble
from visiongraft.robots.environment import RobotEnvironment, View
from visiongraft.robots.policy import Observation
from visiongraft.robots.results import EpisodeResult, Reason

Execution = Literal["ensemble"] | int
ObserverFactory = Callable[[RobotEnvironment], Any]
EnvironmentFactory = Callable[..., RobotEnvironment]


@dataclass(frozen=True, kw_only=True)
class EpisodeRules:
    """What an episode is, besides its task.

    Args:
        convention: of the policy's actions.
        execute: ``ensemble`` asks the policy at every step and averages; a number runs that many actions of every chunk.
        decay: of the temporal ensemble.
        hold: steps at first in which the gripper, open, holds its pose; they come on top of the episode's steps. Point Bridge: 10.
        max_steps: steps under the policy; default the environment's.
        max_stale: frames in a row with old points of an object at which the episode stops; default never.

    Raises:
        ValueError: numbers that cannot be.
    """

    convention: str
    execute: Execution = "ensemble"
    decay: float = 0.005
    hold: int = 0
    max_steps: int | None = None
    max_stale: int | None = None

    def __post_init__(self) -> None:
        self.executor()
        if self.hold < 0:
            raise ValueError(f"hold must be 0 or more steps; got {self.hold}.")
        for name in ("max_steps", "max_stale"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None; got {value}.")

    def executor(self) -> TemporalEnsemble | ChunkQueue:
        """A fresh way from chunks to actions."""
        if self.execute == "ensemble":
            return TemporalEnsemble(self.decay)
        if isinstance(self.execute, bool) or not isinstance(self.execute, int):
            raise ValueError(f"execute must be 'ensemble' or a number of actions; got {self.execute!r}.")
        return ChunkQueue(self.execute)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Videos of episodes.

    Args:
        first: successes and failures that are kept of every task, each the first to end.
        camera: name; default ``overview`` where there is one, else the environment's first.
        size: height and width in pixels, both even.
        stride: control steps from frame to frame.

    Raises:
        ValueError: numbers that cannot be.
    """

    first: int = 3
    camera: str | None = None
    size: tuple[int, int] = (240, 320)
    stride: int = 1

    def __post_init__(self) -> None:
        if self.first < 1 or self.stride < 1:
            raise ValueError(f"first and stride of a recording must be at least 1; got {self.first} and {self.stride}.")
        if any(side < 16 or side % 2 for side in self.size):
            raise ValueError(f"size of a recording must be an even height and width of at least 16 pixels; got {self.size}.")


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """One episode to run; fields as in :class:`visiongraft.robots.results.EpisodeResult`.

    Args:
        video: file without suffix to record to; ``None`` records nothing.
    """

    label: str
    task: str
    options: dict[str, Any]
    index: int
    seed: int
    video: Path | None = None


@dataclass(frozen=True)
class Waiting:
    """An episode that waits for a chunk of actions."""

    observation: Observation


@dataclass(frozen=True)
class Finished:
    """An episode that has ended. ``error`` is what ended it, ``video`` the file that was recorded."""

    result: EpisodeResult
    error: Exception | None = None
    video: Path | None = None


class EpisodeSlot:
    """Place for one episode after the other; the environment of the last one is used again where it fits.

    Args:
        rules: what an episode is.
        environment_factory: called with the task's name, ``view`` and the options.
        observer_factory: makes the observer of an environment; ``None`` leaves observations as they are.
        view: what the environment renders.
        recording: how videos look.
    """

    def __init__(
        self,
        rules: EpisodeRules,
        environment_factory: EnvironmentFactory,
        observer_factory: ObserverFactory | None,
        view: View,
        recording: Recording,
    ) -> None:
        self._rules, self._view, self._recording = rules, view, recording
        self._environment_factory, self._observer_factory = environment_factory, observer_factory
        self._kind: tuple[str, dict[str, Any]] | None = None
        self._environment: RobotEnvironment | None = None
        self._observer: Any = None
        self._video: Any = None

    def start(self, spec: EpisodeSpec) -> Waiting | Finished:
        """Begins an episode and runs it to the first question to the policy.

        Raises:
            Exception: what making or resetting the environment raises; what the observer raises ends the episode only.
        """
        self._spec, self._steps, self._stale = spec, 0, Counter[str]()
        environment = self._environment_for(spec)
        observation, _ = environment.reset(seed=spec.seed)
        self._executor = self._rules.executor()
        if spec.video is not None:
            self._start_video(spec.video)
        observation = self._hold(observation)
        try:
            if self._observer is not None:
                self._observer.reset(observation)
        except Exception as error:
            return self._finish("perception error", error)
        return self._look(observation)

    def advance(self, chunk: Shaped[np.ndarray, "length size"]) -> Waiting | Finished:
        """Goes on with the policy's answer."""
        assert self._environment is not None
        answer: Shaped[np.ndarray, "length size"] | None = chunk
        while True:
            try:
                action = self._executor.step(answer)
                pose = self._environment.gripper_pose()
                delta = to_delta(action, self._rules.convention, pose, self._environment.scale)
            except ValueError as error:
                return self._finish("policy error", error)
            observation, success = self._step(delta)
            self._steps += 1
            if success:
                return self._finish("success")
            if self._steps >= (self._rules.max_steps or self._environment.max_steps):
                return self._finish("time out")
            seen = self._look(observation)
            if isinstance(seen, Finished) or self._executor.needs_chunk:
                return seen
            answer = None

    def fail(self, error: Exception) -> Finished:
        """Ends the episode because its policy failed."""
        return self._finish("policy error", error)

    def close(self) -> None:
        """Drops an unfinished video and closes the environment."""
        if self._video is not None:
            self._video.discard()
            self._video = None
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _environment_for(self, spec: EpisodeSpec) -> RobotEnvironment:
        if self._environment is None or self._kind != (spec.task, spec.options):
            self.close()
            self._environment = self._environment_factory(spec.task, view=self._view, **spec.options)
            self._observer = None if self._observer_factory is None else self._observer_factory(self._environment)
            self._kind = (spec.task, spec.options)
        return self._environment

    def _hold(self, observation: Observation) -> Observation:
        """Keeps the pose with an open gripper for some steps; a task that is done by that is not yet a success."""
        assert self._environment is not None
        pose = self._environment.gripper_pose()
        for _ in range(self._rules.hold):
            delta = delta_to_target(pose, -1.0, self._environment.gripper_pose(), self._environment.scale)
            observation, _ = self._step(delta)
        return observation

    def _step(self, delta: Shaped[np.ndarray, "7"]) -> tuple[Observation, bool]:
        assert self._environment is not None
        observation, _, _, _, info = self._environment.step(delta)
        if self._video is not None:
            self._video.step()
        return observation, bool(info["success"])

    def _look(self, observation: Observation) -> Waiting | Finished:
        """The observation as the policy sees it; every frame passes the observer, because trackers need them all."""
        if self._observer is not None:
            try:
                observation = self._observer(observation)
            except Exception as error:
                return self._finish("perception error", error)
        stale = observation.get("stale", ())
        self._stale = Counter({name: self._stale[name] + 1 for name in stale})
        limit = self._rules.max_stale
        lost = [name for name, frames in self._stale.items() if limit is not None and frames >= limit]
        if lost:
            return self._finish("stale points", detail=f"The points of {', '.join(lost)} are {limit} frames old; the object is lost.")
        return Waiting(observation)

    def _finish(self, reason: Reason, error: Exception | None = None, detail: str = "") -> Finished:
        spec = asdict(self._spec)
        video = spec.pop("video")
        result = EpisodeResult(
            **spec, success=reason == "success", steps=self._steps, reason=reason, detail=detail if error is None else describe_error(error)
        )
        if self._video is not None:
            video = self._video.finish(result.success)
            self._video = None
        return Finished(result, error, video)

    def _start_video(self, path: Path) -> None:
        # imported here because it brings PyTorch, which simulator processes without videos do without
        from visiongraft.robots.rollout_videos import EpisodeVideo

        assert self._environment is not None
        self._video = EpisodeVideo(self._environment, path, self._recording)
        self._video.step()


def describe_error(error: Exception) -> str:
    """An exception as a sentence; its type is told where it is not one that explains itself."""
    text = str(error)
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
