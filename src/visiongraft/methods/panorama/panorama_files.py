"""Verbs on files of panoramas: seams measured, perspective views cut, videos levelled."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from visiongraft.geometry.panoramas import check_panorama, rotate_panorama
from visiongraft.media.files import append_jsonl, ensure_writable_folder
from visiongraft.media.images import list_images, read_image, save_image
from visiongraft.media.spherical import SphericalVideo
from visiongraft.media.video import VIDEO_SUFFIXES, VideoInfo, iter_video, probe_video
from visiongraft.media.video_writing import video_writer
from visiongraft.methods.panorama.canonicalisation import PYRAMID, align_frames, canonical_turns, up_from_pitch_roll
from visiongraft.methods.panorama.crops import CropConfig, export_crops
from visiongraft.methods.panorama.seam_check import check_seam, seam_picture

if TYPE_CHECKING:
    from visiongraft.methods.panorama.commands import CanonicaliseOptions, CropsOptions, SeamCheckOptions


def check_files(options: "SeamCheckOptions") -> int:
    """Prints a sentence on the seam of each panorama, and writes numbers and pictures where asked to."""
    if options.output is not None:
        (ensure_writable_folder(options.output) / "seams.jsonl").unlink(missing_ok=True)
    files = list_images(options.panoramas)
    stems = Counter(file.stem for file in files)
    for file in files:
        panorama = _read_panorama(file)
        report = check_seam(panorama)
        interior = sum(report.interior_scores) / len(report.interior_scores)
        print(f"{file}: {report.verdict} Discontinuity score {report.score:.2f}, at interior columns {interior:.2f}.")
        if file.suffix.lower() in (".jpg", ".jpeg"):
            print(f"{file}: a JPEG; its compression disturbs these numbers.")
        if options.output is not None:
            append_jsonl(options.output / "seams.jsonl", {"file": str(file), **json.loads(json.dumps(asdict(report)))})
            name = file.stem if stems[file.stem] == 1 else f"{file.stem}_{file.suffix[1:]}"
            save_image(seam_picture(panorama), options.output / f"{name}_seam.png")
    return 0


def export_file(options: "CropsOptions") -> int:
    """Writes the views of a panorama, or of every n-th frame of a video."""
    if not options.panorama.is_file():
        raise FileNotFoundError(f"There is no panorama {options.panorama}.")
    video = options.panorama.suffix.lower() in VIDEO_SUFFIXES
    config = CropConfig(
        layout=options.layout,
        views=options.views,
        hfov_deg=options.hfov_deg,
        pitch_deg=options.pitch_deg,
        size=options.size,
        every=options.every if video else 1,
    )
    frames = _frames(options.panorama, _probe_panorama(options.panorama), "cut") if video else iter([_read_panorama(options.panorama)])
    written = export_crops(frames, options.output, config)
    print(f"{options.output}: {len(written)} views with their cameras.")
    return 0


def canonicalise_file(options: "CanonicaliseOptions") -> int:
    """Writes a panorama video at rest and upright, without its sound; reads it twice, so that few frames are held at once."""
    output = options.output or options.video.with_name(f"{options.video.stem}_level.mp4")
    if output.resolve() == options.video.resolve():
        raise ValueError(f"The levelled video would overwrite the input {options.video}; choose another --output.")
    info = _probe_panorama(options.video)
    if info.has_audio:
        print(f"{options.video}: its sound is left out of {output}.", file=sys.stderr)
    up = up_from_pitch_roll(options.pitch_deg, options.roll_deg) if options.pitch_deg or options.roll_deg else None
    # opened first, so that an output that cannot be written is refused before the alignment
    with video_writer(output, info.fps, spherical=SphericalVideo()) as writer:
        if options.stabilise:
            turns = canonical_turns(align_frames(_reduced_frames(options.video, info)).rotations, up)
        else:
            turns = repeat(canonical_turns(torch.eye(3)[None], up)[0])
        for frame, turn in zip(_frames(options.video, info, "turn"), turns, strict=options.stabilise):
            writer.write(rotate_panorama(frame[None], turn[None])[0].clamp(0, 1))
    print(output)
    return 0


def _read_panorama(file: Path) -> Float[Tensor, "3 height width"]:
    panorama = read_image(file, alpha="refuse")
    try:
        return check_panorama(panorama)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _probe_panorama(file: Path) -> VideoInfo:
    info = probe_video(file)
    try:
        check_panorama(torch.empty(info.height, info.width, device="meta"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return info


def _frames(file: Path, info: VideoInfo, doing: str) -> Iterator[Float[Tensor, "3 height width"]]:
    return iter(tqdm(iter_video(file), total=info.num_frames, desc=doing, unit="frame"))


def _reduced_frames(file: Path, info: VideoInfo) -> Float[Tensor, "frames 3 height width"]:
    """Of the size of the finest level at which :func:`align_frames` looks."""
    height = min(info.height, PYRAMID[-1])
    return torch.cat([F.interpolate(frame[None], (height, 2 * height), mode="area") for frame in _frames(file, info, "align")])
