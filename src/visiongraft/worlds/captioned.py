"""A captioned mixture of real scanned digits, procedural shapes and crops of photographs: what the small CLIP is trained on."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.worlds.scans import DIGITS, PHOTOGRAPHS, photograph_crops, scanned_digits
from visiongraft.worlds.shapes import SHAPES, coloured_shapes

CLASS_PROMPTS: tuple[str, ...] = (
    *(f"a scanned digit {name}" for name in DIGITS),
    *(f"a {name}" for name in SHAPES),
    *(f"a photograph of the {name}" for name in PHOTOGRAPHS),
)
FIRST_SHAPE, FIRST_PHOTOGRAPH = len(DIGITS), len(DIGITS) + len(SHAPES)
_HELD_OUT_SEED = 10_000_019  # shapes and crops for evaluation never share a seed with training


@dataclass(frozen=True)
class CaptionedImages(Dataset):
    """Images in memory with a class (an index of ``CLASS_PROMPTS``) and a caption each."""

    pixels: UInt8[Tensor, "count 3 size size"]
    labels: Int[Tensor, " count"]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Float[Tensor, "3 size size"]:
        return self.pixels[index].float() / 255

    def images(self) -> Float[Tensor, "count 3 size size"]:
        """All images, in [0, 1]."""
        return self.pixels.float() / 255


def training_images(seed: int, size: int = 32, digits: int = 12_000, shapes: int = 12_000, photographs: int = 6_000) -> CaptionedImages:
    """Training mixture: jittered scans of the training split, shapes (half of them captioned with colours) and photograph crops.

    Args:
        seed: fixes everything.
        size: side in pixels.
        digits: jittered scans.
        shapes: procedural shapes.
        photographs: random crops.
    """
    generator = torch.Generator().manual_seed(seed)
    scans, targets = scanned_digits("train", size)
    pick = torch.randint(len(scans), (digits,), generator=generator)
    shape_images, kinds, long_captions = coloured_shapes(shapes, size, generator)
    crops, photos = photograph_crops(photographs, size, generator)
    labels = torch.cat([targets[pick], kinds + FIRST_SHAPE, photos + FIRST_PHOTOGRAPH])
    captions = [CLASS_PROMPTS[label] for label in labels.tolist()]
    for i in range(0, shapes, 2):
        captions[digits + i] = long_captions[i]
    images = torch.cat([_jitter(scans[pick], generator), shape_images, crops])
    return CaptionedImages((images * 255).round().byte(), labels, captions)


def held_out_images(seed: int, size: int = 32, digits: int = 200, shapes: int = 200) -> CaptionedImages:
    """Evaluation images: untouched scans of the test split (at most 450) and fresh shapes."""
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED + seed)
    scans, targets = scanned_digits("test", size)
    pick = torch.randperm(len(scans), generator=generator)[:digits]
    shape_images, kinds, _ = coloured_shapes(shapes, size, generator)
    labels = torch.cat([targets[pick], kinds + FIRST_SHAPE])
    images = torch.cat([scans[pick], shape_images])
    return CaptionedImages((images * 255).round().byte(), labels, [CLASS_PROMPTS[label] for label in labels.tolist()])


def _jitter(images: Float[Tensor, "count 3 size size"], generator: torch.Generator) -> Float[Tensor, "count 3 size size"]:
    """Random shift (8 %), scale (12 %) and rotation (10 degrees), black beyond the border."""
    count = len(images)
    uniform = torch.rand(count, 4, generator=generator) * 2 - 1
    angle, scale = uniform[:, 0] * math.radians(10), 1 + 0.12 * uniform[:, 1]
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cosine, -sine, 0.16 * uniform[:, 2], sine, cosine, 0.16 * uniform[:, 3]], dim=1).view(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)
