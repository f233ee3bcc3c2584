"""Clusters of tokens and the entropic transport plan between them, batched (the local term of FOA, arXiv 2505.21494)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def kmeans(
    points: Float[Tensor, "batch points dim"],
    clusters: int,
    generator: torch.Generator | None = None,
    iterations: int = 50,
) -> Float[Tensor, "batch clusters dim"]:
    """Cluster centres by Lloyd's algorithm from k-means++ starts, each batch entry on its own.

    Args:
        points: what is clustered.
        clusters: at most the number of points.
        generator: source of the starts.
        iterations: at most this many rounds; fewer when no point changes its cluster.

    Returns:
        Means of the clusters, differentiable in the points with the assignment held constant. A cluster that lost all its
        points keeps its last centre.

    Raises:
        ValueError: fewer than one cluster, or more clusters than points.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """
    if not 1 <= clusters <= points.shape[1]:
        raise ValueError(f"clusters must lie between 1 and the number of points; got {clusters} for {points.shape[1]} points.")
    with torch.no_grad():
        centres = _spread_starts(points, clusters, generator)
        members = _nearest(points, centres)
        for _ in range(iterations):
            centres = _means(points, members, centres)
            reassigned = _nearest(points, centres)
            if torch.equal(reassigned, members):
                break
            members = reassigned
    return _means(points, members, centres)


def transport_plan(
    similarity: Float[Tensor, "batch rows columns"],
    temperature: float = 0.1,
    iterations: int = 100,
    tolerance: float = 1e-2,
) -> Float[Tensor, "batch rows columns"]:
    """Entropic transport plan between uniform marginals that prefers similar pairs, by Sinkhorn's iteration; detached.

    The kernel exp(-(1 - similarity) / temperature) and the scalings are kept as logarithms, so that small temperatures, where
    the plan approaches the optimal assignment, do not underflow.

    Args:
        similarity: at most 1.
        temperature: of the kernel.
        iterations: at most this many.
        tolerance: an entry of the batch stops when the mean change of its row scaling is below; 0 runs all iterations.

    Returns:
        Non-negative, total 1; columns sum to 1 / columns, rows to 1 / rows up to the tolerance.

    Raises:
        ValueError: a temperature that is not positive.

    Source: Cuturi, arXiv 1306.0895, Alg. 1, with the stopping rule of FOA.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    log_kernel = (similarity.detach() - 1) / temperature
    batch, rows, columns = log_kernel.shape
    log_rows, log_columns = log_kernel.new_zeros(batch, rows, 1), log_kernel.new_zeros(batch, 1, columns)
    done = torch.zeros((batch, 1, 1), dtype=torch.bool, device=log_kernel.device)
    for _ in range(iterations):
        new_rows = -(log_kernel + log_columns).logsumexp(2, keepdim=True) - math.log(rows)
        new_columns = -(log_kernel + new_rows).logsumexp(1, keepdim=True) - math.log(columns)
        change = (new_rows.exp() - log_rows.exp()).abs().mean((1, 2), keepdim=True)
        log_rows, log_columns = torch.where(done, log_rows, new_rows), torch.where(done, log_columns, new_columns)
        done = done | (change < tolerance)
        if done.all():
            break
    return (log_kernel + log_rows + log_columns).exp()


def _spread_starts(points: Tensor, clusters: int, generator: torch.Generator | None) -> Tensor:
    """k-means++: each new centre is a point drawn in proportion to its squared distance to those before."""
    batch = torch.arange(len(points), device=points.device)
    distance = torch.ones(points.shape[:2], device=points.device, dtype=points.dtype)
    centres = []
    for _ in range(clusters):
        # Cumulative weights against one uniform number: unlike multinomial, well defined when all distances are zero.
        cumulative = distance.cumsum(1)
        uniform = torch.rand((len(points), 1), generator=generator, device=generator.device if generator else points.device)
        chosen = torch.searchsorted(cumulative, uniform.to(cumulative) * cumulative[:, -1:], right=True).squeeze(1)
        centres.append(points[batch, chosen.clamp(max=points.shape[1] - 1)])
        gap = (points - centres[-1].unsqueeze(1)).square().sum(-1)
        distance = gap if len(centres) == 1 else torch.minimum(distance, gap)
    return torch.stack(centres, dim=1)


def _nearest(points: Tensor, centres: Tensor) -> Int[Tensor, "batch points"]:
    return torch.cdist(points, centres).argmin(-1)


def _means(points: Tensor, members: Tensor, centres: Tensor) -> Tensor:
    weight = F.one_hot(members, centres.shape[1]).to(points.dtype)
    count = weight.sum(1).unsqueeze(-1)
    sums = weight.transpose(1, 2) @ points
    return torch.where(count > 0, sums / count.clamp(min=1), centres)
