"""Rooms: the shell with real windows and a door, and living rooms, bedrooms and dining rooms inside it."""

import math
from dataclasses import dataclass

from visiongraft.worlds.building import block, placed, post, sheet
from visiongraft.worlds.colors import COLORS, VIVID, darker, linear
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.furniture import ball, bed, bookshelf, cabinet, chair, floor_lamp, plant, sofa, table, wall_picture
from visiongraft.worlds.lighting import daylight
from visiongraft.worlds.materials import WOODS, brickwork, checked, fabric, leaves, paint, plaster, striped, tiles, wood
from visiongraft.worlds.scenes import Light, Material, Number, Scene, Sky, Solid, Thing, Vector, assemble
from visiongraft.worlds.textures import PICTURES

_WALLS = (
    linear(0.90, 0.87, 0.80),
    linear(0.80, 0.86, 0.84),
    linear(0.90, 0.82, 0.76),
    linear(0.78, 0.82, 0.90),
    linear(0.86, 0.87, 0.88),
    linear(0.88, 0.85, 0.68),
)
_TIMES = ("in the morning", "in the afternoon", "at noon", "at night")
_THICKNESS = 0.15


@dataclass(frozen=True)
class Wall:
    """A wall as seen from inside: ``place`` puts things described around the origin, with their backs towards +z, against it."""

    length: float
    distance: float
    yaw: float

    def place(self, solids: list[Solid], along: Number, gap: Number, height: Number = 0.0) -> list[Solid]:
        """Solids moved ``along`` the wall (0: its middle), their origin ``gap`` metres before it."""
        near = self.distance - gap
        x = math.cos(self.yaw) * along + math.sin(self.yaw) * near
        z = -math.sin(self.yaw) * along + math.cos(self.yaw) * near
        return placed(solids, x, z, self.yaw, height)


@dataclass(frozen=True)
class Shell:
    """Walls, floor, ceiling, windows and door of a room around the origin."""

    things: list[Thing]
    walls: list[Wall]
    window_walls: list[int]
    width: float
    depth: float
    height: float
    floor: str


def shell(dice: Dice, width: float, depth: float, height: float) -> Shell:
    """An empty room of this size, with one or two windows through which one sees the sky, a lawn and trees."""
    walls = [Wall(width if i % 2 == 0 else depth, (depth if i % 2 == 0 else width) / 2, i * math.pi / 2) for i in range(4)]
    color = dice.pick(_WALLS)
    accent = dice.whole(0, 3)
    accent_look = dice.pick(
        (
            plaster(darker(COLORS[dice.pick(VIVID)], 0.8)),
            brickwork(linear(0.66, 0.36, 0.27)),
            Material(color, "stripes", darker(color, 0.72), (0.3, 0.3)),
        )
    )
    window_walls = dice.some(range(4), dice.whole(1, 2))
    things: list[Thing] = []
    skirting: list[Solid] = []
    frames: list[Solid] = []
    for i, wall in enumerate(walls):
        look = accent_look if i == accent else plaster(color)
        opening = (dice.between(1.3, min(2.6, wall.length - 1.5)), dice.between(1.2, 1.5), 0.9) if i in window_walls else None
        things.append(Thing("wall", wall.place(_wall(wall.length, height, look, opening), 0, 0)))
        skirting += wall.place([block(0, 0, 0, (wall.length, 0.09, 0.02), paint("white"))], 0, 0.01)
        if opening:
            frames += wall.place(_window_frame(*opening), 0, -0.05)
    floor, cover = dice.pick(
        (
            ("wooden", wood(dice.pick(list(WOODS)), 0.16)),
            ("tiled", tiles(dice.pick(("white", "beige", "grey")), 0.5)),
            ("checkered", checked("white", "black", 0.9)),
            ("carpeted", fabric(dice.pick(("grey", "beige", "blue", "brown")))),
        )
    )
    things.append(Thing(f"{floor} floor", [sheet(0, 0, 0, width, depth, cover)]))
    roof = block(0, 0, height, (width + 2 * _THICKNESS, 0.1, depth + 2 * _THICKNESS), paint("white"))
    things += [Thing("ceiling", [roof]), Thing("skirting board", skirting), Thing("window frame", frames)]
    return Shell([*things, *_outside(dice)], walls, window_walls, width, depth, height, floor)


def _wall(length: float, height: float, look: Material, opening: tuple[float, float, float] | None) -> list[Solid]:
    middle = _THICKNESS / 2
    full = length + 2 * _THICKNESS
    if opening is None:
        return [block(0, middle, 0, (full, height, _THICKNESS), look)]
    width, tall, sill = opening
    side = (full - width) / 2
    return [
        block(0, middle, 0, (full, sill, _THICKNESS), look),
        block(0, middle, sill + tall, (full, height - sill - tall, _THICKNESS), look),
        *(block(s * (width + side) / 2, middle, sill, (side, tall, _THICKNESS), look) for s in (-1, 1)),
    ]


def _window_frame(width: float, tall: float, sill: float) -> list[Solid]:
    white = paint("white")
    return [
        block(0, 0, sill, (width, 0.05, 0.06), white),
        block(0, 0, sill + tall - 0.05, (width, 0.05, 0.06), white),
        *(block(x * (width - 0.05) / 2, 0, sill, (0.05, tall, 0.06), white) for x in (-1, 0, 1)),
        block(0, -0.14, sill - 0.03, (width + 0.1, 0.03, 0.2), white),
    ]


def _outside(dice: Dice) -> list[Thing]:
    inf = math.inf
    lawn = Solid(
        "plane",
        (0, 0.4, 0),
        (inf, 1, inf),
        Material((0.10, 0.20, 0.04), "mottled", (0.04, 0.10, 0.02), (3, 3), image="grass"),
        casts_shadow=False,
    )
    trees = []
    for i in range(10):
        angle, away = i * math.pi / 5 + dice.between(-0.25, 0.25), dice.between(14, 26)
        x, z, tall = math.sin(angle) * away, math.cos(angle) * away, dice.between(3, 6)
        radius = dice.between(1.3, 2.4)
        trees += [post(x, z, -0.4, 0.16, tall, Material((0.12, 0.07, 0.04))), _crown(x, z, tall - 1.5, radius, dice)]
    return [Thing("lawn", [lawn]), Thing("trees outside", trees)]


def _crown(x: float, z: float, base: float, radius: float, dice: Dice) -> Solid:
    green = COLORS["green"]
    shade = dice.between(0.6, 1.1)
    look = leaves((green[0] * shade * dice.between(0.8, 2.2), green[1] * shade, green[2] * shade * 0.5))
    return Solid("ellipsoid", (x, -base - radius, z), (radius, radius * 1.1, radius), look)


def indoor_light(time: str, dice: Dice, height: float) -> tuple[list[Light], Sky]:
    """Sun through the windows and a weak lamp by day, a lamp at night; walls throw much of the light back."""
    lights, sky = daylight(time, dice)
    night = time == "at night"
    glow = 0.5 if night else 0.2
    lamp = Light((glow, glow * 0.9, glow * 0.74), None, (0.0, -(height - 0.42), 0.0), 2.2)
    up, down = ((0.13, 0.12, 0.105), (0.16, 0.14, 0.115)) if night else ((0.40, 0.40, 0.42), (0.34, 0.34, 0.34))
    inside = Sky(sky.zenith, sky.horizon, up, down, sky.sun, sky.sun_color, sky.clouds, sky.stars, 0.0)
    return [lights[0], lamp], inside


def room(dice: Dice) -> Scene:
    """A living room, a bedroom or a dining room."""
    width, depth, height = dice.between(4.6, 6.8), dice.between(4.8, 7.2), dice.between(2.5, 3.0)
    use, time = dice.pick(("living room", "bedroom", "dining room")), dice.pick(_TIMES)
    base = shell(dice, width, depth, height)
    lights, sky = indoor_light(time, dice, height)
    things = list(base.things)
    things.append(_ceiling_lamp(height, sum(lights[1].color) > 1))
    mentioned: list[str] = []

    def add(
        name: str, solids: list[Solid], mention: bool = True, spin: Vector = (0.0, 0.0, 0.0), velocity: Vector = (0.0, 0.0, 0.0)
    ) -> None:
        things.append(Thing(name, solids, velocity, spin))
        if mention:
            mentioned.append(name)

    free = dice.some(range(4), 4)
    rug = dice.pick(VIVID)
    size = (dice.between(1.8, 2.6), dice.between(1.4, 2.2))
    rug_look = dice.pick((fabric(rug), striped(rug, "white", 0.35), checked(rug, "beige", 0.5)))
    add(f"{rug} rug", [block(0, 0, 0, (size[0], 0.012, size[1]), rug_look)])
    _main_furniture(use, base, free, dice, add)
    occupied = _side_furniture(base, free, dice, add)
    pictured = _pictures(base, occupied, dice, add)
    if dice.chance(0.5):
        color = dice.pick(VIVID)
        radius = dice.between(0.09, 0.14)
        along, speed = dice.between(-1, 1), dice.between(0.15, 0.3)
        spot = placed(ball(color, radius, dice), along, -min(1.4, depth / 2 - 0.9))
        add(f"{color} ball", spot, velocity=(speed, 0.0, 0.0), spin=(0.0, 0.0, speed / radius))
    viewpoint = (dice.between(-0.4, 0.4), -1.6, dice.between(-0.5, 0.5))
    article = "an" if base.floor[0] in "aeiou" else "a"
    caption = f"A {use} {time} with {article} {base.floor} floor, {_listed(mentioned[:4])}{pictured}."
    return assemble("room", caption, viewpoint, things, lights, sky)


def _ceiling_lamp(height: float, lit: bool) -> Thing:
    cord = Material((0.2, 0.2, 0.2))
    globe = Material((1.0, 0.9, 0.72), emission=1.5 if lit else 0.25)
    solids = [post(0, 0, height - 0.3, 0.012, 0.3, cord), post(0, 0, height - 0.34, 0.17, 0.05, paint("white"))]
    bulb = Solid("ellipsoid", (0, -(height - 0.42), 0), (0.13, 0.13, 0.13), globe)
    return Thing("ceiling lamp", [Solid(s.shape, s.position, s.half_size, s.material, s.rotation, False) for s in (*solids, bulb)])


def _main_furniture(use: str, base: Shell, free: list[int], dice: Dice, add) -> None:
    wall = base.walls[free.pop()]
    color = dice.pick(VIVID)
    kind = dice.pick(list(WOODS))
    if use == "living room":
        add(f"{color} sofa", wall.place(sofa(color, dice), dice.between(-0.3, 0.3), 0.55))
        low = table(1.0, 0.55, 0.38, wood(kind), wood(kind), dice.chance(0.4))
        add(f"low {kind} table", wall.place(low, 0.0, 1.75))
    elif use == "bedroom":
        add(f"{color} bed", wall.place(bed(color, dice), dice.between(-0.2, 0.2), 1.1))
        night = table(0.42, 0.4, 0.5, wood(kind), wood(kind))
        add(f"{kind} bedside table", wall.place(night, 1.35, 0.3))
    else:
        x = dice.pick((-1, 1)) * (base.width / 2 - 1.35)
        z = dice.between(-0.4, 0.4)
        add(f"{kind} dining table", placed(table(0.9, 1.7, 0.75, wood(kind), wood(kind)), x, z))
        seat = fabric(color)
        chairs = [
            part
            for side in (-1, 1)
            for k in (-0.4, 0.4)
            for part in placed(chair(wood(kind), seat), x + side * 0.62, z + k, side * math.pi / 2)
        ]
        add(f"{color} chairs", chairs)


def _side_furniture(base: Shell, free: list[int], dice: Dice, add) -> dict[int, float]:
    """Furniture along the other walls; returns where high pieces stand."""
    occupied: dict[int, float] = {}
    for index in free[:3]:
        wall = base.walls[index]
        options = ["plant", "lamp", "cabinet"] if index in base.window_walls else ["shelf", "cabinet", "shelf", "plant"]
        choice = dice.pick(options)
        along = dice.between(-0.5, 0.5) if choice != "plant" else dice.pick((-1, 1)) * (wall.length / 2 - 0.8)
        if choice == "shelf":
            occupied[index] = along
            add("bookshelf", wall.place(bookshelf(dice), along, 0.17))
        elif choice == "cabinet":
            color = dice.pick(("white", *VIVID))
            add(f"{color} chest of drawers", wall.place(cabinet(paint(color), dice), along, 0.26))
        elif choice == "plant":
            add("potted plant", wall.place(plant(dice), along, 0.5))
        else:
            color = dice.pick(("white", "yellow", "orange"))
            add(f"{color} floor lamp", wall.place(floor_lamp(color, False), wall.length / 2 - 0.5, 0.4))
    return occupied


def _pictures(base: Shell, occupied: dict[int, float], dice: Dice, add) -> str:
    names = dice.some(PICTURES, 3)
    shown = []
    for index in range(4):
        if index in base.window_walls or not names:
            continue
        name, wall = names.pop(), base.walls[index]
        # beside a shelf, on its longer side
        along = dice.between(-0.5, 0.5)
        if index in occupied:
            along = (-1.0 if occupied[index] > 0 else 1.0) * (wall.length / 4 + 0.35)
        tall = dice.between(0.55, 0.85)
        wide = tall * dice.between(0.9, 1.4)
        frame = dice.pick((wood("walnut"), paint("black"), paint("white"), Material((0.5, 0.36, 0.12))))
        solids = wall.place(wall_picture(name, wide, tall, frame), along, 0.0, 1.4)
        add(f"picture ({name})", solids, mention=False)
        shown.append(name)
    return "" if not shown else f" and {'pictures' if len(shown) > 1 else 'a picture'} on the walls ({', '.join(shown)})"


def _listed(names: list[str]) -> str:
    with_article = [name if name.endswith("chairs") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    return ", ".join(with_article)
