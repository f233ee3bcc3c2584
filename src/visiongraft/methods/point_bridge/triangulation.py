"""Points from two calibrated views without dense depth: match pixels of one view in the other, and intersect the rays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from visiongraft.geometry.lifting import projection_matrix, reprojection_error, triangulate
from visiongraft.methods.point_bridge.frames import Frame
from visiongraft.robots.cameras import Camera
from visiongraft.robots.extras import require

PointMatcher = Callable[[Frame, Float[np.ndarray, "n 2"]], tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]]
"""Maps a frame with a second view and pixels (u, v) of the first to their pixels in the second, and which of them were found."""


def triangulate_views(
    pixels: Float[np.ndarray, "n 2"], matched: Float[np.ndarray, "n 2"], first: Camera, second: Camera, max_error: float = 2.0
) -> tuple[Float[np.ndarray, "n 3"], Bool[np.ndarray, "n"]]:
    """Points in the base frame from pixels in two views, and which are believable.

    Args:
        pixels, matched: (u, v) in the first and second view.
        first, second: their cameras.
        max_error: largest distance in pixels at which a point is seen from where it was matched.

    Source: Point Bridge brief, 2.5 (direct linear transform).
    """
    projections = torch.stack(
        [projection_matrix(torch.from_numpy(camera.intrinsics), torch.from_numpy(camera.base_to_camera)) for camera in (first, second)]
    )
    views = torch.from_numpy(np.stack([pixels, matched], 1).astype(np.float64))
    points = triangulate(views, projections)
    error = reprojection_error(points, views, projections).amax(1)
    front = [points @ torch.from_numpy(c.base_to_camera[2, :3]) + c.base_to_camera[2, 3] > 0 for c in (first, second)]
    return points.numpy(), ((error <= max_error) & front[0] & front[1] & points.isfinite().all(1)).numpy()


@dataclass(frozen=True, kw_only=True)
class EpipolarMatcher:
    """Normalised cross-correlation along the epipolar line. Offline stand-in for learnt descriptors (MASt3R): for views that are
    close together and turned little against each other.

    Args:
        window: side of the compared windows in pixels, odd.
        depth_range: metres within which a match is searched.
        samples: places tried along the line.
        least: correlation below which there is no match.
    """

    window: int = 9
    depth_range: tuple[float, float] = (0.3, 2.0)
    samples: int = 192
    least: float = 0.7

    def __call__(self, frame: Frame, pixels: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]:
        """Pixels in the second view, and which were found."""
        cv2 = require("cv2")
        if frame.right_image is None or frame.right_camera is None:
            raise ValueError("Triangulation needs a second view with its camera; name it with frame_of(…, right_camera='right').")
        first, second = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (frame.image, frame.right_image))
        inverse = np.linspace(1 / self.depth_range[1], 1 / self.depth_range[0], self.samples)  # even steps along the line
        blocks = [
            self._match(cv2, first, second, block, _epipolar_places(block, 1 / inverse, frame.camera, frame.right_camera))
            for block in np.array_split(pixels, max(1, len(pixels) // 128))
        ]
        matched, found = zip(*blocks, strict=True)
        return np.concatenate(matched), np.concatenate(found)

    def _match(
        self,
        cv2: Any,
        first: Float[np.ndarray, "height width"],
        second: Float[np.ndarray, "height width"],
        pixels: Float[np.ndarray, "n 2"],
        places: Float[np.ndarray, "n k 2"],
    ) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]:
        template = _windows(cv2, first, pixels[:, None], self.window)
        candidates = _windows(cv2, second, places, self.window)
        score = (template * candidates).sum(-1)
        inside = (places >= 0).all(-1) & (places[..., 0] < second.shape[1]) & (places[..., 1] < second.shape[0])
        score = np.where(inside, score, -1.0)
        best, rows = score.argmax(1), np.arange(len(pixels))
        found = score[rows, best] >= self.least
        # the top of the parabola through the best place and its neighbours
        inner = np.clip(best, 1, self.samples - 2)
        below, middle, above = (score[rows, inner + step] for step in (-1, 0, 1))
        curve = np.minimum(below - 2 * middle + above, -1e-9)
        shift = np.where(inner == best, np.clip(0.5 * (below - above) / curve, -0.5, 0.5), 0.0)
        return places[rows, best] + shift[:, None] * (places[rows, inner + 1] - places[rows, inner]), found


@dataclass(frozen=True, kw_only=True)
class TriangulatedDepth:
    """Depth at a grid of pixels from a matcher, infinity in between cells that have no match: noisy and slow, for wide pairs.

    Args:
        matcher: finds pixels in the second view.
        stride: every how many pixels a match is sought; cells take the depth of their middle.
        max_error: largest reprojection error in pixels.
    """

    matcher: PointMatcher = EpipolarMatcher()
    stride: int = 2
    max_error: float = 1.0

    def __call__(self, frame: Frame) -> Float[np.ndarray, "height width"]:
        """Metres.

        Raises:
            ValueError: a frame without a second view.
        """
        if frame.right_camera is None:
            raise ValueError("Triangulation needs a second view with its camera; name it with frame_of(…, right_camera='right').")
        height, width = frame.image.shape[:2]
        rows, columns = np.mgrid[0 : height : self.stride, 0 : width : self.stride]
        half = self.stride // 2
        pixels = np.stack([columns + half, rows + half], -1).reshape(-1, 2) + 0.5
        matched, found = self.matcher(frame, pixels)
        points, good = triangulate_views(pixels, matched, frame.camera, frame.right_camera, self.max_error)
        depth = points @ frame.camera.base_to_camera[2, :3] + frame.camera.base_to_camera[2, 3]
        grid = np.where(found & good, depth, np.inf).reshape(rows.shape).astype(np.float32)
        return np.repeat(np.repeat(grid, self.stride, 0), self.stride, 1)[:height, :width]


def _epipolar_places(
    pixels: Float[np.ndarray, "n 2"], depths: Float[np.ndarray, "k"], first: Camera, second: Camera
) -> Float[np.ndarray, "n k 2"]:
    """Where points at given depths on the pixels' rays are seen in the second view."""
    rays = np.concatenate([pixels, np.ones((len(pixels), 1))], 1) @ np.linalg.inv(first.intrinsics).T
    first_to_second = second.base_to_camera @ first.camera_to_base
    points = (rays[:, None] * depths[None, :, None]) @ first_to_second[:3, :3].T + first_to_second[:3, 3]
    seen = points @ second.intrinsics.T
    in_front = seen[..., 2:] > 1e-6
    return np.where(in_front, seen[..., :2] / np.where(in_front, seen[..., 2:], 1.0), -1.0)


def _windows(
    cv2: Any, image: Float[np.ndarray, "height width"], places: Float[np.ndarray, "n k 2"], side: int
) -> Float[np.ndarray, "n k window"]:
    """Windows around places, read bilinearly, with mean 0 and length 1."""
    offsets = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) - side // 2
    # cv2.remap's coordinates have pixel centres at whole numbers
    where = (places[:, :, None] + offsets - 0.5).astype(np.float32)
    flat = where.reshape(len(places), -1, 2)
    values = cv2.remap(image, flat[..., 0], flat[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(*places.shape[:2], -1)
    values = values - values.mean(-1, keepdims=True)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    # a window whose grey values deviate by less than one has no texture and matches nothing
    return np.where(length > np.sqrt(values.shape[-1]), values / np.maximum(length, 1e-6), 0.0)
