"""A gantry gripper as data, and its MJCF: three slides and a yaw hinge carry a hand with two sliding fingers.

The gripper frame lies between the fingers' pads, z along the approach, y along the finger axis; at yaw 0 its x is the base frame's x.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GantryGripper:
    """Shape, mass and drives of a gantry gripper; the defaults have the openings of the Franka hand.

    Args:
        opening: half the distance between the open fingers' pads, metres.
        finger_size: full size of a finger along x, y, z of the gripper frame, metres.
        finger_tip: how far the fingers reach beyond the gripper frame's origin, metres.
        hand_size: full size of the hand along x, y, z of the gripper frame, metres.
        mass: of hand and fingers together, kilograms.
        stiffness: natural frequency of the position controllers, radians a second; they are damped critically.
        grip_force: largest force of a finger, newtons.
        home: position of the gripper frame at the start of an episode, base frame, metres.
    """

    opening: float = 0.04
    finger_size: tuple[float, float, float] = (0.02, 0.012, 0.062)
    finger_tip: float = 0.012
    hand_size: tuple[float, float, float] = (0.05, 0.16, 0.05)
    mass: float = 1.5
    stiffness: float = 60.0
    grip_force: float = 12.0
    home: tuple[float, float, float] = (0.42, 0.0, 0.2)


LOWEST, HIGHEST = (0.15, -0.45, 0.005), (0.85, 0.45, 0.45)
"""Bounds of the gripper's position that the controllers accept, base frame, metres."""

ARM_JOINTS = ("slide_x", "slide_y", "slide_z", "yaw")
FINGER_JOINTS = ("finger_left", "finger_right")
FINGER_BODIES = ("left_finger", "right_finger")
GRIPPER_SITE = "grip"
_YAW_INERTIA = 0.03
_FINGER_MASS = 0.05


def gripper_body(gripper: GantryGripper, hand_material: str, finger_material: str) -> str:
    """MJCF of the gripper's body; the positions of its slides are the base coordinates of the gripper frame."""
    hand_x, hand_y, hand_z = (0.5 * size for size in gripper.hand_size)
    finger_x, finger_y, finger_z = (0.5 * size for size in gripper.finger_size)
    finger_top = gripper.finger_tip - gripper.finger_size[2]
    hand_centre = finger_top - hand_z
    fingers = "".join(
        f"""
      <body name="{body}" gravcomp="1">
        <joint name="{joint}" type="slide" axis="0 {side} 0" range="0 {gripper.opening}" damping="2"/>
        <geom type="box" size="{finger_x} {finger_y} {finger_z}" pos="0 {side * finger_y} {gripper.finger_tip - finger_z}"
              mass="{_FINGER_MASS}" material="{finger_material}" friction="1.5 0.05 0.001" condim="4"/>
      </body>"""
        for body, joint, side in zip(FINGER_BODIES, FINGER_JOINTS, (1, -1), strict=True)
    )
    # half a turn about x points z down; the axes are those of the turned body
    return f"""
    <body name="gripper" quat="0 1 0 0" gravcomp="1">
      <joint name="slide_x" type="slide" axis="1 0 0"/>
      <joint name="slide_y" type="slide" axis="0 -1 0"/>
      <joint name="slide_z" type="slide" axis="0 0 -1"/>
      <joint name="yaw" type="hinge" axis="0 0 -1" armature="{_YAW_INERTIA}"/>
      <site name="{GRIPPER_SITE}" size="0.004" group="4"/>
      <geom name="hand" type="box" size="{hand_x} {hand_y} {hand_z}" pos="0 0 {hand_centre}" mass="{gripper.mass - 2 * _FINGER_MASS}"
            material="{hand_material}"/>
      <geom name="column" type="cylinder" size="{0.8 * hand_x} 0.2" pos="0 0 {hand_centre - hand_z - 0.2}" mass="0"
            material="{hand_material}" contype="0" conaffinity="0"/>{fingers}
    </body>"""


def gripper_actuators(gripper: GantryGripper, gain: float, damping: float) -> str:
    """MJCF of the position controllers; ``gain`` and ``damping`` multiply their nominal stiffness and damping."""
    lines = []
    for joint, inertia in zip(ARM_JOINTS, (gripper.mass,) * 3 + (_YAW_INERTIA,), strict=True):
        kp = inertia * gripper.stiffness**2
        kv = 2 * inertia * gripper.stiffness
        lines.append(f'<position name="{joint}" joint="{joint}" kp="{kp * gain}" kv="{kv * damping}"/>')
    for joint in FINGER_JOINTS:
        limit = f'forcerange="{-gripper.grip_force} {gripper.grip_force}"'
        lines.append(f'<position name="{joint}" joint="{joint}" kp="{1200 * gain}" kv="{20 * damping}" {limit}/>')
    return "\n    ".join(lines)
