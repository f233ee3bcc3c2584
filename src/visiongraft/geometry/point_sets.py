"""Sets of points: farthest point sampling, outliers, rigid alignment. Lifting and planes have files of their own and are named here too.

Points are (..., n, 3) in metres. What counts or compares gives indices or masks and has no gradient; the rest is differentiable.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from visiongraft.geometry.lifting import lift_depth, lift_pixels, pixel_centers, project_points
from visiongraft.geometry.planes import fit_plane

__all__ = [
    "align_points",
    "farthest_points",
    "fit_plane",
    "inlier_mask",
    "lift_depth",
    "lift_pixels",
    "pixel_centers",
    "project_points",
    "remove_outliers",
]

_MAD_TO_SIGMA = 1.4826  # of a normal distribution


def farthest_points(
    points: Float[Tensor, "batch n dim"],
    num: int,
    start: int = 0,
    *,
    valid: Bool[Tensor, "batch n"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch num"]:
    """Indices of points that are spread out: each one is the farthest from all before it, the first of equally far ones.

    Where a cloud has fewer points than ``num``, all of them come first and the rest are drawn from them at random. It keeps the
    running minimum of squared distances, so memory is linear in the number of points; it runs on the device of the points.

    Args:
        points: in any dimension, two for pixels.
        num: how many to choose.
        start: the first one, counted among the valid points.
        valid: which points may be chosen, for clouds of different sizes; all by default. The others may be anything, NaN too.
        generator: draws the repeated points; one seeded with 0 by default.

    Returns:
        Indices into the points; ``points.gather(1, i[..., None].expand(-1, -1, 3))`` gives the points.

    Raises:
        ValueError: points that are not finite, a cloud with none or with no start-th one, or num below 1.

    Source: Point Bridge brief, 2.4 step 8 and section 10.
    """
    batch, n, _ = points.shape
    if num < 1:
        raise ValueError(f"farthest_points chooses at least 1 point; num is {num}.")
    valid = torch.ones(batch, n, dtype=torch.bool, device=points.device) if valid is None else valid
    counts = valid.sum(1)
    _check_clouds(points, valid, counts, start)
    with torch.inference_mode():
        chosen = _farthest(points.detach(), min(num, n), start, valid)
    chosen = chosen.clone()  # a tensor of inference mode could not index where gradients are wanted
    short = int(counts.min()) if batch else num
    if short >= num:
        return chosen
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    dice = torch.rand(batch, num, dtype=torch.float64, generator=generator, device=generator.device).to(points.device)
    drawn = torch.minimum((dice * counts[:, None]).long(), counts[:, None] - 1)
    first = torch.arange(num, device=points.device).expand(batch, num)
    return chosen.gather(1, torch.where(first < counts[:, None], first, drawn))


def _check_clouds(points: Float[Tensor, "batch n dim"], valid: Bool[Tensor, "batch n"], counts: Int[Tensor, "batch"], start: int) -> None:
    batch, n, _ = points.shape
    bad = (~points.isfinite().all(-1) & valid).sum(1)
    if bool(bad.any()):
        i = int(bad.argmax())
        where = f" (cloud {i} of {batch})" if batch > 1 else ""
        raise ValueError(f"{int(bad[i])} of {n} points are not finite after lifting; check the depth map{where}.")
    if batch and int(counts.min()) == 0:
        raise ValueError(f"Cloud {int(counts.argmin())} of {batch} has no points to choose from; its mask or its depth is empty.")
    if batch and not 0 <= start < int(counts.min()):
        raise ValueError(f"start is {start}, but the smallest cloud has {int(counts.min())} points; start must be from 0 to one less.")


def _farthest(points: Float[Tensor, "batch n dim"], num: int, start: int, valid: Bool[Tensor, "batch n"]) -> Int[Tensor, "batch num"]:
    """The loop. Coordinates lie in planes and every operation writes in place: it is bound by memory, and by calls where n is small."""
    index = ((valid.cumsum(1) == start + 1) & valid).long().argmax(1, keepdim=True)
    planes = points.masked_fill(~valid[..., None], 0).movedim(-1, 0).contiguous()  # a NaN would outrank all
    nearest = points.new_full(valid.shape, -torch.inf)  # squared distance to the chosen ones; points that are not valid stay below all
    nearest.masked_fill_(valid, torch.inf)
    if points.device.type == "cpu" and points.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(_farthest_on_cpu(planes.numpy(), nearest.numpy(), num, index.numpy()))
    distance, difference = torch.empty_like(nearest), torch.empty_like(nearest)
    chosen = [index]
    for _ in range(num - 1):
        for axis, plane in enumerate(planes):
            torch.sub(plane, plane.gather(1, index), out=difference)
            distance.addcmul_(difference, difference) if axis else torch.mul(difference, difference, out=distance)
        torch.minimum(nearest, distance, out=nearest)
        index = nearest.argmax(1, keepdim=True)
        chosen.append(index)
    return torch.cat(chosen, 1)


def _farthest_on_cpu(
    planes: Float[np.ndarray, "dim batch n"], nearest: Float[np.ndarray, "batch n"], num: int, index: Int[np.ndarray, "batch 1"]
) -> Int[np.ndarray, "batch num"]:
    """The same with NumPy, whose calls cost a third of PyTorch's; ``nearest`` is written to."""
    chosen = np.empty((len(nearest), num), np.int64)
    chosen[:, :1] = index
    for planes_of_one, nearest_of_one, row in zip(planes.swapaxes(0, 1), nearest, chosen, strict=True):
        first, *others = planes_of_one
        distance, difference = np.empty_like(nearest_of_one), np.empty_like(nearest_of_one)
        last = row[0]
        for i in range(1, num):
            np.subtract(first, first[last], out=distance)
            np.multiply(distance, distance, out=distance)
            for plane in others:
                np.subtract(plane, plane[last], out=difference)
                np.multiply(difference, difference, out=difference)
                np.add(distance, difference, out=distance)
            np.minimum(nearest_of_one, distance, out=nearest_of_one)
            last = row[i] = nearest_of_one.argmax()
    return chosen


def inlier_mask(
    points: Float[Tensor, "*batch n 3"],
    depth: Float[Tensor, "*batch n"] | None = None,
    *,
    depth_range: tuple[float, float] = (0.1, 2.0),
    spread: float = 3.0,
    slack: float = 0.02,
    neighbors: int = 0,
    neighbor_spread: float = 2.0,
    valid: Bool[Tensor, "*batch n"] | None = None,
) -> Bool[Tensor, "*batch n"]:
    """Which points of an object are believable: finite, within reach of the camera, not far from the rest.

    A point is far when its distance to the median point exceeds ``spread`` x 1.4826 x MAD + ``slack``, where MAD is the median of
    those distances. Medians are the lower one of two.

    Args:
        points: of one object each, in any frame.
        depth: along the camera's axis in metres; without it, ``depth_range`` is not used.
        depth_range: open interval in metres.
        spread: in standard deviations of a normal distribution.
        slack: in metres.
        neighbors: k of the statistical filter, which also drops points whose mean distance to their k nearest neighbours exceeds
            the cloud's mean of it by ``neighbor_spread`` standard deviations; 0 leaves it out.
        neighbor_spread: in standard deviations.
        valid: points outside it are dropped and not counted.

    Raises:
        ValueError: an empty depth range, negative spread, slack or neighbors.

    Source: Point Bridge brief, 2.4 (outlier removal, our choice).
    """
    if not 0 <= depth_range[0] < depth_range[1]:
        raise ValueError(f"depth_range must be (nearest, farthest) in metres with nearest below farthest; got {depth_range}.")
    if min(spread, slack, neighbors, neighbor_spread) < 0:
        raise ValueError("spread, slack, neighbors and neighbor_spread must not be negative.")
    points = points.detach()
    keep = points.isfinite().all(-1)
    if valid is not None:
        keep = keep & valid
    if depth is not None:
        keep = keep & (depth > depth_range[0]) & (depth < depth_range[1])
    if not points.shape[-2]:
        return keep
    known = torch.where(keep[..., None], points, torch.nan)
    distance = (known - known.nanmedian(dim=-2, keepdim=True).values).norm(dim=-1)
    deviation = distance.nanmedian(dim=-1, keepdim=True).values
    keep = keep & (distance <= spread * _MAD_TO_SIGMA * deviation + slack)
    return keep & _near_neighbors(points, keep, neighbors, neighbor_spread) if neighbors else keep


def _near_neighbors(
    points: Float[Tensor, "*batch n 3"], keep: Bool[Tensor, "*batch n"], neighbors: int, spread: float
) -> Bool[Tensor, "*batch n"]:
    near = torch.zeros_like(keep).reshape(-1, keep.shape[-1])
    for row, cloud, kept in zip(near, points.reshape(-1, *points.shape[-2:]), keep.reshape(near.shape), strict=True):
        known = cloud[kept].double().cpu().numpy()
        if len(known) <= neighbors + 1:  # everything is a neighbour of everything
            row[kept] = True
            continue
        distances, _ = cKDTree(known).query(known, k=neighbors + 1)
        mean = torch.from_numpy(distances[:, 1:]).mean(1)  # the first is the point itself
        row[kept] = (mean <= mean.mean() + spread * mean.std()).to(row.device)
    return near.reshape(keep.shape)


def remove_outliers(points: Float[Tensor, "n 3"], depth: Float[Tensor, "n"] | None = None, **options: Any) -> Float[Tensor, "kept 3"]:
    """The points of one object that :func:`inlier_mask` keeps; the options are its own."""
    return points[inlier_mask(points, depth, **options)]


def align_points(
    source: Float[Tensor, "*batch n 3"], target: Float[Tensor, "*batch n 3"], weights: Float[Tensor, "*batch n"] | None = None
) -> Float[Tensor, "*batch 4 4"]:
    """The rigid transform with the least weighted squared distance from ``transform(source)`` to ``target`` (Kabsch).

    It is always a proper rotation, also where a reflection would fit better. Differentiable where the point sets are not
    symmetric (equal singular values have no derivative).

    Args:
        source: points.
        target: the same points elsewhere, in the same order.
        weights: not negative; equal by default.

    Returns:
        ``source_to_target``.

    Raises:
        ValueError: fewer than three points, points on a line (any turn about it fits), negative weights, or values that are not finite.

    Source: Kabsch 1976 and 1978; Point Bridge brief, 2.6 ("points" action mode).
    """
    if source.shape[-2] < 3:
        raise ValueError(f"align_points needs at least 3 points, got {source.shape[-2]}.")
    weights = torch.ones_like(source[..., 0]) if weights is None else weights
    if not bool(source.isfinite().all() & target.isfinite().all() & weights.isfinite().all()):
        raise ValueError("align_points got points or weights that are not finite; leave those points out, or give finite ones weight 0.")
    total = weights.sum(-1, keepdim=True)
    if bool((weights < 0).any()) or bool((total <= 0).any()):
        raise ValueError("weights of align_points must not be negative, and not all of them zero.")
    share = (weights / total)[..., None]
    source_center, target_center = (share * source).sum(-2, keepdim=True), (share * target).sum(-2, keepdim=True)
    covariance = (share * (source - source_center)).mT @ (target - target_center)
    u, sizes, vh = torch.linalg.svd(covariance)
    if bool((sizes[..., 1] <= 1e3 * torch.finfo(sizes.dtype).eps * sizes[..., 0]).any()):
        raise ValueError("align_points got points on one line, or all at one place: the rotation about it cannot be told.")
    sign = torch.linalg.det(vh.mT @ u.mT).sign()
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
    rotation = (vh.mT * flip[..., None, :]) @ u.mT
    translation = target_center.mT - rotation @ source_center.mT
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=source.dtype, device=source.device).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, translation], -1), last], -2)
