"""Signed distances where only surface points with normals are known, as in files of tracked points."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

NEIGHBORS = 3
PLANE_SPACINGS = 4.0


def signed_distance(queries: Float[Tensor, "q 3"], surface: Float[Tensor, "p 6"]) -> Float[Tensor, "q"]:
    """Signed distance to a closed surface that is known by points and outward normals; negative inside.

    The sign is that of the nearest points' tangent planes, weighted by nearness. Within a few spacings of the points the distance
    to those planes is taken itself, as the nearest point is then farther away than the surface.

    Args:
        queries: anywhere.
        surface: xyz and unit normal; the denser, the more accurate.

    Raises:
        ValueError: fewer than 3 surface points, or values that are not finite.
    """
    if len(surface) < NEIGHBORS or not bool(surface.isfinite().all() & queries.isfinite().all()):
        raise ValueError(f"Signed distances need at least {NEIGHBORS} finite surface points with normals; got {len(surface)}.")
    known = surface.detach().double().cpu().numpy()
    asked = queries.detach().double().cpu().numpy()
    tree = cKDTree(known[:, :3])
    distance, index = tree.query(asked, k=NEIGHBORS)
    height = ((asked[:, None] - known[index, :3]) * known[index, 3:]).sum(-1)
    weight = 1 / (distance + 1e-9)
    plane = (weight * height).sum(1) / weight.sum(1)
    spacing = np.median(tree.query(known[:: max(len(known) // 256, 1), :3], k=2)[0][:, 1])
    signed = np.where(distance[:, 0] < PLANE_SPACINGS * spacing, plane, np.sign(plane) * distance[:, 0])
    return torch.from_numpy(signed).to(queries)
