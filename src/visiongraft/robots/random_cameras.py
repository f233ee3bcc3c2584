"""Random places for a camera around a table, for data that must not depend on where the camera stands."""

import functools

import numpy as np
import torch
from jaxtyping import Float

from visiongraft.geometry.point_sets import farthest_points
from visiongraft.robots.poses import look_at

Cuboid = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
OUTER: Cuboid = ((-0.05, 1.0), (-0.5, 0.5), (0.6, 0.8))
INNER: Cuboid = ((-0.01, 0.8), (-0.2, 0.2), (0.0, 0.6))
TARGET = (0.6, 0.0, 0.0)


def random_cameras(
    num: int,
    rng: np.random.Generator,
    *,
    outer: Cuboid = OUTER,
    inner: Cuboid = INNER,
    target: tuple[float, float, float] = TARGET,
    places: int = 20,
    grid: int = 100,
) -> Float[np.ndarray, "num 4 4"]:
    """Poses of cameras in the base frame that look at a target, drawn without repetition from a few places far from each other.

    Places are spread over a regular grid in ``outer``, of which the slabs are cut out that ``inner`` spans along **each** axis: with
    the default, cameras stand over the corners of the table, as the real one of the paper does.

    Args:
        num: cameras; the paper draws 5 for every trajectory.
        rng: draws them.
        outer: ranges of x, y and z, metres.
        inner: ranges of x, y and z, metres, that are left out with their borders.
        target: where all look, metres.
        places: how many there are to draw from; always the same for the same cuboids.
        grid: points along each axis.

    Raises:
        ValueError: more cameras than places, or an inner cuboid that leaves too few places.

    Source: Point Bridge brief, 2.3 (random cameras).
    """
    if not 1 <= num <= places:
        raise ValueError(f"From {places} places 1 to {places} cameras can be drawn, not {num}; raise places.")
    positions = _places(outer, inner, places, grid)
    chosen = rng.choice(len(positions), num, replace=False)
    return np.stack([look_at(positions[i], np.array(target)) for i in chosen])


@functools.lru_cache(maxsize=8)
def _places(outer: Cuboid, inner: Cuboid, num: int, grid: int) -> Float[np.ndarray, "num 3"]:
    axes = [np.linspace(*limits, grid) for limits in outer]
    kept = [axis[(axis < low) | (axis > high)] for axis, (low, high) in zip(axes, inner, strict=True)]
    if np.prod([len(axis) for axis in kept]) < num:
        raise ValueError(f"The inner cuboid {inner} leaves fewer than {num} places of the outer one {outer} for cameras.")
    points = np.stack(np.meshgrid(*kept, indexing="ij"), -1).reshape(-1, 3)
    return points[farthest_points(torch.from_numpy(points)[None], num)[0].numpy()]
