"""The camera of a photo or video, found by where its panorama shows the same picture: field of view, yaw, pitch and roll.

An exhaustive search on thumbnails gives a few candidates, which Adam refines through the differentiable view of the panorama.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import check_panorama, sample_panorama

# steps, learning rate in radians, candidates that enter, side of the image and height of the panorama in pixels
_STAGES = ((40, 0.02, 6, 24, 64), (40, 0.008, 3, 48, 96), (20, 0.003, 3, 96, 192))
# a frame of a video starts close to the one before it, and is refined again together with the others
_TRACK_STAGES = ((20, 0.02, 4, 24, 64), (15, 0.008, 2, 48, 96))
_THUMBNAIL, _THUMBNAIL_PANORAMA = 16, 64
_HFOV_LIMITS = (math.radians(10), math.radians(160))


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Where cameras are looked for; all in degrees.

    Args:
        hfov_deg: first, last and step of the horizontal fields of view tried.
        yaw_half_range_deg: yaws from minus to plus this; 180 for a camera that may have turned anywhere.
        yaw_step_deg: step of the yaws tried.
        pitch_half_range_deg: pitches from minus to plus this.
        pitch_step_deg: step of the pitches tried.
        roll_half_range_deg: rolls from minus to plus this.
        roll_step_deg: step of the rolls tried.
        reliable_ncc: normalised correlation from which a camera counts as found.
        pairs_at_once: pairs of image and panorama that are refined together, which bounds the memory.
    """

    hfov_deg: tuple[float, float, float] = (30.0, 120.0, 9.0)
    yaw_half_range_deg: float = 10.0
    yaw_step_deg: float = 10.0
    pitch_half_range_deg: float = 60.0
    pitch_step_deg: float = 12.0
    roll_half_range_deg: float = 12.0
    roll_step_deg: float = 12.0
    reliable_ncc: float = 0.8
    pairs_at_once: int = 32

    def __post_init__(self) -> None:
        low, high, step = self.hfov_deg
        if not 10 <= low <= high <= 160 or step <= 0:
            raise ValueError(f"hfov_deg is (first, last, step) in degrees within [10, 160]; got {self.hfov_deg}.")
        for name, limit in (("yaw", 180), ("pitch", 90), ("roll", 180)):
            half, step = getattr(self, f"{name}_half_range_deg"), getattr(self, f"{name}_step_deg")
            if not 0 <= half <= limit or step <= 0:
                raise ValueError(f"{name}_half_range_deg must be in [0, {limit}] and {name}_step_deg positive; got {half} and {step}.")
        if self.pairs_at_once < 1:
            raise ValueError(f"pairs_at_once must be at least 1; got {self.pairs_at_once}.")


@dataclass(frozen=True, kw_only=True)
class CameraEstimates:
    """Cameras relative to upright panoramas, and how well the panoramas repeat the images there (see :data:`SearchConfig`)."""

    hfov_deg: Float[Tensor, " batch"]
    yaw_deg: Float[Tensor, " batch"]
    pitch_deg: Float[Tensor, " batch"]
    roll_deg: Float[Tensor, " batch"]
    psnr: Float[Tensor, " batch"]
    ncc: Float[Tensor, " batch"]
    reliable: Bool[Tensor, " batch"]

    @property
    def hfov(self) -> Float[Tensor, " batch"]:
        """Horizontal fields of view in radians."""
        return self.hfov_deg.deg2rad()

    @property
    def rotation(self) -> Float[Tensor, "batch 3 3"]:
        """Camera to panorama."""
        return rotation_from_angles(self.yaw_deg.deg2rad(), self.pitch_deg.deg2rad(), self.roll_deg.deg2rad())


def estimate_cameras(
    images: Float[Tensor, "batch 3 h w"], panoramas: Float[Tensor, "panoramas 3 height width"], search: SearchConfig = SearchConfig()
) -> CameraEstimates:
    """The camera of each image within its panorama.

    The camera is only as right as the panorama: what is measured is where a generated panorama shows the image, not how the
    image was taken. Images may have any aspect ratio; pixels are taken to be square and the principal point central.

    Args:
        images: in [0, 1].
        panoramas: in [0, 1], upright, H x 2H; the same number as images.
        search: where to look.

    Raises:
        ValueError: a panorama that is not H x 2H, or other numbers of images and panoramas.
    """
    images, panoramas = _check_pairs(images, panoramas)
    parts = []
    for first in range(0, images.shape[0], search.pairs_at_once):
        chunk = slice(first, first + search.pairs_at_once)
        candidates = _exhaustive(images[chunk], panoramas[chunk], _search_grid(search, images))
        parts.append(_refine(images[chunk], panoramas[chunk], candidates))
    return _estimates(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts]), search)


def estimate_track(
    images: Float[Tensor, "frames 3 h w"], panoramas: Float[Tensor, "panoramas 3 height width"], search: SearchConfig = SearchConfig()
) -> CameraEstimates:
    """The cameras of a video's frames, one field of view for all of them.

    The first frame is searched as an image is; every other frame starts from the one before it, and is searched all around
    where it was lost. At the end all frames are refined together with a common field of view.

    Args:
        images: the frames in [0, 1].
        panoramas: a panorama for each frame, or one for all of them.
        search: where to look for the first frame.

    Raises:
        ValueError: a panorama that is not H x 2H, or another number of panoramas.
    """
    images, panoramas = _check_pairs(images, panoramas.expand(images.shape[0], -1, -1, -1) if panoramas.shape[0] == 1 else panoramas)
    first, _, _ = _refine(images[:1], panoramas[:1], _exhaustive(images[:1], panoramas[:1], _search_grid(search, images)))
    track = [first[0]]
    for frame in range(1, images.shape[0]):
        image, panorama = images[frame, None], panoramas[frame, None]
        # where it stood, where it would stand if it went on turning, and the best of those around
        onward = 2 * track[-1] - track[-2] if frame > 1 else track[-1]
        nearby = _exhaustive(image, panorama, track[-1] + _neighbourhood(images))[:, :2]
        guesses = torch.cat([torch.stack([track[-1], onward])[None], nearby], 1)
        found, ncc, _ = _refine(image, panorama, guesses, _TRACK_STAGES, freeze_hfov=True)
        if float(ncc) < search.reliable_ncc:
            again = _exhaustive(image, panorama, _search_grid(search, images, hfov=float(first[0, 0])))
            other, other_ncc, _ = _refine(image, panorama, again, _TRACK_STAGES, freeze_hfov=True)
            found = other if float(other_ncc) > float(ncc) else found
        track.append(found[0])
    return _estimates(*_refine_together(images, panoramas, torch.stack(track), search.pairs_at_once), search)


def median_cameras(estimates: Sequence[CameraEstimates]) -> CameraEstimates:
    """The median camera of each image over several panoramas of it (one :class:`CameraEstimates` a seed); reliable where most are.

    Raises:
        ValueError: no estimates.
    """
    if not estimates:
        raise ValueError("median_cameras needs the estimates of at least one panorama; got none.")
    stacked = {field.name: torch.stack([getattr(e, field.name) for e in estimates]) for field in fields(CameraEstimates)}
    reliable = stacked.pop("reliable").float().mean(0) > 0.5
    for name in ("yaw_deg", "roll_deg"):  # angles near 180 degrees may have either sign
        start = stacked[name][:1]
        stacked[name] = start + _wrap(stacked[name] - start, 180.0)
    medians = {name: values.quantile(0.5, 0) for name, values in stacked.items()}
    return CameraEstimates(**medians | {n: _wrap(medians[n], 180.0) for n in ("yaw_deg", "roll_deg")}, reliable=reliable)


def _check_pairs(images: Tensor, panoramas: Tensor) -> tuple[Tensor, Tensor]:
    check_panorama(panoramas)
    if images.shape[0] != panoramas.shape[0]:
        raise ValueError(f"Each image needs its panorama; got {images.shape[0]} images and {panoramas.shape[0]} panoramas.")
    with torch.inference_mode(False):  # copies that gradients may pass through, whatever mode the caller is in
        return images.detach().float().clone(), panoramas.detach().to(images.device).float().clone()


def _search_grid(search: SearchConfig, like: Tensor, hfov: float | None = None) -> Float[Tensor, "cameras 4"]:
    """All cameras (hfov, yaw, pitch, roll) of the exhaustive search in radians; all around, where the field of view is known."""

    def around(half: float, step: float) -> Tensor:
        count = math.floor(half / step + 1e-6)
        return torch.arange(-count, count + 1, dtype=like.dtype, device=like.device) * math.radians(step)

    low, high, step = search.hfov_deg
    hfovs = (low + step * torch.arange(math.floor((high - low) / step + 1e-6) + 1, dtype=like.dtype, device=like.device)).deg2rad()
    if hfov is not None:
        hfovs = like.new_tensor([hfov])
    yaws = around(search.yaw_half_range_deg if hfov is None else 180.0, search.yaw_step_deg)
    pitches = around(search.pitch_half_range_deg, search.pitch_step_deg)
    return torch.cartesian_prod(hfovs, yaws, pitches, around(search.roll_half_range_deg, search.roll_step_deg))


def _neighbourhood(like: Tensor) -> Float[Tensor, "cameras 4"]:
    """Turns from one frame of a video to the next, with the same field of view: up to 40 degrees of yaw, 10 of pitch, 5 of roll."""
    yaws = like.new_tensor([-40.0, -30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0, 40.0]).deg2rad()
    pitches, rolls = like.new_tensor([-10.0, 0.0, 10.0]).deg2rad(), like.new_tensor([-5.0, 0.0, 5.0]).deg2rad()
    return torch.cartesian_prod(like.new_zeros(1), yaws, pitches, rolls)


def _exhaustive(images: Tensor, panoramas: Tensor, cameras: Float[Tensor, "cameras 4"]) -> Float[Tensor, "batch best 4"]:
    """The cameras with the highest correlation of thumbnails, best first."""
    batch, channels = images.shape[:2]
    thumbnails = _shrink(images, _image_size(images, _THUMBNAIL))
    small = _shrink(panoramas, _panorama_size(panoramas, _THUMBNAIL_PANORAMA))
    # all pairs share the directions: their panoramas are the channels of one
    stacked = small.flatten(0, 1)[None]
    at_once = max(1, 2**22 // (thumbnails[:, 0].numel()))
    scores = []
    for part in cameras.split(at_once):
        views = sample_panorama(stacked, _directions(part, thumbnails.shape[-2:], _aspect(images))[None])[0]
        scores.append(_correlation(views.unflatten(0, (batch, channels)).transpose(1, 2), thumbnails[:, None]))
    return cameras[torch.cat(scores, 1).topk(min(_STAGES[0][2], cameras.shape[0]), 1).indices]


def _refine(
    images: Tensor,
    panoramas: Tensor,
    candidates: Float[Tensor, "batch candidates 4"],
    stages: Sequence[tuple[int, float, int, int, int]] = _STAGES,
    freeze_hfov: bool = False,
) -> tuple[Float[Tensor, "batch 4"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The best camera from candidates, its correlation and its mean squared error at the last stage."""
    cameras, aspect = candidates, _aspect(images)
    losses = correlation = error = torch.zeros_like(cameras[..., 0])
    for steps, rate, keep, side, height in stages:
        order = losses.topk(min(keep, losses.shape[1]), 1, largest=False).indices
        hfov, angles = cameras.gather(1, order[..., None].expand(-1, -1, 4)).split([1, 3], -1)
        image, panorama = _shrink(images, _image_size(images, side)), _shrink(panoramas, _panorama_size(panoramas, height))
        hfov, angles = _descend(
            lambda h, a: [_mismatch(image, panorama, torch.cat([h, a], -1), aspect)[0].sum()], hfov, angles, steps, rate, freeze_hfov
        )
        cameras = torch.cat([hfov, angles], -1)
        losses, correlation, error = _mismatch(image, panorama, cameras, aspect)
    best = losses.argmin(1, keepdim=True)
    return cameras.gather(1, best[..., None].expand(-1, -1, 4))[:, 0], correlation.gather(1, best)[:, 0], error.gather(1, best)[:, 0]


def _refine_together(
    images: Tensor, panoramas: Tensor, track: Float[Tensor, "frames 4"], at_once: int
) -> tuple[Float[Tensor, "frames 4"], Float[Tensor, " frames"], Float[Tensor, " frames"]]:
    """A track refined with one field of view for all frames, its correlations and mean squared errors."""
    hfov, angles, aspect = track[:, :1].median(0, keepdim=True).values, track[:, 1:], _aspect(images)
    measures = []
    for steps, rate, _, side, height in _STAGES[1:]:
        image, panorama = _shrink(images, _image_size(images, side)), _shrink(panoramas, _panorama_size(panoramas, height))

        def mismatches(h: Tensor, a: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            parts = (t.split(at_once) for t in (image, panorama, a))
            for pictures, spheres, turns in zip(*parts, strict=True):
                yield _mismatch(pictures, spheres, torch.cat([h.expand(turns.shape[0], 1), turns], -1)[:, None], aspect)

        hfov, angles = _descend(lambda h, a: (loss.sum() for loss, _, _ in mismatches(h, a)), hfov, angles, steps, rate)
        measures = list(mismatches(hfov, angles))
    correlation, error = (torch.cat([part[i] for part in measures])[:, 0] for i in (1, 2))
    return torch.cat([hfov.expand(angles.shape[0], 1), angles], -1), correlation, error


def _descend(
    losses: Callable[[Tensor, Tensor], Iterable[Tensor]], hfov: Tensor, angles: Tensor, steps: int, rate: float, freeze_hfov: bool = False
) -> tuple[Tensor, Tensor]:
    """Adam with a falling learning rate on fields of view and angles; losses come in parts, whose gradients are added up."""
    # callers may be in inference mode
    with torch.inference_mode(False), torch.enable_grad():
        hfov, angles = hfov.clone(), angles.clone()
        parameters = [angles] if freeze_hfov else [hfov, angles]
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(parameters, lr=rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - 0.9 * step / steps)
            optimizer.zero_grad()
            for loss in losses(hfov, angles):
                loss.backward()
            optimizer.step()
            hfov.data.clamp_(*_HFOV_LIMITS)
    return hfov.detach(), angles.detach()


def _mismatch(
    images: Float[Tensor, "batch 3 h w"], panoramas: Tensor, cameras: Float[Tensor, "batch cameras 4"], aspect: float
) -> tuple[Float[Tensor, "batch cameras"], Float[Tensor, "batch cameras"], Float[Tensor, "batch cameras"]]:
    """Loss (mean squared error - 0.1 correlation), correlation and mean squared error of views beside the images."""
    views = sample_panorama(panoramas, _directions(cameras, images.shape[-2:], aspect)).transpose(1, 2)
    correlation = _correlation(views, images[:, None])
    error = (views - images[:, None]).square().mean((-3, -2, -1))
    return error - 0.1 * correlation, correlation, error


def _correlation(views: Float[Tensor, "*batch 3 h w"], images: Float[Tensor, "*#batch 3 h w"]) -> Float[Tensor, "*batch"]:
    """Zero-mean normalised correlation over all pixels and channels; 0 for pictures without contrast."""
    a, b = (x.flatten(-3) - x.flatten(-3).mean(-1, keepdim=True) for x in (views, images))
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1) + 1e-12).sqrt()


def _directions(cameras: Float[Tensor, "*batch 4"], size: Sequence[int], aspect: float) -> Float[Tensor, "*batch h w 3"]:
    """Rays through the pixels of a thumbnail, whose pixels need not be square: ``aspect`` is the image's height / width."""
    hfov, yaw, pitch, roll = cameras.unbind(-1)
    y, x = ((2 * torch.arange(n, dtype=cameras.dtype, device=cameras.device) + 1) / n - 1 for n in size)
    tangent = (hfov / 2).tan()[..., None, None]
    right, down, forward = rotation_from_angles(yaw, pitch, roll).mT[..., None, None, :].unbind(-4)
    return right * (tangent * x)[..., None] + (down * (tangent * aspect * y[:, None])[..., None] + forward)


def _aspect(images: Tensor) -> float:
    return images.shape[-2] / images.shape[-1]


def _image_size(images: Tensor, side: int) -> tuple[int, int]:
    """A size of about side x side pixels in the image's shape, never more than the image has."""
    height, width = images.shape[-2:]
    root = math.sqrt(height / width)
    return min(height, max(2, round(side * root))), min(width, max(2, round(side / root)))


def _panorama_size(panoramas: Tensor, height: int) -> tuple[int, int]:
    height = min(panoramas.shape[-2], height)
    return height, 2 * height


def _shrink(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over whole blocks where the sizes allow it, else a filter that keeps the pixel centres where they are."""
    height, width = pictures.shape[-2:]
    if (height, width) == size:
        return pictures
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(pictures, (height // size[0], width // size[1]))
    return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)


def _estimates(cameras: Tensor, correlation: Tensor, error: Tensor, search: SearchConfig) -> CameraEstimates:
    hfov, yaw, pitch, roll = cameras.rad2deg().unbind(-1)
    return CameraEstimates(
        hfov_deg=hfov,
        yaw_deg=_wrap(yaw, 180.0),
        pitch_deg=pitch,
        roll_deg=_wrap(roll, 180.0),
        psnr=-10 * error.clamp(min=1e-10).log10(),
        ncc=correlation,
        reliable=correlation >= search.reliable_ncc,
    )


def _wrap(angle: Tensor, half_turn: float) -> Tensor:
    """Angles within [-half turn, half turn)."""
    return (angle + half_turn) % (2 * half_turn) - half_turn
