"""What is wrong with a depth camera, as numbers: drawn onto perfect depth, and measured from pairs of perfect and real depth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

_GROSS = 4.0  # standard deviations beyond which an error is an outlier


@dataclass(frozen=True, kw_only=True)
class PerceptionNoise:
    """Errors of depth and masks. The defaults are the brief's "real twin".

    Args:
        depth: standard deviation at one metre, metres; it grows with the square of the depth, as triangulated depth does.
        offset: standard deviation of an error that a camera keeps for an episode, metres.
        holes: fraction of pixels without depth.
        outliers: fraction of pixels that are grossly wrong, as at the edges of objects.
        outlier_depth: standard deviation of those, metres.
        eroded: pixels that a mask lacks at its edge.

    Raises:
        ValueError: negative numbers, or fractions above 1.

    Source: Point Bridge brief, section 9.
    """

    depth: float = 0.004
    offset: float = 0.004
    holes: float = 0.02
    outliers: float = 0.0
    outlier_depth: float = 0.0
    eroded: int = 1

    def __post_init__(self) -> None:
        if (
            min(self.depth, self.offset, self.holes, self.outliers, self.outlier_depth, self.eroded) < 0
            or max(self.holes, self.outliers) > 1
        ):
            raise ValueError("Noise of perception has no negative numbers, and its fractions (holes, outliers) are at most 1.")

    def draw_offset(self, rng: np.random.Generator) -> float:
        """The error that stays for an episode, metres."""
        return float(rng.normal(0.0, self.offset))

    def apply(self, depth: Float[np.ndarray, "height width"], offset: float, rng: np.random.Generator) -> Float[np.ndarray, "height width"]:
        """Noisy depth, infinity in holes and where there was none.

        Args:
            depth: perfect, metres.
            offset: from :meth:`draw_offset`.
            rng: of the frame.
        """
        known = np.isfinite(depth)
        depth = np.where(known, depth, 0.0)
        noise = self.depth * np.square(depth) * rng.standard_normal(depth.shape, np.float32) + offset
        if self.outliers:
            noise = noise + (rng.random(depth.shape) < self.outliers) * rng.normal(0.0, self.outlier_depth, depth.shape)
        noisy = depth + noise
        lost = ~known | (rng.random(depth.shape) < self.holes) | (noisy <= 0)
        return np.where(lost, np.inf, noisy).astype(np.float32)


def measure_noise(
    clean: Float[np.ndarray, "frames height width"],
    depth: Float[np.ndarray, "..."],
    where: Bool[np.ndarray, "..."] | None = None,
    *,
    eroded: int = 1,
) -> PerceptionNoise:
    """Parameters of :class:`PerceptionNoise` from pairs of perfect and measured depth.

    The spread is the median absolute deviation, so that gross errors do not widen it; they are counted apart. The offset is a
    standard deviation over frames, so it takes several frames of different episodes to mean something; of one frame it is the size
    of that frame's error.

    Args:
        clean: perfect depth in metres; pixels that are not finite or not positive are left out.
        depth: measured depth; infinity, NaN or 0 where there is none.
        where: pixels to look at, such as those of the objects; all by default.
        eroded: handed on; masks are not measured.

    Raises:
        ValueError: arrays of different shapes, or a frame without a pixel that both know.
    """
    if clean.shape != depth.shape or (where is not None and where.shape != clean.shape):
        raise ValueError(f"Perfect and measured depth (and where) must have the same shape, got {clean.shape} and {depth.shape}.")
    looked = np.isfinite(clean) & (clean > 0) & (True if where is None else where)
    known = looked & np.isfinite(depth) & (depth > 0)
    if not known.any(axis=(1, 2)).all():
        raise ValueError(
            f"Frame {int(np.argmin(known.any(axis=(1, 2))))} has no pixel with both perfect and measured depth; check units and alignment."
        )
    offsets, scaled, sizes = [], [], []
    for frame_clean, frame_depth, frame_known in zip(clean, depth, known, strict=True):
        error = frame_depth[frame_known].astype(np.float64) - frame_clean[frame_known]
        offsets.append(np.median(error))
        sizes.append(error - offsets[-1])
        scaled.append(sizes[-1] / np.square(frame_clean[frame_known]))
    relative, absolute = np.concatenate(scaled), np.concatenate(sizes)
    spread = 1.4826 * float(np.median(np.abs(relative)))
    gross = np.abs(relative) > max(_GROSS * spread, 1e-9)
    return PerceptionNoise(
        depth=spread,
        offset=float(np.sqrt(np.mean(np.square(offsets)))),
        holes=1.0 - float(known.sum() / looked.sum()),
        outliers=float(gross.mean()),
        outlier_depth=float(np.sqrt(np.mean(np.square(absolute[gross])))) if gross.any() else 0.0,
        eroded=eroded,
    )
