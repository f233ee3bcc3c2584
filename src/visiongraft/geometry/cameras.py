"""Pinhole cameras and their orientation: OpenCV axes (x right, y down, z forward), horizontal fields of view, square pixels.

The rotation of a camera takes camera axes to world axes and is ``Ry(yaw) Rx(pitch) Rz(roll)``: yaw > 0 looks right, pitch > 0
looks up, roll > 0 turns the camera clockwise. All functions are differentiable and take any leading dimensions.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def rotation_from_angles(
    yaw: Float[Tensor, "*batch"], pitch: Float[Tensor, "*batch"], roll: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 3 3"]:
    """Rotation camera to world, Ry(yaw) Rx(pitch) Rz(roll); angles in radians."""
    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    rows = (
        (cy * cr + sy * sp * sr, -cy * sr + sy * sp * cr, sy * cp),
        (cp * sr, cp * cr, -sp),
        (-sy * cr + cy * sp * sr, sy * sr + cy * sp * cr, cy * cp),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def angles_from_rotation(
    rotation: Float[Tensor, "*batch 3 3"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Yaw, pitch and roll in radians, the inverse of :func:`rotation_from_angles` for pitch within (-pi/2, pi/2)."""
    yaw = torch.atan2(rotation[..., 0, 2], rotation[..., 2, 2])
    pitch = torch.asin((-rotation[..., 1, 2]).clamp(-1 + 1e-6, 1 - 1e-6))
    roll = torch.atan2(rotation[..., 1, 0], rotation[..., 1, 1])
    return yaw, pitch, roll


def up_from_angles(pitch: Float[Tensor, "*batch"], roll: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3"]:
    """The world's up direction in camera axes (GeoCalib calls this vector gravity); angles in radians."""
    return torch.stack([-roll.sin() * pitch.cos(), -roll.cos() * pitch.cos(), pitch.sin()], -1)


def angles_from_up(up: Float[Tensor, "*batch 3"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Pitch and roll in radians from the world's up direction in camera axes, the inverse of :func:`up_from_angles`."""
    unit = F.normalize(up, dim=-1)
    return torch.asin(unit[..., 2].clamp(-1 + 1e-6, 1 - 1e-6)), torch.atan2(-unit[..., 0], -unit[..., 1])


def minimal_rotation(source: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The smallest rotation with ``R source = target``; half a turn about x (or y, for vectors along x) where they are opposite.

    Raises:
        ValueError: vectors that are not of unit length.
    """
    for name, vector in (("source", source), ("target", target)):
        if not torch.allclose(vector.norm(dim=-1), torch.ones_like(vector[..., 0]), atol=1e-2):
            raise ValueError(f"minimal_rotation needs unit vectors; {name} has length {float(vector.norm(dim=-1).reshape(-1)[0]):.3g}.")
    source, target = F.normalize(source, dim=-1), F.normalize(target, dim=-1)
    source, target = torch.broadcast_tensors(source, target)
    # two reflections, on source and on the half-way vector: orthonormal however close to opposite the vectors are
    half = source + target
    opposite = (half.norm(dim=-1) < 1000 * torch.finfo(half.dtype).eps)[..., None, None]
    normal = torch.where(opposite[..., 0], target, half)
    eye = torch.eye(3, dtype=source.dtype, device=source.device)
    rotation = _reflection(normal, eye) @ _reflection(source, eye)
    # half a turn about the axis a, orthogonal to source: 2 a a^T - 1
    along_x = source[..., :1].abs() > 0.9
    axis = torch.where(along_x, eye[1].expand_as(source), eye[0].expand_as(source))
    axis = F.normalize(axis - (axis * source).sum(-1, keepdim=True) * source, dim=-1)
    return torch.where(opposite, 2 * axis[..., :, None] * axis[..., None, :] - eye, rotation)


def _reflection(normal: Float[Tensor, "*batch 3"], eye: Float[Tensor, "3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Mirrors along a direction of any length."""
    return eye - 2 * normal[..., :, None] * normal[..., None, :] / (normal * normal).sum(-1)[..., None, None]


def skew(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix K with ``K x = vector cross x``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([torch.stack(r, -1) for r in ((zero, -z, y), (z, zero, -x), (-y, x, zero))], -2)


def rotation_angle(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle of a rotation in radians, accurate near zero."""
    off = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        -1,
    )
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(off.norm(dim=-1), trace - 1)


def quaternion_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z) with w >= 0."""
    diagonal = rotation.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1, keepdim=True)
    # four times the products of each component with each other one; the row of the largest component is the most accurate
    off = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        -1,
    )
    vector = rotation + rotation.mT + torch.diag_embed(1 - trace.expand_as(diagonal))
    products = torch.cat([torch.cat([1 + trace, off], -1)[..., None, :], torch.cat([off[..., None], vector], -1)], -2)
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = products.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    return F.normalize(torch.where(row[..., :1] < 0, -row, row), dim=-1)


def rotation_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation of a quaternion (w, x, y, z) of any length, the inverse of :func:`quaternion_from_rotation`."""
    w, vector = F.normalize(quaternion, dim=-1).split([1, 3], -1)
    cross = skew(vector)
    return torch.eye(3, dtype=w.dtype, device=w.device) + 2 * (w[..., None] * cross + cross @ cross)


def rotation_from_vector(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation about a vector by its length in radians."""
    return torch.linalg.matrix_exp(skew(vector))


def check_hfov_deg(hfov_deg: float | int | Tensor) -> float | Tensor:
    """A horizontal field of view in degrees, unchanged if it can be one.

    Raises:
        ValueError: outside (0, 180), or so small that it looks like radians.
    """
    values = torch.as_tensor(hfov_deg)
    if not bool(((values > 0) & (values < 180)).all()):
        raise ValueError(f"hfov must be in (0,180) degrees; got {float(values.reshape(-1)[0]):g}.")
    if bool((values < 3.2).any()):
        raise ValueError(f"hfov must be in (0,180) degrees; got {float(values.min()):g}; did you pass radians?")
    return float(hfov_deg) if isinstance(hfov_deg, int) else hfov_deg


def focal_length(hfov: Float[Tensor, "*batch"], width: int) -> Float[Tensor, "*batch"]:
    """Focal length in pixels of a camera with a horizontal field of view in radians."""
    return (width / 2) / (hfov / 2).tan()


def vertical_fov(hfov: Float[Tensor, "*batch"], height: int, width: int) -> Float[Tensor, "*batch"]:
    """Vertical field of view in radians."""
    return 2 * torch.atan((hfov / 2).tan() * height / width)


def intrinsics(hfov: Float[Tensor, "*batch"], height: int, width: int) -> Float[Tensor, "*batch 3 3"]:
    """Matrix of intrinsics in pixels; pixel centres lie at +0.5, so the principal point is (width/2, height/2)."""
    f = focal_length(hfov, width)
    zero, one = torch.zeros_like(f), torch.ones_like(f)
    rows = ((f, zero, one * width / 2), (zero, f, one * height / 2), (zero, zero, one))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def camera_rays(hfov: Float[Tensor, "*batch"], height: int, width: int) -> Float[Tensor, "*batch height width 3"]:
    """Rays through the pixel centres in camera axes, with z = 1."""
    x = torch.arange(width, dtype=hfov.dtype, device=hfov.device) + 0.5 - width / 2
    y = torch.arange(height, dtype=hfov.dtype, device=hfov.device) + 0.5 - height / 2
    grid = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, dtype=hfov.dtype, device=hfov.device)], -1)
    f = focal_length(hfov, width)[..., None, None]
    return torch.stack([grid[..., 0] / f, grid[..., 1] / f, grid[..., 2].expand(*f.shape[:-2], height, width)], -1)


def view_directions(
    hfov: Float[Tensor, "*batch"], rotation: Float[Tensor, "*batch 3 3"], height: int, width: int, rows: tuple[int, int] | None = None
) -> Float[Tensor, "*batch 3 rows width"]:
    """Directions through the pixel centres of turned cameras, one plane a component: rotation times :func:`camera_rays`.

    Args:
        hfov: horizontal fields of view in radians.
        rotation: camera to world.
        height: of the view in pixels.
        width: of the view in pixels.
        rows: only these rows of the view, from the first up to but not with the second.
    """
    # a sum of a row and a column: no matrix product for each pixel
    pixel = (1 / focal_length(hfov, width))[..., None, None, None]
    x = torch.arange(width, dtype=hfov.dtype, device=hfov.device) + (0.5 - width / 2)
    y = torch.arange(*(rows or (0, height)), dtype=hfov.dtype, device=hfov.device)[:, None] + (0.5 - height / 2)
    right, down, forward = (rotation[..., i, None, None] for i in range(3))
    return right * (x * pixel) + (down * (y * pixel) + forward)


def project(
    points: Float[Tensor, "*batch points 3"], hfov: Float[Tensor, "*batch"], height: int, width: int
) -> tuple[Float[Tensor, "*batch points 2"], Bool[Tensor, "*batch points"]]:
    """Pixels (x, y) of points or directions in camera axes, and which of them the camera sees."""
    depth = points[..., 2]
    f = focal_length(hfov, width)[..., None]
    safe = torch.where(depth > 1e-9, depth, torch.ones_like(depth))
    pixel = torch.stack([f * points[..., 0] / safe + width / 2, f * points[..., 1] / safe + height / 2], -1)
    inside = (pixel >= 0).all(-1) & (pixel[..., 0] <= width) & (pixel[..., 1] <= height)
    return pixel, inside & (depth > 1e-9)
