"""Stand-ins for perception that read a simulator's instance ids. They are honest about it: no such thing exists on a real robot."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from scipy import ndimage

from visiongraft.methods.point_bridge.frames import Frame, Mask, Point, pixel_of
from visiongraft.methods.point_bridge.masks import erode_mask


def segmentation_of(frame: Frame) -> Int[np.ndarray, "height width"]:
    """Instance ids of a frame.

    Raises:
        ValueError: a frame without them.
    """
    if frame.segmentation is None:
        raise ValueError(
            "The frame has no simulator segmentation; ask for it with View(modalities=(…, 'segmentation')), or use a segmenter for images."
        )
    return frame.segmentation


class InstancePointer:
    """Centroid of the largest piece of an object's instance mask, or the mask's pixel nearest to it.

    Args:
        object_names: names by instance id, as in ``RobotEnvironment.object_names``.
    """

    def __init__(self, object_names: Sequence[str]) -> None:
        self.object_names = tuple(object_names)

    def __call__(self, frame: Frame, name: str) -> Point | None:
        """Pixel of the named object, ``None`` where it is not in view.

        Raises:
            ValueError: a name that the scene does not hold; the message lists those that it does.
        """
        mask = segmentation_of(frame) == instance_id(name, self.object_names)
        return mask_centre(mask)


class InstanceSegmenter:
    """The instance mask at a pixel, eroded."""

    def __init__(self, eroded: int = 1) -> None:
        self.eroded = eroded

    def __call__(self, frame: Frame, point: Point) -> Mask:
        """Mask of the object at a pixel; empty where the pixel is of no object."""
        segmentation = segmentation_of(frame)
        label = segmentation[pixel_of(point, segmentation.shape)]
        return _eroded((segmentation == label) & (label >= 0), self.eroded)


class InstanceTracker:
    """Instance masks of every frame, eroded: a tracker that never loses an object that is in view.

    Args:
        object_names: names by instance id.
        eroded: pixels taken off.
    """

    def __init__(self, object_names: Sequence[str], eroded: int = 1) -> None:
        self.object_names, self.eroded = tuple(object_names), eroded
        self._names: tuple[str, ...] = ()

    def start(self, frame: Frame, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """Begins an episode; the masks say which objects, their pixels are not used."""
        self._names = tuple(masks)
        return self.track(frame)

    def track(self, frame: Frame) -> dict[str, Mask]:
        """Masks by name."""
        segmentation = segmentation_of(frame)
        return {name: _eroded(segmentation == instance_id(name, self.object_names), self.eroded) for name in self._names}


def _eroded(mask: Mask, times: int) -> Mask:
    """A mask without its edge; one that is nothing but edge, since it is far away or half hidden, stays as it is."""
    eroded = erode_mask(mask, times)
    return eroded if eroded.any() else mask


def instance_id(name: str, object_names: Sequence[str]) -> int:
    """Instance id of a name; underscores and spaces are the same.

    Raises:
        ValueError: no such object; the message lists what the scene holds.
    """
    plain = [known.replace("_", " ").lower() for known in object_names]
    wanted = name.replace("_", " ").lower()
    if wanted not in plain:
        raise ValueError(f"There is no object {name!r} in the scene; the scene holds {', '.join(object_names)}.")
    return plain.index(wanted)


def mask_centre(mask: Mask) -> Point | None:
    """Centre (u, v) of the mask's pixel nearest to the centroid of its largest piece."""
    largest = largest_piece(mask)
    places = np.argwhere(largest)
    if not len(places):
        return None
    row, column = places[np.square(places - places.mean(0)).sum(1).argmin()]
    return float(column) + 0.5, float(row) + 0.5


def largest_piece(mask: Mask) -> Mask:
    """The largest 8-connected piece of a mask."""
    labels, count = ndimage.label(mask, np.ones((3, 3), bool))
    if not count:
        return mask
    return labels == np.bincount(labels[labels > 0]).argmax()
