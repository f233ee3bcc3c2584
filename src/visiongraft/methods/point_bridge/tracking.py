"""Follow objects from frame to frame by segmenting every frame anew and matching pieces to objects by where they are."""

import warnings
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from visiongraft.methods.point_bridge.frames import Frame, Mask
from visiongraft.methods.point_bridge.lifting import base_points
from visiongraft.methods.point_bridge.plane_removal import LEAST_PIXELS, PlaneRemoval


@runtime_checkable
class Tracker(Protocol):
    """Follows masks through an episode."""

    def start(self, frame: Frame, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """Begins an episode with the masks of its first frame; gives the masks of that frame as the tracker sees them."""
        ...

    def track(self, frame: Frame) -> dict[str, Mask]:
        """Masks of the next frame by name; all False for an object that is not found."""
        ...


class AmbiguousTrackingWarning(UserWarning):
    """Two pieces could be the same object."""


class PieceTracker:
    """Pieces above the table in every frame, each object the nearest piece of those within a gate, all objects matched at once.

    A piece that several objects claim, because they touch, is shared out: every pixel goes to the object whose last points are
    nearest. An object without a piece is not found, and stays where it was last seen.

    Identical objects are told apart by their places alone. Where a second piece is almost as near as the matched one, a warning says so;
    if two objects swap places between two frames, no tracker of this kind can notice.

    Args:
        removal: finds the pieces.
        gate: metres that an object's centre may move between frames.
        margin: metres by which the second nearest free piece must be farther than the matched one, or a warning is given.

    Source: Point Bridge brief, section 3 (offline fallbacks) and section 10.
    """

    def __init__(self, removal: PlaneRemoval | None = None, *, gate: float = 0.08, margin: float = 0.02) -> None:
        self.removal, self.gate, self.margin = removal or PlaneRemoval(), gate, margin
        self._points: dict[str, Float[np.ndarray, "n 3"]] = {}
        self._warned: set[str] = set()

    def start(self, frame: Frame, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """Begins an episode.

        Raises:
            ValueError: a frame without depth, or a mask without a pixel that has depth.
        """
        self._warned = set()
        self._points = {}
        points = _points_of(frame)
        for name, mask in masks.items():
            known = points[mask & np.isfinite(points).all(-1)]
            if not len(known):
                raise ValueError(f"{name!r} has no pixel with depth in the first frame; check the mask and the depth map.")
            self._points[name] = known
        return dict(masks)

    def track(self, frame: Frame) -> dict[str, Mask]:
        """Masks of the next frame by name; nothing is found in a frame that has (almost) no depth, as a camera gives now and then."""
        points = _points_of(frame)
        if np.isfinite(points).all(-1).sum() < LEAST_PIXELS:
            return {name: np.zeros(points.shape[:2], bool) for name in self._points}
        labels = self.removal.label(frame)
        pieces = np.unique(labels[labels > 0])
        centres = np.array([np.median(points[labels == piece], axis=0) for piece in pieces]).reshape(-1, 3)
        claims = self._claims(points, labels, pieces, centres)
        masks = {name: np.zeros(labels.shape, bool) for name in self._points}
        for piece in set(claims.values()):
            owners = [name for name, claimed in claims.items() if claimed == piece]
            shares = _share_out(points, labels == piece, [self._points[name] for name in owners])
            masks.update(zip(owners, shares, strict=True))
        for name, mask in masks.items():
            if mask.any():
                self._points[name] = points[mask]
        return masks

    def _claims(
        self,
        points: Float[np.ndarray, "height width 3"],
        labels: Int[np.ndarray, "height width"],
        pieces: Int[np.ndarray, "k"],
        centres: Float[np.ndarray, "k 3"],
    ) -> dict[str, int]:
        """Piece of every object that has one: first the best one-to-one matching, then shared pieces for those left over."""
        names = list(self._points)
        if not len(pieces):
            return {}
        last = np.array([np.median(self._points[name], axis=0) for name in names])
        distance = np.linalg.norm(last[:, None] - centres[None], axis=-1)
        rows, columns = linear_sum_assignment(np.minimum(distance, 10 * self.gate))
        claims = {names[row]: int(pieces[column]) for row, column in zip(rows, columns, strict=True) if distance[row, column] <= self.gate}
        for row, column in zip(rows, columns, strict=True):
            if names[row] in claims:
                self._warn_if_ambiguous(names[row], distance[row], int(column))
        for name in names:
            if name not in claims and (piece := self._touching(name, points, labels)):
                claims[name] = piece
        return claims

    def _touching(self, name: str, points: Float[np.ndarray, "height width 3"], labels: Int[np.ndarray, "height width"]) -> int:
        """The piece where most of an object's last points are now, if it is most of them; 0 otherwise."""
        standing = labels > 0
        places, index = cKDTree(points[standing]).query(self._points[name], distance_upper_bound=0.25 * self.gate)
        near = np.isfinite(places)
        if near.mean() < 0.5:
            return 0
        return int(np.bincount(labels[standing][index[near]]).argmax())

    def _warn_if_ambiguous(self, name: str, distance: Float[np.ndarray, "k"], matched: int) -> None:
        others = [d for column, d in enumerate(distance) if column != matched and d <= self.gate]
        if others and min(others) - distance[matched] < self.margin and name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"{name!r} may be either of two pieces {distance[matched] * 100:.1f} and {min(others) * 100:.1f} cm from where it was; the "
                "nearest is taken. Move similar objects apart, or use a tracker that looks at the image.",
                AmbiguousTrackingWarning,
                stacklevel=2,
            )


def _points_of(frame: Frame) -> Float[np.ndarray, "height width 3"]:
    if frame.depth is None:
        raise ValueError("Tracking by places needs depth, and this camera has none; give a depth source, or another tracker.")
    return base_points(frame.depth, frame.camera)


def _share_out(
    points: Float[np.ndarray, "height width 3"], piece: Mask, owners: list[Float[np.ndarray, "_ 3"]]
) -> list[Bool[np.ndarray, "height width"]]:
    """A piece divided among objects by whose last points are nearest."""
    if len(owners) == 1:
        return [piece]
    distance = np.stack([cKDTree(owner).query(points[piece])[0] for owner in owners])
    shares = []
    for owner in range(len(owners)):
        share = np.zeros_like(piece)
        share[piece] = distance.argmin(0) == owner
        shares.append(share)
    return shares
