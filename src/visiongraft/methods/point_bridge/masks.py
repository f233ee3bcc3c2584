"""Masks of objects: cleaning, shrinking, eroding, and drawing pixels from them.

Masks are (height, width) bool arrays indexed (row, column); pixels are (u, v), u to the right. A swap survives square images only.
"""

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

_ALL_EIGHT = np.ones((3, 3), bool)


def clean_mask(mask: Bool[np.ndarray, "height width"], min_area: int = 100) -> Bool[np.ndarray, "height width"]:
    """Opens a mask by 3x3 pixels and drops its small pieces (8-connected).

    Args:
        mask: as a network gave it.
        min_area: pixels below which a piece is dropped; the default suits images of about a megapixel.

    Source: Point Bridge brief, 2.4 step 4.
    """
    opened = ndimage.binary_opening(mask, _ALL_EIGHT)
    labels, _ = ndimage.label(opened, _ALL_EIGHT)
    return np.asarray(opened, bool) & np.isin(labels, np.flatnonzero(np.bincount(np.ravel(labels)) >= min_area))


def erode_mask(mask: Bool[np.ndarray, "height width"], times: int = 1) -> Bool[np.ndarray, "height width"]:
    """Takes the outermost pixels off, ``times`` times; what is outside the image counts as inside, so that a cut object keeps its edge."""
    return ndimage.binary_erosion(mask, _ALL_EIGHT, iterations=times, border_value=1) if times > 0 else mask.copy()


def shrink_mask(mask: Bool[np.ndarray, "height width"], amount: float = 0.2) -> Bool[np.ndarray, "height width"]:
    """Moves the outline of every piece towards its centroid, so that depth at edges (flying pixels) is not used.

    A pixel p remains where the filled piece holds c + (p - c) / (1 - amount), which is the filled outline with its vertices moved to
    c + (1 - amount)(v - c). Unlike the original, holes stay holes: they show what is behind. A piece of which nothing would remain
    (a thin ring) is kept whole.

    Args:
        mask: pieces are 8-connected.
        amount: fraction of the way to the centroid, in [0, 1).

    Raises:
        ValueError: an amount outside [0, 1).

    Source: Point Bridge brief, 2.4 step 6.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"A mask shrinks by a fraction of at least 0 and below 1; got {amount}.")
    labels, _ = ndimage.label(mask, _ALL_EIGHT)
    shrunken = np.zeros_like(mask)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        piece = labels[box] == label
        filled = np.asarray(ndimage.binary_fill_holes(piece), bool)
        places = np.argwhere(piece)
        centroid = np.argwhere(filled).mean(0)
        source = np.rint(centroid + (places - centroid) / (1 - amount)).astype(int)
        inside = np.all((source >= 0) & (source < piece.shape), axis=1)
        inside[inside] = filled[tuple(source[inside].T)]
        kept = places[inside] if inside.any() else places
        shrunken[box][tuple(kept.T)] = True
    return shrunken


def draw_pixels(mask: Bool[np.ndarray, "height width"], num: int, rng: np.random.Generator) -> Int[np.ndarray, "num 2"]:
    """Rows and columns of random pixels of a mask, without repetition while there are enough; then all of them and random repeats.

    Raises:
        ValueError: an empty mask.
    """
    places = np.argwhere(mask)
    if not len(places):
        raise ValueError("Pixels cannot be drawn from an empty mask.")
    if len(places) >= num:
        return places[rng.choice(len(places), num, replace=False)]
    return places[np.concatenate([np.arange(len(places)), rng.integers(len(places), size=num - len(places))])]
