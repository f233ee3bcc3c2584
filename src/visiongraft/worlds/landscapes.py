"""Open country: hills and mountains around a meadow, trees, rocks, a lake, a house, a balloon."""

import dataclasses
import math

from visiongraft.worlds.building import placed, turn
from visiongraft.worlds.colors import VIVID, darker, linear
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.lighting import TIMES, daylight
from visiongraft.worlds.materials import stone
from visiongraft.worlds.outdoors import balloon, bush, conifer, fence, house, rock, tree
from visiongraft.worlds.scenes import Material, Scene, Solid, Thing, assemble

_GROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "green": ((0.12, 0.25, 0.04), (0.05, 0.13, 0.02)),
    "dry": ((0.42, 0.33, 0.13), (0.26, 0.19, 0.07)),
    "snowy": ((0.86, 0.88, 0.93), (0.70, 0.74, 0.82)),
    "golden": ((0.48, 0.36, 0.07), (0.27, 0.22, 0.04)),
}


def landscape(dice: Dice) -> Scene:
    """A meadow among hills."""
    time = dice.pick(TIMES[:-1] if dice.chance(0.85) else TIMES)
    lights, sky = daylight(time, dice, haze=0.0025)
    ground = dice.pick(list(_GROUNDS))
    season = "autumn" if ground == "dry" else dice.pick(("green", "green", "autumn", "blossoming")) if ground != "snowy" else "green"
    things = [_meadow(ground), *_hills(ground, dice), *_mountains(ground, dice)]
    mentioned = []
    lake = dice.chance(0.5)
    water = (dice.between(-math.pi, math.pi), dice.between(16, 24), dice.between(8, 12)) if lake else None
    if water:
        things.append(_lake(water))
        mentioned.append("a lake")
    if dice.chance(0.6):
        color, roof = dice.pick(("white", "yellow", "pink", "beige", "blue")), dice.pick(("red", "brown", "grey"))
        angle = (water[0] + math.pi * dice.between(0.6, 1.4)) if water else dice.between(-math.pi, math.pi)
        away = dice.between(12, 18)
        things.append(
            Thing(
                f"{color} house",
                placed(
                    house(color, roof, dice, time == "at night"),
                    math.sin(angle) * away,
                    math.cos(angle) * away,
                    angle + dice.between(-0.5, 0.5),
                ),
            )
        )
        mentioned.append(f"a {color} house with a {roof} roof")
    kinds = ("fir",) if ground == "snowy" else dice.pick((("tree",), ("tree",), ("fir",), ("tree", "fir")))
    things += _woods(kinds, season, water, things, dice)
    mentioned.append(" and ".join("firs" if kind == "fir" else "trees" if season == "green" else f"{season} trees" for kind in kinds))
    things += _rocks(water, dice)
    mentioned.append("rocks")
    if dice.chance(0.5):
        angle = dice.between(-math.pi, math.pi)
        things.append(Thing("fence", placed(fence(dice.whole(4, 7) * 2.0), math.sin(angle) * 6.5, math.cos(angle) * 6.5, angle)))
        mentioned.append("a fence")
    if dice.chance(0.45) and time not in ("at night", "on an overcast day"):
        first, second = dice.some((*VIVID, "white"), 2)
        angle, away = dice.between(-math.pi, math.pi), dice.between(30, 50)
        solids = placed(balloon(first, second), math.sin(angle) * away, math.cos(angle) * away, height=dice.between(10, 18))
        things.append(Thing(f"{first} and {second} balloon", solids, (dice.between(-1, 1), -0.2, dice.between(-1, 1))))
        mentioned.append(f"{'an' if first == 'orange' else 'a'} {first} and {second} hot-air balloon")
    caption = f"A {ground} landscape {time} with hills, {', '.join(mentioned)}."
    return assemble("landscape", caption, (0.0, -1.6, 0.0), things, lights, sky)


def _meadow(ground: str) -> Thing:
    light, dark = _GROUNDS[ground]
    look = Material(light, "mottled", dark, (3, 3), image="clouds" if ground == "snowy" else "grass")
    return Thing("meadow", [Solid("plane", (0, 0, 0), (math.inf, 1, math.inf), look, casts_shadow=False)])


def _hills(ground: str, dice: Dice) -> list[Thing]:
    light, dark = _GROUNDS[ground]
    hills = []
    for i in range(7):
        angle, away = i * 0.9 + dice.between(-0.3, 0.3), dice.between(60, 95)
        radii = (dice.between(28, 45), dice.between(6, 15), dice.between(25, 40))
        shade = dice.between(0.75, 1.05)
        look = Material(darker(light, shade), "mottled", darker(dark, shade), (30, 30), image="clouds")
        x, z = math.sin(angle) * away, math.cos(angle) * away
        hills.append(Solid("ellipsoid", (x, 0.0, z), radii, look, turn(angle)))
    return [Thing("hill", [hill]) for hill in hills]


def _mountains(ground: str, dice: Dice) -> list[Thing]:
    if dice.chance(0.4):
        return []
    color, dark = linear(0.50, 0.50, 0.53), linear(0.33, 0.34, 0.38)
    peaks = []
    start = dice.between(-math.pi, math.pi)
    for i in range(5):
        angle, away = start + i * 0.55, dice.between(300, 420)
        size = dice.between(70, 130)
        tilt = turn(dice.between(0, 1.5), dice.between(0.5, 0.9), dice.between(0.5, 0.9))
        peaks.append(
            Solid("box", (math.sin(angle) * away, size * 0.25, math.cos(angle) * away), (size, size, size), stone(color, 120.0), tilt)
        )
        snow = Material((0.80, 0.83, 0.88), "mottled", dark, (90, 90), image="clouds")
        peaks.append(
            dataclasses.replace(
                peaks[-1], position=(peaks[-1].position[0], size * 0.18, peaks[-1].position[2]), half_size=(size * 0.97,) * 3, material=snow
            )
        )
    return [Thing("mountains", peaks)]


def _lake(water: tuple[float, float, float]) -> Thing:
    angle, away, radius = water
    look = Material((0.10, 0.22, 0.33), "mottled", (0.06, 0.15, 0.25), (14, 4), image="clouds")
    shore = Material((0.40, 0.34, 0.22), "mottled", (0.25, 0.20, 0.12), (2.5, 2.5), image="gravel")
    x, z = math.sin(angle) * away, math.cos(angle) * away
    discs = [("cylinder", radius + 0.6, 0.02, shore), ("cylinder", radius, 0.03, look)]
    return Thing("lake", [Solid(shape, (x, 0.0, z), (size, height, size), m, casts_shadow=False) for shape, size, height, m in discs])


def _woods(kinds: tuple[str, ...], season: str, water: tuple[float, float, float] | None, things: list[Thing], dice: Dice) -> list[Thing]:
    woods: list[Thing] = []
    taken = [(s.position[0], s.position[2], 7.0) for t in things if "house" in t.name for s in t.solids[:1]]
    for i in range(dice.whole(14, 24)):
        angle, away = i * 2.39996 + dice.between(-0.3, 0.3), 5.5 + 40 * dice.between(0, 1) ** 1.3
        x, z = math.sin(angle) * away, math.cos(angle) * away
        if _in_water(x, z, 2.0, water) or any(math.hypot(x - px, z - pz) < r for px, pz, r in taken):
            continue
        taken.append((x, z, 2.5))
        kind = dice.pick(kinds)
        solids = conifer(dice, dice.between(0.8, 1.4)) if kind == "fir" else tree(dice, season, dice.between(0.8, 1.7))
        woods.append(Thing(kind if kind == "fir" or season == "green" else f"{season} tree", placed(solids, x, z, dice.between(0, 6))))
    for _ in range(4):
        angle, away = dice.between(-math.pi, math.pi), dice.between(4.5, 12)
        x, z = math.sin(angle) * away, math.cos(angle) * away
        if not _in_water(x, z, 1.0, water):
            woods.append(Thing("bush", placed(bush(dice), x, z, dice.between(0, 6))))
    return woods


def _rocks(water: tuple[float, float, float] | None, dice: Dice) -> list[Thing]:
    rocks = []
    for _ in range(dice.whole(4, 8)):
        angle, away = dice.between(-math.pi, math.pi), dice.between(3.5, 16)
        x, z = math.sin(angle) * away, math.cos(angle) * away
        if not _in_water(x, z, 1.0, water) or not rocks:
            rocks.append(Thing("rock", placed(rock(dice, dice.between(0.35, 1.1)), x, z, dice.between(0, 6))))
    return rocks


def _in_water(x: float, z: float, margin: float, water: tuple[float, float, float] | None) -> bool:
    if water is None:
        return False
    angle, away, radius = water
    return math.hypot(x - math.sin(angle) * away, z - math.cos(angle) * away) < radius + margin
