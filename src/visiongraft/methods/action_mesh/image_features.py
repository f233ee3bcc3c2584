"""What the models see of a picture: the tokens of DINOv2, with the preparation of images that it was trained with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

DINOV2_LARGE = "facebook/dinov2-large"


@dataclass(frozen=True, kw_only=True)
class ImagePreparation:
    """How pictures are prepared for an image encoder: the shorter side resized (bicubic), a square cut from the middle, normalised.

    Args:
        shortest_edge: pixels of the shorter side after resizing.
        crop: side of the square in pixels, at most ``shortest_edge``.
        mean, std: of each colour in [0, 1].

    Raises:
        ValueError: a square larger than the picture.

    Source: ActionMesh brief, 2.9; the defaults are DINOv2's.
    """

    shortest_edge: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.shortest_edge:
            raise ValueError(f"A square of {self.crop} pixels cannot be cut from a shorter side of {self.shortest_edge}.")


DINOV2 = ImagePreparation()


def preparation_of(processor: Any) -> ImagePreparation:
    """The preparation that a Transformers ``BitImageProcessor`` describes; it is not called, since it may need torchvision.

    Raises:
        ValueError: a processor that prepares in another way.
    """
    size, crop = dict(processor.size or {}), dict(processor.crop_size or {})
    known = (
        all(getattr(processor, f"do_{step}") for step in ("resize", "center_crop", "rescale", "normalize"))
        and int(processor.resample) == int(Image.Resampling.BICUBIC)
        and bool(size.get("shortest_edge"))
        and bool(crop.get("height"))
        and crop.get("height") == crop.get("width")
        and abs(processor.rescale_factor - 1 / 255) < 1e-9
    )
    if not known:
        raise ValueError(
            f"The image processor {type(processor).__name__} (size {size}, crop_size {crop}, resample {processor.resample}) does not "
            "resize the shortest edge bicubically, cut a square from the middle and normalise; give DINOv2's BitImageProcessor."
        )
    return ImagePreparation(
        shortest_edge=size["shortest_edge"], crop=crop["height"], mean=tuple(processor.image_mean), std=tuple(processor.image_std)
    )


def prepare_images(
    images: Float[Tensor, "batch 3 height width"], preparation: ImagePreparation = DINOV2
) -> Float[Tensor, "batch 3 crop crop"]:
    """Normalised pixels for the encoder, equal to those of Transformers' image processor to float32 rounding.

    Pillow resizes with eight bits, as the encoder's own processor does: torch's bicubic filter differs by up to 20 steps of
    1/255 on noise. There is no gradient.

    Args:
        images: in [0, 1].
        preparation: see :class:`ImagePreparation`.
    """
    height, width = images.shape[-2:]
    shorter, edge = min(height, width), preparation.shortest_edge
    # the longer side is cut off, not rounded
    size = (int(edge * width / shorter) if width > height else edge, int(edge * height / shorter) if height > width else edge)
    left, top = (size[0] - preparation.crop) // 2, (size[1] - preparation.crop) // 2
    bytes_ = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    cut = [
        np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))[
            top : top + preparation.crop, left : left + preparation.crop
        ]
        for pixels in bytes_
    ]
    pixels = torch.from_numpy(np.stack(cut)).to(images.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (preparation.mean, preparation.std))
    return (pixels - mean) / std


@torch.no_grad()
def image_features(
    encoder: nn.Module, images: Float[Tensor, "batch 3 height width"], preparation: ImagePreparation = DINOV2, *, chunk: int = 16
) -> Float[Tensor, "batch tokens channels"]:
    """Tokens of pictures: the last hidden state, the class token first, after the encoder's final LayerNorm.

    Args:
        encoder: Transformers' ``Dinov2Model``, or a model with the same call; its device and dtype are kept.
        images: in [0, 1], as :func:`visiongraft.methods.action_mesh.frames.prepare_frames` gives them.
        preparation: see :class:`ImagePreparation`.
        chunk: pictures encoded at a time.

    Returns:
        In the encoder's dtype and on its device; for DINOv2-large 257 tokens of 1024.

    Raises:
        ValueError: tokens that are not finite.

    Source: ActionMesh brief, 2.9.
    """
    parameter = next(encoder.parameters())
    tokens = [
        encoder(pixel_values=prepare_images(part, preparation).to(parameter.device, parameter.dtype)).last_hidden_state
        for part in images.split(chunk)
    ]
    features = torch.cat(tokens)
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"The image encoder gave values that are not finite in {parameter.dtype}; run it in float32.")
    return features


def load_image_encoder(name: str = DINOV2_LARGE, **options: Any) -> Any:
    """``Dinov2Model`` from a hub id or folder, in eval mode; ``options`` such as dtype, revision, device_map go to ``from_pretrained``."""
    from transformers import Dinov2Model

    return Dinov2Model.from_pretrained(name, use_safetensors=True, **options).eval()
