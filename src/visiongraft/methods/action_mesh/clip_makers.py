"""Generators and mattings that the command line names: loaded from folders or hub ids, with a sentence where that fails."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.methods.action_mesh import generators
from visiongraft.methods.action_mesh.animate_options import AnimateOptions, MattingOptions
from visiongraft.methods.action_mesh.frames import prepare_frames
from visiongraft.methods.action_mesh.generators import ImageToVideo, TextToImage, TextToVideo
from visiongraft.methods.action_mesh.matting import Matting, matte_frames
from visiongraft.methods.action_mesh.matting_networks import SAM2_LARGE, RmbgMatting, Sam2Matting, load_sam2_video

_FAILURES = (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError)


class Clip:
    """Finds the object in frames, once, and keeps what the models saw of it."""

    def __init__(self, matting: str | Matting) -> None:
        self.matting = matting
        self.shown: Float[Tensor, "frames 3 side side"] | None = None

    def take(self, frames: Float[Tensor, "frames channels height width"]) -> Float[Tensor, "frames 4 height width"]:
        """Frames with the object's alpha.

        Raises:
            ValueError: see the matting and :func:`visiongraft.methods.action_mesh.frames.prepare_frames`.
        """
        rgba = matte_frames(frames, self.matting)
        self.shown = prepare_frames(rgba)
        return rgba

    def of(self, generate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A video generator whose frames come with their alpha."""
        return lambda *given: self.take(generate(*given))


def make_matting(options: MattingOptions, device: str) -> str | Matting:
    """The matting that is asked for.

    Raises:
        ValueError: a click or a model that is missing or that the matting does not take, or one that cannot be loaded.
    """
    if options.matting != "sam2" and (options.click is not None or options.click_frame):
        raise ValueError(f"--click and --click_frame are for --matting sam2, not for {options.matting}.")
    if options.matting not in ("sam2", "rmbg") and options.matting_model is not None:
        raise ValueError(f"--matting_model is for --matting sam2 or rmbg, not for {options.matting}.")
    if options.matting == "sam2":
        if options.click is None:
            raise ValueError("--matting sam2 follows an object that was clicked on: give --click '[u, v]' in pixels.")
        model = _loaded("SAM 2", options.matting_model or SAM2_LARGE, load_sam2_video)
        return Sam2Matting(model.to(device), options.click, frame=options.click_frame)
    if options.matting == "rmbg":
        return RmbgMatting(_own_network(options.matting_model))
    return "key" if options.matting == "keying" else options.matting


def _own_network(name: str | None) -> Any:
    """What a function of the user's own gives: RMBG's code is on its hub page and is not run from there."""
    module, _, function = (name or "").partition(":")
    if not function:
        raise ValueError(
            "RMBG-1.4's network is code on its hub page, which visiongraft does not run: write a function that loads it and give "
            "--matting_model package.module:function; or give --masks, a plain background (--matting keying) or --matting sam2."
        )
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, *_FAILURES) as error:
        raise ValueError(f"The matting model {name} cannot be loaded ({type(error).__name__}: {error}).") from error


def text_to_image(options: AnimateOptions) -> TextToImage:
    """The text-to-image generator that is named.

    Raises:
        ValueError: one that cannot be loaded.
    """
    pipeline = _pipeline("image generator", options.image_generator, generators.load_text_to_image, options)
    return generators.text_to_image(pipeline, seed=options.seed, **_sides(options), **_steps(options))


def image_to_video(options: AnimateOptions, num_frames: int) -> ImageToVideo:
    """The image-to-video generator that is named.

    Raises:
        ValueError: one that cannot be loaded, or fewer than 2 frames.
    """
    pipeline = _pipeline("video generator", options.video_generator, generators.load_image_to_video, options)
    area = generators.WAN_AREA if options.generator_size is None else options.generator_size**2
    return generators.image_to_video(
        pipeline, num_frames=num_frames, stride=options.generator_stride, seed=options.seed, area=area, **_steps(options)
    )


def text_to_video(options: AnimateOptions, num_frames: int) -> TextToVideo:
    """The text-to-video generator that is named.

    Raises:
        ValueError: one that cannot be loaded, or fewer than 2 frames.
    """
    pipeline = _pipeline("video generator", options.text_video_generator, generators.load_text_to_video, options)
    chosen: dict[str, Any] = {"num_frames": num_frames, "stride": options.generator_stride, "seed": options.seed}
    return generators.text_to_video(pipeline, **chosen, **_sides(options), **_steps(options))


def _sides(options: AnimateOptions) -> dict[str, Any]:
    return {} if options.generator_size is None else {"height": options.generator_size, "width": options.generator_size}


def _steps(options: AnimateOptions) -> dict[str, Any]:
    return {} if options.generator_steps is None else {"num_inference_steps": options.generator_steps}


def _pipeline(what: str, name: str | None, load: Callable[..., Any], options: AnimateOptions) -> Any:
    pipeline = _loaded(what, str(name), load, torch_dtype=getattr(torch, options.generator_dtype))
    if options.low_memory and options.device != "cpu":  # on a CPU all of it is in its memory anyhow
        pipeline.enable_model_cpu_offload(device=options.device)
        return pipeline
    return pipeline.to(options.device)


def _loaded(what: str, name: str, load: Callable[..., Any], **given: Any) -> Any:
    try:
        return load(name, **given)
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"The {what} {name} cannot be loaded ({lines[0].rstrip('.')}); give the folder or hub id of one.") from error
