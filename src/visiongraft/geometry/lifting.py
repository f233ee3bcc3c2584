"""From pixels and depth to points and back, by matrices of intrinsics; and depth from other sources.

A pixel is (u, v): u to the right, v down, **continuous, with the centre of the pixel in column c and row r at (c + 0.5, r + 0.5)**,
so that an image spans [0, width] x [0, height]. Programs that lift whole indices put points half a pixel too far left and up
with this package's intrinsics; :func:`pixel_centers` adds the half. Depth is along the optical axis in metres, axes are
OpenCV's. All functions are differentiable.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pixel_centers(
    columns: Int[Tensor, "*batch"], rows: Int[Tensor, "*batch"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch 2"]:
    """Centres (u, v) of pixels given by column and row."""
    return torch.stack([columns, rows], -1).to(dtype) + 0.5


def lift_pixels(
    pixels: Float[Tensor, "*batch n 2"],
    depth: Float[Tensor, "*batch n"],
    intrinsics: Float[Tensor, "..."],
    camera_to_base: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch n 3"]:
    """Points seen at pixels.

    Args:
        pixels: (u, v), continuous; take :func:`pixel_centers` of whole pixels.
        depth: metres along the optical axis; where it is not finite, neither is the point.
        intrinsics: (..., 3, 3) in pixels.
        camera_to_base: (..., 4, 4); without it, points are in camera axes.

    Raises:
        ValueError: wrong shapes of the matrices.

    Source: Point Bridge brief, 2.4 step 7.
    """
    matrix = _matrix("intrinsics", intrinsics, (3, 3), depth)
    y = (pixels[..., 1] - matrix[..., 1, 2, None]) / matrix[..., 1, 1, None]
    x = (pixels[..., 0] - matrix[..., 0, 2, None] - matrix[..., 0, 1, None] * y) / matrix[..., 0, 0, None]
    points = torch.stack([x * depth, y * depth, depth], -1)
    return points if camera_to_base is None else _transform("camera_to_base", camera_to_base, points)


def lift_depth(
    depth: Float[Tensor, "*batch height width"], intrinsics: Float[Tensor, "..."], camera_to_base: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "*batch height width 3"]:
    """Points of every pixel of depth images, lifted at the pixel centres; arguments as in :func:`lift_pixels`."""
    height, width = depth.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij")
    pixels = pixel_centers(columns, rows, depth.dtype).flatten(0, 1).expand(*depth.shape[:-2], height * width, 2)
    return lift_pixels(pixels, depth.flatten(-2), intrinsics, camera_to_base).unflatten(-2, (height, width))


def project_points(
    points: Float[Tensor, "*batch n 3"], intrinsics: Float[Tensor, "..."], base_to_camera: Float[Tensor, "..."] | None = None
) -> tuple[Float[Tensor, "*batch n 2"], Float[Tensor, "*batch n"]]:
    """Pixels (u, v) and depth of points, the inverse of :func:`lift_pixels`.

    The pixel index of a point is the floor of (u, v). Points at or behind the camera's plane have NaN pixels and depth <= 0.

    Args:
        points: metres.
        intrinsics: (..., 3, 3) in pixels.
        base_to_camera: (..., 4, 4); without it, points are in camera axes.

    Raises:
        ValueError: wrong shapes of the matrices.
    """
    if base_to_camera is not None:
        points = _transform("base_to_camera", base_to_camera, points)
    depth = points[..., 2]
    matrix = _matrix("intrinsics", intrinsics, (3, 3), points)
    safe = torch.where(depth > 0, depth, 1.0)
    x, y = points[..., 0] / safe, points[..., 1] / safe
    u = matrix[..., 0, 0, None] * x + matrix[..., 0, 1, None] * y + matrix[..., 0, 2, None]
    v = matrix[..., 1, 1, None] * y + matrix[..., 1, 2, None]
    return torch.where((depth > 0)[..., None], torch.stack([u, v], -1), torch.nan), depth


def depth_from_buffer(buffer: Float[Tensor, "*shape"], near: float, far: float) -> Float[Tensor, "*shape"]:
    """Metres from an OpenGL depth buffer: near / (1 - d (1 - near / far)).

    Args:
        buffer: in [0, 1], as the renderer of robosuite gives it; ``mujoco.Renderer`` gives metres already.
        near: ``model.vis.map.znear * model.stat.extent`` in MuJoCo, metres.
        far: ``model.vis.map.zfar * model.stat.extent`` in MuJoCo, metres.

    Raises:
        ValueError: clipping planes out of order, or values outside [0, 1].

    Source: Point Bridge brief, 2.3.
    """
    if not 0 < near < far:
        raise ValueError(f"The clipping planes must satisfy 0 < near < far in metres; got near {near:g} and far {far:g}.")
    if not bool(((buffer >= 0) & (buffer <= 1)).all()):
        raise ValueError("A depth buffer lies in [0, 1], and this one does not; it holds metres already, or the wrong channel.")
    return near / (1 - buffer * (1 - near / far))


def depth_from_disparity(
    disparity: Float[Tensor, "*batch height width"], focal_length: float, baseline: float
) -> Float[Tensor, "*batch height width"]:
    """Metres from the disparity of a rectified pair, focal_length x baseline / d, for every pixel of the left image.

    Infinite where there is no depth: where d <= 0 or not finite, and where u - d < 0, since that point lies left of the right image
    and its disparity is a guess.

    Args:
        disparity: pixels of this image by which the right view is shifted; column 0 must be the image's own first column.
        focal_length: fx in pixels of *this* image: scale it with the width after a resize.
        baseline: metres.

    Raises:
        ValueError: focal length or baseline not positive.

    Source: Point Bridge brief, 2.5.
    """
    if not (focal_length > 0 and baseline > 0):
        raise ValueError(f"focal_length (pixels) and baseline (metres) must be positive; got {focal_length:g} and {baseline:g}.")
    u = torch.arange(disparity.shape[-1], dtype=disparity.dtype, device=disparity.device) + 0.5
    seen = (disparity > 0) & (disparity <= u)  # false for NaN and infinity
    return torch.where(seen, focal_length * baseline / torch.where(seen, disparity, 1.0), torch.inf)


def projection_matrix(intrinsics: Float[Tensor, "..."], base_to_camera: Float[Tensor, "..."]) -> Float[Tensor, "*batch 3 4"]:
    """K [R | t]; the (..., 3, 3) and (..., 4, 4) matrices broadcast."""
    return (
        _matrix("intrinsics", intrinsics, (3, 3), base_to_camera)
        @ _matrix("base_to_camera", base_to_camera, (4, 4), intrinsics)[..., :3, :]
    )


def triangulate(
    pixels: Float[Tensor, "*batch views 2"], projections: Float[Tensor, "..."], seen: Bool[Tensor, "*batch views"] | None = None
) -> Float[Tensor, "*batch 3"]:
    """Points from their pixels in two or more views, by the direct linear transform.

    Rows ``u P[2] - P[0]`` and ``v P[2] - P[1]`` of every view; the point is their last right singular vector. Where the rays are
    parallel the point is far away or not finite: check :func:`reprojection_error` and the depth.

    Args:
        pixels: (u, v) of one point in every view.
        projections: (..., views, 3, 4), from :func:`projection_matrix`.
        seen: which views see the point; the pixels of the others are not used. All by default.

    Raises:
        ValueError: wrong shape of the matrices, or a point with fewer than two views.

    Source: Hartley and Zisserman, 12.2; Point Bridge brief, 2.5.
    """
    matrix = _matrix("projections", projections, (3, 4), pixels)
    views = pixels.shape[-2]
    if matrix.ndim < 3 or matrix.shape[-3] != views:
        raise ValueError(f"projections must be (..., {views}, 3, 4) for pixels in {views} views; got {tuple(projections.shape)}.")
    count = torch.tensor(views) if seen is None else seen.sum(-1)
    if count.numel() and int(count.min()) < 2:
        raise ValueError(f"Triangulation needs at least 2 views of every point; one has {int(count.min())}.")
    if seen is not None:
        pixels = torch.where(seen[..., None], pixels, 0.0)
    rows = pixels[..., None] * matrix[..., 2:, :] - matrix[..., :2, :]
    if seen is not None:
        rows = rows * seen[..., None, None]
    solution = torch.linalg.svd(rows.flatten(-3, -2)).Vh[..., -1, :]
    return solution[..., :3] / solution[..., 3:]


def reprojection_error(
    points: Float[Tensor, "*batch 3"], pixels: Float[Tensor, "*batch views 2"], projections: Float[Tensor, "..."]
) -> Float[Tensor, "*batch views"]:
    """Distance in pixels between where a point should be seen and where it was."""
    matrix = _matrix("projections", projections, (3, 4), pixels)
    found = (matrix[..., :3] @ points[..., None, :, None])[..., 0] + matrix[..., 3]
    return (found[..., :2] / found[..., 2:] - pixels).norm(dim=-1)


def _matrix(name: str, matrix: Float[Tensor, "..."], shape: tuple[int, int], like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A matrix on the device and in the type of ``like``, if its shape is right."""
    if tuple(matrix.shape[-2:]) != shape:
        raise ValueError(f"{name} must be (..., {shape[0]}, {shape[1]}), got {tuple(matrix.shape)}.")
    return matrix.to(like)


def _transform(name: str, transform: Float[Tensor, "..."], points: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch n 3"]:
    matrix = _matrix(name, transform, (4, 4), points)
    return points @ matrix[..., :3, :3].mT + matrix[..., None, :3, 3]
