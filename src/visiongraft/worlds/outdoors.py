"""Trees, rocks, cars, street lamps and houses, each described around the origin and standing on the ground; cars drive towards +z."""

import dataclasses
import math

from visiongraft.worlds.building import block, egg, post, rod, turn
from visiongraft.worlds.colors import COLORS, darker, linear
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.materials import brickwork, facade, leaves, paint, plaster, stone, striped, wood
from visiongraft.worlds.scenes import Material, Solid

_BARK = Material(linear(0.38, 0.28, 0.20), "mottled", linear(0.22, 0.15, 0.10), (0.5, 1.5), image="gravel")
_RUBBER = Material((0.015, 0.015, 0.017))
_STEEL = Material((0.16, 0.17, 0.18))
_GLASS = Material((0.03, 0.045, 0.06))
_STONES = (linear(0.62, 0.60, 0.57), linear(0.52, 0.50, 0.50), linear(0.66, 0.58, 0.48))
_SEASONS = {"green": (0.07, 0.20, 0.03), "autumn": (0.45, 0.17, 0.03), "blossoming": (0.60, 0.33, 0.38)}


def tree(dice: Dice, season: str = "green", size: float = 1.0) -> list[Solid]:
    """A broad-leaved tree with a crown of seven to ten ellipsoids."""
    height = size * dice.between(2.0, 3.0)
    radius = size * dice.between(1.1, 1.6)
    trunk = rod((0.0, 0.3, 0.0), (dice.between(-0.1, 0.1), -height - 0.5 * radius, dice.between(-0.1, 0.1)), 0.11 * size + 0.03, _BARK)
    crown = [egg(0, 0, height - 0.3 * radius, (radius, radius * 0.95, radius), _foliage(dice, season))]
    for i in range(dice.whole(6, 9)):
        angle = i * 2.4 + dice.between(-0.4, 0.4)
        part = radius * dice.between(0.38, 0.62)
        lean = radius * dice.between(0.55, 0.85)
        base = height + radius * dice.between(-0.4, 0.85)
        crown.append(
            egg(math.sin(angle) * lean, math.cos(angle) * lean, base, (part, part * 0.85, part), _foliage(dice, season), yaw=angle)
        )
    return [trunk, *crown]


def conifer(dice: Dice, size: float = 1.0) -> list[Solid]:
    """A fir: a trunk and tiers that become smaller upwards."""
    height, tiers = size * dice.between(4.5, 7.0), 5
    color = (0.02, 0.08 * dice.between(0.8, 1.3), 0.03)
    parts = [post(0, 0, -0.3, 0.12 * size, height * 0.5, _BARK)]
    for i in range(tiers):
        share = 1 - i / tiers
        width = height * 0.22 * (0.25 + 0.75 * share)
        base = height * (0.14 + 0.72 * i / tiers)
        parts.append(egg(0, 0, base, (width, height * 0.13, width), leaves(color)))
    return parts


def bush(dice: Dice, season: str = "green") -> list[Solid]:
    """A low shrub."""
    radius = dice.between(0.35, 0.7)
    return [
        egg(x * radius * 0.7, dice.between(-0.2, 0.2), -radius * 0.3, (radius, radius * 0.85, radius), _foliage(dice, season))
        for x in (-1, 0, 1)
    ]


def _foliage(dice: Dice, season: str) -> Material:
    red, green, blue = _SEASONS[season]
    shade = dice.between(0.75, 1.3)
    return leaves((min(1.0, red * shade * dice.between(0.8, 1.4)), min(1.0, green * shade), min(1.0, blue * shade)))


def rock(dice: Dice, size: float) -> list[Solid]:
    """A boulder half sunk into the ground."""
    look = stone(dice.pick(_STONES), max(1.2, size))
    parts = []
    for i in range(dice.whole(1, 3)):
        radii = (size * dice.between(0.6, 1.0), size * dice.between(0.4, 0.7), size * dice.between(0.5, 0.9))
        solid = egg(0.7 * size * i, dice.between(-0.3, 0.3) * size, -0.4 * radii[1], radii, look)
        tilt = turn(dice.between(0, 3), dice.between(-0.3, 0.3), dice.between(-0.3, 0.3))
        parts.append(dataclasses.replace(solid, rotation=tilt))
        size *= 0.6
    return parts


def car(color: str, dice: Dice, night: bool = False) -> list[Solid]:
    """A car of 4 m with windows, wheels and lights; it drives towards +z."""
    length, width = dice.between(3.8, 4.6), 1.75
    body = paint(color)
    van = dice.chance(0.25)
    cabin_length, cabin_height = (length * 0.86, 0.75) if van else (length * dice.between(0.45, 0.55), 0.52)
    shift = 0.0 if van else -0.05 * length
    lamp = Material((1.0, 0.93, 0.75), emission=2.0 if night else 0.3)
    rear = Material((0.6, 0.02, 0.015), emission=1.5 if night else 0.1)
    parts = [
        block(0, 0, 0.28, (width, 0.48, length), body),
        block(0, 0, 0.24, (width + 0.04, 0.14, length + 0.12), Material((0.05, 0.05, 0.055))),
        block(0, shift, 0.72, (width - 0.22, cabin_height, cabin_length), _GLASS),
        block(0, shift, 0.72 + cabin_height - 0.06, (width - 0.18, 0.07, cabin_length - 0.1), body),
        *(
            block(x * (width - 0.22) / 2, shift + z * (cabin_length / 2 - 0.04), 0.72, (0.05, cabin_height, 0.09), body)
            for x in (-1, 1)
            for z in (-1, 0, 1)
        ),
        *(block(x * 0.62, length / 2, 0.5, (0.34, 0.16, 0.04), lamp) for x in (-1, 1)),
        *(block(x * 0.66, -length / 2, 0.52, (0.28, 0.14, 0.04), rear) for x in (-1, 1)),
    ]
    for x in (-1, 1):
        for z in (-1, 1):
            side, along = x * (width / 2 - 0.08), z * length * 0.31
            parts.append(rod((side - 0.12, -0.33, along), (side + 0.12, -0.33, along), 0.33, _RUBBER, "cylinder"))
            outer = side + x * 0.1
            parts.append(rod((outer, -0.33, along), (outer + x * 0.03, -0.33, along), 0.19, Material((0.4, 0.41, 0.43)), "cylinder"))
    return parts


def street_lamp(lit: bool) -> list[Solid]:
    """A lamp post of 5 m whose arm reaches towards +x."""
    bulb = Material((1.0, 0.78, 0.45), emission=3.0 if lit else 0.4)
    head = egg(1.05, 0, 4.92, (0.22, 0.1, 0.14), bulb)
    return [
        post(0, 0, 0, 0.12, 0.6, _STEEL),
        post(0, 0, 0, 0.055, 5.0, _STEEL),
        rod((0.0, -5.0, 0.0), (1.1, -5.1, 0.0), 0.04, _STEEL),
        dataclasses.replace(head, casts_shadow=False),
    ]


def bench() -> list[Solid]:
    """A wooden bench; one sits on it facing -z."""
    boards = wood("oak", 0.1)
    return [
        block(0, 0, 0.42, (1.6, 0.05, 0.45), boards),
        block(0, 0.24, 0.5, (1.6, 0.35, 0.04), boards),
        *(block(x * 0.65, 0, 0, (0.06, 0.42, 0.4), _STEEL) for x in (-1, 1)),
    ]


def house(color: str, roof: str, dice: Dice, night: bool = False) -> list[Solid]:
    """A country house with a gable roof, door and chimney; its front faces -z."""
    columns = dice.whole(3, 5)
    width, depth, height = columns * 1.8, dice.between(5.0, 7.0), 2.7
    wall = facade(COLORS[color], (0.05, 0.07, 0.09), (1.8, 2.7), 1.2 if night else 0.0)
    slope = Material(COLORS[roof], "stripes", darker(COLORS[roof], 0.6), (0.35, 0.35))
    side = depth / math.sqrt(2)
    gable = Solid("box", (0.0, -height, 0.0), (width / 2 + 0.25, side / 2 + 0.2, side / 2 + 0.2), slope, turn(0.0, math.pi / 4))
    ends = Solid(
        "box", (0.0, -height, 0.0), (width / 2 + 0.27, side / 2 - 0.05, side / 2 - 0.05), plaster(COLORS[color]), turn(0.0, math.pi / 4)
    )
    door = block(width / 2 - 1.8, -depth / 2, 0, (0.95, 2.1, 0.1), paint(dice.pick(("red", "blue", "brown", "turquoise"))))
    chimney = block(width / 4, 0.9, height, (0.6, depth / 2 + 0.6, 0.6), brickwork(linear(0.55, 0.28, 0.22)))
    return [block(0, 0, -0.3, (width, height + 0.3, depth), wall), gable, ends, door, chimney]


def fence(length: float) -> list[Solid]:
    """A wooden fence along x."""
    boards = wood("pine", 0.12)
    posts = max(2, round(length / 2))
    return [
        *(block((i / (posts - 1) - 0.5) * length, 0, -0.2, (0.1, 1.2, 0.1), boards) for i in range(posts)),
        *(block(0, 0, h, (length, 0.12, 0.04), boards) for h in (0.35, 0.75)),
    ]


def balloon(first: str, second: str) -> list[Solid]:
    """A hot-air balloon with its basket at the ground."""
    envelope = striped(first, second, 2 * math.pi * 4 / 8, around=True)
    ropes = [rod((x * 0.5, -1.0, z * 0.5), (x * 1.3, -4.6, z * 1.3), 0.03, _STEEL) for x in (-1, 1) for z in (-1, 1)]
    return [egg(0, 0, 4.0, (4.0, 4.8, 4.0), envelope), block(0, 0, 0, (1.2, 1.0, 1.2), wood("oak", 0.15)), *ropes]


def shop_front(width: float, color: str, dice: Dice, lit: bool) -> list[Solid]:
    """A shop window with a door and an awning, in front of a facade at z = 0 that one sees from -z."""
    pane = Material((0.9, 0.68, 0.4), emission=0.9) if lit else Material((0.05, 0.065, 0.08))
    awning = Solid("box", (0.0, -2.75, -0.55), (width / 2, 0.03, 0.6), striped(color, "white", 0.5), turn(0.0, -0.35))
    return [
        block(0, 0, 0, (width, 3.0, 0.14), paint(color)),
        block(-0.5, -0.05, 0.5, (width - 1.9, 1.9, 0.12), pane),
        block(width / 2 - 0.8, -0.05, 0, (0.9, 2.3, 0.12), Material(darker(COLORS[color], 0.4))),
        awning,
    ]


def pedestrian(dice: Dice) -> tuple[str, list[Solid]]:
    """A standing figure of capsules, and the colour of its coat."""
    coat = dice.pick(("red", "blue", "yellow", "green", "purple", "black", "orange"))
    cloth, trousers, skin = (
        paint(coat),
        paint(dice.pick(("black", "grey", "brown", "blue"))),
        Material(dice.pick(((0.62, 0.38, 0.26), (0.30, 0.16, 0.09), (0.75, 0.5, 0.38)))),
    )
    parts = [
        *(rod((x * 0.1, -0.08, x * 0.12), (x * 0.09, -0.85, 0.0), 0.075, trousers) for x in (-1, 1)),
        rod((0.0, -0.9, 0.0), (0.0, -1.32, 0.0), 0.18, cloth),
        *(rod((x * 0.22, -1.38, 0.0), (x * 0.27, -0.85, -x * 0.14), 0.055, cloth) for x in (-1, 1)),
        egg(0, 0, 1.5, (0.1, 0.13, 0.11), skin),
        egg(0, 0.015, 1.6, (0.11, 0.085, 0.12), Material((0.05, 0.03, 0.02))),
    ]
    return coat, parts
