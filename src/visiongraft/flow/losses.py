"""The flow-matching loss, on all of a sequence or on the part that is generated."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visiongraft.flow.paths import velocity


def flow_matching_loss(
    prediction: Float[Tensor, "*shape"],
    data: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*mask"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference between a predicted velocity and ``noise - data``, over the masked elements only.

    Args:
        prediction: the network's velocity.
        data: clean values.
        noise: the noise they were mixed with.
        mask: where the loss counts (True), any shape that broadcasts; ``None`` counts everywhere. Values elsewhere have no influence,
            on the gradient either, not even NaN.

    Returns:
        A scalar in float32 (float64 for float64 input): equal to the loss of the part taken out.

    Raises:
        ValueError: a mask that does not broadcast, or is False everywhere.

    Source: arXiv 2601.16192: the loss is on panorama tokens only.
    """
    precision = torch.promote_types(prediction.dtype, torch.float32)
    difference = prediction.to(precision) - velocity(data.to(precision), noise.to(precision))
    if mask is None:
        return difference.square().mean()
    try:
        mask = mask.expand_as(difference)
    except RuntimeError as error:
        raise ValueError(
            f"A mask of shape {tuple(mask.shape)} does not broadcast to {tuple(prediction.shape)}; use axes that are equal or 1."
        ) from error
    count = mask.sum()
    if count == 0:
        raise ValueError("The mask is False everywhere: there is nothing to learn from; leave such a batch out.")
    # the difference is cut before it is squared, so that NaN outside the mask has no gradient
    return torch.where(mask, difference, 0).square().sum() / count
