"""Panorama videos brought upright and to rest: frames turned to the orientation of the first one, gravity straight down.

Rotations come from a structure-from-motion tool, or from a photometric alignment of consecutive frames; gravity comes from a
calibrator such as GeoCalib on perspective crops, or from a pitch and roll that the user knows.

GeoCalib is no dependency; where it is installed, it fits :func:`estimate_up` like this::

    model = torch.hub.load("cvg/GeoCalib", "GeoCalib", trust_repo=True)
    up, spread_deg = estimate_up(frames, rotations, lambda crop: model.calibrate(crop)["gravity"].vec3d[0])
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.cameras import minimal_rotation, rotation_from_angles, rotation_from_vector, up_from_angles
from visiongraft.geometry.panoramas import check_panorama, panorama_rays, perspective_from_panorama, rotate_panorama

PYRAMID = (16, 32, 64)
MAX_SPREAD_DEG = 5.0
_FRAMES_AT_ONCE = 16


class Alignment(NamedTuple):
    """Orientations of a video's frames.

    ``rotations`` take each frame's directions to those of the first frame. ``correlations`` say how well each frame, so
    turned, repeats the one before it (1 for the first); a low one is a cut.
    """

    rotations: Float[Tensor, "frames 3 3"]
    correlations: Float[Tensor, " frames"]


def align_frames(frames: Float[Tensor, "frames 3 height width"], iterations: int = 12) -> Alignment:
    """Orientations of the frames by photometric alignment of each with the one before it, for turns of up to about 15 degrees.

    Gauss-Newton on the rotations, from coarse to fine, with weights by solid angle and by Tukey's function against moving
    things. The camera's translation is not modelled: what is near biases the result, and errors add up along the video.

    Args:
        frames: in [0, 1], H x 2H.
        iterations: on each level of the pyramid.

    Raises:
        ValueError: frames that are not H x 2H.

    Source: ours (the fallback without structure from motion).
    """
    frames = check_panorama(frames).detach().float()
    turns, correlations = [torch.eye(3, device=frames.device)[None]], [torch.ones(1, device=frames.device)]
    for first in range(0, frames.shape[0] - 1, _FRAMES_AT_ONCE):
        block = frames[first : first + _FRAMES_AT_ONCE + 1]
        turn, correlation = _align_pairs(block[:-1], block[1:], iterations)
        turns.append(turn)
        correlations.append(correlation)
    rotations = list(torch.cat(turns).double())
    for i in range(1, len(rotations)):
        rotations[i] = rotations[i - 1] @ rotations[i]
    return Alignment(torch.stack(rotations).to(frames.dtype), torch.cat(correlations))


def _align_pairs(before: Tensor, after: Tensor, iterations: int) -> tuple[Float[Tensor, "pairs 3 3"], Float[Tensor, " pairs"]]:
    """Rotations R with ``after(d) = before(R d)`` and the correlations there."""
    rotation = torch.eye(3, device=before.device).expand(before.shape[0], 3, 3)
    correlation = before.new_ones(before.shape[0])
    for height in PYRAMID:
        size = (min(height, before.shape[-2]), 2 * min(height, before.shape[-2]))
        source, target = (F.interpolate(f, size, mode="area") for f in (before, after))
        rotation = _gauss_newton(source, target, rotation, iterations)
        turned = rotate_panorama(source, rotation)
        centred = [(x - x.mean((1, 2, 3), keepdim=True)).flatten(1) for x in (turned, target)]
        correlation = F.cosine_similarity(centred[0], centred[1])
    return rotation, correlation


def _gauss_newton(source: Tensor, target: Tensor, rotation: Tensor, iterations: int) -> Float[Tensor, "pairs 3 3"]:
    """Inverse compositional: ``target(exp(w) d)`` is fitted to ``source(R d)``, so that the derivatives stay the same."""
    height, width = target.shape[-2:]
    step = math.pi / height  # of one pixel
    axes = torch.eye(3, device=target.device) * step
    around = [rotate_panorama(target, rotation_from_vector(sign * a).expand_as(rotation)) for a in axes for sign in (1, -1)]
    jacobian = torch.stack([(plus - minus) / (2 * step) for plus, minus in zip(around[::2], around[1::2], strict=True)], -1)
    area = (1 - panorama_rays(height, width, target.dtype, target.device)[..., 1].square()).clamp(min=0).sqrt()
    for _ in range(iterations):
        residual = rotate_panorama(source, rotation) - target
        size = residual.abs().mean(1, keepdim=True)
        # Tukey's function, cut at 4.685 standard deviations as the median tells them
        cut = 4.685 * 1.4826 * size.flatten(1).median(1).values[:, None, None, None] + 1e-4
        weight = area * (1 - (size / cut).square()).clamp(min=0).square()
        weighted = jacobian * weight[..., None]
        normal = torch.einsum("bchwi,bchwj->bij", weighted, jacobian)
        normal = normal + torch.eye(3, device=normal.device) * (1e-6 * normal.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] + 1e-9)
        turn = torch.linalg.solve(normal, torch.einsum("bchwi,bchw->bi", weighted, residual))
        # target(exp(w) d) = source(R d), so target(d) = source(R exp(-w) d); no step leaves the range of the derivatives
        length = turn.norm(dim=-1, keepdim=True)
        rotation = rotation @ rotation_from_vector(-turn * (3 * step / length.clamp(min=1e-12)).clamp(max=1))
    return rotation


def estimate_up(
    frames: Float[Tensor, "frames 3 height width"],
    rotations: Float[Tensor, "frames 3 3"],
    calibrate: Callable[[Float[Tensor, "3 size size"]], Float[Tensor, "3"]],
    views: int = 4,
    every: int = 8,
    size: int = 320,
) -> tuple[Float[Tensor, "3"], float]:
    """The world's up direction in the first frame's axes, from up directions of level 90 degree crops of every n-th frame.

    Args:
        frames: in [0, 1], H x 2H.
        rotations: each frame to the first, see :func:`align_frames`.
        calibrate: up direction in camera axes (x right, y down, z forward) of an image in [0, 1].
        views: crops a frame, evenly around.
        every: frames from one used to the next.
        size: of the crops in pixels.

    Returns:
        Unit up direction, and the spread of the crops around it in degrees.

    Raises:
        ValueError: a spread of more than 5 degrees.
    """
    yaw = torch.arange(views, dtype=torch.float32, device=frames.device) * (2 * math.pi / views)
    cameras = rotation_from_angles(yaw, torch.zeros_like(yaw), torch.zeros_like(yaw))
    hfov = yaw.new_full((views,), math.pi / 2)
    ups = []
    for frame, rotation in zip(frames[::every], rotations[::every], strict=True):
        crops = perspective_from_panorama(frame[None].float(), hfov, cameras, (size, size))
        found = torch.stack([calibrate(crop).to(cameras) for crop in crops])
        ups.append((rotation.to(cameras) @ cameras @ found[..., None])[..., 0])
    return robust_up(torch.cat(ups))


def robust_up(ups: Float[Tensor, "many 3"], max_spread_deg: float = MAX_SPREAD_DEG) -> tuple[Float[Tensor, "3"], float]:
    """One up direction from many, a few of which may be wrong: their geometric median on the sphere.

    Returns:
        Unit direction, and the spread: 1.4826 times the median angle from it, in degrees (a standard deviation that ignores
        outliers).

    Raises:
        ValueError: a spread of more than ``max_spread_deg``, or no directions.
    """
    if not ups.shape[0]:
        raise ValueError("robust_up needs at least one up direction; got none.")
    unit = F.normalize(ups, dim=-1)
    up = F.normalize(unit.median(0).values, dim=0)
    for _ in range(30):
        weight = 1 / (unit - up).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        up = F.normalize((unit * weight).sum(0), dim=0)
    angles = 2 * torch.asin(((unit - up).norm(dim=-1) / 2).clamp(max=1)).rad2deg()
    spread = 1.4826 * float(angles.median())
    if not spread <= max_spread_deg:
        raise ValueError(
            f"The up directions spread by {spread:.1f} degrees, more than {max_spread_deg:g}: gravity is not known well enough; "
            f"leave this clip out, or give its pitch and roll."
        )
    return up, spread


def up_from_pitch_roll(pitch_deg: float, roll_deg: float) -> Float[Tensor, "3"]:
    """The up direction in the first frame's axes, if the camera rig was pitched up and rolled clockwise by these angles."""
    return up_from_angles(torch.tensor(math.radians(pitch_deg)), torch.tensor(math.radians(roll_deg)))


def canonical_turns(rotations: Float[Tensor, "frames 3 3"], up: Float[Tensor, "3"] | None = None) -> Float[Tensor, "frames 3 3"]:
    """For each frame the rotation T with ``out(d) = frame(T d)``: stabilised to the first frame, then gravity straight down.

    Args:
        rotations: each frame to any common world, such as from structure from motion or :func:`align_frames`.
        up: the world's up direction in the first frame's axes; None keeps the first frame's orientation.

    Raises:
        ValueError: an up direction that is not of unit length.

    Source: arXiv 2601.16192, canonicalisation of the training videos: R_i^T R_0 and the smallest rotation of up to (0, -1, 0).
    """
    turns = rotations.mT @ rotations[:1]
    if up is None:
        return turns
    upright = minimal_rotation(up.to(rotations), rotations.new_tensor([0.0, -1.0, 0.0]))
    return turns @ upright.mT


def canonicalise(
    frames: Float[Tensor, "frames 3 height width"],
    rotations: Float[Tensor, "rotations 3 3"] | None = None,
    up: Float[Tensor, "3"] | None = None,
) -> Float[Tensor, "frames 3 height width"]:
    """The video at rest and upright. Each frame is sampled once, whatever the number of turns.

    Args:
        frames: in [0, 1], H x 2H.
        rotations: each frame to a common world; None estimates them by :func:`align_frames`.
        up: the world's up direction in the first frame's axes, from :func:`estimate_up` or :func:`up_from_pitch_roll`; None
            leaves the tilt of the first frame.

    Raises:
        ValueError: frames that are not H x 2H, or another number of rotations.
    """
    check_panorama(frames)
    if rotations is None:
        rotations = align_frames(frames).rotations
    if rotations.shape[0] != frames.shape[0]:
        raise ValueError(f"Each frame needs its rotation; got {frames.shape[0]} frames and {rotations.shape[0]} rotations.")
    turns = canonical_turns(rotations.to(frames.device), up)
    blocks = zip(frames.split(_FRAMES_AT_ONCE), turns.split(_FRAMES_AT_ONCE), strict=True)
    return torch.cat([rotate_panorama(block, turn) for block, turn in blocks])
