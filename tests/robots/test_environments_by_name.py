"""Environments by name."""

import importlib.util
import os
import subprocess
import sys

import pytest

from visiongraft.robots.environments import list_tasks, make_environment
from visiongraft.robots.experts import scripted_expert
from visiongraft.robots.robosuite_cell import RobosuiteCell


def test_all_tasks_carry_their_suite():
    assert list_tasks("tabletop") == ("tabletop/put_on_plate", "tabletop/stack", "tabletop/put_in_bin")
    assert set(list_tasks("tabletop")) < set(list_tasks())
    assert len(list_tasks("metaworld")) == 50


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("tabletop/put_on_plat", "Unknown task 'tabletop/put_on_plat'; did you mean tabletop/put_on_plate"),
        ("metaworld/reach-v2", "did you mean metaworld/reach-v3"),
        ("kitchen/cook", "there are tabletop/..., metaworld/..., robosuite/..., libero/..."),
        ("stack", "Unknown task 'stack'"),
    ],
)
def test_unknown_tasks_are_answered_with_the_closest(task, message):
    with pytest.raises(ValueError, match=message):
        make_environment(task)


def test_an_unknown_suite_and_an_unknown_option_are_named():
    with pytest.raises(ValueError, match="Unknown suite 'kitchen'"):
        list_tasks("kitchen")
    with pytest.raises(ValueError, match="tabletop has no option colour; it has pair, twin, distractors, camera_error, gripper"):
        make_environment("tabletop/stack", colour="red")


@pytest.mark.parametrize(("suite", "task"), [("robosuite", "Stack"), ("libero", "put_the_bowl_on_the_plate")])
def test_a_missing_extra_is_named_with_its_command(suite, task):
    if importlib.util.find_spec(suite) is not None:
        pytest.skip(f"{suite} is installed")
    with pytest.raises(ImportError, match=rf"{suite} is not installed; install it with: pip install 'visiongraft\[{suite}\]'"):
        make_environment(f"{suite}/{task}")


def test_missing_simulators_are_named_with_their_command():
    program = "import sys; sys.modules['mujoco'] = None; import visiongraft.robots.environments"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert "ImportError: mujoco is not installed; install it with: pip install 'visiongraft[robots]'" in done.stderr


def test_a_suite_without_scripted_experts_is_refused():
    cell = RobosuiteCell.__new__(RobosuiteCell)
    cell.task = "robosuite/Stack"
    with pytest.raises(ValueError, match="'robosuite' has no scripted experts"):
        scripted_expert(cell)
