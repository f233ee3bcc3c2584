"""Depth maps as points in the robot's base frame: the one way from pixels to points, for simulated and real images alike."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from visiongraft.geometry.point_sets import farthest_points, lift_depth, lift_pixels, pixel_centers, remove_outliers
from visiongraft.methods.point_bridge.masks import draw_pixels, shrink_mask
from visiongraft.robots.cameras import Camera

DEPTH_RANGE = (0.1, 2.0)
"""Depths that are believed, metres."""


def base_points(depth: Float[np.ndarray, "height width"], camera: Camera) -> Float[np.ndarray, "height width 3"]:
    """Points of all pixels in the base frame; NaN where the depth is not finite or not positive."""
    known = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float64)
    points = lift_depth(torch.from_numpy(known), torch.from_numpy(camera.intrinsics), torch.from_numpy(camera.camera_to_base))
    return points.numpy()


def object_points(
    mask: Bool[np.ndarray, "..."],
    depth: Float[np.ndarray, "..."],
    camera: Camera,
    rng: np.random.Generator,
    *,
    num: int = 128,
    candidates: int = 1000,
    shrink: float = 0.2,
    depth_range: tuple[float, float] = DEPTH_RANGE,
) -> Float[np.ndarray, "num 3"] | None:
    """Points on the visible surface of an object: shrink the mask, draw pixels, lift them, drop outliers, spread what remains.

    Args:
        mask: the object's pixels.
        depth: metres; infinity, NaN or 0 where it is not known.
        camera: of mask and depth.
        rng: draws pixels, and repeats where there are fewer than ``num``.
        num: points to return.
        candidates: pixels that are drawn.
        shrink: fraction of the way to its centroid by which the mask's outline moves.
        depth_range: metres outside which depth is not believed.

    Returns:
        float32 points in the base frame; ``None`` where the mask is empty, or no pixel of it has depth.

    Raises:
        ValueError: depth or mask of another size than the camera's.

    Source: Point Bridge brief, 2.4 steps 6-8.
    """
    if mask.shape != tuple(camera.size) or depth.shape != tuple(camera.size):
        raise ValueError(f"Mask {mask.shape}, depth {depth.shape} and camera {tuple(camera.size)} must have one size (height, width).")
    if not mask.any():
        return None
    rows, columns = draw_pixels(shrink_mask(mask, shrink), candidates, rng).T
    z = depth[rows, columns].astype(np.float64)
    known = np.isfinite(z) & (z > depth_range[0]) & (z < depth_range[1])
    if not known.any():
        return None
    return _spread(rows[known], columns[known], z[known], camera, num, rng)


def _spread(
    rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"], z: Float[np.ndarray, "n"], camera: Camera, num: int, rng: np.random.Generator
) -> Float[np.ndarray, "num 3"]:
    pixels = pixel_centers(torch.from_numpy(columns), torch.from_numpy(rows), torch.float64)
    lifted = lift_pixels(pixels, torch.from_numpy(z), torch.from_numpy(camera.intrinsics), torch.from_numpy(camera.camera_to_base))
    points = remove_outliers(lifted).float()
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return points[farthest_points(points[None], num, generator=generator)[0]].numpy()
