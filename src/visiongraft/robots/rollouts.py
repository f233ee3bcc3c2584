"""Evaluation of a policy: many episodes side by side, one batch of observations at a time, resumable.

    result = evaluate(["tabletop/put_on_plate"], policy, episodes=50, observer_factory=SimulatorPoints, output="runs/plate")
    print(result)                       # rate, Wilson interval, reasons of failure

Results depend on the policy, the tasks, the seed and the rules; not on slots, workers or interruptions (but for rounding, where a
policy rounds differently in batches of another size).
"""

import hashlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from visiongraft.robots.actions import ACTION_SIZES, check_actions
from visiongraft.robots.ensembling import too_short
from visiongraft.robots.environment import View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.policy import Observation
from visiongraft.robots.results import EpisodeResult, EvaluationResult
from visiongraft.robots.rollout_episode import (
    EnvironmentFactory,
    EpisodeRules,
    EpisodeSlot,
    EpisodeSpec,
    Execution,
    Finished,
    ObserverFactory,
    Recording,
    Waiting,
)
from visiongraft.robots.rollout_records import RolloutRecords
from visiongraft.robots.simulator_processes import Command, Event, LocalSimulators, SimulatorProcesses

_FIRST_EPISODES = 8


@dataclass(frozen=True)
class EvaluationTask:
    """A task with options of its environment; every one is a row of the results.

    Args:
        task: name, such as ``tabletop/put_on_plate``.
        options: of :func:`visiongraft.robots.environments.make_environment`.
        label: how tables tell it; default the name and the options.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            told = [f"{name}={value}" for name, value in sorted(self.options.items())]
            object.__setattr__(self, "label", " ".join([self.task, *told]))


@runtime_checkable
class ActingPolicy(Protocol):
    """What an evaluation needs of a policy: :class:`visiongraft.robots.policy.Policy` has it, and so has
    :class:`visiongraft.robots.client.RemotePolicy`."""

    convention: str

    def reset(self, slot: int = 0) -> None:
        """See :class:`visiongraft.robots.policy.Policy`."""

    def act_batch(self, observations: Sequence[Observation], slots: Sequence[int]) -> Any:
        """See :class:`visiongraft.robots.policy.Policy`."""


def evaluate(
    tasks: Sequence[str | EvaluationTask],
    policy: ActingPolicy,
    *,
    episodes: int = 10,
    seed: int = 0,
    execute: Execution = "ensemble",
    decay: float = 0.005,
    hold: int = 0,
    max_steps: int | None = None,
    max_stale: int | None = None,
    observer_factory: ObserverFactory | None = None,
    view: View = View(),  # noqa: B008
    slots: int = 8,
    workers: int = 0,
    output: str | Path | None = None,
    identity: dict[str, Any] | None = None,
    video: Recording | None = None,
    environment_factory: EnvironmentFactory = make_environment,
    progress: bool = True,
) -> EvaluationResult:
    """Success rate of a policy on tasks.

    An error of the policy or the observer in an episode (a NaN action, an empty mask) fails that episode, with its reason. Where the
    first eight episodes (or all, if there are fewer) fail alike before a first step, the set-up is broken and the error is raised.
    Errors of the machine (``OSError``: a policy server that is gone, a full disk) end the evaluation; what has ended is kept.

    Args:
        tasks: names, or tasks with options.
        policy: asked for all slots at once; tasks are never mixed in a batch, because their numbers of objects may differ.
        episodes: of every task.
        seed: with the task's name and the episode's index it fixes the start; the same for all options of a task, so that they compare.
        execute, decay, hold, max_steps, max_stale: see :class:`visiongraft.robots.rollout_episode.EpisodeRules`.
        observer_factory: called with an environment; gives what adds points to its observations.
        view: what environments render into observations.
        slots: episodes side by side.
        workers: processes for the simulators; 0 runs them in this one. Factories must then be functions of modules.
        output: folder for ``episodes.jsonl``, written as episodes end, ``settings.json``, ``result.json`` and videos. Episodes that
            it holds are not run again; a folder of another policy or other settings is refused.
        identity: JSON-able facts that tell this policy and observer from others, stored in the folder; default
            ``{"policy": policy.fingerprint}``.
        video: which episodes are filmed; needs ``output``.
        environment_factory: makes the environment of a task.
        progress: shows a bar.

    Raises:
        ValueError: settings that cannot be, tasks given twice, a folder of another evaluation, or the error that all episodes share.
    """
    planned = _plan(tasks, episodes, seed)
    if policy.convention not in ACTION_SIZES:
        raise ValueError(f"The policy's action convention is {policy.convention!r}; there are {', '.join(ACTION_SIZES)}.")
    if slots < 1 or workers < 0:
        raise ValueError(f"slots must be at least 1 and workers at least 0; got {slots} and {workers}.")
    if video is not None and output is None:
        raise ValueError("Videos are written to the output folder; give one.")
    rules = EpisodeRules(convention=policy.convention, execute=execute, decay=decay, hold=hold, max_steps=max_steps, max_stale=max_stale)
    records = None
    if output is not None:
        facts = _policy_identity(policy) if identity is None else identity
        records = RolloutRecords(Path(output), seed, rules, view, _name(observer_factory), facts, video)
    done = {} if records is None else records.finished(planned)
    waiting = deque(spec for key, spec in planned.items() if key not in done)
    make_slot = partial(EpisodeSlot, rules, environment_factory, observer_factory, view, video or Recording())
    slots = min(slots, len(waiting))
    if waiting:
        simulators = SimulatorProcesses(make_slot, min(workers, slots)) if workers else LocalSimulators(make_slot)
        bar = tqdm(total=len(planned), initial=len(done), desc="episodes", unit="ep", disable=not progress)
        with closing(simulators), closing(bar):
            for finished in _LockStep(policy, rules, simulators, waiting, slots, records).run():
                done[finished.label, finished.index] = finished
                bar.set_postfix_str(f"success {sum(episode.success for episode in done.values())}/{len(done)}", refresh=False)
                bar.update()
    result = EvaluationResult(tuple(done[key] for key in planned))
    if records is not None:
        records.write_result(result)
    return result


def episode_seed(seed: int, task: str, index: int) -> int:
    """Seed of an episode's start, below 2^31: a hash of the three."""
    digest = hashlib.sha256(f"{seed}\n{task}\n{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class _LockStep:
    """Rounds of: all simulators to their next question, one batch of answers."""

    def __init__(
        self,
        policy: ActingPolicy,
        rules: EpisodeRules,
        simulators: LocalSimulators | SimulatorProcesses,
        waiting: deque[EpisodeSpec],
        slots: int,
        records: RolloutRecords | None,
    ) -> None:
        self._policy, self._rules, self._simulators, self._waiting, self._records = policy, rules, simulators, waiting, records
        self._running: dict[int, EpisodeSpec] = {}
        self._slots = slots
        self._worked = False  # whether any episode has come to a first action
        self._unsure: list[Finished] = []
        self._enough = min(_FIRST_EPISODES, len(waiting))
        self._warned = False

    def run(self) -> Iterator[EpisodeResult]:
        """Results, as episodes end."""
        commands: dict[int, Command] = {slot: self._begin(slot) for slot in range(self._slots)}
        while commands:
            events = self._simulators.exchange(commands)
            commands = {}
            for slot, event in events.items():
                if isinstance(event, Finished):
                    del self._running[slot]
                    yield from self._end(event)
                    if self._waiting:
                        commands[slot] = self._begin(slot)
            commands |= self._answers(events)

    def _begin(self, slot: int) -> EpisodeSpec:
        spec = self._waiting.popleft()
        if self._records is not None:
            spec = self._records.with_video(spec)
        self._running[slot] = spec
        self._policy.reset(slot)
        return spec

    def _end(self, event: Finished) -> Iterator[EpisodeResult]:
        """Writes an episode down; while no episode has come to an action, failures wait until it is clear that something works.

        Written down at once, they would count for good, though it is the set-up that is broken and not the policy that is bad.
        """
        self._unsure.append(event)
        errors = [other.error for other in self._unsure]
        if not self._worked and len(errors) < self._enough:
            return
        if not self._worked and errors[0] is not None and len({(type(error), str(error)) for error in errors}) == 1:
            for other in self._unsure:
                if other.video is not None:
                    other.video.unlink()
            raise errors[0]
        self._worked = True
        ended, self._unsure = self._unsure, []
        for other in ended:
            if self._records is not None:
                self._records.add(other)
            yield other.result

    def _answers(self, events: dict[int, Event]) -> dict[int, Command]:
        """The policy's chunks, or its errors, for the slots that wait."""
        by_task: dict[str, dict[int, Observation]] = {}
        for slot, event in events.items():
            if isinstance(event, Waiting):
                by_task.setdefault(self._running[slot].label, {})[slot] = event.observation
        answers: dict[int, Command] = {}
        for observations in by_task.values():
            answers |= self._ask(observations)
        self._worked = self._worked or any(isinstance(answer, np.ndarray) for answer in answers.values())
        return answers

    def _ask(self, observations: dict[int, Observation]) -> dict[int, Command]:
        slots = list(observations)
        try:
            chunks = self._policy.act_batch(list(observations.values()), slots)
        except OSError:
            raise
        except Exception as error:
            if len(slots) == 1:
                return {slots[0]: error}
            answers: dict[int, Command] = {}
            for slot in slots:  # find out whose fault it is
                answers |= self._ask({slot: observations[slot]})
            if not self._warned and not any(isinstance(answer, Exception) for answer in answers.values()):
                warnings.warn(
                    f"The policy fails on a batch of {len(slots)} observations ({error}) and not on each alone; it goes on one by one.",
                    stacklevel=2,
                )
                self._warned = True
            return answers
        if len(chunks) != len(slots):
            raise ValueError(f"The policy gave {len(chunks)} chunks of actions for {len(slots)} observations.")
        return {slot: _check_chunk(chunk, self._rules) for slot, chunk in zip(slots, chunks, strict=True)}


def _check_chunk(chunk: Any, rules: EpisodeRules) -> Command:
    """The chunk, or what is wrong with it."""
    chunk = np.asarray(chunk)
    try:
        if chunk.ndim != 2 or not len(chunk):
            raise ValueError(f"A chunk is a table (steps, numbers) with at least one step; the policy gave shape {chunk.shape}.")
        if rules.execute != "ensemble" and len(chunk) < rules.execute:
            raise ValueError(too_short(len(chunk), rules.execute))
        check_actions(chunk, rules.convention)
    except ValueError as error:
        return error
    return chunk


def _plan(tasks: Sequence[str | EvaluationTask], episodes: int, seed: int) -> dict[tuple[str, int], EpisodeSpec]:
    """All episodes by label and index, task by task."""
    if isinstance(tasks, str):
        raise ValueError(f"tasks is a list of tasks; write [{tasks!r}].")
    if not tasks or episodes < 1:
        raise ValueError(f"An evaluation needs at least one task and one episode; got {len(tasks)} and {episodes}.")
    listed = [EvaluationTask(task) if isinstance(task, str) else task for task in tasks]
    labels = [task.label for task in listed]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"Tasks are told apart by their labels, and {twice[0]!r} is given twice.")
    return {
        (task.label, index): EpisodeSpec(
            label=task.label, task=task.task, options=task.options, index=index, seed=episode_seed(seed, task.task, index)
        )
        for task in listed
        for index in range(episodes)
    }


def _policy_identity(policy: ActingPolicy) -> dict[str, Any]:
    fingerprint = getattr(policy, "fingerprint", None)
    if fingerprint is None:
        raise ValueError(
            "An output folder belongs to one policy, and this one does not say which it is: pass identity={...} "
            "or give the policy an attribute fingerprint."
        )
    return {"policy": fingerprint}


def _name(factory: Any) -> str | None:
    """A name that is the same in the next process; addresses in memory are not."""
    if factory is None:
        return None
    if isinstance(factory, partial):
        told = [*map(repr, factory.args), *(f"{name}={value!r}" for name, value in sorted(factory.keywords.items()))]
        return f"{_name(factory.func)}({', '.join(told)})"
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}.{named.__qualname__}"
