"""Chamfer distances between point clouds and between tracked clouds that move, by a k-d tree or by brute force.

Clouds are (points, 3) in one world unit. Distances come back as Python floats in float64; a gradient is not kept. Both searches are
exact: the tree is the one to use on a CPU, brute force on a GPU.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

SEARCHES = ("auto", "tree", "brute")
_SMALL = 65_536  # pairs below which one matrix is quicker than building a tree
_THREADED = 2_000  # queries from which threads are worth their start
_MAX_PAIRS = 1 << 24  # pairs in memory at a time: 64 MiB of float32


def nearest_points(
    queries: Float[Tensor, "n 3"], points: Float[Tensor, "m 3"], search: str = "auto", max_pairs: int = _MAX_PAIRS
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Distance from every query to the nearest point, and which one that is.

    Args:
        queries: where to look from.
        points: where to look.
        search: ``tree`` (a k-d tree on the CPU), ``brute`` (on the device of the points), or ``auto`` (brute force on a GPU and for
            small clouds).
        max_pairs: of brute force, in memory at a time.

    Returns:
        Unsquared distances and indices into ``points``, on the device of the queries.

    Raises:
        ValueError: an empty cloud, points that are not finite, or an unknown search.
    """
    check_cloud(queries, "queries")
    check_cloud(points, "points")
    if uses_tree(search, len(queries) * len(points), queries.device):
        distance, index = tree_query(cKDTree(as_array(points)), as_array(queries))
        return torch.from_numpy(distance).to(queries), torch.from_numpy(index).to(queries.device)
    rows = max(1, max_pairs // len(points))
    found = [torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").min(1) for part in queries.detach().split(rows)]
    return torch.cat([distance for distance, _ in found]), torch.cat([index for _, index in found])


def chamfer_distance(
    prediction: Float[Tensor, "p 3"],
    truth: Float[Tensor, "q 3"],
    num: int = 10_000,
    seed: int = 44,
    *,
    squared: bool = False,
    search: str = "auto",
) -> float:
    """Mean distance from the truth to the prediction plus mean distance from the prediction to the truth.

    At most ``num`` points of each cloud ask; **all** points of the other cloud may answer. The distances are not squared: that is what
    the numbers of ActionBench are.

    Args:
        prediction: points of one shape.
        truth: points of the other.
        num: queries drawn from each cloud; 0 asks from all.
        seed: of ``RandomState``, which draws the queries of the prediction; those of the truth come from ``seed + 1``.
        squared: average squared distances instead (the paper's formulas).
        search: see :func:`nearest_points`.

    Raises:
        ValueError: as :func:`nearest_points`.

    Source: ActionMesh brief, 7.
    """
    check_cloud(prediction, "prediction")
    check_cloud(truth, "truth")
    from_truth, _ = nearest_points(subsample_clouds(truth, num, seed + 1), prediction, search)
    from_prediction, _ = nearest_points(subsample_clouds(prediction, num, seed), truth, search)
    return _mean(from_truth, squared) + _mean(from_prediction, squared)


def motion_chamfer_distance(
    prediction: Float[Tensor, "frames p 3"], truth: Float[Tensor, "_frames q 3"], *, squared: bool = False, search: str = "auto"
) -> float:
    """CD-M: partners are found in the first frame and must stay together in all frames.

    Both clouds are tracked: point i is the same piece of surface in every frame. A shape that is right in every frame but whose
    surface slides is punished here, and only here.

    Args:
        prediction: aligned to the truth.
        truth: as many frames.
        squared: average squared distances instead (the paper's formulas).
        search: see :func:`nearest_points`.

    Raises:
        ValueError: different numbers of frames, or as :func:`nearest_points`.

    Source: ActionMesh brief, 7.
    """
    if len(prediction) != len(truth) or not len(truth):
        raise ValueError(f"CD-M compares frame by frame; got {len(prediction)} predicted and {len(truth)} true frames.")
    check_cloud(prediction, "prediction")
    check_cloud(truth, "truth")
    _, of_truth = nearest_points(truth[0], prediction[0], search)
    _, of_prediction = nearest_points(prediction[0], truth[0], search)
    # frame by frame, so that memory does not grow with the number of frames
    kept = [_mean((p[of_truth] - t).norm(dim=-1), squared) for p, t in zip(prediction, truth, strict=True)]
    back = [_mean((t[of_prediction] - p).norm(dim=-1), squared) for p, t in zip(prediction, truth, strict=True)]
    return sum(kept) / len(kept) + sum(back) / len(back)


def subsample_clouds(clouds: Float[Tensor, "*frames n 3"], num: int, seed: int = 44) -> Float[Tensor, "*frames kept 3"]:
    """The same random points of every frame, at most ``num``; clouds that are small enough come back as they are.

    Source: ActionMesh brief, 7 (one permutation for all frames).
    """
    if not 0 < num < clouds.shape[-2]:
        return clouds
    return clouds[..., _permutation(clouds.shape[-2], num, seed).to(clouds.device), :]


def uses_tree(search: str, pairs: int, device: torch.device) -> bool:
    """Whether a search goes through a k-d tree.

    Raises:
        ValueError: an unknown search.
    """
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}; got {search!r}.")
    return search == "tree" or (search == "auto" and device.type == "cpu" and pairs > _SMALL)


def check_cloud(points: Float[Tensor, "*batch n 3"], name: str) -> None:
    """Refuses clouds that have no nearest points.

    Raises:
        ValueError: no points, or some that are not finite.
    """
    if points.dim() < 2 or points.shape[-1] != 3 or not points.numel():
        raise ValueError(f"{name} must be at least one point with 3 coordinates; got shape {tuple(points.shape)}.")
    bad = int((~points.isfinite().all(-1)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {points[..., 0].numel()} points are not finite; look for NaN in the mesh they come from.")


def tree_query(tree: cKDTree, queries: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Nearest points in a tree, by as many threads as PyTorch may use."""
    return tree.query(queries, workers=torch.get_num_threads() if len(queries) >= _THREADED else 1)


def as_array(points: Float[Tensor, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Points for a k-d tree: float64 on the CPU, without a gradient."""
    return points.detach().cpu().double().numpy()


def _permutation(count: int, num: int, seed: int) -> Int[Tensor, "num"]:
    # RandomState, because published numbers come from its permutation
    return torch.from_numpy(np.random.RandomState(seed).permutation(count)[:num].astype(np.int64))


def _mean(distances: Float[Tensor, "n"], squared: bool) -> float:
    distances = distances.double()
    return float((distances.square() if squared else distances).mean())
