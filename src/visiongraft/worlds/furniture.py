"""Furniture and small objects, each described around the origin with its back towards +z, standing on the floor."""

import math

from visiongraft.worlds.building import block, egg, placed, post, rod
from visiongraft.worlds.colors import COLORS, VIVID
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.materials import WOODS, checked, fabric, paint, picture, striped, wood
from visiongraft.worlds.scenes import Material, Solid

_METAL = Material((0.35, 0.36, 0.38))
_BRASS = Material((0.55, 0.38, 0.12))


def sofa(color: str, dice: Dice) -> list[Solid]:
    """Two or three seats with cushions; about 2 m wide."""
    width, cloth = dice.between(1.6, 2.3), fabric(color)
    parts = [
        block(0, 0, 0.12, (width, 0.3, 0.85), cloth),
        block(0, 0.36, 0.3, (width, 0.55, 0.2), cloth),
        *(block(side * (width / 2 - 0.09), 0, 0.12, (0.2, 0.5, 0.87), cloth) for side in (-1, 1)),
        *(block(x * (width / 2 - 0.12), z, 0.0, (0.06, 0.12, 0.06), wood("walnut")) for x in (-1, 1) for z in (-0.36, 0.36)),
    ]
    cushion = fabric(dice.pick([name for name in (*VIVID, "white") if name != color]))
    for side in (-1, 1):
        parts.append(egg(side * (width / 2 - 0.42), 0.16, 0.4, (0.22, 0.2, 0.11), cushion))
    return parts


def table(width: float, depth: float, height: float, top: Material, legs: Material, round_top: bool = False) -> list[Solid]:
    """A table with four legs, or a round one with a foot."""
    if round_top:
        radius = min(width, depth) / 2
        return [
            post(0, 0, height - 0.04, radius, 0.04, top),
            post(0, 0, 0.03, 0.05, height - 0.07, legs),
            post(0, 0, 0, radius * 0.5, 0.03, legs),
        ]
    inset = 0.07
    return [
        block(0, 0, height - 0.05, (width, 0.05, depth), top),
        *(block(x * (width / 2 - inset), z * (depth / 2 - inset), 0, (0.06, height - 0.05, 0.06), legs) for x in (-1, 1) for z in (-1, 1)),
    ]


def chair(material: Material, seat: Material) -> list[Solid]:
    """A chair with a slatted back."""
    return [
        block(0, 0, 0.42, (0.44, 0.05, 0.44), seat),
        *(block(x * 0.19, -0.19, 0, (0.04, 0.42, 0.04), material) for x in (-1, 1)),
        *(block(x * 0.19, 0.19, 0, (0.04, 0.92, 0.04), material) for x in (-1, 1)),
        *(block(0, 0.19, h, (0.36, 0.09, 0.025), material) for h in (0.58, 0.78)),
    ]


def bookshelf(dice: Dice) -> list[Solid]:
    """Open shelves full of books in many colours; 1 m wide, 2 m high."""
    board = wood(dice.pick(list(WOODS)), 0.2)
    width, height, depth = dice.between(0.8, 1.2), dice.between(1.6, 2.1), 0.3
    levels = 5
    parts = [block(side * width / 2, 0, 0, (0.03, height, depth), board) for side in (-1, 1)]
    parts.append(block(0, depth / 2 - 0.01, 0, (width, height, 0.02), board))
    for level in range(levels + 1):
        parts.append(block(0, 0, level * (height - 0.03) / levels, (width, 0.03, depth), board))
    for level in range(levels):
        shelf = level * (height - 0.03) / levels + 0.03
        left = -width / 2 + 0.03
        while left < width / 2 - 0.15:
            run, tall = dice.between(0.12, 0.3), dice.between(0.18, 0.27)
            run = min(run, width / 2 - 0.03 - left)
            first, second = dice.some([*VIVID, "white", "brown", "black", "beige"], 2)
            books = striped(first, second, dice.between(0.05, 0.09), dice.between(0.35, 0.65))
            parts.append(block(left + run / 2, -0.02, shelf, (run, tall, 0.2), books))
            left += run + (dice.between(0.05, 0.2) if dice.chance(0.35) else 0.004)
    return parts


def cabinet(material: Material, dice: Dice) -> list[Solid]:
    """A low chest of drawers with knobs and something on it."""
    width, height = dice.between(0.9, 1.5), dice.between(0.7, 0.95)
    parts = [block(0, 0, 0.08, (width, height - 0.08, 0.45), material), block(0, 0, 0, (width - 0.1, 0.08, 0.4), _METAL)]
    rows = 3
    for row in range(rows):
        base = 0.12 + row * (height - 0.14) / rows
        parts.append(block(0, -0.23, base, (width - 0.06, (height - 0.14) / rows - 0.03, 0.02), material))
        for side in (-1, 1):
            parts.append(egg(side * width / 4, -0.25, base + (height - 0.14) / rows / 2 - 0.03, (0.02, 0.02, 0.02), _BRASS))
    parts += placed(vase(dice.pick(VIVID), dice), dice.between(-width / 3, width / 3), 0.05, height=height)
    return parts


def bed(color: str, dice: Dice) -> list[Solid]:
    """A bed with its head towards +z."""
    width, frame = dice.pick((1.0, 1.4, 1.6)), wood(dice.pick(list(WOODS)))
    pillows = (0.0,) if width < 1.2 else (-width / 4, width / 4)
    return [
        block(0, 0, 0.1, (width, 0.2, 2.0), frame),
        block(0, 0, 0.3, (width - 0.06, 0.18, 1.94), paint("white")),
        block(0, -0.3, 0.32, (width + 0.02, 0.2, 1.36), fabric(color)),
        block(0, 1.0, 0, (width, 0.95, 0.06), frame),
        *(egg(x, 0.72, 0.42, (0.3, 0.1, 0.2), paint("white")) for x in pillows),
    ]


def plant(dice: Dice) -> list[Solid]:
    """A pot with large leaves."""
    pot = paint(dice.pick(("white", "orange", "brown", "turquoise")))
    green = COLORS["green"]
    parts = [post(0, 0, 0, 0.17, 0.32, pot), post(0, 0, 0.3, 0.155, 0.03, Material((0.03, 0.02, 0.015)))]
    for i in range(dice.whole(8, 12)):
        angle, lean = i * 2.4 + dice.between(-0.3, 0.3), dice.between(0.15, 0.5)
        height = dice.between(0.75, 1.4)
        x, z = math.sin(angle) * lean, math.cos(angle) * lean
        shade = dice.between(0.45, 1.0)
        leaf = Material((green[0] * shade, green[1] * shade, green[2] * shade))
        parts.append(rod((0.0, -0.3, 0.0), (x * 0.7, -height + 0.1, z * 0.7), 0.009, leaf))
        parts.append(egg(x, z, height - 0.1, (0.11, dice.between(0.1, 0.2), 0.05), leaf, yaw=angle))
    return parts


def floor_lamp(shade: str, lit: bool) -> list[Solid]:
    """A lamp on a pole."""
    cover = Material(COLORS[shade], emission=2.5 if lit else 0.0)
    top = post(0, 0, 1.45, 0.2, 0.3, cover)
    return [
        post(0, 0, 0, 0.15, 0.03, _METAL),
        post(0, 0, 0, 0.014, 1.5, _METAL),
        Solid(top.shape, top.position, top.half_size, cover, casts_shadow=False),
    ]


def wall_picture(image: str, width: float, height: float, frame: Material) -> list[Solid]:
    """A framed photograph; its back is at z = 0, and it looks towards -z."""
    border = 0.05
    canvas = block(0, -0.025, border, (width, height, 0.03), picture(image, width, height))
    outer = block(0, -0.015, 0, (width + 2 * border, height + 2 * border, 0.03), frame)
    return [outer, canvas]


def vase(color: str, dice: Dice) -> list[Solid]:
    """A vase of 15 to 30 cm, on a table or a chest."""
    body = dice.between(0.06, 0.09)
    glaze = dice.pick((paint(color), striped(color, "white", 0.06, around=True)))
    return [
        egg(0, 0, 0, (body, body * 1.3, body), glaze),
        post(0, 0, body * 2, body * 0.42, body * 1.3, glaze),
        post(0, 0, body * 3.2, body * 0.55, 0.012, glaze),
    ]


def mug(color: str) -> list[Solid]:
    """A mug with coffee and a handle."""
    glaze = paint(color)
    rim = [(math.cos(a) * 0.032 + 0.042, -0.052 - math.sin(a) * 0.032, 0.0) for a in (-1.3, -0.5, 0.5, 1.3)]
    handle = [rod(rim[i], rim[i + 1], 0.006, glaze) for i in range(3)]
    return [post(0, 0, 0, 0.042, 0.1, glaze), post(0, 0, 0.099, 0.037, 0.002, Material((0.04, 0.018, 0.008))), *handle]


def bottle(color: str) -> list[Solid]:
    """A bottle with a label and a cork."""
    glass = paint(color)
    return [
        post(0, 0, 0, 0.04, 0.19, glass),
        egg(0, 0, 0.15, (0.04, 0.05, 0.04), glass),
        post(0, 0, 0.2, 0.015, 0.09, glass),
        post(0, 0, 0.05, 0.0408, 0.09, paint("white")),
        post(0, 0, 0.29, 0.012, 0.02, paint("brown")),
    ]


def book(color: str, dice: Dice) -> list[Solid]:
    """A closed book that lies flat."""
    width, depth, thick = dice.between(0.13, 0.19), dice.between(0.19, 0.26), dice.between(0.018, 0.045)
    cover = paint(color)
    pages = block(0, 0, 0.003, (width - 0.008, thick - 0.006, depth - 0.01), striped("white", "beige", 0.004))
    return [
        block(0, 0, 0, (width, 0.003, depth), cover),
        pages,
        block(0, 0, thick - 0.003, (width, 0.003, depth), cover),
        block(-width / 2, 0, 0, (0.004, thick, depth), cover),
    ]


def ball(color: str, radius: float, dice: Dice) -> list[Solid]:
    """A ball: plain, striped or checked with white."""
    arc = 2 * math.pi * radius
    cover = dice.pick((paint(color), striped(color, "white", arc / 4, around=True), checked(color, "white", arc / 4, around=True)))
    return [egg(0, 0, 0, (radius, radius, radius), cover)]


def bowl_of_fruit(dice: Dice) -> list[Solid]:
    """A dish with three or four fruits."""
    parts = [post(0, 0, 0, 0.06, 0.015, paint("white")), post(0, 0, 0.015, 0.13, 0.015, paint("white"))]
    for i in range(dice.whole(3, 4)):
        angle = i * math.pi / 2 + dice.between(-0.2, 0.2)
        radius = dice.between(0.032, 0.04)
        skin = paint(dice.pick(("red", "orange", "yellow", "green")))
        parts.append(egg(math.sin(angle) * 0.058, math.cos(angle) * 0.058, 0.03, (radius, radius * 0.95, radius), skin))
    return parts


def candle(color: str) -> list[Solid]:
    """A burning candle on a saucer."""
    flame = Material((1.0, 0.6, 0.15), emission=3.0)
    return [
        post(0, 0, 0, 0.06, 0.008, paint("white")),
        post(0, 0, 0.008, 0.025, 0.11, paint(color)),
        egg(0, 0, 0.12, (0.007, 0.018, 0.007), flame),
    ]


def blocks(dice: Dice) -> list[Solid]:
    """A small tower of toy blocks."""
    parts, base = [], 0.0
    for color in dice.some(VIVID, dice.whole(3, 5)):
        side = dice.between(0.04, 0.06)
        parts.append(
            block(dice.between(-0.008, 0.008), dice.between(-0.008, 0.008), base, (side, side, side), paint(color), dice.between(0, 1.5))
        )
        base += side
    return parts


def pencil(color: str) -> list[Solid]:
    """A pencil that lies on a table, along x."""
    return [
        rod((-0.085, -0.005, 0.0), (0.07, -0.005, 0.0), 0.0045, paint(color), "cylinder"),
        rod((0.07, -0.005, 0.0), (0.088, -0.005, 0.0), 0.0025, paint("beige")),
    ]
