"""Environments by name: ``suite/task``. Suites are imported when they are asked for."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from visiongraft.robots.extras import require

for _package in ("mujoco", "gymnasium"):  # before they are imported, so that a missing one is named with its command
    require(_package)

from visiongraft.robots.environment import RobotEnvironment, View  # noqa: E402

SUITES = ("tabletop", "metaworld", "robosuite", "libero")


def list_tasks(suite: str | None = None) -> tuple[str, ...]:
    """Names of tasks, of one suite or of all that are installed.

    Raises:
        ValueError: an unknown suite.
        ImportError: the suite that was asked for is not installed; the sentence has the pip command.
    """
    if suite is not None:
        return tuple(f"{suite}/{task}" for task in _tasks_of(suite))
    names: list[str] = []
    for each in SUITES:
        try:
            names += list_tasks(each)
        except ImportError:
            continue  # an optional suite that is not here has no tasks here
    return tuple(names)


def make_environment(task: str, *, view: View = View(), **options: Any) -> RobotEnvironment:  # noqa: B008
    """A simulated robot cell.

    Args:
        task: ``suite/task``, such as ``tabletop/put_on_plate`` or ``metaworld/reach-v3``.
        view: what is rendered into observations.
        options: of the suite; the tabletop's are ``pair`` (0 to 4), ``twin``, ``distractors`` and ``camera_error``.

    Raises:
        ValueError: an unknown task (the message has the closest names), option, camera, renderer or modality.
        ImportError: the suite is not installed; the sentence has the pip command.
    """
    suite, _, name = task.partition("/")
    tasks = _tasks_of(suite) if suite in SUITES else ()
    if name not in tasks:
        known = [f"{suite}/{each}" for each in tasks] or [f"{each}/..." for each in SUITES]
        close = difflib.get_close_matches(task, known, 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}."
        raise ValueError(f"Unknown task {task!r}; {hint}")
    factory = _factory(suite)
    accepted = [option for option in inspect.signature(factory).parameters if option not in ("task", "view")]
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"{suite} has no option {', '.join(unknown)}; it has {', '.join(accepted) or 'none'}.")
    return factory(name, view=view, **options)


def _tasks_of(suite: str) -> tuple[str, ...]:
    """Names of a suite's tasks, without the suite.

    Raises:
        ValueError: an unknown suite.
        ImportError: it is not installed.
    """
    if suite == "tabletop":
        from visiongraft.robots.tabletop.tasks import TASKS

        return tuple(TASKS)
    if suite == "metaworld":
        require("metaworld")
        from visiongraft.robots.metaworld import metaworld_tasks

        return metaworld_tasks()
    if suite == "robosuite":
        require("robosuite")
        from visiongraft.robots.robosuite import TASKS as ROBOSUITE_TASKS

        return ROBOSUITE_TASKS
    if suite == "libero":
        from visiongraft.robots.libero import libero_tasks

        return libero_tasks()
    raise ValueError(f"Unknown suite {suite!r}; there are {', '.join(SUITES)}.")


def _factory(suite: str) -> Callable[..., RobotEnvironment]:
    """The class of a suite's environments."""
    if suite == "tabletop":
        from visiongraft.robots.tabletop.environment import TabletopEnvironment

        return TabletopEnvironment
    if suite == "metaworld":
        from visiongraft.robots.metaworld import MetaworldEnvironment

        return MetaworldEnvironment
    if suite == "robosuite":
        from visiongraft.robots.robosuite import RobosuiteEnvironment

        return RobosuiteEnvironment
    from visiongraft.robots.libero import LiberoEnvironment

    return LiberoEnvironment
