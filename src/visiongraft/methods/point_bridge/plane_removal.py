"""Objects on a table from depth alone: take the table away, and what is left falls into pieces. Knows nothing of a simulator."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from visiongraft.geometry.point_sets import fit_plane
from visiongraft.methods.point_bridge.frames import Frame, Mask, Point, pixel_of
from visiongraft.methods.point_bridge.lifting import base_points
from visiongraft.robots.poses import invert_pose, transform_points

_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # half of the eight; the rest is their mirror image

LEAST_PIXELS = 100
"""With depth, for a table plane to be fitted."""


@dataclass(frozen=True, kw_only=True)
class GripperZone:
    """A box in the gripper frame in which nothing is an object: without it, a grasped object and the hand are one piece.

    Args:
        lower, upper: corners in metres; z is the approach direction and y the finger axis. The default ends 2 cm behind the point
            between the fingertips and is as wide as a Franka hand. The width between the fingers is not observed, so the fingertips
            themselves stay: a grasped object has some of their points.
    """

    lower: tuple[float, float, float] = (-0.04, -0.11, -0.5)
    upper: tuple[float, float, float] = (0.04, 0.11, -0.02)


@dataclass(frozen=True, kw_only=True)
class PlaneRemoval:
    """Segments what stands on a table.

    Args:
        height: metres above the plane from which a pixel belongs to an object.
        depth_jump: metres between neighbouring pixels that separate two objects.
        min_area: pixels below which a piece is not an object.
        max_height: metres above the plane up to which there are objects.
        gripper: where the robot's hand is; ``None`` where frames have no ``gripper_pose``, or to keep it.

    Source: Point Bridge brief, section 3 (offline fallbacks).
    """

    height: float = 0.008
    depth_jump: float = 0.02
    min_area: int = 12
    max_height: float = 0.5
    gripper: GripperZone | None = GripperZone()

    def __call__(self, frame: Frame, point: Point) -> Mask:
        """Mask of the piece at a pixel; where that is table or has no depth, of the piece around it (a bin's walls around its thin floor),
        or of the nearest one within a fortieth of the image's width.

        Raises:
            ValueError: a frame without depth, a point outside the image, or no plane.
        """
        labels = self.label(frame)
        row, column = pixel_of(point, labels.shape)
        label = labels[row, column] or _label_around(labels, row, column) or _nearest_label(labels, row, column, labels.shape[1] / 40)
        return (labels == label) & (label > 0)

    def label(self, frame: Frame) -> Int[np.ndarray, "height width"]:
        """Pieces that stand on the table, numbered from 1; 0 elsewhere.

        Raises:
            ValueError: a frame without depth, no plane in it, or depth too noisy for ``height``.
        """
        points, heights = table_heights(frame)
        scatter = _scatter(heights)
        if scatter > 0.6 * self.height:
            raise ValueError(
                f"The table's heights scatter by {scatter * 1000:.1f} mm in this depth map, too much to tell what stands "
                f"{self.height * 1000:.0f} mm above it; take PlaneRemoval(height={2 * scatter:.3f}), or a better depth source."
            )
        standing = (heights > self.height) & (heights < self.max_height)
        if self.gripper is not None and frame.gripper_pose is not None:
            standing &= ~_in_zone(points, frame.gripper_pose, self.gripper)
        depth = np.where(standing, np.asarray(frame.depth), np.nan)
        labels = connected_pieces(standing, depth, self.depth_jump)
        large = np.bincount(labels.ravel()) >= self.min_area
        large[0] = False
        return np.where(large[labels], labels, 0)


def table_heights(frame: Frame) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "height width"]]:
    """Points in the base frame, and their height over the plane that most of them lie on; NaN where there is no depth.

    Raises:
        ValueError: a frame without depth or without a plane.
    """
    if frame.depth is None:
        raise ValueError("Plane removal needs depth, and this camera has none; give a depth source, or another segmenter.")
    points = base_points(frame.depth, frame.camera)
    flat = points[np.isfinite(points).all(-1)]
    if len(flat) < LEAST_PIXELS:
        raise ValueError(f"Only {len(flat)} of {points[..., 0].size} pixels have depth, too few for a table plane; check the depth map.")
    normal, offset, _ = fit_plane(torch.from_numpy(flat), 0.008)
    heights = points @ normal.numpy() - float(offset)
    # a table is seen from above, whatever the frame of the points: that of an uncalibrated camera has z away from it
    above = frame.camera.camera_to_base[:3, 3] @ normal.numpy() > float(offset)
    return points, heights if above else -heights


def _scatter(heights: Float[np.ndarray, "height width"]) -> float:
    """Standard deviation of the table's heights, metres; what is 5 cm off the plane is no table, however noisy."""
    near = np.abs(heights[np.abs(heights) < 0.05])  # comparisons with NaN are false
    return 1.4826 * float(np.median(near)) if len(near) else 0.0


def connected_pieces(
    mask: Bool[np.ndarray, "height width"], depth: Float[np.ndarray, "height width"], jump: float
) -> Int[np.ndarray, "height width"]:
    """8-connected pieces of a mask, also cut where neighbouring depths differ by ``jump`` metres or more; numbered from 1."""
    index = np.full(mask.shape, -1)
    index[mask] = np.arange(mask.sum())
    starts, ends = [], []
    for down, right in _NEIGHBOURS:
        here = (slice(None, mask.shape[0] - down), slice(max(-right, 0), mask.shape[1] - max(right, 0)))
        there = (slice(down, None), slice(max(right, 0), mask.shape[1] - max(-right, 0)))
        joined = mask[here] & mask[there] & (np.abs(depth[here] - depth[there]) < jump)
        starts.append(index[here][joined])
        ends.append(index[there][joined])
    start, end = np.concatenate(starts), np.concatenate(ends)
    count = int(mask.sum())
    _, labels = connected_components(coo_array((np.ones(len(start), bool), (start, end)), shape=(count, count)), directed=False)
    pieces = np.zeros(mask.shape, np.int64)
    pieces[mask] = labels + 1
    return pieces


def _in_zone(points: Float[np.ndarray, "height width 3"], gripper_pose: Float[np.ndarray, "4 4"], zone: GripperZone) -> Mask:
    local = transform_points(invert_pose(gripper_pose), points.reshape(-1, 3)).reshape(points.shape)
    return np.all((local > zone.lower) & (local < zone.upper), axis=-1)


def _label_around(labels: Int[np.ndarray, "height width"], row: int, column: int) -> int:
    """The smallest piece that has a pixel in a hole of it; 0 where there is none."""
    around = [label for label in np.unique(labels[labels > 0]) if np.asarray(ndimage.binary_fill_holes(labels == label))[row, column]]
    return min((int(label) for label in around), key=lambda label: int((labels == label).sum()), default=0)


def _nearest_label(labels: Int[np.ndarray, "height width"], row: int, column: int, reach: float) -> int:
    distance, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    if not labels.any() or distance[row, column] > reach:
        return 0
    return int(labels[rows[row, column], columns[row, column]])
