"""Image and video generators that are passed in: text -> image, (image, text) -> frames, text -> frames.

A generator is any function of these forms; the adapters here make them from Diffusers pipelines, for example::

    from diffusers import WanImageToVideoPipeline

    pipeline = WanImageToVideoPipeline.from_pretrained("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", torch_dtype=torch.bfloat16)
    pipeline.enable_model_cpu_offload()
    frames = image_to_video(pipeline, num_frames=16)(image, "the dragon flaps its wings")

The procedural ones move and draw without a network: they stand in for a model in tests and demonstrations and do not understand text.
"""

import math
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.media.images import resize, to_image_tensor

TextToImage = Callable[[str], Float[Tensor, "3 height width"]]
ImageToVideo = Callable[[Float[Tensor, "3 height width"], str], Float[Tensor, "frames 3 new_height new_width"]]
TextToVideo = Callable[[str], Float[Tensor, "frames 3 height width"]]

OBJECT_PROMPT = "{text}, the whole object in view, centred, on a plain white background"
"""Wording around a text so that the object can be cut out of the picture (our choice)."""
WAN_AREA = 480 * 832
"""Pixels of a frame that Wan's 480P models were trained on."""


def load_text_to_image(name: str, **options: Any) -> Any:
    """A Diffusers text-to-image pipeline from a hub id or folder; ``options`` such as torch_dtype and revision go to it."""
    from diffusers import AutoPipelineForText2Image

    return AutoPipelineForText2Image.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)


def load_image_to_video(name: str, **options: Any) -> Any:
    """``WanImageToVideoPipeline`` from a hub id or folder; ``options`` such as torch_dtype and revision go to it."""
    from diffusers import WanImageToVideoPipeline

    return WanImageToVideoPipeline.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)


def load_text_to_video(name: str, **options: Any) -> Any:
    """``WanPipeline`` from a hub id or folder; ``options`` such as torch_dtype and revision go to it."""
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)


def text_to_image(pipeline: Callable[..., Any], *, seed: int = 44, prompt: str = OBJECT_PROMPT, **options: Any) -> TextToImage:
    """A text-to-image generator from a Diffusers pipeline.

    Args:
        pipeline: such as ``AutoPipelineForText2Image`` gives.
        seed: of every image; the same text gives the same image.
        prompt: wording around the text, with ``{text}`` in it.
        options: such as height, width, num_inference_steps, guidance_scale, negative_prompt; they go to the pipeline's call.

    Raises:
        ModuleNotFoundError: a pipeline that cleans texts with ftfy, which is not there.
        ValueError: a wording without ``{text}``; when called, an empty text or a pipeline that gives no image.

    Source: ActionMesh brief, 2.11.
    """
    if "{text}" not in prompt:
        raise ValueError(f"The wording of a prompt holds {{text}}, where the text goes; got {prompt!r}.")

    _check_text_cleaner(pipeline)

    def generate(text: str) -> Float[Tensor, "3 height width"]:
        output = pipeline(prompt=prompt.replace("{text}", _checked_text(text)), generator=_generator(seed), output_type="np", **options)
        return _checked_pixels(_first_of(output, "images")[None], pipeline)[0]

    return generate


def image_to_video(
    pipeline: Callable[..., Any],
    *,
    num_frames: int = 16,
    stride: int = 1,
    seed: int = 44,
    area: int = WAN_AREA,
    **options: Any,
) -> ImageToVideo:
    """A video generator that starts from a picture, from a Diffusers pipeline such as ``WanImageToVideoPipeline``.

    The picture keeps its aspect ratio to a step of the pipeline's grid. Pipelines of the Wan kind make 4k + 1 frames: the next such
    number is asked for and the rest is left out.

    Args:
        pipeline: called with image, prompt, height, width, num_frames, generator.
        num_frames: of the result.
        stride: every how manieth generated frame is kept; larger values show more of the motion.
        seed: of every video.
        area: pixels of a frame, about.
        options: such as num_inference_steps, guidance_scale, negative_prompt; they go to the pipeline's call.

    Raises:
        ModuleNotFoundError: a pipeline that cleans texts with ftfy, which is not there.
        ValueError: fewer than 2 frames or a stride below 1; when called, an empty text, a picture that is none, or a pipeline that gives
            too few frames or values that are not finite.

    Source: ActionMesh brief, 2.11.
    """
    _check_text_cleaner(pipeline)
    wanted = _frames_to_ask(pipeline, num_frames, stride)

    def generate(image: Float[Tensor, "3 height width"], text: str) -> Float[Tensor, "frames 3 new_height new_width"]:
        start = to_image_tensor(image)
        height, width = grid_size((start.shape[-2], start.shape[-1]), area, _grid_step(pipeline))
        output = pipeline(
            image=resize(start, (height, width))[None],
            prompt=_checked_text(text),
            height=height,
            width=width,
            num_frames=wanted,
            generator=_generator(seed),
            output_type="np",
            **options,
        )
        return _every(_checked_pixels(_first_of(output, "frames"), pipeline), num_frames, stride)

    return generate


def text_to_video(
    pipeline: Callable[..., Any],
    *,
    num_frames: int = 16,
    stride: int = 1,
    seed: int = 44,
    prompt: str = OBJECT_PROMPT,
    **options: Any,
) -> TextToVideo:
    """A text-to-video generator from a Diffusers pipeline such as ``WanPipeline``; see :func:`image_to_video` for the arguments.

    Args:
        prompt: wording around the text, with ``{text}`` in it.
        pipeline, num_frames, stride, seed, options: see :func:`image_to_video`; height and width are options.

    Raises:
        ValueError: see :func:`image_to_video`; also a wording without ``{text}``.

    Source: ActionMesh brief, 2.11.
    """
    if "{text}" not in prompt:
        raise ValueError(f"The wording of a prompt holds {{text}}, where the text goes; got {prompt!r}.")
    _check_text_cleaner(pipeline)
    wanted = _frames_to_ask(pipeline, num_frames, stride)

    def generate(text: str) -> Float[Tensor, "frames 3 height width"]:
        words = prompt.replace("{text}", _checked_text(text))
        output = pipeline(prompt=words, num_frames=wanted, generator=_generator(seed), output_type="np", **options)
        return _every(_checked_pixels(_first_of(output, "frames"), pipeline), num_frames, stride)

    return generate


def grid_size(size: tuple[int, int], area: int, step: int) -> tuple[int, int]:
    """Height and width with the aspect ratio of ``size``, about ``area`` pixels, and both multiples of ``step``."""
    height = math.sqrt(area * size[0] / size[1])
    width = area / height
    return max(step, round(height / step) * step), max(step, round(width / step) * step)


def _grid_step(pipeline: Any) -> int:
    """Pixels of a token: the autoencoder's stride times the transformer's patch, or 16, or both: Wan's pipelines ask for 16."""
    model = getattr(pipeline, "transformer", None) or getattr(pipeline, "transformer_2", None)
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    stride = getattr(pipeline, "vae_scale_factor_spatial", None)
    if patch is None or stride is None:
        return 16
    return math.lcm(16, int(stride) * int(patch[-1] if isinstance(patch, list | tuple) else patch))


def _check_text_cleaner(pipeline: Any) -> None:
    """Wan's pipelines clean texts with ftfy, which is optional, and without it fail in the middle of a call with a NameError."""
    module = sys.modules[type(pipeline).__module__]
    if hasattr(module, "basic_clean") and not hasattr(module, "ftfy"):
        raise ModuleNotFoundError(f"{type(pipeline).__name__} needs ftfy to clean texts; install it: pip install 'visiongraft[generators]'")


def _frames_to_ask(pipeline: Any, num_frames: int, stride: int) -> int:
    if num_frames < 2 or stride < 1:
        raise ValueError(f"A video has at least 2 frames and a stride of 1 or more; got num_frames={num_frames}, stride={stride}.")
    needed, step = (num_frames - 1) * stride + 1, int(getattr(pipeline, "vae_scale_factor_temporal", 1))
    return math.ceil((needed - 1) / step) * step + 1


def _every(frames: Float[Tensor, "made 3 height width"], num_frames: int, stride: int) -> Float[Tensor, "frames 3 height width"]:
    chosen = frames[::stride][:num_frames]
    if len(chosen) < num_frames:
        raise ValueError(f"The video generator gave {len(frames)} frames, too few for {num_frames} frames at a stride of {stride}.")
    return chosen


def _first_of(output: Any, name: str) -> Any:
    """The first picture or video of a pipeline's output."""
    batch = getattr(output, name, None)
    if batch is None or len(batch) == 0:
        raise ValueError(f"The generator gave {type(output).__name__} without {name}; pass a Diffusers pipeline that makes {name}.")
    return batch[0]


def _checked_pixels(frames: Any, pipeline: Any) -> Float[Tensor, "frames 3 height width"]:
    pixels = torch.as_tensor(np.asarray(frames), dtype=torch.float32)
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(
            f"The generator {type(pipeline).__name__} gave pictures of shape {tuple(pixels.shape[1:])}, not height x width x 3."
        )
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError(f"The generator {type(pipeline).__name__} gave values that are not finite; run it in bfloat16 or float32.")
    return pixels.clamp(0, 1).permute(0, 3, 1, 2).contiguous()


def _checked_text(text: str) -> str:
    if not text.strip():
        raise ValueError("The text is empty; say what is to be seen or how it moves.")
    return text.strip()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def procedural_image(side: int = 128) -> TextToImage:
    """Stands in for a text-to-image model: a shaded ellipsoid with a fin before white. The text only seeds its form and colour."""

    def generate(text: str) -> Float[Tensor, "3 side side"]:
        rng = np.random.default_rng(zlib.crc32(_checked_text(text).encode()))
        rows, columns = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
        colour, (wide, high) = rng.uniform(0.1, 0.7, 3), rng.uniform(0.35, 0.6, 2)
        height = 1 - (columns / wide) ** 2 - (rows / high) ** 2
        fin = (np.abs(columns - 0.1) < 0.08) & (rows < 0) & (rows > -0.8)
        shade = np.where(height > 0, 0.55 + 0.45 * np.sqrt(np.clip(height, 0, 1)), 0.5)
        picture = np.where(((height > 0) | fin)[..., None], shade[..., None] * colour, 1.0)
        return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1).contiguous()

    return generate


def procedural_video(num_frames: int = 16, *, swing_deg: float = 25.0) -> ImageToVideo:
    """Stands in for an image-to-video model: the picture swings about its middle once and comes back. The text is not understood.

    The first frame is the picture itself. What turns in from outside is white.

    Args:
        num_frames: of the result.
        swing_deg: largest angle.

    Raises:
        ValueError: fewer than 2 frames.
    """
    wanted = _frames_to_ask(None, num_frames, 1)

    def generate(image: Float[Tensor, "3 height width"], text: str) -> Float[Tensor, "frames 3 height width"]:
        _checked_text(text)
        start = to_image_tensor(image)
        height, width = start.shape[-2:]
        angles = math.radians(swing_deg) * torch.sin(2 * math.pi * torch.arange(wanted) / wanted)
        cos, sin, zero = angles.cos(), angles.sin(), torch.zeros(wanted)
        # in units of half a side, so that the turn is one in pixels
        rows = [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), [wanted, 3, height, width], align_corners=False)
        turned = 1 + F.grid_sample(start.expand(wanted, -1, -1, -1) - 1, grid, mode="bilinear", align_corners=False)
        return torch.cat([start[None], turned[1:]]).clamp(0, 1)

    return generate
