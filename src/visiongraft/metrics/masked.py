"""Errors where a mask says so: the part of a panorama that its input has seen."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def union_mask(mask: Bool[Tensor, "batch frames 1 height width"]) -> Bool[Tensor, "batch 1 height width"]:
    """What any frame of a clip has seen."""
    return mask.any(1)


def masked_psnr(
    image: Float[Tensor, "batch *frames 3 height width"],
    truth: Float[Tensor, "batch *frames 3 height width"],
    mask: Bool[Tensor, "batch *maskframes 1 height width"],
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio inside a mask, in dB, for values in [0, 1].

    Of a clip the squared error is averaged over all frames first. For the protocol of Argus give it one mask a clip,
    ``union_mask(mask)``, which then holds for every frame.

    Args:
        image: one image or clip a sample, in [0, 1].
        truth: of the same shape.
        mask: True where it counts; with the clip's frames, or without them for every frame.

    Returns:
        One number a sample; infinite where the two are equal.

    Raises:
        ValueError: different shapes, NaN, values outside [0, 1], or a sample without a masked pixel.
    """
    if image.shape != truth.shape:
        raise ValueError(f"image and truth must have one shape; got {tuple(image.shape)} and {tuple(truth.shape)}.")
    for name, values in (("image", image), ("truth", truth)):
        low, high = values.aminmax()
        # NaN fails every comparison
        if not bool((low >= -1e-3) & (high <= 1 + 1e-3)):
            raise ValueError(f"{name} must be in [0, 1] without NaN; got values from {float(low):.3g} to {float(high):.3g}.")
    precision = torch.promote_types(image.dtype, torch.float32)
    error = (image.to(precision) - truth.to(precision)).square().mean(-3, keepdim=True)
    return -10 * masked_mean(error, mask).log10()


def masked_mean(
    values: Float[Tensor, "batch *frames 1 height width"], mask: Bool[Tensor, "batch *maskframes 1 height width"]
) -> Float[Tensor, " batch"]:
    """Mean of a map (an error, or the spatial map of LPIPS) inside a mask, one number a sample.

    Args:
        values: one map an image or frame.
        mask: True where it counts; with the clip's frames, or without them for every frame.

    Raises:
        ValueError: a mask of another size, or a sample without a masked pixel.
    """
    if mask.dim() == values.dim() - 1:
        mask = mask.unsqueeze(1)
    try:
        mask = mask.expand_as(values)
    except RuntimeError as error:
        raise ValueError(f"A mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}.") from error
    count = mask.flatten(1).sum(1)
    if bool((count == 0).any()):
        raise ValueError(f"Sample {int((count == 0).nonzero()[0])} has no pixel inside its mask; check the cameras the mask came from.")
    return torch.where(mask, values, 0).flatten(1).sum(1) / count
