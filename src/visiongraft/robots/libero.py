"""LIBERO's tasks (extra ``libero``), after its public code; see :mod:`visiongraft.robots.robosuite_cell`.

LIBERO writes its tasks as BDDL files on top of robosuite 1.4; the task's name here is that of the file, such as
``libero/put_the_bowl_on_the_plate``. It cannot be installed on the machine that this was written on.
"""

import functools
from pathlib import Path
from typing import Any

from visiongraft.robots.environment import View
from visiongraft.robots.extras import require
from visiongraft.robots.robosuite_cell import RobosuiteCell

_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


def libero_tasks() -> tuple[str, ...]:
    """Names of the tasks of LIBERO's five suites.

    Raises:
        ImportError: LIBERO is not installed.
    """
    return tuple(_tasks())


@functools.cache
def _tasks() -> dict[str, Any]:
    """LIBERO's description of every task by name."""
    suites = require("libero.libero.benchmark").get_benchmark_dict()
    return {task.name: task for name in _SUITES for task in suites[name]().tasks}


class LiberoEnvironment(RobosuiteCell):
    """A task of LIBERO; objects of interest are those of its BDDL file, in the file's order.

    Args:
        task: such as ``put_the_bowl_on_the_plate``.
        view: what is rendered into observations, by this package's renderers.

    Raises:
        ImportError: LIBERO is not installed.
        ValueError: a camera, modality, renderer or size that cannot be.
    """

    def __init__(self, task: str, *, view: View = View()) -> None:  # noqa: B008
        folder = require("libero.libero").get_libero_path("bddl_files")
        description = _tasks()[task]
        wrapper = require("libero.libero.envs.env_wrapper").ControlEnv(
            bddl_file_name=str(Path(folder) / description.problem_folder / description.bddl_file),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            horizon=100_000,
            ignore_done=True,
        )
        objects = {name: name for name in wrapper.obj_of_interest}
        super().__init__(wrapper.env, f"libero/{task}", description.language, objects, view)
