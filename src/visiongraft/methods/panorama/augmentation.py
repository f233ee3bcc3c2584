"""Training pairs from one panorama: a random yaw first, then a perspective crop at yaw 0, so that longitude 0 is where the input looks."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import check_hfov_deg, focal_length, rotation_from_angles
from visiongraft.geometry.panoramas import check_panorama, perspective_from_panorama, supersampling, yaw_panorama
from visiongraft.media.images import resize

_MAX_SUPERSAMPLING = 3  # beyond, a smaller copy of the panorama gives the same crop in less time and memory


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """Cameras of training, uniform in each angle.

    Args:
        hfov_deg: horizontal fields of view in degrees.
        pitch_deg: up is positive.
        roll_deg: clockwise turns of the camera are positive.

    Raises:
        ValueError: a range that is not increasing, or angles that no camera can have.

    Source: arXiv 2601.16192, training augmentation.
    """

    hfov_deg: tuple[float, float] = (30.0, 120.0)
    pitch_deg: tuple[float, float] = (-60.0, 60.0)
    roll_deg: tuple[float, float] = (-15.0, 15.0)

    def __post_init__(self) -> None:
        for name, limit in (("hfov_deg", 180), ("pitch_deg", 90), ("roll_deg", 180)):
            low, high = getattr(self, name)
            if not -limit <= low <= high <= limit:
                raise ValueError(f"{name} must be (lowest, highest) within {-limit} to {limit} degrees; got ({low:g}, {high:g}).")
        for hfov in self.hfov_deg:
            check_hfov_deg(hfov)


@dataclass(frozen=True, kw_only=True)
class View:
    """What was drawn for one training pair.

    Args:
        yaw_pixels: the panorama's turn to the right, in pixels of the training panorama.
        hfov_deg, pitch_deg, roll_deg: the crop's camera; its yaw is 0.
    """

    yaw_pixels: int
    hfov_deg: float
    pitch_deg: float
    roll_deg: float


def draw_view(width: int, ranges: CameraRanges, generator: torch.Generator, yaw_multiple: int = 1) -> View:
    """A uniformly random yaw and camera.

    Args:
        width: of the training panorama in pixels.
        ranges: of the camera.
        generator: on the CPU.
        yaw_multiple: the yaw is a multiple of this many pixels, which must divide the width; latents can follow a turn by whole
            tokens without being encoded again.

    Raises:
        ValueError: a multiple that does not divide the width.
    """
    if yaw_multiple < 1 or width % yaw_multiple:
        raise ValueError(f"yaw_multiple must divide the panorama's width {width}; got {yaw_multiple}.")
    steps = int(torch.randint(width // yaw_multiple, (1,), generator=generator))
    unit = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    bounds = (ranges.hfov_deg, ranges.pitch_deg, ranges.roll_deg)
    hfov, pitch, roll = (low + (high - low) * u for (low, high), u in zip(bounds, unit, strict=True))
    return View(yaw_pixels=steps * yaw_multiple, hfov_deg=hfov, pitch_deg=pitch, roll_deg=roll)


def training_pair(
    panorama: Float[Tensor, "3 source_height source_width"], view: View, height: int, size: int
) -> tuple[Float[Tensor, "3 height 2*height"], Float[Tensor, "3 size size"]]:
    """The turned panorama, and the crop that looks at its middle.

    The crop is taken from the panorama at its own resolution: a narrow field of view of the smaller training panorama would be
    blurred as no photograph is.

    Args:
        panorama: in [0, 1], upright, of any size.
        view: what was drawn for a panorama of ``height``.
        height: of the training panorama in pixels.
        size: side of the crop in pixels.

    Raises:
        ValueError: a panorama that is not H x 2H.
    """
    target = yaw_panorama(resize_panorama(panorama, height), view.yaw_pixels)
    radians = panorama.new_tensor([[view.hfov_deg, view.pitch_deg, view.roll_deg, 360 * view.yaw_pixels / (2 * height)]]).deg2rad()
    hfov, pitch, roll, yaw = radians[0]
    # a camera turned by the yaw sees in the panorama as it is what one at yaw 0 sees in the turned one
    return target, crop_at(panorama, hfov, rotation_from_angles(yaw, pitch, roll), size)


def crop_at(
    panorama: Float[Tensor, "3 height width"], hfov: Float[Tensor, ""], rotation: Float[Tensor, "3 3"], size: int
) -> Float[Tensor, "3 {size} {size}"]:
    """The square view of one camera, in [0, 1].

    Args:
        panorama: in [0, 1], H x 2H.
        hfov: in radians.
        rotation: camera to panorama.
        size: side of the view in pixels.
    """
    factor = supersampling(float(focal_length(hfov, size)), panorama.shape[-1])
    if factor > _MAX_SUPERSAMPLING:
        panorama = resize_panorama(panorama, math.ceil(panorama.shape[-2] * _MAX_SUPERSAMPLING / factor))
    return perspective_from_panorama(panorama[None], hfov[None], rotation[None], (size, size))[0].clamp(0, 1)


def resize_panorama(panorama: Float[Tensor, "*batch h w"], height: int) -> Float[Tensor, "*batch height 2*height"]:
    """Bicubic resizing with anti-aliasing that treats the left and right border as neighbours.

    Raises:
        ValueError: a panorama that is not H x 2H.
    """
    source_height, source_width = check_panorama(panorama).shape[-2:]
    if source_height == height:
        return panorama
    # the narrowest border that is whole pixels before and after, and that the kernel does not reach across
    reach = min(math.ceil(2 * max(1.0, source_height / height)) + 1, source_height)
    parts = next(p for p in (16, 8, 4, 2) if source_width % p == 0 and 2 * height % p == 0 and source_width // p >= reach)
    pad, new_pad = source_width // parts, 2 * height // parts
    wide = torch.cat([panorama[..., -pad:], panorama, panorama[..., :pad]], -1)
    return resize(wide, (height, 2 * height + 2 * new_pad))[..., new_pad:-new_pad]
