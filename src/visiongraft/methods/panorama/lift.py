"""The verbs ``lift`` and ``camera``: from a file to a panorama with its metadata and viewer, or to a camera."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from visiongraft.media.files import append_jsonl, ensure_writable_folder, read_jsonl
from visiongraft.media.gpano import save_panorama
from visiongraft.media.images import center_square, image_format, list_images, read_image
from visiongraft.media.spherical import SphericalVideo
from visiongraft.media.video import VIDEO_SUFFIXES, iter_video, probe_video, read_video
from visiongraft.media.video_writing import write_video
from visiongraft.methods.panorama.camera import CameraEstimates, SearchConfig, estimate_cameras, median_cameras
from visiongraft.methods.panorama.composite import composite
from visiongraft.methods.panorama.long_video import lift_long_video, seam_report
from visiongraft.methods.panorama.released import load
from visiongraft.methods.panorama.viewer import MAX_EMBEDDED_BYTES, write_viewer

if TYPE_CHECKING:
    from visiongraft.methods.panorama.commands import CameraOptions, LiftOptions, Weights

_SMALL_NOTE = (
    "Made with the bundled small weights: 64 x 128 pixels, trained for minutes on procedural rooms, streets, landscapes and tabletops. "
    "They show that everything works, not what a photograph deserves; --weights takes a trained graft."
)


def lift_file(options: "LiftOptions") -> int:
    """Lifts a photo or a video by its file's kind; says which weights were used and what was written."""
    source = options.input
    if not source.is_file():
        raise FileNotFoundError(f"There is no photo or video {source}.")
    video = source.suffix.lower() in VIDEO_SUFFIXES
    output = options.output or source.with_name(f"{source.stem}_360{'.mp4' if video else '.jpg'}")
    if output.resolve() == source.resolve():
        raise ValueError(f"The panorama would overwrite the input {source}; choose another --output.")
    ensure_writable_folder(output.parent)
    return (_lift_video if video else _lift_photo)(options, output)


def load_weights(options: "Weights", video: bool) -> Any:
    """The pipeline that the options name, where they want it."""
    name = "small-video" if options.weights == "small" and video else options.weights
    device = None if options.offload != "none" else options.device
    mode = "video" if video else "image"
    pipeline: Any = load(name, torch_dtype=getattr(torch, options.dtype), device=device, mode=mode, lora=options.lora)
    if options.offload != "none":
        {"model": pipeline.enable_model_cpu_offload, "sequential": pipeline.enable_sequential_cpu_offload}[options.offload](
            device=options.device
        )
    return pipeline


def weights_note(options: "Weights") -> str:
    """A sentence on the weights."""
    return _SMALL_NOTE if options.weights in ("small", "small-video") else f"Made with {options.weights}."


def _read_photo(path: Path, alpha: str | None) -> Float[Tensor, "3 height width"]:
    return read_image(path, alpha=alpha or "refuse")  # pyright: ignore[reportArgumentType]


def _lift_photo(options: "LiftOptions", output: Path) -> int:
    image_format(output)  # refuses other endings before anything is loaded
    _check_condition_scale(options)
    if options.cfg != "joint" and options.guidance_scale is None:
        raise ValueError(f"cfg {options.cfg} needs a --guidance_scale, such as 3; without one photos are lifted without further passes.")
    if options.long or options.frames is not None:
        raise ValueError(f"long and frames are for videos; {options.input} is a photo.")
    photo = _read_photo(options.input, options.alpha)
    pipeline = load_weights(options, video=False)
    print(weights_note(options), file=sys.stderr)
    guidance: dict[str, Any] = {}
    if options.guidance_scale is not None:
        # a guidance-distilled base takes the scale as an input; others need a second pass
        distilled = pipeline.transformer.config.guidance_embeds and options.cfg == "joint"
        guidance["guidance_scale" if distilled else "true_cfg_scale"] = options.guidance_scale
    panorama = (
        pipeline(
            photo,
            options.prompt,
            height=options.height,
            fit=options.fit,
            num_inference_steps=options.steps,
            cfg=options.cfg,
            condition_scale=options.condition_scale,
            generator=torch.Generator().manual_seed(options.seed),
            output_type="pt",
            **guidance,
        )
        .images.float()
        .cpu()
    )
    used = photo if options.fit == "keep" else center_square(photo)
    camera = estimate_cameras(used[None], panorama) if options.camera or options.composite else None
    if options.composite and camera is not None:
        if bool(camera.reliable):
            panorama = composite(panorama, used[None], camera)
        else:
            print("The input is not found again in the panorama; it is not pasted in.", file=sys.stderr)
    save_panorama(panorama[0], output)
    print(output)
    note = weights_note(options)
    if camera is not None:
        text = camera_text(of_whole_photo(camera, photo, used))
        print(text, file=sys.stderr)
        note += f" Camera of the photo: {text}"
    if options.viewer:
        print(write_viewer(output, output.with_suffix(".html"), title=options.prompt or options.input.stem, note=note))
    return 0


def of_whole_photo(camera: CameraEstimates, photo: Float[Tensor, "3 height width"], part: Tensor) -> CameraEstimates:
    """The cameras with the field of view of the photo whose middle part was found; pixels and axes are the same."""
    tangent = (camera.hfov / 2).tan() * (photo.shape[-1] / part.shape[-1])
    return replace(camera, hfov_deg=(2 * tangent.atan()).rad2deg())


def _check_condition_scale(options: "LiftOptions") -> None:
    if options.condition_scale != 1 and options.cfg != "two":
        raise ValueError(f"condition_scale {options.condition_scale:g} takes part in --cfg two only; got cfg {options.cfg}.")


def camera_text(camera: CameraEstimates, index: int = 0) -> str:
    """One camera in words."""
    values = {name: float(getattr(camera, name)[index]) for name in ("hfov_deg", "pitch_deg", "roll_deg", "ncc")}
    doubt = "" if bool(camera.reliable[index]) else "; unreliable, the panorama does not repeat the input"
    return (
        f"field of view {values['hfov_deg']:.1f}, pitch {values['pitch_deg']:.1f}, roll {values['roll_deg']:.1f} degrees "
        f"(correlation {values['ncc']:.2f}{doubt})."
    )


def _lift_video(options: "LiftOptions", output: Path) -> int:
    if output.suffix.lower() not in (".mp4", ".m4v", ".mov"):
        raise ValueError(f"A panorama video is written as .mp4, .m4v or .mov; got {output.name}.")
    if output.suffix.lower() == ".mov" and options.viewer:
        raise ValueError("Browsers do not show .mov; write an .mp4, or leave the viewer out (--viewer false).")
    _check_condition_scale(options)
    if options.composite:
        raise ValueError("composite pastes a photo into its panorama; leave it out for videos.")
    if options.long and options.fit != "crop":
        raise ValueError("Windows of a long video are cropped to squares; leave fit out.")
    if not 0 < options.fps < float("inf"):
        raise ValueError(f"fps must be positive; got {options.fps:g}.")
    windows = output.with_name(f".{output.stem}-windows")
    probe_video(options.input)  # refuses what is no video before anything is loaded
    pipeline = load_weights(options, video=True)
    print(weights_note(options), file=sys.stderr)
    common: dict[str, Any] = {
        "height": options.height,
        "alpha": options.alpha or "refuse",
        "num_inference_steps": options.steps,
        "cfg": options.cfg,
        "condition_scale": options.condition_scale,
        **({} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}),
    }
    num_frames = options.frames or pipeline.graft.num_frames
    if options.long:
        lifted = lift_long_video(
            pipeline,
            iter_video(options.input, options.fps),
            options.prompt,
            num_frames=num_frames,
            seed=options.seed,
            folder=windows,
            **common,
        )
        frames: Tensor = lifted.pixels
        for join in seam_report(frames, lifted.windows):
            print(f"Windows join at frame {join.frame}: change {join.mean_ratio:.2f} of that elsewhere.", file=sys.stderr)
    else:
        clip = _first_frames(options, num_frames)
        generator = torch.Generator().manual_seed(options.seed)
        frames = pipeline(clip, options.prompt, fit=options.fit, generator=generator, output_type="pt", **common).frames[0].float().cpu()
    write_video(frames, output, options.fps, spherical=SphericalVideo())
    if options.long:  # what a stopped run would have continued from
        shutil.rmtree(windows)
    print(output)
    if options.viewer:
        page, large = output.with_suffix(".html"), output.stat().st_size > MAX_EMBEDDED_BYTES
        print(write_viewer(output, page, title=options.prompt or options.input.stem, note=weights_note(options), embed=not large))
    return 0


def _first_frames(options: "LiftOptions", num_frames: int) -> Float[Tensor, "frames 3 height width"]:
    info = probe_video(options.input)
    available = round(info.duration * options.fps)
    if available < num_frames:
        raise ValueError(
            f"{options.input} has {available} frames at {options.fps:g} fps; {num_frames} are needed. Give a longer video, a higher --fps, "
            "or fewer --frames (4k+1)."
        )
    if available > num_frames:
        print(
            f"Lifting the first {num_frames} of {available} frames at {options.fps:g} fps; --long true lifts all of them.",
            file=sys.stderr,
        )
    return read_video(options.input, options.fps, num_frames=num_frames)


def estimate_files(options: "CameraOptions") -> int:
    """Estimates the cameras of photos, through given or generated panoramas; with an output file, goes on where it stopped."""
    files = list_images(options.images)
    if options.samples < 1:
        raise ValueError(f"samples must be at least 1; got {options.samples}.")
    settings = {name: str(value) for name, value in asdict(options).items() if name not in ("images", "output", "device", "offload")}
    done = set()
    if options.output is not None:
        ensure_writable_folder(options.output.parent)
        rows = read_jsonl(options.output) if options.output.is_file() else []
        if any(row.get("settings") != settings for row in rows):
            raise ValueError(f"{options.output} holds cameras of another run (its options differ); choose another --output.")
        done = {row["file"] for row in rows}
    search = SearchConfig(yaw_half_range_deg=options.yaw_deg)
    todo = [file for file in files if str(file) not in done]
    for file, camera in zip(todo, _cameras(options, todo, search), strict=True):
        print(f"{file}: {camera_text(camera)}")
        if options.output is not None:
            values = {field.name: getattr(camera, field.name)[0].item() for field in fields(camera)}
            append_jsonl(options.output, {"file": str(file), **values, "settings": settings})
    return 0


def _cameras(options: "CameraOptions", files: list[Path], search: SearchConfig) -> Iterator[CameraEstimates]:
    if options.panorama is not None:
        panorama = _read_photo(options.panorama, None)[None]
        for file in tqdm(files, desc="cameras", unit="photo", disable=len(files) < 2):
            yield estimate_cameras(_read_photo(file, options.alpha)[None], panorama, search)
        return
    if not files:
        return
    pipeline = load_weights(options, video=False)
    pipeline.set_progress_bar_config(disable=len(files) > 1)
    print(weights_note(options), file=sys.stderr)
    for file in tqdm(files, desc="cameras", unit="photo", disable=len(files) < 2):
        photo = _read_photo(file, options.alpha)
        square = center_square(photo)
        generators = [torch.Generator().manual_seed(options.seed + k) for k in range(options.samples)]
        panoramas = pipeline(
            photo, num_inference_steps=options.steps, num_images_per_prompt=options.samples, generator=generators, output_type="pt"
        ).images
        estimates = estimate_cameras(square.expand(options.samples, -1, -1, -1), panoramas.float().cpu(), search)
        yield of_whole_photo(median_cameras([one_camera(estimates, k) for k in range(options.samples)]), photo, square)


def one_camera(estimates: CameraEstimates, index: int) -> CameraEstimates:
    """One of several estimates."""
    return CameraEstimates(**{name: values[index, None] for name, values in vars(estimates).items()})
