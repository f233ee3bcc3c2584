"""How a tabletop looks and behaves: the nominal scene, and the draw of a "real twin". Source: brief, section 9."""

import colorsys
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from visiongraft.robots.poses import look_at
from visiongraft.robots.tabletop.objects import COLOURS, Colour, Shape, TableObject

CAMERA_POSITION, CAMERA_TARGET, CAMERA_FOVY = (-0.05, 0.38, 0.66), (0.5, 0.0, 0.02), 52.0
"""The left camera: position and what it looks at (metres, base frame), vertical field of view (degrees)."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything that a twin draws anew.

    Args:
        manipulated, target, table, checker, hand, finger, floor: colours; the table is a checker of ``table`` and ``checker``.
        checker_tile: width of a checker's tile, metres.
        light_position: metres, base frame.
        light, ambient: brightness of the lamp by channel, and of the surroundings.
        friction: of the objects.
        gain, damping: factors on the drives' stiffness and damping.
        camera_position: of the left camera, metres, base frame.
        fovy_deg: vertical field of view of the stereo cameras, degrees.
        distractors: objects that the task does not name, with their colours, and positions and yaws on the table.
    """

    manipulated: Colour
    target: Colour
    table: Colour = (0.62, 0.52, 0.42)
    checker: Colour = (0.62, 0.52, 0.42)
    checker_tile: float = 0.1
    hand: Colour = (0.75, 0.76, 0.78)
    finger: Colour = (0.2, 0.2, 0.22)
    floor: Colour = (0.35, 0.37, 0.4)
    light_position: tuple[float, float, float] = (0.2, 0.3, 1.5)
    light: Colour = (0.6, 0.6, 0.6)
    ambient: float = 0.3
    friction: float = 1.0
    gain: float = 1.0
    damping: float = 1.0
    camera_position: tuple[float, float, float] = CAMERA_POSITION
    fovy_deg: float = CAMERA_FOVY
    distractors: tuple[tuple[TableObject, Colour, tuple[float, float, float]], ...] = ()


def nominal_look(manipulated: TableObject, target: TableObject) -> Look:
    """The look that demonstrations are made in."""
    return Look(manipulated=COLOURS[manipulated.colour], target=COLOURS[target.colour])


def draw_twin(manipulated: TableObject, target: TableObject, rng: np.random.Generator) -> Look:
    """A "real twin": other colours, a checker, another lamp, friction, drives and camera. Objects keep the hue of their names."""
    table = _any_colour(rng)
    checker = _triple(np.clip(np.array(table) + rng.uniform(-0.3, 0.3, 3), 0.05, 0.95))
    return Look(
        manipulated=_shade(COLOURS[manipulated.colour], rng),
        target=_shade(COLOURS[target.colour], rng),
        table=table,
        checker=checker,
        checker_tile=float(rng.uniform(0.03, 0.12)),
        hand=_any_colour(rng),
        finger=_any_colour(rng),
        floor=_any_colour(rng),
        light_position=_triple(rng.uniform((-0.3, -0.9, 0.9), (1.0, 0.9, 1.8))),
        light=_triple(rng.uniform(0.4, 0.9) * rng.uniform(0.85, 1.0, 3)),
        ambient=float(rng.uniform(0.15, 0.45)),
        friction=float(rng.uniform(0.7, 1.3)),
        gain=float(rng.uniform(0.7, 1.3)),
        damping=float(rng.uniform(0.85, 1.2)),
        camera_position=_triple(np.add(CAMERA_POSITION, rng.normal(0, 0.02, 3))),
        fovy_deg=float(rng.uniform(49.0, 55.0)),
    )


def with_distractors(look: Look, rng: np.random.Generator, count: int = 3) -> Look:
    """Adds objects at the table's edge, away from where the task happens and from each other."""
    shapes: tuple[tuple[Shape, tuple[float, ...]], ...] = (
        ("sphere", (0.03,)),
        ("capsule", (0.02, 0.03)),
        ("ellipsoid", (0.03, 0.022, 0.035)),
        ("box", (0.02, 0.03, 0.04)),
    )
    spots = [(x, side * y) for side in (-1, 1) for x, y in ((0.3, 0.32), (0.45, 0.36), (0.62, 0.34))] + [(0.76, -0.14), (0.78, 0.12)]
    places = []
    for spot in rng.choice(len(spots), count, replace=False):
        shape, size = shapes[rng.integers(len(shapes))]
        scale = rng.uniform(0.8, 1.2)
        item = TableObject("grey", shape, tuple(float(round(scale * value, 4)) for value in size))
        x, y = np.add(spots[spot], rng.uniform(-0.02, 0.02, 2))
        places.append((item, _any_colour(rng), (float(x), float(y), float(rng.uniform(-np.pi, np.pi)))))
    return replace(look, distractors=tuple(places))


def stereo_camera_poses(look: Look, baseline: float = 0.06) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]:
    """Poses (OpenCV axes) of the left and the right camera, ``baseline`` metres apart along the left one's x axis."""
    left = look_at(np.array(look.camera_position), np.array(CAMERA_TARGET))
    right = left.copy()
    right[:3, 3] += baseline * left[:3, 0]
    return left, right


def _triple(values: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _any_colour(rng: np.random.Generator) -> Colour:
    return _triple(np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.9), rng.uniform(0.25, 0.95))))


def _shade(colour: Colour, rng: np.random.Generator) -> Colour:
    """Another shade of a colour that still goes by the same name."""
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    if saturation > 0.3:
        hue, saturation, value = hue + rng.uniform(-0.03, 0.03), rng.uniform(0.55, 1.0), rng.uniform(0.45, 1.0)
    else:
        saturation, value = rng.uniform(0.0, 0.08), np.clip(value + rng.uniform(-0.12, 0.12), 0.25, 1.0)
    return _triple(np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)))
