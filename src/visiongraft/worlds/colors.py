"""Names of colours, for captions, and the linear light they stand for."""

from visiongraft.worlds.scenes import Vector

_SCREEN = {
    "white": (0.93, 0.93, 0.91),
    "black": (0.13, 0.13, 0.14),
    "grey": (0.55, 0.55, 0.56),
    "red": (0.80, 0.16, 0.14),
    "orange": (0.93, 0.52, 0.14),
    "yellow": (0.93, 0.80, 0.22),
    "green": (0.22, 0.58, 0.27),
    "turquoise": (0.17, 0.66, 0.66),
    "blue": (0.17, 0.36, 0.75),
    "purple": (0.50, 0.28, 0.65),
    "pink": (0.90, 0.55, 0.66),
    "brown": (0.47, 0.30, 0.18),
    "beige": (0.86, 0.79, 0.66),
}


def linear(red: float, green: float, blue: float) -> Vector:
    """Linear light of a colour as screens show it, in [0, 1]."""
    return red**2.2, green**2.2, blue**2.2


COLORS: dict[str, Vector] = {name: linear(*color) for name, color in _SCREEN.items()}
VIVID = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
SOFT = ("white", "grey", "beige", "brown", "black")


def darker(color: Vector, factor: float = 0.5) -> Vector:
    """The colour with a share of its light."""
    return color[0] * factor, color[1] * factor, color[2] * factor
