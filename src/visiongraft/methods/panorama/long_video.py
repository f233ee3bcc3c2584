"""Videos longer than the weights were trained on, window by window; the windows' overlaps are given, not generated again.

Two things go wrong when latents are simply handed from window to window, and are taken care of here:

- every window puts the direction of its own first frame into the middle. That direction is looked up in the panorama that is there
  already, which is turned by it before it is handed over; the result is turned back.
- the first latent frame of a causal video VAE holds one frame, every other four. Latents of the middle of a clip are therefore none
  of the beginning of one: the overlapping pixel frames are encoded again, as a clip of their own.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from visiongraft.media.files import atomic_write
from visiongraft.media.images import Alpha
from visiongraft.methods.panorama.camera import estimate_track
from visiongraft.methods.panorama.clips import Frame, fit_clips, to_clips
from visiongraft.methods.panorama.video_pipeline import PanoramaVideoPipeline
from visiongraft.training.identity import weights_digest

YawEstimator = Callable[[Tensor, Tensor], float]
"""Maps a camera's frames (F, 3, h, w) and panorama frames (F, 3, H, 2H) of the same times, whose middle is where the camera looked
first, to the camera's yaw in the last of them, in degrees."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Frames that are generated together.

    Args:
        start: first frame.
        stop: frame behind the last one.
        shared: frames at the beginning that the windows before have made; 0 in the first window.
        known: the first of these, 4k+1 of them, which the window is given; up to three more are made again.
        fade: the last of the shared frames, over which old and new are cross-faded.
    """

    start: int
    stop: int
    shared: int = 0
    known: int = 0
    fade: int = 0


@dataclass(frozen=True, kw_only=True)
class LongVideo:
    """A panorama video with the middle in the direction of its first frame.

    Args:
        pixels: 8-bit, as windows are kept and videos written.
        windows: how it was made.
        yaw_deg: of each window's first frame, from the direction of the video's.
    """

    pixels: UInt8[Tensor, "frames 3 height width"]
    windows: tuple[Window, ...]
    yaw_deg: tuple[float, ...]

    def frames(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "part 3 height width"]:
        """Some frames (default: all) in [0, 1]."""
        return self.pixels[start:stop].float() / 255


@dataclass(frozen=True, kw_only=True)
class JoinReport:
    """Change from frame to frame where two windows join, over that elsewhere; about 1 where nothing shows, NaN where nothing moves.

    Args:
        frame: first frame of the later window alone.
        mean_ratio: mean change over the cross-fade, over the mean elsewhere. Below 1: the fade blurs motion.
        peak_ratio: highest change over the cross-fade, over the highest elsewhere. Above 1: a jump.
    """

    frame: int
    mean_ratio: float
    peak_ratio: float


def default_overlap(num_frames: int, temporal_factor: int = 4) -> int:
    """About a fifth of a window: 17 frames of 81, 5 of 9, 1 of 5."""
    steps = (num_frames - 1) // temporal_factor
    return min(max(1, round(steps / 5)), max(0, steps - 1)) * temporal_factor + 1


def plan_windows(total: int, num_frames: int = 81, overlap: int = 17, temporal_factor: int = 4) -> tuple[Window, ...]:
    """Windows of equal length that cover a video.

    The last one ends with the video, and so may share more with the one before: the weights always see the length they were trained
    on. A video shorter than a window is one window.

    Args:
        total: frames of the video.
        num_frames: of a window, ``temporal_factor`` k + 1.
        overlap: frames that neighbours share at least, ``temporal_factor`` k + 1.
        temporal_factor: frames that a latent frame of the VAE covers.

    Raises:
        ValueError: lengths that are not of this form, an overlap that is not shorter than a window, or a video shorter than a window
            whose length is not of this form.

    Source: arXiv 2601.16192, clips of 81 frames; joining them is ours.
    """
    for name, value in (("num_frames", num_frames), ("overlap", overlap)):
        if value < 1 or value % temporal_factor != 1 % temporal_factor:
            example = {"num_frames": 20, "overlap": 4}[name] * temporal_factor + 1
            raise ValueError(f"{name} must be {temporal_factor}k+1 (e.g. {example}); got {value}.")
    if overlap >= num_frames:
        raise ValueError(f"overlap must be shorter than a window of {num_frames} frames; got {overlap}.")
    if total <= num_frames:
        if total < 1 or total % temporal_factor != 1 % temporal_factor:
            raise ValueError(
                f"A video that is shorter than a window of {num_frames} frames must have {temporal_factor}k+1 frames; got {total}. "
                f"Leave out the last {(total - 1) % temporal_factor}, or make windows shorter (num_frames)."
            )
        return (Window(start=0, stop=total),)
    windows = [Window(start=0, stop=num_frames)]
    while (covered := windows[-1].stop) < total:
        start = min(covered - overlap, total - num_frames)
        shared = covered - start
        known = (shared - 1) // temporal_factor * temporal_factor + 1
        windows.append(Window(start=start, stop=start + num_frames, shared=shared, known=known, fade=overlap))
    return tuple(windows)


def track_yaw(frames: Float[Tensor, "frames 3 h w"], panoramas: Float[Tensor, "frames 3 height width"], every: int = 4) -> float:
    """Yaw of the camera in the last frame in degrees, followed through every n-th frame from the middle of the panorama.

    Warns where the last frame is not found again: a window that joins there may not fit.
    """
    chosen = sorted({*range(0, len(frames), every), len(frames) - 1})
    track = estimate_track(frames[chosen], panoramas[chosen])
    if not track.reliable[-1]:
        warnings.warn(
            f"The frame where two windows join is not found in the panorama (correlation {float(track.ncc[-1]):.2f}); "
            "they may not fit. Look at the seam report, or join where less is in motion.",
            stacklevel=2,
        )
    return float(track.yaw_deg[-1])


@torch.no_grad()
def lift_long_video(
    pipeline: PanoramaVideoPipeline,
    video: Iterable[Frame],
    prompt: str = "",
    *,
    num_frames: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    estimate_yaw: YawEstimator = track_yaw,
    alpha: Alpha = "refuse",
    progress: bool = True,
    **options: Any,
) -> LongVideo:
    """A panorama video of any length.

    Windows are turned by whole pixels. A multiple of the latent stride is not needed, since turned frames are encoded anew, and would
    put the direction of the window's first frame up to half a token (2.8 degrees at 1024 columns) off the middle, where the weights
    expect it; half a pixel is 0.2 degrees.

    Args:
        pipeline: with its weights on their device, or offloading.
        video: frames of one video, in memory or from :func:`visiongraft.media.video.iter_video`. The middle square is taken.
        prompt: what the scene is; may be empty.
        num_frames: of a window; None: what the weights were trained on.
        overlap: frames that neighbouring windows share at least; None: :func:`default_overlap`.
        seed: of the noise; each window has its own.
        folder: where finished windows are kept. A run that was stopped goes on from them, with the same result; windows of other
            weights, LoRA or options are refused.
        estimate_yaw: finds the direction of a window's first frame in the panorama that is there already.
        alpha: what lies behind transparent pixels, or ``refuse``.
        progress: show a bar of windows (the pipeline shows one of steps).
        options: further arguments of the pipeline.

    Raises:
        ValueError: lengths that do not fit, options that long videos do not have, or a folder with windows of another run.
        InterruptedError: a callback stopped the pipeline; the window is not kept.

    Source: arXiv 2601.16192, clips of 81 frames; joining them is ours.
    """
    if refused := {"fit", "generator", "latents", "known_latents", "known_mask", "output_type", "return_dict"} & set(options):
        raise ValueError(f"A long video does not take {', '.join(sorted(refused))}; windows are cropped to squares, seed fixes the noise.")
    size = options.get("condition_size") or pipeline.graft.condition_size
    clip = torch.cat([fit_clips(to_clips([frame], alpha), size, multiple=pipeline.token_stride)[0].cpu() for frame in video])
    length, factor = num_frames or pipeline.graft.num_frames, pipeline.vae_scale_factor_temporal
    windows = plan_windows(len(clip), length, overlap or default_overlap(length, factor), factor)
    store = None if folder is None else Path(folder)
    if store is not None:
        _claim(store, _identity(pipeline, clip, windows, prompt=prompt, seed=seed, **options))
    height = options.get("height") or pipeline.graft.height
    pixels = torch.zeros(len(clip), 3, height, 2 * height, dtype=torch.uint8)
    shifts: list[int] = []
    for index, window in enumerate(tqdm(windows, desc="windows", disable=not progress)):
        path = None if store is None else store / f"window_{index:04d}.safetensors"
        if path is not None and path.is_file():
            saved = load_file(path)
            made, shift = saved["pixels"], int(saved["shift"])
        else:
            shift = 0
            if index:
                shift = shifts[-1] + _turn(estimate_yaw, clip, pixels, windows[index - 1].start, window.start, shifts[-1])
            # turned frames of before, encoded again as a clip of their own
            known = pixels[window.start : window.start + window.known].roll(-shift, -1)
            made = _make(pipeline, clip[window.start : window.stop], known, prompt, _seed(seed, index), options)
            if path is not None:
                with atomic_write(path) as temporary:
                    save_file({"pixels": made, "shift": torch.tensor(shift)}, temporary)
        shifts.append(shift)
        _join(pixels, made.roll(shift, -1), window)
    turns = (shift * 360 / (2 * height) for shift in shifts)
    return LongVideo(pixels=pixels, windows=windows, yaw_deg=tuple((turn + 180) % 360 - 180 for turn in turns))


def seam_report(frames: Sequence[Tensor] | Tensor, windows: Sequence[Window]) -> list[JoinReport]:
    """How much more (or less) frames change where windows join than elsewhere; one entry a join.

    Args:
        frames: (3, height, width) each, 8-bit or in [0, 1].
        windows: of :func:`plan_windows`.

    Raises:
        ValueError: frames of another number than the windows cover, or none outside the joins.
    """
    if len(frames) != windows[-1].stop:
        raise ValueError(f"The windows cover {windows[-1].stop} frames; got {len(frames)}.")
    changes = torch.stack([(frames[i + 1].float() - frames[i].float()).abs().mean() for i in range(len(frames) - 1)])
    joins = [slice(before.stop - after.fade - 1, before.stop) for before, after in pairwise(windows)]
    elsewhere = torch.ones(len(changes), dtype=torch.bool)
    for join in joins:
        elsewhere[join] = False
    if joins and not elsewhere.any():
        raise ValueError("Every frame lies in a join of windows, there is nothing to compare with; use longer windows or less overlap.")
    rest = changes[elsewhere]
    reports = []
    for join in joins:
        mean, peak = float(changes[join].mean() / rest.mean()), float(changes[join].max() / rest.max())
        reports.append(JoinReport(frame=join.stop, mean_ratio=mean, peak_ratio=peak))
    return reports


def _turn(estimate_yaw: YawEstimator, clip: Tensor, pixels: Tensor, first: int, last: int, shift: int) -> int:
    """Columns between the middles of the window that begins at ``first`` and of the one that begins at ``last``."""
    made = pixels[first : last + 1].roll(-shift, -1).float() / 255
    return round(estimate_yaw(clip[first : last + 1], made) / 360 * pixels.shape[-1])


def _make(
    pipeline: PanoramaVideoPipeline, clip: Tensor, known: UInt8[Tensor, "known 3 height width"], prompt: str, seed: int, options: Any
) -> UInt8[Tensor, "frames 3 height width"]:
    """A window's panorama, which begins with the known frames; the direction of its first frame is in the middle."""
    given: dict[str, Tensor] = {}
    if len(known):
        encoded = pipeline.encode_panorama(known[None].float() / 255)
        count = (len(clip) - 1) // pipeline.vae_scale_factor_temporal + 1
        latents = encoded.new_zeros(1, encoded.shape[1], count, *encoded.shape[3:])
        latents[:, :, : encoded.shape[2]] = encoded
        given = {"known_latents": latents, "known_mask": (torch.arange(count) < encoded.shape[2]).reshape(1, 1, -1, 1, 1)}
    generator = torch.Generator().manual_seed(seed)
    frames = pipeline(clip, prompt, generator=generator, output_type="pt", **given, **options).frames[0]
    if pipeline.interrupt:
        raise InterruptedError("A callback stopped the pipeline; this window is left out, finished windows are kept.")
    return (frames.clamp(0, 1) * 255).round().byte().cpu().contiguous()


def _join(pixels: UInt8[Tensor, "total 3 height width"], made: UInt8[Tensor, "frames 3 height width"], window: Window) -> None:
    """Writes a window into the video: what windows before it made stays, but for a linear cross-fade at its end."""
    covered = window.start + window.shared
    weights = torch.arange(1, window.fade + 1).reshape(-1, 1, 1, 1) / (window.fade + 1)
    faded = slice(covered - window.fade, covered)
    old, new = pixels[faded].float(), made[window.shared - window.fade : window.shared].float()
    pixels[faded] = old.lerp(new, weights).round().byte()
    pixels[covered : window.stop] = made[window.shared :]


def _seed(seed: int, index: int) -> int:
    """Independent seeds of the windows."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _identity(pipeline: PanoramaVideoPipeline, clip: Tensor, windows: Sequence[Window], **options: Any) -> dict[str, Any]:
    """What two runs must share for their windows to be the same, but for the text encoder and callbacks."""
    plain = {name: _digest(value) if isinstance(value, Tensor) else value for name, value in options.items() if not callable(value)}
    return {
        "video": _digest(clip),
        "windows": [asdict(window) for window in windows],
        "graft": pipeline.graft.to_dict(),
        "scheduler": {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")},
        "transformer": weights_digest(_weights(pipeline.transformer)),
        "vae": weights_digest(_weights(pipeline.vae)),
        "lora": _adapters(pipeline.transformer),
        **plain,
    }


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's state, read from where accelerate keeps it while it is offloaded."""
    unknown = 0
    for name, values in model.state_dict().items():
        if values.is_meta:
            module, _, last = name.rpartition(".")
            hook: Any = getattr(model.get_submodule(module), "_hf_hook", None)
            stores = [store for one in getattr(hook, "hooks", [hook]) if (store := getattr(one, "weights_map", None)) is not None]
            if stores:
                values = stores[-1][last]
            else:
                unknown += 1
                name, values = f"{name} {tuple(values.shape)}", torch.empty(0, dtype=values.dtype)
        yield name, values
    if unknown:
        warnings.warn(
            f"{unknown} weights of the {type(model).__name__} are on the meta device and are compared by shape and dtype only; "
            "use another folder for other weights.",
            stacklevel=2,
        )


def _adapters(model: nn.Module) -> list[str]:
    """How strongly each LoRA acts, which no state dict tells."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer) and not module.disable_adapters]
    return sorted({f"{name} {layer.scaling[name]:.6g}" for layer in layers for name in layer.active_adapters if name in layer.scaling})


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Makes a folder this run's own, or checks that it is."""
    path, identity = folder / "run.json", json.loads(json.dumps(identity, default=str))
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if other := sorted(name for name in {*earlier, *identity} if earlier.get(name) != identity.get(name)):
            raise ValueError(f"{folder} holds windows of another run ({', '.join(other)} differ); choose another folder or delete it.")
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
