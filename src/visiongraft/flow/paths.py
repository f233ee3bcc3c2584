"""The straight path between data (t = 0) and noise (t = 1), its velocity, and the way back from a velocity to either end."""

from jaxtyping import Float
from torch import Tensor


def interpolate(data: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], t: Float[Tensor, "*times"]) -> Float[Tensor, "*shape"]:
    """``y_t = (1 - t) data + t noise``.

    Args:
        data: clean values.
        noise: of the same shape, standard normal in training.
        t: in [0, 1]; one time for all, one a sample (B), or any shape that broadcasts once trailing ones are added.

    Returns:
        In the dtype of ``data``; the sum is taken in the wider dtype of the three.

    Raises:
        ValueError: times that do not fit the shape.

    Source: rectified flow; arXiv 2601.16192 (flow matching in the latents of the base).
    """
    t = times_like(t, data)
    return ((1 - t) * data + t * noise).to(data.dtype)


def velocity(data: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``noise - data``: the derivative of :func:`interpolate` in t, and what the network learns."""
    return noise - data


def data_from_velocity(y_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], t: Float[Tensor, "*times"]) -> Float[Tensor, "*shape"]:
    """The clean end ``y_t - t v`` of the straight line through ``y_t`` with velocity ``v``; ``t`` as in :func:`interpolate`."""
    return (y_t - times_like(t, y_t) * v).to(y_t.dtype)


def noise_from_velocity(y_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], t: Float[Tensor, "*times"]) -> Float[Tensor, "*shape"]:
    """The noisy end ``y_t + (1 - t) v`` of the same line."""
    return (y_t + (1 - times_like(t, y_t)) * v).to(y_t.dtype)


def times_like(t: Float[Tensor, "*times"], values: Float[Tensor, "*shape"]) -> Float[Tensor, "*broadcast"]:
    """Times with trailing ones, so that they broadcast against ``values``.

    Raises:
        ValueError: an axis that is neither 1 nor the axis of ``values``.
    """
    if t.dim() > values.dim() or any(have not in (1, want) for have, want in zip(t.shape, values.shape, strict=False)):
        raise ValueError(
            f"Times of shape {tuple(t.shape)} do not fit values of shape {tuple(values.shape)}; give one number, one a sample, "
            "or leading axes that are equal or 1."
        )
    return t.reshape(*t.shape, *(1,) * (values.dim() - t.dim()))
