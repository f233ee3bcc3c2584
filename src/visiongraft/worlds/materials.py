"""Materials that furniture, houses and the ground are made of."""

from visiongraft.worlds.colors import COLORS, darker, linear
from visiongraft.worlds.scenes import Material, Vector

WOODS: dict[str, tuple[Vector, Vector]] = {
    "oak": (linear(0.80, 0.63, 0.42), linear(0.60, 0.43, 0.25)),
    "walnut": (linear(0.52, 0.36, 0.24), linear(0.33, 0.21, 0.13)),
    "pine": (linear(0.88, 0.74, 0.54), linear(0.74, 0.56, 0.36)),
    "cherry": (linear(0.66, 0.38, 0.24), linear(0.46, 0.23, 0.13)),
}


def paint(name: str) -> Material:
    """One even colour of :data:`visiongraft.worlds.colors.COLORS`."""
    return Material(COLORS[name])


def wood(name: str, plank: float = 0.12) -> Material:
    """Planks of one of ``WOODS``, ``plank`` metres wide."""
    light, dark = WOODS[name]
    return Material(light, "planks", dark, (max(8 * plank, 0.6), plank), 0.96, "clouds")


def fabric(name: str) -> Material:
    """A colour with a slight weave."""
    color = COLORS[name]
    return Material(color, "mottled", darker(color, 0.6), (0.35, 0.35), image="gravel")


def striped(first: str, second: str, period: float, ratio: float = 0.5, around: bool = False) -> Material:
    """Stripes of two colours, a pair of them ``period`` metres wide."""
    return Material(COLORS[first], "stripes", COLORS[second], (period, period), ratio, around=around)


def checked(first: str, second: str, period: float, around: bool = False) -> Material:
    """A checkerboard; two squares are ``period`` metres wide."""
    return Material(COLORS[first], "checker", COLORS[second], (period, period), around=around)


def brickwork(color: Vector, size: float = 0.24) -> Material:
    """Bricks ``size`` metres long with light mortar."""
    return Material(color, "bricks", linear(0.72, 0.70, 0.66), (size, size * 0.36), 0.94)


def tiles(first: str, size: float) -> Material:
    """Square tiles, laid like bricks, with dark joints."""
    color = COLORS[first]
    return Material(color, "bricks", darker(color, 0.4), (size, size), 0.97)


def plaster(color: Vector) -> Material:
    """A wall colour with faint clouds."""
    return Material(color, "mottled", darker(color, 0.88), (2.3, 2.3))


def leaves(color: Vector) -> Material:
    """Foliage."""
    return Material(darker(color, 1.25), "mottled", darker(color, 0.12), (0.8, 0.8), image="gravel")


def stone(color: Vector, size: float = 1.5) -> Material:
    """Rough stone or gravel."""
    return Material(color, "mottled", darker(color, 0.35), (size, size), image="gravel")


def picture(image: str, width: float, height: float) -> Material:
    """A photograph that fills a face of a box of this width and height in metres."""
    return Material((1.0, 1.0, 1.0), "photograph", period=(width, height), image=image)


def facade(color: Vector, glass: Vector, period: tuple[float, float], lit: float) -> Material:
    """A wall with one window a period; ``lit`` is the light of the windows that shine at night, 0 by day."""
    return Material(color, "windows", glass, period, 0.55, emission=lit)
