"""Fitting planes to points among which many lie elsewhere."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SCORED = 2048
_ROUNDS = 8


def fit_plane(
    points: Float[Tensor, "n 3"],
    tolerance: float = 0.008,
    *,
    hypotheses: int = 1000,
    up: tuple[float, float, float] = (0.0, 0.0, 1.0),
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "3"], Float[Tensor, ""], Bool[Tensor, "n"]]:
    """The plane that most points lie on, by RANSAC and then least squares.

    All hypotheses are scored at once, on at most 2,048 of the points. The best one is fitted to the points near it until these stay
    the same. ``normal . p - offset`` is a point's height over the plane.

    Args:
        points: metres; points that are not finite are ignored.
        tolerance: distance in metres up to which a point lies on the plane.
        hypotheses: planes through three random points that are tried; a plane that holds a share w of the points
            is missed with probability (1 - w^3)^hypotheses.
        up: the normal points to this side: the default is right in the base frame, (0, 0, -1) in camera axes.
        generator: draws the hypotheses; one seeded with 0 by default.

    Returns:
        Unit normal, offset in metres, and which points lie on the plane.

    Raises:
        ValueError: fewer than three finite points, points on a line, or numbers that are not positive.

    Source: Fischler and Bolles 1981; Point Bridge brief, section 3 (offline fallbacks).
    """
    if tolerance <= 0 or hypotheses < 1:
        raise ValueError(f"tolerance (metres) and hypotheses must be positive; got {tolerance:g} and {hypotheses}.")
    finite = points.isfinite().all(-1)
    known = points[finite].double()
    if len(known) < 3:
        raise ValueError(f"A plane needs 3 points; {len(known)} of {len(points)} are finite. Check the depth map.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    center = known.mean(0)
    known = known - center
    normal, offset = _best_hypothesis(known, tolerance, hypotheses, generator)
    near = (known @ normal - offset).abs() <= tolerance
    for _ in range(_ROUNDS):
        normal, offset = _least_squares(known[near])
        before, near = near, (known @ normal - offset).abs() <= tolerance
        if torch.equal(before, near):
            break
    offset = offset + normal @ center
    if normal @ normal.new_tensor(up) < 0:
        normal, offset = -normal, -offset
    return normal.to(points), offset.to(points), finite & ((points.double() @ normal - offset).abs() <= tolerance)


def _best_hypothesis(
    points: Float[Tensor, "n 3"], tolerance: float, hypotheses: int, generator: torch.Generator
) -> tuple[Float[Tensor, "3"], Float[Tensor, ""]]:
    """The plane through three points that most points lie near."""

    def draw(*shape: int) -> Tensor:
        dice = torch.rand(*shape, dtype=torch.float64, generator=generator, device=generator.device)
        return (dice * len(points)).long().to(points.device)

    a, b, c = points[draw(hypotheses, 3)].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    length = normals.norm(dim=-1)
    proper = length > 1e-9 * (b - a).norm(dim=-1) * (c - a).norm(dim=-1)  # also false where two of the three are one point
    if not bool(proper.any()):
        raise ValueError("The points lie on a line or at one place, so that no plane is defined by them; check the depth map.")
    a, normals = a[proper], normals[proper] / length[proper, None]
    offsets = (normals * a).sum(-1)
    scored = points if len(points) <= _SCORED else points[draw(_SCORED)]
    best = ((normals @ scored.T - offsets[:, None]).abs() <= tolerance).sum(1).argmax()
    return normals[best], offsets[best]


def _least_squares(points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "3"], Float[Tensor, ""]]:
    """The plane with the least squared distance to all points: the direction in which they vary least."""
    center = points.mean(0)
    normal = torch.linalg.eigh((points - center).T @ (points - center)).eigenvectors[:, 0]
    return normal, normal @ center
