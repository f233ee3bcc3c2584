"""Real images that come with libraries: scanned handwritten digits (scikit-learn) and photographs (scikit-image, scikit-learn)."""

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "flower", "temple")
_TEST_EVERY = 4  # every fourth scan is held out


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


def scanned_digits(split: str, size: int) -> tuple[Float[Tensor, "count 3 size size"], Int[Tensor, " count"]]:
    """Scanned handwritten digits, bright ink on black, enlarged from 8x8 by bicubic interpolation.

    Args:
        split: "train" (1,347 scans) or "test" (450).
        size: side in pixels.

    Returns:
        Images in [0, 1] with three equal channels, and the digits.

    Raises:
        ValueError: an unknown split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test; got {split!r}.")
    images, digits = _scans()
    held_out = np.arange(len(images)) % _TEST_EVERY == 0
    chosen = held_out if split == "test" else ~held_out
    scans = torch.from_numpy(images[chosen]).unsqueeze(1)
    large = F.interpolate(scans, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return large.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits[chosen]).long()


@cache
def photograph(name: str) -> Float[Tensor, "3 height width"]:
    """One of ``PHOTOGRAPHS`` at full size, in [0, 1].

    Raises:
        ValueError: a photograph that is not bundled with the libraries.
    """
    from skimage import data
    from sklearn.datasets import load_sample_image

    sources = {
        "astronaut": data.astronaut,
        "cat": data.chelsea,
        "coffee": data.coffee,
        "rocket": data.rocket,
        "flower": lambda: load_sample_image("flower.jpg"),
        "temple": lambda: load_sample_image("china.jpg"),
    }
    if name not in sources:
        raise ValueError(f"photograph must be one of {', '.join(PHOTOGRAPHS)}; got {name!r}.")
    return torch.from_numpy(np.array(sources[name]())).permute(2, 0, 1).float() / 255


def photograph_crops(count: int, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "count 3 size size"], Int[Tensor, " count"]]:
    """Random square crops (60 to 100 % of the short side, half of them mirrored) of ``PHOTOGRAPHS``, resized with anti-aliasing.

    Returns:
        Images in [0, 1] and the index of each photograph.
    """
    index = torch.randint(len(PHOTOGRAPHS), (count,), generator=generator)
    uniform = torch.rand(count, 4, generator=generator).tolist()
    crops = []
    for i, (scale, left, top, mirror) in zip(index.tolist(), uniform, strict=True):
        image = _reduced(PHOTOGRAPHS[i], 4 * size)
        height, width = image.shape[1:]
        side = round(min(height, width) * (0.6 + 0.4 * scale))
        x, y = round((width - side) * left), round((height - side) * top)
        crop = image[:, y : y + side, x : x + side]
        crop = F.interpolate(crop[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
        crops.append(crop.flip(-1) if mirror < 0.5 else crop)
    return torch.stack(crops).clamp(0, 1), index


@cache
def _reduced(name: str, short_side: int) -> Tensor:
    image = photograph(name)
    scale = short_side / min(image.shape[1:])
    size = tuple(round(scale * side) for side in image.shape[1:])
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
