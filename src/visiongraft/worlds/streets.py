"""A street between houses: facades with windows and shops, pavements, parked and moving cars, trees, lamps and people."""

import math

from visiongraft.worlds.building import block, placed, sheet
from visiongraft.worlds.colors import COLORS, VIVID, darker, linear
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.lighting import TIMES, daylight
from visiongraft.worlds.materials import brickwork, facade, tiles
from visiongraft.worlds.outdoors import bench, car, pedestrian, shop_front, street_lamp, tree
from visiongraft.worlds.scenes import Light, Material, Scene, Solid, Thing, Vector, assemble

_FACADES: dict[str, Vector] = {
    "white": linear(0.88, 0.86, 0.82),
    "yellow": linear(0.88, 0.74, 0.46),
    "pink": linear(0.85, 0.62, 0.56),
    "brick": linear(0.60, 0.33, 0.25),
    "grey": linear(0.62, 0.62, 0.64),
    "green": linear(0.56, 0.66, 0.54),
    "blue": linear(0.52, 0.62, 0.74),
    "orange": linear(0.82, 0.55, 0.36),
}
_GLASS = (0.045, 0.06, 0.08)
_LENGTH = 120.0
_CURB = 0.14


def street(dice: Dice) -> Scene:
    """A straight street along z."""
    time = dice.pick(TIMES)
    night = time == "at night"
    lights, sky = daylight(time, dice, haze=0.004)
    half_road, pavement = dice.between(3.4, 4.2), dice.between(2.4, 3.2)
    edge = half_road + pavement
    things = _ground(half_road, pavement)
    colors: list[str] = []
    for side in (-1, 1):
        things += _row(side, edge, night, dice, colors)
    cars = _cars(half_road, night, dice)
    things += cars
    planted = _trees(half_road, dice)
    things += planted
    lamps, lamp_lights = _lamps(half_road, night, dice)
    things += lamps
    people = _people(half_road, pavement, dice)
    things += people
    for side in (-1, 1):
        if dice.chance(0.5):
            things.append(Thing("bench", placed(bench(), side * (edge - 0.5), dice.between(4, 14), side * math.pi / 2, _CURB)))
    x = dice.pick((0.0, half_road * 0.5, -half_road * 0.5, half_road + 1.0, -half_road - 1.0))
    height = 1.6 + (_CURB if abs(x) > half_road else 0)
    viewpoint = (x, -height, dice.between(-2, 2))
    cleared = [thing for thing in things if _away(thing, viewpoint)]
    kept = {id(thing) for thing in cleared}
    caption = _caption(
        time, colors, [t for t in cars if id(t) in kept], [t for t in planted if id(t) in kept], [t for t in people if id(t) in kept], night
    )
    return assemble("street", caption, viewpoint, cleared, [*lights, *lamp_lights], sky)


def _ground(half_road: float, pavement: float) -> list[Thing]:
    inf = math.inf
    earth = Solid(
        "plane",
        (0, 0.02, 0),
        (inf, 1, inf),
        Material((0.16, 0.16, 0.14), "mottled", (0.08, 0.08, 0.07), (6, 6), image="gravel"),
        casts_shadow=False,
    )
    asphalt = Material((0.13, 0.13, 0.135), "mottled", (0.06, 0.06, 0.065), (1.2, 1.2), image="gravel")
    road = sheet(0, 0, 0.0, 2 * half_road, 400.0, asphalt)
    white, dark = (0.62, 0.62, 0.60), (0.075, 0.075, 0.08)
    # dashes run along the road: the plane's first axis is turned onto z
    marks = placed([sheet(0, 0, 0.005, 400.0, 0.14, Material(white, "stripes", dark, (4.0, 4.0), 0.5))], 0, 0, math.pi / 2)
    marks += [sheet(s * (half_road - 0.25), 0, 0.005, 0.1, 400.0, Material(white)) for s in (-1, 1)]
    crossing = [sheet(0, 9.0, 0.008, 2 * half_road - 0.6, 3.0, Material(white, "stripes", dark, (1.0, 1.0), 0.5))]
    walks = [block(s * (half_road + pavement / 2), 0, 0, (pavement, _CURB, 400.0), tiles("grey", 0.6)) for s in (-1, 1)]
    curbs = [block(s * (half_road + 0.08), 0, 0, (0.16, _CURB + 0.012, 400.0), Material((0.42, 0.42, 0.41))) for s in (-1, 1)]
    return [
        Thing("ground", [earth]),
        Thing("road", [road]),
        Thing("road marks", marks),
        Thing("crossing", crossing),
        Thing("pavement", walks),
        Thing("kerb", curbs),
    ]


def _row(side: int, edge: float, night: bool, dice: Dice, colors: list[str]) -> list[Thing]:
    row = []
    start = -_LENGTH / 2 + dice.between(-4, 4)
    while start < _LENGTH / 2:
        period = (dice.between(2.0, 2.9), dice.between(2.9, 3.4))
        columns, floors = dice.whole(3, 6), dice.whole(2, 6)
        width, height = columns * period[0], floors * period[1]
        middle = start + width / 2
        if dice.chance(0.12) and abs(middle) > 12:
            start += dice.between(4, 7)
            continue
        color = dice.pick(list(_FACADES))
        if abs(middle) < 25:
            colors.append(color)
        row.append(
            Thing(f"{color} house", placed(_house(width, height, color, period, night, dice), side * edge, middle, side * math.pi / 2))
        )
        start += width + (0.0 if dice.chance(0.8) else 0.6)
    return row


def _house(width: float, height: float, color: str, period: tuple[float, float], night: bool, dice: Dice) -> list[Solid]:
    """A house whose front lies in z = 0 and is seen from -z."""
    depth = 3 * period[0]
    ground = 3.2
    wall = facade(_FACADES[color], _GLASS, period, 0.9 if night else 0.0)
    base = brickwork(_FACADES["brick"], 0.3) if color == "brick" else Material(darker(_FACADES[color], 0.7))
    parts = [
        block(0, depth / 2, ground, (width, height, depth), wall),
        block(0, depth / 2, 0, (width, ground, depth), base),
        block(0, depth / 2 - 0.1, ground - 0.1, (width, 0.22, depth + 0.2), Material(darker(_FACADES[color], 0.85))),
        block(
            0,
            depth / 2 - 0.15,
            ground + height,
            (width + 0.1, 0.4, depth + 0.3),
            Material(dice.pick(((0.25, 0.1, 0.06), (0.1, 0.1, 0.12), (0.5, 0.48, 0.44)))),
        ),
    ]
    if dice.chance(0.75):
        shop = shop_front(min(width - 0.8, dice.between(4.0, 7.0)), dice.pick(VIVID), dice, night and dice.chance(0.6))
        parts += placed(shop, 0, -0.07, height=_CURB)
    else:
        parts += [
            block(x, -0.03, _CURB, (1.1, 2.3, 0.1), Material(COLORS[dice.pick(("brown", "green", "blue", "red"))]))
            for x in (-width / 4, width / 4)
        ]
    return parts


def _cars(half_road: float, night: bool, dice: Dice) -> list[Thing]:
    cars = []
    for side in (-1, 1):
        # traffic keeps to the right of its direction: on the right side of the picture it drives away from the viewer
        yaw = 0.0 if side > 0 else math.pi
        parked = -30.0 + dice.between(0, 6)
        while parked < 32:
            if dice.chance(0.45) and abs(parked) > 4:
                color = dice.pick((*VIVID, "white", "grey", "black"))
                cars.append(Thing(f"{color} parked car", placed(car(color, dice), side * (half_road - 1.15), parked, yaw)))
            parked += dice.between(6.5, 9)
        if dice.chance(0.8):
            color = dice.pick((*VIVID, "white", "grey", "black"))
            along = side * dice.between(6, 20) * dice.pick((-1, 1))
            speed = side * dice.between(3, 8)
            cars.append(Thing(f"{color} car", placed(car(color, dice, night), side * (half_road * 0.38), along, yaw), (0.0, 0.0, speed)))
    return cars


def _trees(half_road: float, dice: Dice) -> list[Thing]:
    season = dice.pick(("green", "green", "autumn", "blossoming"))
    spacing, trees = dice.between(9, 15), []
    for side in (-1, 1):
        if dice.chance(0.75):
            start = -32 + dice.between(0, 6)
            while start < 36:
                solids = placed(tree(dice, season, dice.between(0.85, 1.15)), side * (half_road + 0.75), start, dice.between(0, 6))
                trees.append(Thing("tree" if season == "green" else f"{season} tree", solids))
                start += spacing
    return trees


def _lamps(half_road: float, lit: bool, dice: Dice) -> tuple[list[Thing], list[Light]]:
    lamps, lights = [], []
    offset = dice.between(-3, 3)
    for i in range(-2, 3):
        side = 1 if i % 2 else -1
        z = offset + i * 13.0
        lamps.append(Thing("street lamp", placed(street_lamp(lit), side * (half_road + 0.35), z, 0.0 if side < 0 else math.pi)))
        if lit and abs(i) <= 1:
            lights.append(Light((0.62, 0.44, 0.22), None, (side * (half_road - 0.7), -4.75, z), 4.5))
    return lamps, lights


def _people(half_road: float, pavement: float, dice: Dice) -> list[Thing]:
    people = []
    for _ in range(dice.whole(1, 4)):
        coat, solids = pedestrian(dice)
        side, along = dice.pick((-1, 1)), dice.between(-16, 16)
        heading = dice.pick((-1, 1))
        spot = placed(solids, side * (half_road + pavement * dice.between(0.45, 0.75)), along, 0.0 if heading > 0 else math.pi, _CURB)
        people.append(
            Thing(f"person in {'an' if coat == 'orange' else 'a'} {coat} coat", spot, (0.0, 0.0, heading * dice.between(0.8, 1.4)))
        )
    return people


def _away(thing: Thing, viewpoint: Vector) -> bool:
    """Whether a movable thing leaves the viewer some room."""
    if thing.name in ("ground", "road", "road marks", "crossing", "pavement", "kerb") or "house" in thing.name:
        return True
    reach = 3.2 if "car" in thing.name else 2.0
    return all(math.hypot(s.position[0] - viewpoint[0], s.position[2] - viewpoint[2]) > reach for s in thing.solids)


def _caption(time: str, colors: list[str], cars: list[Thing], trees: list[Thing], people: list[Thing], night: bool) -> str:
    fronts = " and ".join(dict.fromkeys(colors[:2]))
    text = f"A street {time} with {fronts} houses"
    near = sorted(cars, key=lambda thing: abs(thing.solids[0].position[2]))[:2]
    text += "".join(f", {'an' if t.name[0] in 'aeiou' else 'a'} {t.name}" for t in near)
    if trees:
        text += f", {trees[0].name}s"
    if people:
        text += f", a {people[0].name}"
    return text + (" and lit street lamps." if night else " and street lamps.")
