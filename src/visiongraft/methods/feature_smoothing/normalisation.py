"""Between images in [0, 1] and the normalised pixels that a vision model was trained on."""

import json
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ValueError unless mean and standard deviation belong together and can be inverted."""
    if not mean or len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(f"mean and std need one number a channel and std above 0; got mean={mean}, std={std}.")


def normalise(
    images: Float[Tensor, "batch channels height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch channels height width"]:
    """(images - mean) / std, per channel."""
    shift, scale = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images - shift) / scale


def denormalise(
    pixel_values: Float[Tensor, "batch channels height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch channels height width"]:
    """pixel_values * std + mean, per channel, in float32: the image in [0, 1]."""
    pixel_values = pixel_values.float()
    shift, scale = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return pixel_values * scale + shift


def read_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation from an image processor's configuration, in the units of [0, 1] pixels.

    Args:
        name: model folder or hub id with ``preprocessor_config.json`` or ``processor_config.json``.

    Raises:
        ValueError: there is none.
    """
    for file in ("processor_config.json", "preprocessor_config.json"):
        path = _find_file(name, file)
        content = json.loads(path.read_text()) if path is not None else {}
        processor = content.get("image_processor", content)
        if processor.get("do_normalize") is False:
            return (0.0,), (1.0,)
        if "image_mean" in processor and "image_std" in processor:
            return tuple(processor["image_mean"]), tuple(processor["image_std"])
    raise ValueError(
        f"No image_mean and image_std found beside {name or 'this model'!r} (preprocessor_config.json); give "
        "mean=… and std=…, the normalisation the model was trained with."
    )


def _find_file(name: str, file: str) -> Path | None:
    if not name:
        return None
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    return Path(found) if found else None
