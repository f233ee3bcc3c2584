"""The tabletop's MJCF, written from data. The base frame is MuJoCo's world frame, and the table's top is z = 0."""

import numpy as np
from jaxtyping import Float

from visiongraft.robots.poses import look_at, make_pose, quaternion_from_rotation
from visiongraft.robots.tabletop.gripper import GantryGripper, gripper_actuators, gripper_body
from visiongraft.robots.tabletop.looks import Look, stereo_camera_poses
from visiongraft.robots.tabletop.objects import Colour, TableObject, object_geoms

PHYSICS_STEP = 0.005
"""Seconds."""
TABLE_CENTRE, TABLE_HALF = (0.45, 0.0), (0.4, 0.5)
"""Of the table's top, metres."""

_CAM_8_LEFT = make_pose(
    np.array([[-0.43887, -0.41534, 0.79680], [-0.89842, 0.21818, -0.38111], [-0.01556, -0.88312, -0.46890]]),
    np.array([-0.01391, 0.35517, 0.65610]),
)
"""Camera of the authors' cell (released calibration of ``cam_8_left``, a ZED 2i); its vertical field of view is 2 atan(360/532.235)."""
_CAM_8_LEFT_FOVY_DEG = 68.14
_OVERVIEW = look_at(np.array([1.25, -0.75, 0.75]), np.array([0.42, 0.0, 0.08]))
_OVERVIEW_FOVY_DEG = 42.0

CAMERA_NAMES = ("left", "right", "cam_8_left", "overview")


def scene_xml(manipulated: TableObject, target: TableObject, look: Look, gripper: GantryGripper) -> str:
    """MJCF of a scene; the manipulated and the target object are free bodies with the names of their instances."""
    left, right = stereo_camera_poses(look)
    cameras = "\n    ".join(
        _camera(name, pose, fovy)
        for name, pose, fovy in zip(
            CAMERA_NAMES,
            (left, right, _CAM_8_LEFT, _OVERVIEW),
            (look.fovy_deg, look.fovy_deg, _CAM_8_LEFT_FOVY_DEG, _OVERVIEW_FOVY_DEG),
            strict=True,
        )
    )
    bodies = "\n    ".join(
        f'<body name="{item.name}" pos="0 0 1"><freejoint/>\n      '
        f"{object_geoms(item, material, f'{material}_dark', look.friction)}\n    </body>"
        for item, material in ((manipulated, "manipulated"), (target, "target"))
    )
    x, y, z = look.light_position
    repeat = 0.5 / look.checker_tile  # a texture holds two tiles
    return f"""<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_STEP}" integrator="implicitfast" cone="elliptic" impratio="10"><flag multiccd="enable"/></option>
  <visual>
    <global offwidth="640" offheight="480"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="{_numbers((look.ambient,) * 3)}" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <statistic extent="1" center="0.5 0 0.1"/>
  <asset>
    <texture name="table" type="2d" builtin="checker" rgb1="{_numbers(look.table)}" rgb2="{_numbers(look.checker)}" width="256"
             height="256"/>
    <material name="table" texture="table" texrepeat="{repeat} {repeat}" texuniform="true" specular="0" shininess="0"/>
    {_materials(look)}
  </asset>
  <worldbody>
    <light pos="{x} {y} {z}" dir="{_numbers(np.subtract((0.5, 0.0, 0.0), look.light_position))}" cutoff="180" exponent="1"
           diffuse="{_numbers(look.light)}" specular="0 0 0" ambient="0 0 0" castshadow="false"/>
    {cameras}
    <geom name="floor" type="plane" size="10 10 0.1" pos="0 0 -0.75" material="floor" contype="0" conaffinity="0"/>
    <geom name="wall" type="plane" size="5 10 0.1" pos="3 0 2" zaxis="-1 0 0" material="wall" contype="0" conaffinity="0"/>
    <geom name="table" type="plane" size="{TABLE_HALF[0]} {TABLE_HALF[1]} 0.1" pos="{TABLE_CENTRE[0]} {TABLE_CENTRE[1]} 0" material="table"
          friction="1 0.02 0.0005"/>
    <geom name="table_edge" type="box" size="{TABLE_HALF[0]} {TABLE_HALF[1]} 0.02" pos="{TABLE_CENTRE[0]} {TABLE_CENTRE[1]} -0.021"
          material="table_edge" contype="0" conaffinity="0"/>
    {_distractors(look)}{gripper_body(gripper, "hand", "finger")}
    {bodies}
  </worldbody>
  <contact>
    <exclude body1="gripper" body2="left_finger"/>
    <exclude body1="gripper" body2="right_finger"/>
  </contact>
  <actuator>
    {gripper_actuators(gripper, look.gain, look.damping)}
  </actuator>
</mujoco>
"""


def _numbers(values: tuple[float, ...] | Float[np.ndarray, "n"]) -> str:
    """Numbers with all their digits, so that the text is the whole scene."""
    return " ".join(repr(float(value)) for value in values)


def _camera(name: str, pose: Float[np.ndarray, "4 4"], fovy_deg: float) -> str:
    """MJCF of a camera with the pose of OpenCV axes; MuJoCo's camera looks along -z with y up."""
    quaternion = quaternion_from_rotation(pose[:3, :3] * np.array([1.0, -1.0, -1.0]))
    return f'<camera name="{name}" pos="{_numbers(pose[:3, 3])}" quat="{_numbers(quaternion)}" fovy="{fovy_deg!r}"/>'


def _materials(look: Look) -> str:
    def material(name: str, colour: Colour) -> str:
        return f'<material name="{name}" rgba="{_numbers(colour)} 1" specular="0" shininess="0"/>'

    def dark(colour: Colour) -> Colour:
        return (0.3 * colour[0], 0.3 * colour[1], 0.3 * colour[2])

    colours = {
        "manipulated": look.manipulated,
        "manipulated_dark": dark(look.manipulated),
        "target": look.target,
        "target_dark": dark(look.target),
        "hand": look.hand,
        "finger": look.finger,
        "floor": look.floor,
        "wall": tuple(0.5 + 0.5 * channel for channel in look.floor),
        "table_edge": tuple(0.7 * channel for channel in look.table),
    }
    colours |= {f"distractor_{index}": colour for index, (_, colour, _) in enumerate(look.distractors)}
    return "\n    ".join(material(name, colour) for name, colour in colours.items())


def _distractors(look: Look) -> str:
    """Fixed objects: they are in the way of the camera and, where someone drives there, of the gripper."""
    return "".join(
        f"""<body name="distractor_{index}" pos="{x!r} {y!r} {item.half_height!r}" euler="0 0 {yaw!r}">
      {object_geoms(item, f"distractor_{index}", f"distractor_{index}", look.friction)}
    </body>
    """
        for index, (item, _, (x, y, yaw)) in enumerate(look.distractors)
    )
