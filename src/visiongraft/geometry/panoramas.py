"""Equirectangular panoramas (W = 2H): sampling that wraps at the border and crosses the poles, perspective views, rotation, cubemap.

Pixel centres lie at ``lon = ((i + 0.5) / W - 0.5) 2 pi`` and ``lat = (0.5 - (j + 0.5) / H) pi``: the middle of the picture looks
along +z, row 0 looks up (-y). All functions are differentiable and batched.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.cameras import focal_length, rotation_from_angles, view_directions

# rotations of the faces front, right, back, left, up, down as (yaw, pitch) in quarter turns
CUBE_FACES = {"front": (0, 0), "right": (1, 0), "back": (2, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}

# samples done at a time on a CPU
BLOCK_SAMPLES = 2**19


def check_panorama(panorama: Shaped[Tensor, "*batch height width"]) -> Shaped[Tensor, "*batch height width"]:
    """The panorama, unchanged.

    Raises:
        ValueError: unless W = 2H.
    """
    height, width = panorama.shape[-2:]
    if width != 2 * height:
        hint = "; the last column seems to repeat the first one, drop it" if width == 2 * height + 1 else ""
        raise ValueError(f"ERP must have W = 2H; got {height}x{width} (height x width){hint}.")
    return panorama


def panorama_rays(
    height: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Float[Tensor, "height width 3"]:
    """Unit directions of the pixel centres of a panorama."""
    lon = ((torch.arange(width, dtype=dtype, device=device) + 0.5) / width - 0.5) * (2 * math.pi)
    lat = (0.5 - (torch.arange(height, dtype=dtype, device=device) + 0.5) / height) * math.pi
    cos_lat = lat.cos()[:, None]
    return torch.stack([cos_lat * lon.sin(), -lat.sin()[:, None].expand(height, width), cos_lat * lon.cos()], -1)


def direction_from_angles(lon: Float[Tensor, "*grid"], lat: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid 3"]:
    """Unit direction of a longitude and a latitude in radians."""
    return torch.stack([lat.cos() * lon.sin(), -lat.sin(), lat.cos() * lon.cos()], -1)


def pixel_from_direction(
    direction: Float[Tensor, "*grid 3"], height: int, width: int
) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
    """Continuous pixel (u, v) of a direction of any length; integers are pixel centres, u lies in [-0.5, W - 0.5]."""
    across, down = _sphere_coordinates(*direction.unbind(-1))
    return ((across + 1) * width - 1) / 2, ((down + 1) * height - 1) / 2


def pad_sphere(panorama: Shaped[Tensor, "batch channels height width"]) -> Shaped[Tensor, "batch channels height+2 width+2"]:
    """One pixel more on every side, taken from the neighbour on the sphere: columns wrap, rows beyond a pole come from half a turn away."""
    half = panorama.shape[-1] // 2
    rows = torch.cat([panorama[..., :1, :].roll(half, -1), panorama, panorama[..., -1:, :].roll(half, -1)], -2)
    return torch.cat([rows[..., -1:], rows, rows[..., :1]], -1)


def sample_panorama(
    panorama: Float[Tensor, "batch channels height width"], directions: Float[Tensor, "batch *grid 3"]
) -> Float[Tensor, "batch channels *grid"]:
    """Bilinear values of a panorama in any directions, exact across the border and the poles.

    Args:
        panorama: any values, H x 2H.
        directions: of any length, one set for each panorama; the grid may have any dimensions, so also many views of one panorama.

    Returns:
        Values of the panorama's dtype. Half precision is sampled in float32: its coordinates would miss by whole pixels.

    Raises:
        ValueError: a panorama that is not H x 2H.
    """
    check_panorama(panorama)
    precise = torch.promote_types(panorama.dtype, torch.float32)
    flat = directions.to(precise).reshape(directions.shape[0], 1, -1, 3)
    values = _look_up(panorama.to(precise), _sphere_coordinates(*flat.unbind(-1)))
    return values.reshape(*panorama.shape[:2], *directions.shape[1:-1]).to(panorama.dtype)


def _sphere_coordinates(x: Float[Tensor, "*grid"], y: Float[Tensor, "*grid"], z: Float[Tensor, "*grid"]) -> Float[Tensor, "2 *grid"]:
    """Where directions lie on a panorama that reaches from -1 to 1 both across and down: longitude / pi and -2 latitude / pi."""
    level = torch.addcmul(x * x, z, z)
    # latitudes not from asin of a ratio, which loses precision at the poles
    if level.requires_grad:
        # the gradient of the longitude is infinite at the poles; within 1e-6 rad of them, far less than a pixel, it is left out
        z = torch.where(level > 1e-12 * y * y, z, torch.ones_like(z))
        coordinates = torch.stack([torch.atan2(x, z), torch.atan2(y, (level + 1e-20).sqrt())])
    else:
        coordinates = x.new_empty(2, *x.shape)
        torch.atan2(x, z, out=coordinates[0])
        torch.atan2(y, level.sqrt_(), out=coordinates[1])
    coordinates[0] *= 1 / math.pi
    coordinates[1] *= 2 / math.pi
    return coordinates


def _look_up(
    panorama: Float[Tensor, "batch channels height width"], coordinates: Float[Tensor, "2 batch h w"]
) -> Float[Tensor, "batch channels h w"]:
    """Bilinear values at coordinates of :func:`_sphere_coordinates`, in the way that is faster on the device."""
    return (_look_up_mended if panorama.device.type == "cpu" else _look_up_padded)(panorama, coordinates)


def _look_up_padded(panorama: Tensor, coordinates: Tensor) -> Float[Tensor, "batch channels h w"]:
    """The plain way: sample a copy of the panorama that has a border."""
    height, width = panorama.shape[-2:]
    across, down = coordinates
    grid = torch.stack([across * (width / (width + 2)), down * (height / (height + 2))], -1)
    return F.grid_sample(pad_sphere(panorama), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _look_up_mended(panorama: Tensor, coordinates: Tensor) -> Float[Tensor, "batch channels h w"]:
    """Without a copy of the panorama: samples that have neighbours beyond the picture, mostly few, are done again by hand.

    On a CPU the copy costs more than all else. This way reads the coordinates' range, for which an accelerator would have to wait.
    """
    height, width = panorama.shape[-2:]
    across, down = coordinates
    # grid_sample reads the two planes as they are
    values = F.grid_sample(panorama, coordinates.movedim(0, -1), mode="bilinear", padding_mode="border", align_corners=False)
    outside = [_beyond(across, 1 - 1 / width), _beyond(down, 1 - 1 / height)]
    outside = [mask for mask in outside if mask is not None]
    if not outside:
        return values
    image, row, column = (outside[0] | outside[-1]).nonzero(as_tuple=True)
    u = ((across[image, row, column] + 1) * width - 1) / 2
    v = ((down[image, row, column] + 1) * height - 1) / 2
    left, top = u.detach().floor(), v.detach().floor()
    mended = torch.zeros_like(u)[:, None]
    for j in (top, top + 1):
        for i in (left, left + 1):
            past_pole = (j < 0) | (j >= height)  # where the opposite longitude lies
            pixel_column = (i.long() + past_pole * (width // 2)) % width
            weight = (1 - (u - i).abs()) * (1 - (v - j).abs())
            mended = mended + panorama[image, :, j.long().clamp(0, height - 1), pixel_column] * weight[:, None]
    values.movedim(1, -1).index_put_((image, row, column), mended)
    return values


def _beyond(coordinate: Tensor, last: float) -> Bool[Tensor, "batch h w"] | None:
    """Where a coordinate passes the last pixel centre on either side; None where it never does."""
    low, high = torch.aminmax(coordinate.detach()) if coordinate.numel() else (torch.zeros(()), torch.zeros(()))
    return coordinate.detach().abs() > last if max(-float(low), float(high)) > last else None


def perspective_from_panorama(
    panorama: Float[Tensor, "#batch channels height width"],
    hfov: Float[Tensor, "#batch *views"],
    rotation: Float[Tensor, "#batch *views 3 3"],
    size: tuple[int, int],
    antialias: bool = True,
) -> Float[Tensor, "... channels new_height new_width"]:
    """Perspective views of panoramas: one view of each, several of each, or several of one.

    Args:
        panorama: H x 2H. A batch of one serves all views.
        hfov: horizontal fields of view in radians, (batch, *views).
        rotation: camera to panorama, see :func:`visiongraft.geometry.cameras.rotation_from_angles`; (batch, *views, 3, 3).
        size: (height, width) of the views in pixels.
        antialias: supersample and average where a view is coarser than the panorama.

    Returns:
        (batch, *views, channels, height, width).

    Raises:
        ValueError: a panorama that is not H x 2H.
    """
    check_panorama(panorama)
    precise = torch.promote_types(panorama.dtype, torch.float32)
    views = torch.broadcast_shapes(hfov.shape, rotation.shape[:-2], panorama.shape[:1] + (1,) * (hfov.dim() - 1))
    # one set of views for each panorama, of which there may be only one
    shape = (panorama.shape[0], math.prod(views) // panorama.shape[0])
    hfov = hfov.to(precise).expand(views).reshape(shape)
    rotation = rotation.to(precise).expand(*views, 3, 3).reshape(*shape, 3, 3)
    factor = supersampling(float(focal_length(hfov.detach(), size[1]).min()), panorama.shape[-1]) if antialias else 1
    image = panorama.to(precise)

    def block(first: int, last: int) -> Tensor:
        planes = view_directions(hfov, rotation, size[0] * factor, size[1] * factor, (first * factor, last * factor))
        coordinates = _sphere_coordinates(*planes.unbind(-3)).flatten(2, 3)
        return _average(_look_up(image, coordinates).unflatten(2, (shape[1], -1)), factor)

    values = _in_row_blocks(block, size[0], shape[1] * size[1] * factor**2, panorama.device)
    return values.transpose(1, 2).reshape(*views, -1, *size).to(panorama.dtype)


def _in_row_blocks(block: Callable[[int, int], Tensor], rows: int, samples: int, device: torch.device) -> Tensor:
    """A picture whose rows are computed in blocks; ``block`` takes the first and last row, ``samples`` are those of a row."""
    windows = list(_row_blocks(rows, samples, device))
    top = block(*windows[0])
    if len(windows) == 1:
        return top
    picture = top.new_empty(*top.shape[:-2], rows, top.shape[-1])
    picture[..., : windows[0][1], :] = top
    for first, last in windows[1:]:
        picture[..., first:last, :] = block(first, last)
    return picture


def _row_blocks(rows: int, samples: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """First and last row of blocks, which on a CPU are so small that their coordinates stay in its cache."""
    step = max(1, BLOCK_SAMPLES // samples) if device.type == "cpu" else rows
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _average(values: Float[Tensor, "*batch height width"], factor: int) -> Float[Tensor, "*batch new_height new_width"]:
    """Mean over squares of ``factor`` pixels; sums of slices are faster than pooling."""
    if factor == 1:
        return values
    rows = reduce(torch.add, [values[..., i::factor, :] for i in range(factor)])
    return reduce(torch.add, [rows[..., i::factor] for i in range(factor)]) / factor**2


def supersampling(focal: float, panorama_width: int) -> int:
    """Samples a side of one pixel of a view (focal length in pixels), so that it does not skip pixels of the panorama."""
    return max(1, math.ceil(panorama_width / (2 * math.pi * focal) - 1e-6))


def panorama_from_perspective(
    image: Float[Tensor, "batch channels h w"],
    hfov: Float[Tensor, " batch"],
    rotation: Float[Tensor, "batch 3 3"],
    height: int,
) -> tuple[Float[Tensor, "batch channels height 2*height"], Bool[Tensor, "batch 1 height 2*height"]]:
    """What a perspective image says of a panorama of ``height`` x ``2 height``: values (0 elsewhere) and where it sees them.

    Args:
        image: perspective view.
        hfov: horizontal fields of view in radians.
        rotation: camera to panorama.
        height: of the panorama in pixels.
    """
    h, w = image.shape[-2:]
    precise = torch.promote_types(image.dtype, torch.float32)
    source, to_camera = image.to(precise), rotation.to(precise).mT
    focal = focal_length(hfov.to(precise), w)[:, None, None]
    values = source.new_zeros(*image.shape[:2], height, 2 * height)
    mask = torch.zeros(image.shape[0], 1, height, 2 * height, dtype=torch.bool, device=image.device)
    for first, last in _row_blocks(height, image.shape[0] * 2 * height, image.device):
        x, y, z = _turned_rays(to_camera, height, 2 * height, (first, last)).unbind(-3)
        front = z > 1e-6
        scale = 2 * focal / torch.where(front, z, torch.ones_like(z))
        across, down = x * scale / w, y * scale / h  # -1 and 1 are the outer edges of the view
        seen = (front & (torch.maximum(across.abs(), down.abs()) <= 1)).unsqueeze(1)
        mask[:, :, first:last] = seen
        if image.device.type == "cpu" and not seen.any():  # an accelerator would have to wait for the answer
            continue
        grid = torch.stack([across, down]).movedim(0, -1).clamp(-2, 2)
        looked = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
        values[:, :, first:last] = looked * seen
    return values.to(image.dtype), mask


def rotate_panorama(
    panorama: Float[Tensor, "batch channels height width"], rotation: Float[Tensor, "batch 3 3"]
) -> Float[Tensor, "batch channels height width"]:
    """``out(d) = panorama(R d)``. For yaw alone, :func:`yaw_panorama` is exact at whole pixels."""
    height, width = check_panorama(panorama).shape[-2:]
    precise = torch.promote_types(panorama.dtype, torch.float32)
    source, turn = panorama.to(precise), rotation.to(precise)

    def block(first: int, last: int) -> Tensor:
        return _look_up(source, _sphere_coordinates(*_turned_rays(turn, height, width, (first, last)).unbind(-3)))

    return _in_row_blocks(block, height, panorama.shape[0] * width, panorama.device).to(panorama.dtype)


def _turned_rays(
    rotation: Float[Tensor, "*batch 3 3"], height: int, width: int, rows: tuple[int, int] | None = None
) -> Float[Tensor, "*batch 3 rows width"]:
    """Rotation times the directions of a panorama's pixel centres, one plane a component; of some rows or of all."""
    lon = ((torch.arange(width, dtype=rotation.dtype, device=rotation.device) + 0.5) / width - 0.5) * (2 * math.pi)
    row = torch.arange(*(rows or (0, height)), dtype=rotation.dtype, device=rotation.device)[:, None]
    lat = (0.5 - (row + 0.5) / height) * math.pi
    x_axis, y_axis, z_axis = (rotation[..., i, None, None] for i in range(3))
    return (x_axis * lon.sin() + z_axis * lon.cos()) * lat.cos() - y_axis * lat.sin()


def yaw_panorama(panorama: Shaped[Tensor, "*batch height width"], pixels: int) -> Shaped[Tensor, "*batch height width"]:
    """Turns the view to the right by whole pixels: column ``pixels + W/2`` becomes the middle. Nothing is resampled."""
    return panorama.roll(-pixels, -1)


def cubemap_from_panorama(
    panorama: Float[Tensor, "batch channels height width"], size: int, antialias: bool = True
) -> Float[Tensor, "batch 6 channels size size"]:
    """Six views of 90 degrees: front, right, back, left, up, down (up and down keep the front's left and right)."""
    batch = panorama.shape[0]
    hfov = panorama.new_full((batch, 6), math.pi / 2)
    return perspective_from_panorama(panorama, hfov, _face_rotations(panorama).expand(batch, 6, 3, 3), (size, size), antialias)


def panorama_from_cubemap(
    faces: Float[Tensor, "batch 6 channels size size"], height: int
) -> Float[Tensor, "batch channels height 2*height"]:
    """The panorama of ``height`` x ``2 height`` that six views of 90 degrees show, the inverse of :func:`cubemap_from_panorama`."""
    precise = faces.to(torch.promote_types(faces.dtype, torch.float32))
    strip = _side_by_side(_pad_cube(precise))
    level = torch.eye(3, dtype=precise.dtype, device=precise.device)

    def block(first: int, last: int) -> Tensor:
        return _look_up_cube(strip, *_turned_rays(level, height, 2 * height, (first, last)))

    return _in_row_blocks(block, height, faces.shape[0] * 2 * height, faces.device).to(faces.dtype)


def _pad_cube(faces: Float[Tensor, "batch 6 channels size size"]) -> Float[Tensor, "batch 6 channels size+2 size+2"]:
    """One pixel more on every side of each face, as its neighbours show it."""
    size = faces.shape[-1]
    padded = F.pad(faces, (1, 1, 1, 1, 0, 0), mode="replicate")
    along = (torch.arange(size + 2, dtype=faces.dtype, device=faces.device) - 0.5) * (2 / size) - 1
    across = along[:1].expand(size + 2)
    one = torch.ones_like(along)
    # top, bottom, left, right of a face that looks forward
    sides = [(along, across), (along, -across), (across, along), (-across, along)]
    ring = torch.stack([torch.stack([x, y, one], -1) for x, y in sides])
    directions = torch.einsum("fij,snj->ifsn", _face_rotations(faces), ring).flatten(1, 2)
    around = _look_up_cube(_side_by_side(padded), *directions)
    top, bottom, left, right = around.unflatten(-2, (6, 4)).transpose(1, 2).unbind(-2)
    middle = torch.cat([top[..., None, 1:-1], faces, bottom[..., None, 1:-1]], -2)
    return torch.cat([left[..., None], middle, right[..., None]], -1)


def _side_by_side(padded: Float[Tensor, "batch 6 channels side side"]) -> Float[Tensor, "batch channels side 6*side"]:
    """The faces in one picture, so that one look-up serves all."""
    return padded.permute(0, 2, 3, 1, 4).flatten(-2)


def _look_up_cube(
    strip: Float[Tensor, "batch channels side width"], x: Float[Tensor, "h w"], y: Float[Tensor, "h w"], z: Float[Tensor, "h w"]
) -> Float[Tensor, "batch channels h w"]:
    """Bilinear values of six faces side by side, each with a border of one pixel, in directions of any length."""
    side = strip.shape[-2]
    ahead, beside, upright = z.abs(), x.abs(), y.abs()
    depth = torch.maximum(torch.maximum(ahead, beside), upright)
    is_vertical, is_ahead = upright == depth, ahead == depth
    # face coordinates: (x, y) ahead, (-x, y) behind, (-z, y) and (z, y) beside, (x, z) above, (x, -z) below
    across = torch.where(is_vertical, x, torch.where(is_ahead, x * z.sign(), -z * x.sign())) / depth
    down = torch.where(is_vertical, -z * y.sign(), y) / depth
    level = torch.where(is_ahead, 1 - z.sign(), 2 - x.sign())
    face = torch.where(is_vertical, 4.5 + 0.5 * y.sign(), level)
    u = (across * 0.5 + 0.5) * (side - 2) + 1 + face * side
    v = (down * 0.5 + 0.5) * (side - 2) + 1
    grid = torch.stack([u * (1 / (3 * side)) - 1, v * (2 / side) - 1]).movedim(0, -1)
    return F.grid_sample(strip, grid.expand(strip.shape[0], -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False)


def _face_rotations(like: Tensor) -> Float[Tensor, "6 3 3"]:
    quarter = torch.tensor(list(CUBE_FACES.values()), dtype=like.dtype, device=like.device) * (math.pi / 2)
    return rotation_from_angles(quarter[:, 0], quarter[:, 1], torch.zeros_like(quarter[:, 0]))
