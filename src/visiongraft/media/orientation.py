"""Turning and mirroring pixels by quarter turns, as EXIF orientations and the display matrices of videos ask for."""

import struct
from typing import NamedTuple

import numpy as np


class Orientation(NamedTuple):
    """How stored pixels become upright: rows and columns are exchanged first, then rows, then columns are reversed."""

    exchange: bool
    reverse_rows: bool
    reverse_columns: bool


UPRIGHT = Orientation(False, False, False)
EXIF_ORIENTATIONS = {
    1: UPRIGHT,
    2: Orientation(False, False, True),
    3: Orientation(False, True, True),
    4: Orientation(False, True, False),
    5: Orientation(True, False, False),
    6: Orientation(True, False, True),
    7: Orientation(True, True, True),
    8: Orientation(True, True, False),
}


def turn_upright(pixels: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A view of an array of height x width x channels, upright."""
    turned = pixels.swapaxes(0, 1) if orientation.exchange else pixels
    return turned[:: -1 if orientation.reverse_rows else 1, :: -1 if orientation.reverse_columns else 1]


def orientation_from_matrix(matrix: bytes) -> Orientation:
    """The orientation that a display matrix (nine native 32-bit integers, as FFmpeg gives them) asks for.

    A stored pixel (x, y) is shown at (a x + c y, b x + d y), where a, b, c, d are the entries 0, 1, 3, 4.

    Raises:
        ValueError: a matrix that turns by other than quarter turns.
    """
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    smallest = max(abs(a), abs(b), abs(c), abs(d)) / 100
    if min(abs(a), abs(d)) > smallest >= max(abs(b), abs(c)):
        return Orientation(False, d < 0, a < 0)
    if min(abs(b), abs(c)) > smallest >= max(abs(a), abs(d)):
        return Orientation(True, b < 0, c < 0)
    raise ValueError(f"frames are turned by other than quarter turns (display matrix {a}, {b}, {c}, {d})")
