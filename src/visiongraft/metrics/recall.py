"""Errors of many estimates in a few numbers: mean, median, and the area under the recall curve up to a threshold."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

THRESHOLDS_DEG = (1.0, 5.0, 10.0)


def recall_auc(
    errors: Float[Tensor, " count"], thresholds: Sequence[float] = THRESHOLDS_DEG, min_error: float = 1.0
) -> Float[Tensor, " thresholds"]:
    """Area under the curve of recall against error up to each threshold, over the threshold: 1 is perfect.

    The curve runs straight between the sorted errors and is flat from the last one before a threshold. GeoCalib's evaluation
    takes errors up to ``min_error`` for as good as zero, so that with its 1 degree the area at 1 degree is the recall there.

    Args:
        errors: not negative; infinite for an estimate that failed.
        thresholds: in the unit of the errors.
        min_error: in the same unit; 0 gives the plain area (as for relative poses).

    Raises:
        ValueError: no errors, negative ones or NaN, thresholds below ``min_error`` or not positive.

    Source: Veicht et al., arXiv 2409.06704 (GeoCalib), evaluation; used by arXiv 2601.16192.
    """
    _check_errors(errors)
    if not thresholds or min(thresholds) <= 0 or min(thresholds) < min_error or min_error < 0:
        raise ValueError(f"thresholds must be positive and at least min_error; got {tuple(thresholds)} and min_error={min_error}.")
    ordered = errors.double().cpu().sort().values
    count = len(ordered)
    good = int((ordered <= min_error).sum())
    recall = torch.cat([torch.tensor([good, good]), torch.arange(good + 1, count + 1)]).double() / count
    position = torch.cat([torch.tensor([0.0, min_error], dtype=torch.float64), ordered[good:]])
    areas = []
    for threshold in thresholds:
        inside = position <= threshold
        x = torch.cat([position[inside], position.new_tensor([threshold])])
        y = torch.cat([recall[inside], recall[inside][-1:]])
        areas.append(torch.trapezoid(y, x) / threshold)
    return torch.stack(areas)


def error_summary(
    errors: Float[Tensor, " count"], thresholds: Sequence[float] = THRESHOLDS_DEG, min_error: float = 1.0
) -> dict[str, float]:
    """``mean``, ``median`` (of two middle values their mean) and ``auc@threshold`` of errors; see :func:`recall_auc`.

    Raises:
        ValueError: as :func:`recall_auc`.
    """
    areas = recall_auc(errors, thresholds, min_error)
    summary = {"mean": float(errors.double().mean()), "median": float(errors.double().quantile(0.5))}
    return summary | {f"auc@{threshold:g}": float(area) for threshold, area in zip(thresholds, areas, strict=True)}


def angular_error_deg(estimate_deg: Float[Tensor, " count"], truth_deg: Float[Tensor, " count"]) -> Float[Tensor, " count"]:
    """Absolute difference of angles in degrees, the short way round."""
    return ((estimate_deg - truth_deg + 180) % 360 - 180).abs()


def _check_errors(errors: Tensor) -> None:
    if errors.dim() != 1 or len(errors) == 0:
        raise ValueError(f"errors must be one number an estimate, at least one; got shape {tuple(errors.shape)}.")
    # NaN fails the comparison
    if not bool((errors >= 0).all()):
        raise ValueError("errors must not be negative or NaN; take absolute values, and infinity for an estimate that failed.")
