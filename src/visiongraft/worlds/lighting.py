"""Times of day: the sun or the moon with its shadows, the sky and the light that comes from everywhere."""

import math

from visiongraft.worlds.dice import Dice
from visiongraft.worlds.scenes import Light, Sky, Vector

TIMES = ("in the morning", "at noon", "in the afternoon", "at sunset", "on an overcast day", "at night")


def daylight(time: str, dice: Dice, haze: float = 0.002) -> tuple[list[Light], Sky]:
    """Lights and sky of one of ``TIMES``, with a random azimuth and random clouds."""
    azimuth = dice.between(-math.pi, math.pi)
    clouds = dice.between(0.15, 0.6)
    if time == "on an overcast day":
        above = Light((0.5, 0.52, 0.55), (0.0, -1.0, 0.0))
        sky = Sky(
            (0.42, 0.47, 0.54), (0.62, 0.65, 0.68), (0.34, 0.36, 0.39), (0.24, 0.24, 0.24), None, (0.9, 0.92, 0.95), 0.9, 0.0, haze * 1.5
        )
        return [above], sky
    if time == "at night":
        moon = direction(azimuth, dice.between(0.5, 0.9))
        light = Light((0.075, 0.095, 0.145), moon)
        sky = Sky(
            (0.003, 0.005, 0.015),
            (0.02, 0.025, 0.05),
            (0.035, 0.042, 0.07),
            (0.02, 0.02, 0.028),
            moon,
            (0.75, 0.78, 0.85),
            0.12,
            1.0,
            haze * 0.5,
        )
        return [light], sky
    elevation, color, zenith, horizon, ambient = {
        "in the morning": (dice.between(0.35, 0.6), (0.95, 0.80, 0.60), (0.13, 0.29, 0.62), (0.66, 0.70, 0.74), (0.30, 0.35, 0.44)),
        "at noon": (dice.between(0.95, 1.25), (0.92, 0.88, 0.80), (0.08, 0.23, 0.62), (0.55, 0.70, 0.86), (0.32, 0.38, 0.48)),
        "in the afternoon": (dice.between(0.45, 0.8), (0.95, 0.84, 0.66), (0.10, 0.25, 0.60), (0.60, 0.69, 0.80), (0.31, 0.36, 0.45)),
        "at sunset": (dice.between(0.1, 0.2), (1.0, 0.45, 0.16), (0.12, 0.16, 0.40), (0.85, 0.42, 0.22), (0.27, 0.25, 0.34)),
    }[time]
    sun = direction(azimuth, elevation)
    dome = Light(_scaled(ambient, 0.55), (0.0, -1.0, 0.0))
    down = (ambient[0] * 0.75, ambient[1] * 0.68, ambient[2] * 0.56)
    sky = Sky(zenith, horizon, _scaled(ambient, 0.8), down, sun, _scaled(color, 1.1), clouds, 0.0, haze)
    return [Light(color, sun), dome], sky


def direction(azimuth: float, elevation: float) -> Vector:
    """Unit vector; azimuth from +z towards +x and elevation above the horizon, radians."""
    return math.sin(azimuth) * math.cos(elevation), -math.sin(elevation), math.cos(azimuth) * math.cos(elevation)


def _scaled(color: Vector, factor: float) -> Vector:
    return color[0] * factor, color[1] * factor, color[2] * factor
