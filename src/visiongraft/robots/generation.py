"""Many demonstrations from an expert (:func:`collect`), and many more from a few (:func:`generate`, in the manner of MimicGen)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visiongraft.robots.attempts import Sources, attempt, prepare_sources
from visiongraft.robots.demonstration_reading import read_demonstrations
from visiongraft.robots.demonstration_writing import describe_environment
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.environments import make_environment
from visiongraft.robots.episodes import Demonstration
from visiongraft.robots.experts import Expert, scripted_expert
from visiongraft.robots.gathering import Gathered, Task, digest, gather
from visiongraft.robots.observers import Observer, UnseenError
from visiongraft.robots.recording import record
from visiongraft.robots.subtasks import Settings, Subtask, default_subtasks, preset

MakeObserver = Callable[[RobotEnvironment], Observer]
MakeExpert = Callable[[RobotEnvironment], Expert]


def collect(
    task: Task,
    output: str | Path,
    *,
    num: int,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    make_expert: MakeExpert | None = None,
    make_observer: MakeObserver | None = None,
    max_steps: int | None = None,
    workers: int = 1,
    engine: str | None = None,
    resume: bool = True,
    patience: int = 200,
    progress: bool = True,
) -> Gathered:
    """Records an expert until it has succeeded ``num`` times, each time from another start.

    Args:
        task: name of a task, or a function that makes its environment.
        output: HDF5 file.
        num: demonstrations.
        options: of the environment.
        seed: of the starts; the same seed gives the same file, whatever the number of workers.
        make_expert: the expert of an environment; the task's scripted one by default.
        make_observer: adds points or the like to what is stored.
        max_steps: after which the expert has failed.
        workers, engine, resume, patience, progress: see :func:`visiongraft.robots.gathering.gather`.
    """
    options = dict(options or {})
    maker = _Collecting(task, options, seed, make_expert, make_observer, max_steps)
    recipe = {"kind": "collect", "task": task, "options": options, "seed": seed, "expert": make_expert, "max_steps": max_steps}
    recipe |= {"observer": make_observer}
    return gather(
        maker,
        output,
        num=num,
        environment_args=_environment_args(_make(task, options), options),
        recipe=recipe,
        workers=workers,
        engine=engine,
        resume=resume,
        patience=patience,
        progress=progress,
    )


def generate(
    task: Task,
    sources: str | Path | Sequence[Demonstration],
    output: str | Path,
    *,
    num: int,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    preset_name: str = "mimiclabs",
    offset_range: tuple[int, int] = (10, 20),
    subtasks: Sequence[Subtask] | None = None,
    settings: Settings | None = None,
    make_observer: MakeObserver | None = None,
    workers: int = 1,
    engine: str | None = None,
    resume: bool = True,
    patience: int = 200,
    progress: bool = True,
) -> Gathered:
    """Generates demonstrations from a few: cuts them where subtasks end, moves the pieces with their objects into new scenes, joins
    them, and keeps what does the task.

    Args:
        task: name of a task, or a function that makes its environment.
        sources: a file of demonstrations, or demonstrations.
        output: HDF5 file.
        num: demonstrations.
        options: of the environment.
        seed: of everything random; the same seed gives the same file, whatever the number of workers.
        preset_name: ``mimicgen`` or ``mimiclabs``: noise, and how segments are joined.
        offset_range: random steps that are added to the end of every subtask but the last. MimicGen's suit demonstrations of people;
            the tabletop's scripted ones are short, and (2, 5) suits them.
        subtasks: in place of those that the environment's signals and objects give.
        settings: in place of the preset's; ``Settings(trim_approach=True)`` makes short demonstrations.
        make_observer: adds points or the like to what is stored.
        workers, engine, resume, patience, progress: see :func:`visiongraft.robots.gathering.gather`.

    Raises:
        ValueError: source demonstrations that cannot be cut, or a file that was begun with other settings.
        RuntimeError: too many failures in a row.

    Source: brief, 2.2 (MimicGen; MimicLabs) and 9 (trimming).

    Example:
        >>> generate("tabletop/put_on_plate", "five.hdf5", "many.hdf5", num=100, settings=Settings(trim_approach=True), workers=2)
    """
    options = dict(options or {})
    settings = preset(preset_name).settings if settings is None else settings
    environment = _make(task, options)
    environment.reset(seed=0)
    subtasks = default_subtasks(environment, preset_name, offset_range) if subtasks is None else tuple(subtasks)
    demonstrations = list(read_demonstrations(sources)) if isinstance(sources, (str, Path)) else list(sources)
    maker = _Generating(task, options, seed, prepare_sources(demonstrations, subtasks), tuple(subtasks), settings, make_observer)
    recipe = {"kind": "generate", "task": task, "options": options, "seed": seed, "subtasks": subtasks, "settings": settings}
    recipe |= {"sources": digest(demonstrations), "observer": make_observer}
    return gather(
        maker,
        output,
        num=num,
        environment_args=_environment_args(environment, options),
        recipe=recipe,
        workers=workers,
        engine=engine,
        resume=resume,
        patience=patience,
        progress=progress,
    )


@dataclass(frozen=True)
class _Collecting:
    task: Task
    options: dict[str, Any]
    seed: int
    make_expert: MakeExpert | None
    make_observer: MakeObserver | None
    max_steps: int | None

    def __call__(self) -> Callable[[int], Demonstration | None]:
        environment = _make(self.task, self.options)
        environment.reset(seed=0)
        expert = (self.make_expert or scripted_expert)(environment)
        observe = self.make_observer(environment) if self.make_observer else None

        def attempt_number(number: int) -> Demonstration | None:
            start = int(np.random.default_rng([self.seed, number]).integers(2**31))
            with suppress(UnseenError):  # a scene in which something is hidden is a failed attempt
                return record(environment, expert, start, max_steps=self.max_steps, observe=observe)
            return None

        return attempt_number


@dataclass(frozen=True)
class _Generating:
    task: Task
    options: dict[str, Any]
    seed: int
    sources: Sources = field(repr=False)
    subtasks: tuple[Subtask, ...]
    settings: Settings
    make_observer: MakeObserver | None

    def __call__(self) -> Callable[[int], Demonstration | None]:
        environment = _make(self.task, self.options)
        environment.reset(seed=0)
        observe = self.make_observer(environment) if self.make_observer else None

        def attempt_number(number: int) -> Demonstration | None:
            # the first word keeps these scenes apart from those of collect with the same seed
            generator = np.random.default_rng([1, self.seed, number])
            with suppress(UnseenError):
                return attempt(environment, self.sources, self.subtasks, self.settings, generator, observe)
            return None

        return attempt_number


def _make(task: Task, options: Mapping[str, Any]) -> RobotEnvironment:
    return make_environment(task, **options) if isinstance(task, str) else task(**options)


def _environment_args(environment: RobotEnvironment, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are not plain, such as a view, are about rendering and are left out."""
    return describe_environment(environment, {k: v for k, v in options.items() if isinstance(v, (str, int, float, bool, list, tuple))})
