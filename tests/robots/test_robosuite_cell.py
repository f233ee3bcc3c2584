"""The adapter for robosuite and LIBERO, against a stand-in of robosuite's interface (robosuite itself is not installed here)."""

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from visiongraft.robots.environment import View
from visiongraft.robots.poses import make_pose, rotation_from_vector
from visiongraft.robots.robosuite import ROBOSUITE_TASKS, TASKS, delta_controller
from visiongraft.robots.robosuite_cell import RobosuiteCell, bodies_containing, numpy_seed

XML = """<mujoco><worldbody><camera name="agentview" pos="0.5 0 2"/>
<body name="robot0_base" pos="-0.5 0.1 0.9" euler="0 0 30"><geom size=".05"/>
  <body name="robot0_hand" pos="0.4 0 0.3" euler="180 0 0"><joint name="arm" type="slide" axis="0 0 1"/><geom size=".02"/>
    <site name="{site}"/>
    <body name="gripper0_right_leftfinger" pos="0 0.02 0"><geom size=".01"/></body>
    <body name="gripper0_right_rightfinger" pos="0 -0.02 0"><geom size=".01"/></body></body></body>
<body name="cubeA_main" pos="{cube}"><freejoint/><geom type="box" size=".015 .015 .015" group="0"/>
  <geom type="box" size=".015 .015 .015" group="1" contype="0" conaffinity="0"/></body>
<body name="cubeB_main" pos="0.3 0.2 0.8"><freejoint/><geom type="box" size=".02 .02 .02" group="1"/></body>
</worldbody></mujoco>"""


class StandIn:
    """robosuite's calls that the adapter makes, on a model of our own that every reset makes anew."""

    def __init__(self, site: str = "gripper0_right_grip_site", cube: str = "0.3 0 0.8") -> None:
        self.site, self.cube, self.actions, self.success, self.closed = site, cube, [], False, False
        self.reset()

    def reset(self) -> None:
        model = mujoco.MjModel.from_xml_string(XML.format(site=self.site, cube=self.cube))
        data = mujoco.MjData(model)
        data.qpos[0] = np.random.uniform(-0.01, 0.01)  # as robosuite 1.4 draws its starts
        mujoco.mj_forward(model, data)
        state = lambda: SimpleNamespace(flatten=lambda: np.concatenate([[data.time], data.qpos, data.qvel]))

        def write(flat: np.ndarray) -> None:
            data.time, data.qpos[:], data.qvel[:] = flat[0], flat[1 : 1 + model.nq], flat[1 + model.nq :]

        self.sim = SimpleNamespace(
            model=SimpleNamespace(_model=model, get_xml=lambda: "<mujoco/>"),
            data=SimpleNamespace(_data=data),
            get_state=state,
            set_state_from_flattened=write,
            forward=lambda: mujoco.mj_forward(model, data),
        )

    def step(self, action: np.ndarray) -> None:
        self.actions.append(action)
        mujoco.mj_step(self.sim.model._model, self.sim.data._data)

    def _check_success(self) -> bool:
        return self.success

    def close(self) -> None:
        self.closed = True


def make(view: View = View(), **options) -> RobosuiteCell:  # noqa: B008
    task = ROBOSUITE_TASKS["Stack"]
    return RobosuiteCell(StandIn(**options), "robosuite/Stack", task.instruction, task.objects, view)


@pytest.mark.parametrize("site", ["gripper0_right_grip_site", "gripper0_grip_site"])
def test_the_gripper_frame_is_the_grip_site_turned_by_a_quarter_about_z(site):
    cell = make(site=site)
    cell.reset(seed=0)
    height = cell.data.qpos[0]
    site_in_base = make_pose(rotation_from_vector(np.array([np.pi, 0, 0])), np.array([0.4, 0, 0.3 - height]))
    quarter = make_pose(rotation_from_vector(np.array([0, 0, np.pi / 2])), np.zeros(3))
    np.testing.assert_allclose(cell.gripper_pose(), site_in_base @ quarter, atol=1e-9)


def test_poses_are_in_the_base_frame():
    cell = make()
    observation, _ = cell.reset(seed=0)
    back = cell.base_to_world() @ observation["object_poses"]["red_cube"]
    np.testing.assert_allclose(back[:3, 3], [0.3, 0, 0.8], atol=1e-9)
    camera = cell.base_to_world() @ cell.camera("agentview", (8, 8)).camera_to_base
    np.testing.assert_allclose(camera, make_pose(np.diag([1.0, -1.0, -1.0]), np.array([0.5, 0, 2])), atol=1e-9)


def test_actions_pass_as_they_are_and_the_command_is_remembered():
    cell = make()
    observation, _ = cell.reset(seed=0)
    assert observation["proprioception"][9] == -1
    action = np.array([0.1, -0.2, 0.3, 0, 0, 0.5, 1.0])
    observation = cell.step(action)[0]
    np.testing.assert_array_equal(cell.simulator.actions[0], action)
    assert observation["proprioception"][9] == 1
    assert (cell.scale.position, cell.scale.rotation) == (0.05, 0.5)


def test_a_seed_decides_the_start_and_leaves_numpys_generator_alone():
    cell = make()
    np.random.seed(5)
    expected = np.random.RandomState(5).uniform()
    first = cell.reset(seed=3)[0]["gripper_pose"]
    cell.reset(seed=4)
    np.testing.assert_array_equal(cell.reset(seed=3)[0]["gripper_pose"], first)
    assert np.random.uniform() == expected
    with numpy_seed(3):
        once = np.random.uniform()
    with numpy_seed(3):
        assert np.random.uniform() == once


def test_states_of_robomimic_and_our_own_come_back():
    cell = make()
    cell.reset(seed=1)
    cell.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    state, pose = cell.get_state(), cell.gripper_pose()
    cell.reset(seed=2)
    cell.set_state(state)
    np.testing.assert_array_equal(cell.gripper_pose(), pose)
    assert cell.gripper_command == 1
    cell.set_state(state[:-1])
    assert cell.gripper_command == -1
    with pytest.raises(ValueError, match=r"numbers \(robomimic's\)"):
        cell.set_state(state[:5])


def test_grasp_and_success_are_told():
    base = make_pose(rotation_from_vector(np.array([0, 0, np.pi / 6])), np.array([-0.5, 0.1, 0.9]))
    where = base @ np.array([0.4, 0, 0.3, 1])
    cell = make(cube=" ".join(map(str, where[:3])))
    cell.reset(seed=0)
    assert cell.subtask_signals() == {"grasped": False, "done": False}  # an open hand does not hold
    cell._command = 1.0
    mujoco.mj_forward(cell.model, cell.data)
    assert cell.subtask_signals()["grasped"]
    cell.simulator.success = True
    assert cell.subtask_signals()["done"]


def test_only_visual_geoms_are_rendered():
    cell = make(view=View(cameras=("agentview",), modalities=("segmentation",), size=(40, 40), renderer="raycast"))
    segmentation = cell.reset(seed=0)[0]["segmentation"]["agentview"]
    assert set(np.unique(segmentation)) == {-1, 0, 1}
    hand = cell.render_view("agentview", ("depth",), (40, 40))["depth"]
    assert np.isfinite(hand).sum() == (segmentation >= 0).sum()  # robot and collision geoms are of group 0


def test_bodies_are_found_by_what_their_names_contain():
    model = StandIn().sim.model._model
    assert bodies_containing(model, "cube") == ("cubeA_main", "cubeB_main")
    with pytest.raises(ValueError, match="No body's name contains 'mug'; the bodies are robot0_base"):
        bodies_containing(model, "mug")


def test_the_controller_takes_deltas_in_the_base_frame():
    given = {"body_parts": {"right": {"type": "JOINT_POSITION", "gripper": {"type": "GRIP"}}}}
    robosuite = SimpleNamespace(load_composite_controller_config=lambda controller, robot: given)
    arm = delta_controller(robosuite, "Panda")["body_parts"]["right"]
    assert arm["type"] == "OSC_POSE"
    assert (arm["input_type"], arm["input_ref_frame"]) == ("delta", "base")
    assert arm["output_max"] == [0.05] * 3 + [0.5] * 3
    assert arm["gripper"] == {"type": "GRIP"}


def test_every_task_has_words_and_objects():
    assert "Stack" in TASKS
    for task in ROBOSUITE_TASKS.values():
        assert task.instruction
        assert task.objects


def test_bad_calls_are_refused():
    cell = make()
    with pytest.raises(ValueError, match="has not been reset"):
        cell.step(np.zeros(7))
    cell.reset(seed=0)
    with pytest.raises(ValueError, match="no camera 'front'; there are agentview"):
        cell.camera("front", (8, 8))
    with pytest.raises(ValueError, match="no object 'mug'; it has red_cube, green_cube"):
        cell.object_pose("mug")
    with pytest.raises(ValueError, match="only one-armed robots"):
        make(site="gripper1_site")
    with pytest.raises(ValueError, match="takes its options when it is made"):
        cell.reset(seed=0, options={"robot": "Sawyer"})
    cell.close()
    assert cell.simulator.closed
