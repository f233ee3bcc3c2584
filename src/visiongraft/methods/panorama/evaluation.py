"""Evaluation of panoramas, panorama videos and estimated cameras by a protocol.

    encoder = load_feature_encoder("openai/clip-vit-base-patch32")
    evaluate_images("generated/", "real/", find_protocol("laval"), {"clip": encoder})

The result holds every number of the protocol, what was measured, and what was not and why.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from visiongraft.geometry.panoramas import check_panorama
from visiongraft.media.files import atomic_write
from visiongraft.media.images import list_images, read_image, resize
from visiongraft.methods.panorama.evaluation_views import render_views, view_azimuths, visibility_mask
from visiongraft.methods.panorama.protocols import EvaluationProtocol, find_protocol
from visiongraft.metrics.feature_encoders import load_feature_encoder
from visiongraft.metrics.frechet import FEW_SAMPLES, cubemap_features, faed_features, frechet_distance, kernel_distance, omni_fid
from visiongraft.metrics.masked import masked_psnr, union_mask
from visiongraft.metrics.recall import angular_error_deg, error_summary
from visiongraft.metrics.seams import discontinuity_score, interior_discontinuity, seam_ratio

Images = str | Path | Sequence[str | Path | Tensor]
Encoder = Callable[[Tensor], Tensor]
_EVALUATORS = {"image": "evaluate_images", "video": "evaluate_clips", "camera": "evaluate_cameras"}


@runtime_checkable
class FolderOptions(Protocol):
    """What ``visiongraft panorama evaluate`` asks for."""

    generated: Path
    reference: Path
    protocol: str
    encoder: str | None
    output: Path
    device: str


def evaluate_folders(options: FolderOptions) -> int:
    """Evaluates two folders, prints what was measured and writes it all as JSON.

    Raises:
        ValueError: as :func:`evaluate_images`, or an unknown protocol.
        FileNotFoundError: no images, or no encoder of that name.
    """
    protocol = find_protocol(options.protocol)
    encoders = {} if options.encoder is None else {options.encoder: load_feature_encoder(options.encoder, device=options.device)}
    result = evaluate_images(options.generated, options.reference, protocol, encoders, device=options.device, progress=True)
    with atomic_write(options.output) as temporary:
        temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for name, seam in result["seam"].items():
        print(f"{name}: " + ", ".join(f"{key} {_shown(value['median'])}" for key, value in seam.items()) + " (medians)")
    for name, measured in result["encoders"].items():
        print(f"{name}: " + ", ".join(f"{key} {measured[key]:.3f}" for key in ("frechet", "kernel_x100")))
    for metric, reason in result["not_computed"].items():
        print(f"{metric}: {reason}")
    print(f"written to {options.output}")
    return 0


@torch.no_grad()
def evaluate_images(
    generated: Images,
    reference: Images | None,
    protocol: EvaluationProtocol,
    encoders: Mapping[str, Encoder] | None = None,
    *,
    panorama_encoder: Encoder | None = None,
    cameras_deg: Float[Tensor, "n 4"] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates generated panoramas against real ones by a protocol.

    Args:
        generated: folder, or list of files or tensors (3 x H x 2H in [0, 1]).
        reference: real panoramas likewise, of any number; the same number and order where cameras are given. ``None``: only the
            seam is measured.
        protocol: see :data:`PROTOCOLS`.
        encoders: feature encoders by name, see :func:`visiongraft.metrics.feature_encoders.load_feature_encoder`; each maps images in
            [0, 1] to batch x dim. Without one no distance between distributions is reported: there is no default, since features of
            a stand-in would look like a published metric.
        panorama_encoder: encoder of an auto-encoder for panoramas, for FAED; see :func:`visiongraft.metrics.frechet.faed_features`.
        cameras_deg: field of view, yaw, pitch and roll of each input in degrees, for the PSNR of what the input has seen.
        device: where views are rendered and seams measured.
        progress: show a bar.

    Returns:
        ``protocol`` (all its fields), ``counts``, ``sizes``, ``seam``, ``encoders``, ``faed``, ``masked_psnr``, ``not_computed``
        (metric of the protocol: reason) and ``notes``; plain data, with ``None`` for what is not finite.

    Raises:
        ValueError: a protocol that is not for images, pictures that are not H x 2H, or sets that do not pair up.
        FileNotFoundError: no images.
    """
    _check_media(protocol, "image")
    fake, real = _listing(generated), [] if reference is None else _listing(reference)
    _check_pairs(fake, real, cameras_deg)
    encoders = dict(encoders or {})
    if real and (encoders or panorama_encoder is not None) and min(len(fake), len(real)) < 2:
        raise ValueError(f"Distances between sets need at least 2 panoramas in each; got {len(fake)} generated and {len(real)} reference.")
    azimuths = view_azimuths(protocol, max(len(fake), len(real)))

    def measure(items: list[Path | Tensor]) -> _Measured:
        return _measure(items, encoders, panorama_encoder, azimuths, protocol, device, progress)

    measured = {"generated": measure(fake)} | ({"reference": measure(real)} if real else {})
    notes = _notes(measured, fake, real, protocol)
    result: dict[str, Any] = {
        "protocol": asdict(protocol),
        "counts": {name: m.count for name, m in measured.items()},
        "sizes": {name: sorted([list(size) for size in m.sizes]) for name, m in measured.items()},
        "seam": {name: m.seam for name, m in measured.items()},
        "encoders": {},
    }
    if real:
        for name, encoder in encoders.items():
            result["encoders"][name] = _distances(measured["reference"], measured["generated"], name, protocol) | _described(encoder)
        if panorama_encoder is not None:
            result["faed"] = frechet_distance(torch.cat(measured["reference"].maps), torch.cat(measured["generated"].maps))
    if cameras_deg is not None:
        values = [_psnr(f, r, camera, device) for f, r, camera in zip(fake, real, cameras_deg, strict=True)]
        result["masked_psnr"] = _summary(torch.stack(values))
    return result | {"not_computed": _not_computed(protocol, result, real), "notes": notes}


@torch.no_grad()
def evaluate_clips(
    generated: Sequence[Float[Tensor, "_frames 3 _height _width"]],
    reference: Sequence[Float[Tensor, "_frames 3 _height _width"]],
    cameras_deg: Sequence[Float[Tensor, "_frames 4"]],
    protocol: EvaluationProtocol,
    *,
    spatial_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Evaluates generated panorama videos: how well what the input has seen is kept, and the seam.

    Args:
        generated: clips in [0, 1], as the decoder gave them: video compression spoils the seam's numbers.
        reference: the true clips, in the same order and size.
        cameras_deg: field of view, yaw, pitch and roll of the input's camera in every frame, in degrees.
        protocol: one for video.
        spatial_distance: maps two batches of images in [0, 1] to a map batch x 1 x H x W, such as LPIPS (VGG, ``spatial=True``).

    Returns:
        ``protocol``, ``counts``, ``masked_psnr`` and ``masked_lpips`` inside one union mask a clip, ``seam``, ``not_computed``.

    Raises:
        ValueError: a protocol that is not for video, or clips that do not pair up.
    """
    _check_media(protocol, "video")
    if not generated or not len(generated) == len(reference) == len(cameras_deg):
        raise ValueError(
            f"Clips must pair up; got {len(generated)} generated, {len(reference)} reference and cameras of {len(cameras_deg)} clips."
        )
    psnr, distance, seam = [], [], []
    for index, (clip, truth, cameras) in enumerate(zip(generated, reference, cameras_deg, strict=True)):
        if clip.shape != truth.shape or len(cameras) != len(clip):
            raise ValueError(
                f"Clip {index}: shapes of generated {tuple(clip.shape)} and reference {tuple(truth.shape)} and the cameras of "
                f"{len(cameras)} frames must agree."
            )
        mask = union_mask(visibility_mask(cameras, check_panorama(clip).shape[-2])[None]).to(clip.device)
        psnr.append(masked_psnr(clip[None], truth[None], mask)[0])
        seam.append(_seam(clip, protocol).mean(0))
        if spatial_distance is not None:
            maps = torch.cat([spatial_distance(a[None], b[None]) for a, b in zip(clip, truth, strict=True)])
            distance.append(maps[mask.expand_as(maps)].mean())
    result: dict[str, Any] = {
        "protocol": asdict(protocol),
        "counts": {"generated": len(generated), "frames": [len(clip) for clip in generated]},
        "masked_psnr": _summary(torch.stack(psnr)),
        "seam": _seam_summary(torch.stack(seam)),
    }
    if distance:
        result["masked_lpips"] = _summary(torch.stack(distance))
    return result | {"not_computed": _not_computed(protocol, result, list(reference))}


def evaluate_cameras(
    estimated_deg: Mapping[str, Float[Tensor, " n"]], true_deg: Mapping[str, Float[Tensor, " n"]], protocol: EvaluationProtocol
) -> dict[str, Any]:
    """Errors of estimated cameras: mean, median and area under the recall curve, of every angle the protocol names.

    Args:
        estimated_deg: ``hfov_deg``, ``pitch_deg``, ``roll_deg`` of each image; NaN counts as an estimate that failed.
        true_deg: the same angles. Data sets of orientation or of field of view alone give what they have.
        protocol: one for cameras.

    Returns:
        ``protocol`` and one entry an angle, with the ``count`` and how many ``failed``.

    Raises:
        ValueError: a protocol that is not for cameras, no angle in common, or different numbers of images.
    """
    _check_media(protocol, "camera")
    angles = [name for name in protocol.metrics if name in estimated_deg and name in true_deg]
    if not angles:
        raise ValueError(f"None of {', '.join(protocol.metrics)} is in both the estimates and the truth.")
    result: dict[str, Any] = {"protocol": asdict(protocol)}
    for name in angles:
        estimate, truth = estimated_deg[name], true_deg[name]
        if estimate.shape != truth.shape:
            raise ValueError(f"{name}: {len(estimate)} estimates for {len(truth)} images.")
        error = angular_error_deg(estimate, truth)
        failed = error.isnan()
        summary = error_summary(error.nan_to_num(nan=math.inf), protocol.auc_thresholds_deg, protocol.auc_min_error_deg)
        result[name] = {key: _number(value) for key, value in summary.items()} | {"count": len(error), "failed": int(failed.sum())}
    return result


def _check_media(protocol: EvaluationProtocol, media: str) -> None:
    if protocol.media != media:
        raise ValueError(f"Protocol {protocol.name} is for {protocol.media}, not {media}; use {_EVALUATORS[protocol.media]}.")


class _Measured(NamedTuple):
    """What one set of panoramas gives, picture by picture."""

    count: int
    sizes: set[tuple[int, int]]
    seam: dict[str, Any]
    views: dict[str, list[Tensor]]
    cubes: dict[str, list[Tensor]]
    maps: list[Tensor]


def _measure(
    items: list[Path | Tensor],
    encoders: dict[str, Encoder],
    panorama_encoder: Encoder | None,
    azimuths: Tensor,
    protocol: EvaluationProtocol,
    device: torch.device | str,
    progress: bool,
) -> _Measured:
    seam, sizes, maps = [], set(), []
    views: dict[str, list[Tensor]] = {name: [] for name in encoders}
    cubes: dict[str, list[Tensor]] = {name: [] for name in encoders}
    for index, panorama in enumerate(tqdm(_read(items, device), total=len(items), desc="evaluating", disable=not progress)):
        sizes.add((panorama.shape[-2], panorama.shape[-1]))
        seam.append(_seam(panorama[None], protocol)[0])
        rendered = render_views(panorama, azimuths[index], protocol) if encoders else None
        for name, encoder in encoders.items():
            assert rendered is not None
            views[name].append(encoder(rendered).cpu())
            cubes[name].append(cubemap_features(panorama[None], encoder, protocol.cube_size).cpu())
        if panorama_encoder is not None:
            maps.append(faed_features(resize(panorama[None], protocol.faed_size), panorama_encoder).cpu())
    return _Measured(len(items), sizes, _seam_summary(torch.stack(seam)), views, cubes, maps)


def _distances(real: _Measured, fake: _Measured, name: str, protocol: EvaluationProtocol) -> dict[str, Any]:
    x, y = torch.cat(real.views[name]), torch.cat(fake.views[name])
    size = min(protocol.kernel_subset_size, len(x), len(y))
    kernel = kernel_distance(x, y, subsets=protocol.kernel_subsets, subset_size=size)
    result: dict[str, Any] = {
        "views": {"reference": len(x), "generated": len(y)},
        "frechet": frechet_distance(x, y),
        "kernel_x100": 100 * kernel.mean,
        "kernel_x100_std": 100 * kernel.std,
        "kernel_subset_size": size,
    }
    omni = omni_fid(torch.cat(real.cubes[name]), torch.cat(fake.cubes[name]))
    return result | {"omni_frechet": omni._asdict()}


def _seam(panoramas: Tensor, protocol: EvaluationProtocol) -> Float[Tensor, "batch 3"]:
    """Discontinuity score, its interior baseline and the seam ratio of each."""
    interior = interior_discontinuity(panoramas, protocol.interior_columns).mean(-1)
    return torch.stack([discontinuity_score(panoramas), interior, seam_ratio(panoramas)], -1).cpu()


def _seam_summary(values: Float[Tensor, "n 3"]) -> dict[str, Any]:
    names = ("discontinuity", "interior_discontinuity", "seam_ratio")
    return {name: _summary(column) for name, column in zip(names, values.unbind(-1), strict=True)}


def _psnr(fake: Path | Tensor, real: Path | Tensor, camera: Tensor, device: torch.device | str) -> Float[Tensor, ""]:
    image, truth = (next(_read([item], device)) for item in (fake, real))
    if image.shape != truth.shape:
        raise ValueError(f"The masked PSNR needs pairs of one size; got {tuple(image.shape[-2:])} and {tuple(truth.shape[-2:])}.")
    return masked_psnr(image[None], truth[None], visibility_mask(camera[None], image.shape[-2]).to(device))[0].cpu()


def _listing(images: Images) -> list[Path | Tensor]:
    if isinstance(images, (str, Path)):
        return list(list_images(images))
    if not images:
        raise ValueError("There are no panoramas to evaluate; give a folder or a list of files or tensors.")
    return [item if isinstance(item, Tensor) else Path(item) for item in images]


def _read(items: Sequence[Path | Tensor], device: torch.device | str) -> Iterator[Float[Tensor, "3 height width"]]:
    for index, item in enumerate(items):
        panorama = item if isinstance(item, Tensor) else read_image(item)
        try:
            yield check_panorama(panorama).to(device).float()
        except ValueError as error:
            raise ValueError(f"{item if isinstance(item, Path) else f'Panorama {index}'}: {error}") from error


def _check_pairs(fake: list[Path | Tensor], real: list[Path | Tensor], cameras_deg: Tensor | None) -> None:
    if cameras_deg is None:
        return
    if not len(fake) == len(real) == len(cameras_deg):
        raise ValueError(
            f"With cameras, panoramas must pair up; got {len(fake)} generated, {len(real)} reference and {len(cameras_deg)} cameras."
        )
    for a, b in zip(fake, real, strict=True):
        if isinstance(a, Path) and isinstance(b, Path) and a.stem != b.stem:
            raise ValueError(f"Generated and reference files must pair up by name; got {a.name} with {b.name}.")


def _described(encoder: Encoder) -> dict[str, Any]:
    describe = getattr(encoder, "description", None)
    return {"encoder": describe() if describe is not None else {"model": getattr(encoder, "__name__", type(encoder).__name__)}}


def _notes(measured: dict[str, _Measured], fake: list[Path | Tensor], real: list[Path | Tensor], protocol: EvaluationProtocol) -> list[str]:
    notes = []
    other = measured["generated"].sizes - {protocol.panorama_size}
    if other:
        notes.append(f"generated panoramas of {sorted(other)} instead of the protocol's {protocol.panorama_size}")
    if any(isinstance(item, Path) and item.suffix.lower() in (".jpg", ".jpeg") for item in fake):
        notes.append("generated panoramas were read from JPEG: their discontinuity score and seam ratio measure the compression too")
    if real and min(len(fake), len(real)) * protocol.views < FEW_SAMPLES:
        notes.append(f"fewer than {FEW_SAMPLES} views: Fréchet distances are biased upwards, compare them at equal numbers only")
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return notes


def _not_computed(protocol: EvaluationProtocol, result: dict[str, Any], real: list[Any]) -> dict[str, str]:
    """Why each metric of the protocol that is not in the result is not."""
    feature = "no feature encoder was given" if real else "no reference panoramas were given"
    reasons = {
        "frechet": feature,
        "kernel": feature,
        "omni_frechet": feature,
        "faed": "no panorama encoder was given" if real else feature,
        "masked_psnr": "no cameras were given",
        "masked_lpips": "no spatial distance was given",
        "clip_score": "needs the captions and a text encoder; not measured here",
        "fvd": "needs an I3D network; not measured here",
        "vbench": "needs the networks of VBench; not measured here",
    }
    of_encoders = {"frechet", "kernel", "omni_frechet"} if result.get("encoders") else set()
    done = of_encoders | set(result) | ({"discontinuity", "seam_ratio"} if "seam" in result else set())
    return {metric: reasons[metric] for metric in protocol.metrics if metric not in done}


def _summary(values: Float[Tensor, " n"]) -> dict[str, float | None]:
    return {"mean": _number(float(values.double().mean())), "median": _number(float(values.double().quantile(0.5)))}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
