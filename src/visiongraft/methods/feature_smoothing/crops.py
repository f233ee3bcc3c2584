"""Random resized crops, one box an image, in one differentiable pass (the crops of M-Attack, arXiv 2503.10635)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.perturbations import Images

CROP_SCALE, CROP_RATIO, CROP_ATTEMPTS = (0.5, 0.9), (3 / 4, 4 / 3), 10


def random_resized_crop(images: Images, generator: torch.Generator | None = None) -> Images:
    """A random box of each image (50 to 90 % of its area, aspect ratio 3/4 to 4/3), resized to the full size.

    Bilinear, without antialiasing: a crop is only ever enlarged, where antialiasing does nothing. One box an image; of ten
    draws the first that fits counts, and the largest centred box of admissible ratio if none does.

    Args:
        images: any range.
        generator: source of the boxes.

    Returns:
        Crops of the input's size, differentiable in the images.
    """
    return resized_crop(images, crop_boxes(len(images), images.shape[2], images.shape[3], generator).to(images.device))


def crop_boxes(
    count: int, height: int, width: int, generator: torch.Generator | None = None
) -> Float[Tensor, "count top_left_height_width=4"]:
    """Random boxes (top, left, height, width) in whole pixels; see :func:`random_resized_crop`."""
    device = generator.device if generator is not None else None
    draws = torch.rand((4, CROP_ATTEMPTS, count), generator=generator, device=device, dtype=torch.float64)
    area = height * width * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * draws[0])
    log_ratio = [math.log(ratio) for ratio in CROP_RATIO]
    ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * draws[1])
    heights, widths = (area / ratio).sqrt().round().clamp(min=1), (area * ratio).sqrt().round().clamp(min=1)
    fits = (heights <= height) & (widths <= width)
    boxes = torch.stack(
        [(draws[2] * (height - heights + 1)).floor(), (draws[3] * (width - widths + 1)).floor(), heights, widths],
        dim=-1,
    )
    first_fit = boxes[fits.int().argmax(0), torch.arange(count, device=boxes.device)]
    ratio_of_image = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    box_height, box_width = min(height, round(width / ratio_of_image)), min(width, round(height * ratio_of_image))
    centred = boxes.new_tensor([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width])
    return torch.where(fits.any(0).unsqueeze(1), first_fit, centred)


def resized_crop(images: Images, boxes: Float[Tensor, "batch top_left_height_width=4"]) -> Images:
    """Each image's box (top, left, height, width in pixels) enlarged bilinearly to the full size, in one pass."""
    height, width = images.shape[2:]
    top, left, box_height, box_width = boxes.to(images.dtype).T.unsqueeze(-1)

    def centres(start: Tensor, extent: Tensor, size: int) -> Tensor:
        """Where output pixel centres fall, in pixels; clamped as if the box were an image of its own; then in [-1, 1]."""
        inside = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * extent / size
        return 2 * (start + torch.minimum(inside.clamp(min=0.5), extent - 0.5)) / size - 1

    rows, columns = centres(top, box_height, height), centres(left, box_width, width)
    grid = torch.stack([columns.unsqueeze(1).expand(-1, height, -1), rows.unsqueeze(2).expand(-1, -1, width)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
