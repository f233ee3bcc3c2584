"""Objects of the tabletop as data, and their MJCF. Every object's frame has z up at rest; its origin is the middle of its height."""

from dataclasses import dataclass, field
from typing import Literal

Shape = Literal["box", "cylinder", "mug", "plate", "bin", "sphere", "capsule", "ellipsoid"]
Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.12, 0.10),
    "blue": (0.13, 0.28, 0.75),
    "green": (0.15, 0.55, 0.20),
    "yellow": (0.90, 0.75, 0.12),
    "orange": (0.92, 0.45, 0.08),
    "purple": (0.45, 0.18, 0.60),
    "white": (0.92, 0.92, 0.90),
    "grey": (0.45, 0.46, 0.48),
}
WALL = 0.005
"""Thickness of a bin's walls and floor, metres."""


@dataclass(frozen=True)
class TableObject:
    """An object on the table.

    Args:
        colour: name in :data:`COLOURS`.
        shape: what it is.
        size: half extents in metres: (x, y, z) of a box, a bin (outside) and an ellipsoid; (radius, half height) of a cylinder, mug,
            plate and capsule; (radius,) of a sphere.
        mass: kilograms.
    """

    colour: str
    shape: Shape
    size: tuple[float, ...]
    mass: float = field(default=0.06)

    @property
    def name(self) -> str:
        """Name of its body, such as ``red_box``."""
        return f"{self.colour}_{'block' if self.shape == 'box' and self.size[0] > 0.029 else self.shape}"

    @property
    def words(self) -> str:
        """How an instruction calls it."""
        return self.name.replace("_", " ")

    @property
    def half_height(self) -> float:
        """Half of its height at rest, metres."""
        return self.size[0] if self.shape == "sphere" else self.size[0] + self.size[1] if self.shape == "capsule" else self.size[-1]

    @property
    def is_round(self) -> bool:
        """Whether a turn about z changes nothing."""
        return self.shape in ("cylinder", "plate", "sphere", "capsule")


def object_geoms(item: TableObject, material: str, dark_material: str, friction: float) -> str:
    """MJCF of an object's geoms; their masses add up to the object's."""
    contact = f'friction="{friction} 0.02 0.0005" condim="4" material="{material}"'
    numbers = " ".join(map(str, item.size))
    if item.shape in ("box", "sphere", "capsule", "ellipsoid"):
        return f'<geom type="{item.shape}" size="{numbers}" mass="{item.mass}" {contact}/>'
    if item.shape in ("cylinder", "plate"):
        return f'<geom type="cylinder" size="{numbers}" mass="{item.mass}" {contact}/>'
    if item.shape == "mug":
        return _mug(item, contact, dark_material)
    return _bin(item, contact)


def _mug(item: TableObject, contact: str, dark_material: str) -> str:
    """A cylinder with a handle of three bars along +x and a dark mouth (visual group 1, no contact)."""
    radius, half_height = item.size
    bar, reach = 0.004, radius + 0.018
    middle = 0.5 * (radius + reach)
    geoms = [
        f'<geom type="cylinder" size="{radius} {half_height}" mass="{0.9 * item.mass}" {contact}/>',
        f'<geom type="cylinder" size="{0.8 * radius} 0.0005" pos="0 0 {half_height}" mass="0" material="{dark_material}" '
        'contype="0" conaffinity="0" group="1"/>',
        f'<geom type="box" size="{bar} {bar} {0.6 * half_height}" pos="{reach} 0 0" mass="{0.04 * item.mass}" {contact}/>',
    ]
    geoms += [
        f'<geom type="box" size="{0.5 * (reach - radius) + bar} {bar} {bar}" pos="{middle} 0 {side * (0.6 * half_height - bar)}" '
        f'mass="{0.03 * item.mass}" {contact}/>'
        for side in (-1, 1)
    ]
    return "\n      ".join(geoms)


def _bin(item: TableObject, contact: str) -> str:
    """A floor and four walls."""
    x, y, z = item.size
    half = 0.5 * WALL
    parts = [((x, y, half), (0.0, 0.0, half - z), 0.4)]
    parts += [((half, y, z - half), (side * (x - half), 0.0, half), 0.15) for side in (-1, 1)]
    parts += [((x - WALL, half, z - half), (0.0, side * (y - half), half), 0.15) for side in (-1, 1)]
    return "\n      ".join(
        f'<geom type="box" size="{a} {b} {c}" pos="{p} {q} {r}" mass="{share * item.mass}" {contact}/>'
        for (a, b, c), (p, q, r), share in parts
    )
