"""A table with small objects all around the camera, which stands on the table in a room."""

import math

from visiongraft.worlds.building import block, placed
from visiongraft.worlds.colors import VIVID
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.furniture import (
    ball,
    blocks,
    book,
    bookshelf,
    bottle,
    bowl_of_fruit,
    candle,
    chair,
    mug,
    pencil,
    plant,
    table,
    vase,
    wall_picture,
)
from visiongraft.worlds.materials import WOODS, checked, paint, striped, wood
from visiongraft.worlds.rooms import Shell, indoor_light, shell
from visiongraft.worlds.scenes import Material, Scene, Solid, Thing, Vector, assemble
from visiongraft.worlds.textures import PICTURES

_HEIGHT = 0.75
_OBJECTS = ("mug", "bottle", "books", "ball", "vase", "bowl of fruit", "candle", "toy blocks", "pencil", "photo frame")


def tabletop(dice: Dice) -> Scene:
    """Objects on a table."""
    time = dice.pick(("in the morning", "in the afternoon", "at night"))
    height = dice.between(2.4, 2.8)
    base = shell(dice, dice.between(3.8, 5.2), dice.between(3.8, 5.2), height)
    lights, sky = indoor_light(time, dice, height)
    kind = dice.pick(list(WOODS))
    radius = dice.between(0.75, 0.9)
    top, covered = dice.pick(((wood(kind, 0.14), False), (wood(kind, 0.14), False), (_cloth(dice), True)))
    round_top = dice.chance(0.5)
    things = [*base.things, Thing("table", table(2 * radius, 2 * radius, _HEIGHT, top, wood(kind), round_top))]
    things += _surroundings(base, kind, radius, dice)
    names = _objects(things, radius, dice)
    surface = "a table with a patterned cloth" if covered else f"{'an' if kind == 'oak' else 'a'} {kind} table"
    caption = f"Objects on {surface} in a room {time}: {', '.join(names)}."
    viewpoint = (0.0, -(_HEIGHT + dice.between(0.2, 0.32)), 0.0)
    return assemble("tabletop", caption, viewpoint, things, lights, sky)


def _cloth(dice: Dice) -> Material:
    first = dice.pick(VIVID)
    return dice.pick((checked(first, "white", 0.16), striped(first, "white", 0.12)))


def _surroundings(base: Shell, kind: str, radius: float, dice: Dice) -> list[Thing]:
    seats = [
        part for k in range(4) for part in placed(chair(wood(kind), wood(kind)), *_polar(k * math.pi / 2, radius + 0.3), k * math.pi / 2)
    ]
    bare = [wall for i, wall in enumerate(base.walls) if i not in base.window_walls]
    image = dice.pick(PICTURES)
    art = bare[0].place(wall_picture(image, 0.9, 0.7, paint("black")), 0.9, 0.0, 1.3)
    green = base.walls[base.window_walls[0]]
    return [
        Thing("chairs", seats),
        Thing("bookshelf", bare[-1].place(bookshelf(dice), -0.6, 0.17)),
        Thing("potted plant", green.place(plant(dice), dice.pick((-1, 1)) * (green.length / 2 - 0.6), 0.5)),
        Thing(f"picture ({image})", art),
    ]


def _objects(things: list[Thing], radius: float, dice: Dice) -> list[str]:
    chosen = dice.some(_OBJECTS, dice.whole(6, 9))
    names = []
    start = dice.between(0, 6)
    for i, kind in enumerate(chosen):
        angle = start + i * 2 * math.pi / len(chosen) + dice.between(-0.12, 0.12)
        x, z = _polar(angle, dice.between(0.36, radius - 0.24))
        name, solids, spin = _object(kind, dice)
        things.append(Thing(name, placed(solids, x, z, angle + dice.between(-0.5, 0.5), _HEIGHT), spin=spin))
        names.append(name if name.endswith("blocks") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}")
    return names


def _object(kind: str, dice: Dice) -> tuple[str, list[Solid], Vector]:
    color = dice.pick(VIVID)
    still = (0.0, 0.0, 0.0)
    if kind == "mug":
        return f"{color} mug", mug(color), still
    if kind == "bottle":
        color = dice.pick(("green", "brown", "blue"))
        return f"{color} bottle", bottle(color), still
    if kind == "books":
        parts, height = [], 0.0
        for _ in range(3):
            volume = book(dice.pick(VIVID), dice)
            parts += placed(volume, 0, 0, dice.between(-0.3, 0.3), height)
            height += 2 * volume[-1].half_size[1]
        return "pile of books", parts, still
    if kind == "ball":
        return f"{color} ball", ball(color, dice.between(0.045, 0.07), dice), (0.0, 2.0, 0.0)
    if kind == "vase":
        return f"{color} vase", vase(color, dice), still
    if kind == "bowl of fruit":
        return kind, bowl_of_fruit(dice), still
    if kind == "candle":
        return f"{color} candle", candle(color), still
    if kind == "toy blocks":
        return kind, blocks(dice), still
    if kind == "pencil":
        return f"{color} pencil", pencil(color), still
    image = dice.pick(PICTURES)
    stand = block(0, 0.05, 0, (0.05, 0.12, 0.06), paint("black"))
    return f"framed photograph ({image})", [*wall_picture(image, 0.2, 0.16, paint(dice.pick(("white", "black", "red")))), stand], still


def _polar(angle: float, away: float) -> tuple[float, float]:
    return math.sin(angle) * away, math.cos(angle) * away
