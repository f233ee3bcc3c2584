"""An object of one colour, from a click: no depth, no network, no simulator. A stand-in for plain objects on a plain ground."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab

from visiongraft.methods.point_bridge.frames import Frame, Mask, Point, pixel_of


@dataclass(frozen=True, kw_only=True)
class RegionGrowing:
    """Grows a region of similar colour around a pixel.

    Args:
        tolerance: colour difference in CIELAB to the median of the 3x3 pixels at the click; a just noticeable one is 2.3.
        lightness: weight of the lightness difference; below 1 a region grows over shadows.
        max_fraction: part of the image above which a region is taken for the background and refused.

    Source: Point Bridge brief, section 3 (offline fallbacks).
    """

    tolerance: float = 14.0
    lightness: float = 0.4
    max_fraction: float = 0.4

    def __call__(self, frame: Frame, point: Point) -> Mask:
        """Mask of the region at a pixel, its holes filled.

        Raises:
            ValueError: a point outside the image, or a region as large as a background.
        """
        row, column = pixel_of(point, frame.image.shape[:2])
        colours = rgb2lab(frame.image) * [self.lightness, 1.0, 1.0]
        near = colours[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(-1, 3)
        similar = np.linalg.norm(colours - np.median(near, axis=0), axis=-1) < self.tolerance
        similar[row, column] = True
        labels, _ = ndimage.label(similar, np.ones((3, 3), bool))
        region = np.asarray(ndimage.binary_fill_holes(labels == labels[row, column]), bool)
        if region.mean() > self.max_fraction:
            raise ValueError(
                f"The region of the colour at (u={point[0]:.0f}, v={point[1]:.0f}) covers {region.mean():.0%} of the image: it is the "
                "background. Click on the object, or lower the tolerance."
            )
        return region
