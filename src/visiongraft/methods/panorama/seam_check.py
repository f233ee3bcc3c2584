"""Whether the left and right borders of a panorama match: a verdict with its numbers, and a picture of the seam."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.panoramas import check_panorama
from visiongraft.metrics.seams import discontinuity_score, interior_discontinuity, seam_ratio

# clean panoramas have ratios of 0.6 to 1.1, those of vanilla encoding about 3
VISIBLE_RATIO = 1.5
BROKEN_RATIO = 3.0
NOT_FULL = "left and right borders do not match: not a full 360 ERP, or already cropped"


@dataclass(frozen=True, kw_only=True)
class SeamReport:
    """The seam of one panorama.

    Args:
        score: discontinuity score at the seam.
        interior_scores: the same score at columns inside, the baseline.
        ratio: mean step across the seam over the mean step between neighbouring columns; about 1 where there is no seam.
        verdict: one sentence.
    """

    score: float
    interior_scores: tuple[float, ...]
    ratio: float
    verdict: str

    @property
    def full_circle(self) -> bool:
        """Whether the borders belong together, so that the picture can be a whole panorama."""
        return self.ratio <= BROKEN_RATIO


def check_seam(panorama: Float[Tensor, "3 height width"], columns: int = 6) -> SeamReport:
    """Measures the seam of a panorama that has not been through JPEG or video compression, which spoils the scores.

    Args:
        panorama: in [0, 1], H x 2H.
        columns: inside the picture that give the baseline, at least 6.

    Raises:
        ValueError: not H x 2H, or fewer than 6 columns.

    Source: Christensen et al., ECCV 2024 (the score), used by arXiv 2601.16192.
    """
    batch = check_panorama(panorama)[None]
    score, ratio = float(discontinuity_score(batch)), float(seam_ratio(batch))
    interior = tuple(interior_discontinuity(batch, columns)[0].tolist())
    return SeamReport(score=score, interior_scores=interior, ratio=ratio, verdict=_verdict(ratio))


def _verdict(ratio: float) -> str:
    if ratio > BROKEN_RATIO:
        return f"{NOT_FULL} (seam ratio {ratio:.2f})."
    if ratio > VISIBLE_RATIO:
        # an object's edge that happens to lie there looks the same in numbers
        return f"A seam may be visible (seam ratio {ratio:.2f}): look at its picture; circular encoding and decoding avoid seams."
    return f"No seam (seam ratio {ratio:.2f})."


def seam_picture(panorama: Float[Tensor, "3 height width"], zoom: int = 8) -> Float[Tensor, "3 new_height width"]:
    """The panorama turned by half, so that its seam stands in the middle, above a magnified part around the seam.

    Args:
        panorama: H x 2H.
        zoom: magnification; the lower half of the picture shows 1/zoom of the width and height.

    Raises:
        ValueError: not H x 2H, or a zoom below 1.
    """
    height, width = check_panorama(panorama).shape[-2:]
    if zoom < 1:
        raise ValueError(f"zoom must be at least 1; got {zoom}.")
    turned = panorama.roll(width // 2, -1)
    h, w = max(1, height // zoom), max(2, width // zoom // 2 * 2)
    part = turned[:, (height - h) // 2 : (height + h) // 2, (width - w) // 2 : (width + w) // 2]
    magnified = F.interpolate(part[None], size=(height, width), mode="nearest-exact")[0]
    return torch.cat([turned, magnified], -2)
