"""Aligning a predicted point cloud to the true one: gradient ICP from 24 canonical orientations.

    pose = register(prediction[None], truth[None])          # as ActionBench's code does it
    aligned = pose.apply(prediction[None])

A point cloud has no names for its axes, so a generated shape may lie in any orientation; the starts cover the right-angled ones, and
Adam does the rest. The nearest points are exact at every step, by a k-d tree on a CPU and by brute force on a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from visiongraft.metrics.chamfer import as_array, check_cloud, tree_query, uses_tree

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_MAX_PAIRS = 1 << 24
_Match = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class IcpOptions:
    """How :func:`register` searches.

    Args:
        steps: of Adam.
        lr: of Adam.
        scale: fit a scale along each axis of the prediction too; otherwise the pose is rigid.
        distinct: leave out the 2 of the 24 starts that repeat others.
        keep: starts that go on after ``prune_after`` steps, those of the lowest loss; ``None`` keeps all to the end.
        prune_after: steps.
        mixed: record, as the released code does, the best step's rotation together with the translation and scale of one step
            later; otherwise all three belong to the loss that is recorded.

    Source: ActionMesh brief, 7 and 9 (the light preset).
    """

    steps: int = 200
    lr: float = 0.01
    scale: bool = True
    distinct: bool = False
    keep: int | None = None
    prune_after: int = 0
    mixed: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0:
            raise ValueError(f"ICP needs at least 1 step and a positive lr; got steps={self.steps}, lr={self.lr}.")
        if self.keep is not None and (self.keep < 1 or not 0 < self.prune_after < self.steps):
            raise ValueError(
                f"keep must be at least 1, and prune_after from 1 to below steps={self.steps}; got keep={self.keep}, "
                f"prune_after={self.prune_after}."
            )


RELEASED = IcpOptions()
"""ActionBench as coded: 24 starts, 200 steps, a scale per axis."""
PAPER = IcpOptions(scale=False, mixed=False)
"""As the paper words it: a rigid pose."""
LIGHT = IcpOptions(steps=60, lr=0.02, distinct=True, keep=4, prune_after=12)
"""For small studies on few points: about fifteen times less work."""


class Alignment(NamedTuple):
    """Poses that map predictions onto truths: ``(scale * points) @ rotation + translation``, points as rows.

    ``loss`` is the lowest of any start: mean squared distance to the nearest point, both ways.
    """

    rotation: Float[Tensor, "frames 3 3"]
    translation: Float[Tensor, "frames 3"]
    scale: Float[Tensor, "frames 3"]
    loss: Float[Tensor, "frames"]

    def apply(self, points: Float[Tensor, "frames n 3"]) -> Float[Tensor, "frames n 3"]:
        """Points of the prediction, where the truth is. One pose serves any number of frames."""
        return (self.scale[:, None] * points) @ self.rotation + self.translation[:, None]

    def undo(self, points: Float[Tensor, "frames n 3"]) -> Float[Tensor, "frames n 3"]:
        """Points of the truth, where the prediction is."""
        return ((points - self.translation[:, None]) @ self.rotation.mT) / self.scale[:, None]

    def frame(self, index: int) -> "Alignment":
        """The pose of one frame, to be applied to any number of them."""
        return Alignment(*(part[index : index + 1] for part in self))

    def to(self, device: torch.device | str) -> "Alignment":
        """The same on another device."""
        return Alignment(*(part.to(device) for part in self))


def canonical_rotations(distinct: bool = False) -> Float[Tensor, "starts 3 3"]:
    """The starts: ``Rx(azimuth) Ry(elevation) Rz(roll)`` for right angles, 24 of which 22 are distinct.

    Args:
        distinct: leave out the repeated ones.

    Source: ActionMesh brief, 7.
    """
    azimuth = [0] * 4 + [90] * 4 + [180] * 4 + [270] * 4 + [0] * 4 + [90] * 4
    elevation = [0] * 16 + [90, 90, -90, -90] * 2
    roll = [0, 90, 180, 270] * 4 + [0, 90] * 4
    angles = torch.tensor([azimuth, elevation, roll], dtype=torch.float64).T * (math.pi / 180)
    rotations = torch.stack([_rotation(*row) for row in angles.tolist()])
    if distinct:
        same = (rotations[:, None] - rotations[None]).abs().amax((-1, -2)) < 1e-6
        rotations = rotations[~same.tril(-1).any(1)]
    return rotations.float()


def _rotation(x: float, y: float, z: float) -> Float[Tensor, "3 3"]:
    cx, cy, cz, sx, sy, sz = math.cos(x), math.cos(y), math.cos(z), math.sin(x), math.sin(y), math.sin(z)
    rx = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], dtype=torch.float64)
    ry = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], dtype=torch.float64)
    rz = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]], dtype=torch.float64)
    return rx @ ry @ rz


def rotation_from_6d(values: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Gram-Schmidt: two 3-vectors to the rotation whose rows are b1, b2 and b1 x b2."""
    first = torch.nn.functional.normalize(values[..., :3], dim=-1)
    second = values[..., 3:] - (first * values[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -2)


def register(
    prediction: Float[Tensor, "frames n 3"],
    truth: Float[Tensor, "_frames m 3"],
    options: IcpOptions = RELEASED,
    *,
    search: str = "auto",
    max_pairs: int = _MAX_PAIRS,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """The pose of every frame by itself, the best of all starts.

    The loss of a start is the mean squared distance from its points to the nearest of the truth plus that from the truth to the
    nearest of its points. Adam follows the mean over a frame's starts. Frames do not see each other; they share the loop.

    Args:
        prediction: one cloud a frame.
        truth: one cloud a frame, of another size if need be.
        options: how to search; see :data:`RELEASED`, :data:`PAPER` and :data:`LIGHT`.
        search: how nearest points are found; see :func:`visiongraft.metrics.chamfer.nearest_points`.
        max_pairs: of brute force, in memory at a time.
        progress: called with (steps done, steps in all).

    Returns:
        The poses, on the device of the prediction.

    Raises:
        ValueError: different numbers of frames, empty clouds, or points that are not finite.

    Source: ActionMesh brief, 7.
    """
    if len(prediction) != len(truth):
        raise ValueError(f"ICP aligns frame by frame; got {len(prediction)} predicted and {len(truth)} true frames.")
    check_cloud(prediction, "prediction")
    check_cloud(truth, "truth")
    prediction, truth = prediction.detach().float(), truth.detach().to(prediction.device).float()
    if uses_tree(search, prediction.shape[1] * truth.shape[1], truth.device):
        # losses are means over points; a tree answers a fifth faster where neighbours ask one after the other
        prediction, truth = _by_neighborhood(prediction), _by_neighborhood(truth)
        trees = [cKDTree(as_array(cloud)) for cloud in truth]
        match = partial(_match_by_trees, trees=trees)
    else:
        match = partial(_match_by_brute_force, max_pairs=max_pairs)
    starts = canonical_rotations(options.distinct).to(prediction.device)
    orientation = starts.expand(len(prediction), -1, -1, -1)
    # translation, 6D rotation, scale
    values = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1], dtype=torch.float32, device=prediction.device)
    values = values.expand(*orientation.shape[:2], 12).clone()
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    best = Alignment(*(torch.zeros(len(truth), *size, device=values.device) for size in ((3, 3), (3,), (3,), ())))
    best = best._replace(loss=torch.full_like(best.loss, torch.inf))
    for step in range(1, options.steps + 1):
        loss, gradient, rotation = _loss(values, orientation, prediction, truth, match)
        if not options.scale:
            gradient[..., 9:] = 0
        before = values
        values, first, second = _adam(values, gradient, first, second, step, options.lr)
        best = _better(best, loss, rotation, values if options.mixed else before)
        if options.keep is not None and step == options.prune_after and options.keep < loss.shape[1]:
            kept = loss.topk(options.keep, dim=1, largest=False).indices
            rows = torch.arange(len(truth), device=kept.device)[:, None]
            values, first, second, orientation = (part[rows, kept] for part in (values, first, second, orientation))
        if progress is not None:
            progress(step, options.steps)
    return best


def _loss(
    values: Float[Tensor, "frames starts 12"],
    orientation: Float[Tensor, "frames starts 3 3"],
    prediction: Float[Tensor, "frames n 3"],
    truth: Float[Tensor, "frames m 3"],
    match: _Match,
) -> tuple[Float[Tensor, "frames starts"], Float[Tensor, "frames starts 12"], Float[Tensor, "frames starts 3 3"]]:
    """Loss of every start, the gradient of its mean over starts, and the rotations that it was measured at."""
    with torch.enable_grad():
        values = values.detach().requires_grad_()
        rotation = orientation @ rotation_from_6d(values[..., 3:9])
        moved = (values[..., None, 9:] * prediction[:, None]) @ rotation + values[..., None, :3]
        of_moved, of_truth = match(moved.detach(), truth)
        frames = torch.arange(len(truth), device=truth.device)[:, None, None]
        starts = torch.arange(moved.shape[1], device=truth.device)[:, None]
        forward = (moved - truth[frames, of_moved]).square().sum(-1).mean(-1)
        backward = (truth[:, None] - moved[frames, starts, of_truth]).square().sum(-1).mean(-1)
        loss = forward + backward
        (gradient,) = torch.autograd.grad(loss.mean(1).sum(), values)
    return loss.detach(), gradient, rotation.detach()


def _adam(
    values: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, lr: float
) -> tuple[Float[Tensor, "frames starts 12"], Float[Tensor, "frames starts 12"], Float[Tensor, "frames starts 12"]]:
    """One step; its moments are plain tensors, so that starts can be dropped on the way."""
    first = first.lerp(gradient, 1 - _BETAS[0])
    second = second * _BETAS[1] + (1 - _BETAS[1]) * gradient.square()
    size = lr / (1 - _BETAS[0] ** step)
    root = second.sqrt() / math.sqrt(1 - _BETAS[1] ** step) + _EPSILON
    return values - size * first / root, first, second


def _better(best: Alignment, loss: Float[Tensor, "frames starts"], rotation: Tensor, values: Tensor) -> Alignment:
    lowest, index = loss.min(1)
    rows = torch.arange(len(lowest), device=lowest.device)
    wins, chosen = lowest < best.loss, values[rows, index]
    new = Alignment(rotation[rows, index], chosen[:, :3], chosen[:, 9:], lowest)
    return Alignment(*(torch.where(wins.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, best, strict=True)))


def _by_neighborhood(clouds: Float[Tensor, "frames n 3"]) -> Float[Tensor, "frames n 3"]:
    return torch.stack([cloud[torch.from_numpy(cKDTree(as_array(cloud)).indices).to(cloud.device)] for cloud in clouds])


def _match_by_trees(
    moved: Float[Tensor, "frames starts n 3"], truth: Float[Tensor, "frames m 3"], trees: list[cKDTree]
) -> tuple[Int[Tensor, "frames starts n"], Int[Tensor, "frames starts m"]]:
    of_moved = torch.empty(moved.shape[:3], dtype=torch.long)
    of_truth = torch.empty(*moved.shape[:2], truth.shape[1], dtype=torch.long)
    for k, (clouds, tree, target) in enumerate(zip(moved, trees, truth, strict=True)):
        queries = as_array(target)
        for i, cloud in enumerate(clouds):
            points = as_array(cloud)
            of_moved[k, i] = torch.from_numpy(tree_query(tree, points)[1])
            # each step moves the points, so that a tree that is quick to build wins
            of_truth[k, i] = torch.from_numpy(tree_query(cKDTree(points, balanced_tree=False), queries)[1])
    return of_moved.to(moved.device), of_truth.to(moved.device)


def _match_by_brute_force(
    moved: Float[Tensor, "frames starts n 3"], truth: Float[Tensor, "frames m 3"], max_pairs: int
) -> tuple[Int[Tensor, "frames starts n"], Int[Tensor, "frames starts m"]]:
    """One matrix of distances serves both directions; rows are taken in chunks, columns keep a running minimum."""
    frames, starts, n, _ = moved.shape
    target = truth[:, None].expand(-1, starts, -1, -1)
    distance = moved.new_full((frames, starts, truth.shape[1]), torch.inf)
    of_truth, of_moved = torch.zeros_like(distance, dtype=torch.long), []
    rows = max(1, max_pairs // (frames * starts * truth.shape[1]))
    for start in range(0, n, rows):
        pairs = torch.cdist(moved[:, :, start : start + rows], target, compute_mode="donot_use_mm_for_euclid_dist")
        of_moved.append(pairs.argmin(-1))
        near, index = pairs.min(-2)
        of_truth = torch.where(near < distance, index + start, of_truth)
        distance = torch.minimum(distance, near)
    return torch.cat(of_moved, -1), of_truth
