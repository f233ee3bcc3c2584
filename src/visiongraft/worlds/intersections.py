"""Where rays enter and leave solids, for all rays and all solids of one shape at once.

Every solid is brought to unit size in its own axes by one matrix product, in which a ray keeps its parameter t. Each shape then gives
the interval [near, far] of t inside it; a ray that misses gets near > far. Nothing here branches: on a processor selecting by a mask
costs ten times what arithmetic does, so a miss is expressed by an enormous number.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

TINY, HUGE = 1e-30, 1e30

Local = Float[Tensor, "3 solids #rays"]
Interval = tuple[Float[Tensor, "solids rays"], Float[Tensor, "solids rays"]]


def first_hit(interval: Interval, eps: float) -> Float[Tensor, "solids rays"]:
    """Smallest t > eps at which a ray meets a surface, infinity for a miss; from inside a solid, where it leaves it."""
    near, far = interval
    miss = (near - far).clamp_(min=0)
    t = torch.minimum(F.threshold(near, eps, torch.inf), F.threshold(far, eps, torch.inf))
    return t.add_(miss, alpha=HUGE)


def box(origin: Local, direction: Local, half_size: Float[Tensor, "solids 3"]) -> Interval:
    """Unit cube [-1, 1]^3: the intersection of three slabs."""
    inverse = (direction + TINY).reciprocal_()
    middle = origin * inverse
    half = inverse.abs_()
    return -(middle + half).amin(0), (half - middle).amin(0)


def ellipsoid(origin: Local, direction: Local, half_size: Float[Tensor, "solids 3"]) -> Interval:
    """Unit sphere."""
    return _around(origin, direction, (0, 1, 2))


def cylinder(origin: Local, direction: Local, half_size: Float[Tensor, "solids 3"]) -> Interval:
    """Unit cylinder along y, closed at y = -1 and 1."""
    near, far = _around(origin, direction, (0, 2))
    low, high = _slab(origin[1], direction[1], 1.0)
    return torch.maximum(near, low), torch.minimum(far, high)


def capsule(origin: Local, direction: Local, half_size: Float[Tensor, "solids 3"]) -> Interval:
    """Cylinder of radius 1 along y with half spheres at both ends; convex, so the union of its parts' intervals is an interval."""
    half = (half_size[:, 1] / half_size[:, 0])[:, None]
    near, far = _around(origin, direction, (0, 2))
    low, high = _slab(origin[1], direction[1], half)
    near, far = _void_misses(torch.maximum(near, low), torch.minimum(far, high))
    for end in (-half, half):
        moved = torch.stack([origin[0], (origin[1] - end).expand_as(origin[0]), origin[2]])
        cap_near, cap_far = _void_misses(*_around(moved, direction, (0, 1, 2)))
        near, far = torch.minimum(near, cap_near), torch.maximum(far, cap_far)
    return near, far


def plane(origin: Local, direction: Local, half_size: Float[Tensor, "solids 3"]) -> Interval:
    """The square [-1, 1]^2 in y = 0; an endless plane has been scaled to a point, which lies within."""
    t = -origin[1] / (direction[1] + TINY)
    outside = torch.maximum((origin[0] + t * direction[0]).abs_(), (origin[2] + t * direction[2]).abs_()).sub_(1).clamp_(min=0)
    return t, t.sub(outside, alpha=HUGE)


INTERVALS = {"box": box, "ellipsoid": ellipsoid, "cylinder": cylinder, "capsule": capsule, "plane": plane}


def _around(origin: Local, direction: Local, axes: tuple[int, ...]) -> Interval:
    """Interval within distance 1 of the origin, in the given axes.

    The discriminant comes from the point of closest approach: b^2 - ac loses all digits when a small sphere is far away.
    """
    a = sum_of_products(direction, direction, axes).add_(TINY)
    closest = -sum_of_products(origin, direction, axes) / a
    inside = 1 - sum(torch.addcmul(origin[i], closest, direction[i]).square_() for i in axes)
    root = (inside.clamp(min=0) / a).sqrt_()
    miss = inside.neg_().clamp_(min=0)
    return closest - root, (closest + root).sub_(miss, alpha=HUGE)


def sum_of_products(left: Tensor, right: Tensor, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Dot product along the first axis, over some components."""
    total = left[axes[0]] * right[axes[0]]
    for i in axes[1:]:
        total = torch.addcmul(total, left[i], right[i])
    return total


def _slab(origin: Tensor, direction: Tensor, half: Tensor | float) -> Interval:
    inverse = (direction + TINY).reciprocal_()
    middle, reach = origin * inverse, inverse.abs() * half
    return -middle - reach, reach - middle


def _void_misses(near: Tensor, far: Tensor) -> Interval:
    miss = (near - far).clamp_(min=0)
    return near.add(miss, alpha=HUGE), far.sub(miss, alpha=HUGE)
