"""Pretrained vision models as feature extractors for distances between sets of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureEncoder(nn.Module):
    """A frozen Transformers vision model as a function from images in [0, 1] to one vector an image.

    Also fits TorchMetrics: ``FrechetInceptionDistance(feature=encoder)``.

    Args:
        model: with ``get_image_features`` (CLIP, SigLIP), or an output with ``pooler_output`` or ``last_hidden_state``.
        mean: per-channel mean of the normalisation.
        std: per-channel standard deviation.
        size: (height, width) that images are resized to, bicubic with anti-aliasing.
        pooling: ``image_features``, ``pooler``, or ``mean`` over the tokens or the map of the last layer.
        name: what the result of an evaluation calls the model.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], size: tuple[int, int], pooling: str, name: str = ""
    ) -> None:
        super().__init__()
        if pooling not in ("image_features", "pooler", "mean"):
            raise ValueError(f"pooling must be image_features, pooler or mean; got {pooling!r}.")
        self.model: Any = model.eval().requires_grad_(False)
        self.mean, self.std, self.size, self.pooling, self.name = tuple(mean), tuple(std), size, pooling, name

    @torch.inference_mode()
    def forward(self, images: Shaped[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """float32 features of images of any size, in [0, 1] or uint8."""
        weight = next(self.model.parameters())
        images = images.to(weight.device).float() / (255 if images.dtype == torch.uint8 else 1)
        images = F.interpolate(images, self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixel_values = ((images - mean) / std).to(weight.dtype)
        if self.pooling == "image_features":
            output = self.model.get_image_features(pixel_values=pixel_values)
            return (output if isinstance(output, Tensor) else output.pooler_output).float()
        output = self.model(pixel_values=pixel_values)
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1).float()
        hidden = output.last_hidden_state.float()
        return hidden.mean(1) if hidden.dim() == 3 else hidden.flatten(2).mean(-1)

    def description(self) -> dict[str, Any]:
        """What an evaluation has to record of it."""
        return {"model": self.name, "pooling": self.pooling, "size": list(self.size), "mean": list(self.mean), "std": list(self.std)}


def load_feature_encoder(
    path_or_hub_id: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> FeatureEncoder:
    """A Transformers vision model with its own normalisation and input size.

    Args:
        path_or_hub_id: folder or hub id with ``config.json``, safetensors weights and ``preprocessor_config.json``.
        device: where it runs.
        dtype: of its weights; published distances are in float32.

    Raises:
        FileNotFoundError: neither a folder with safetensors nor a hub model.
        ValueError: no normalisation or size in the configuration, or weights missing from the files: features of random
            weights are no measure.
    """
    from transformers import AutoModel

    name = str(path_or_hub_id)
    try:
        model, report = AutoModel.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a hub model with safetensors weights: {str(error).splitlines()[0]}"
        ) from error
    missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]} …); random weights are no measure, "
            "give a complete model."
        )
    mean, std, size = _read_processor(name, model.config)
    # the checkpoint of a classifier has no pooler: the random one that stands in for it must not be used
    pooling = "image_features" if hasattr(model, "get_image_features") else "mean" if report["missing_keys"] else _pooling(model, size)
    return FeatureEncoder(model.to(device), mean, std, size, pooling, name)


@torch.inference_mode()
def _pooling(model: Any, size: tuple[int, int]) -> str:
    """``pooler`` where the model's output has a pooled vector, which its attributes do not tell."""
    output = model.eval()(pixel_values=torch.zeros(1, 3, *size, dtype=model.dtype))
    return "mean" if getattr(output, "pooler_output", None) is None else "pooler"


def _read_processor(name: str, config: Any) -> tuple[list[float], list[float], tuple[int, int]]:
    """Normalisation and input size, from the image processor's configuration file."""
    from transformers.utils.hub import cached_file

    for file in ("preprocessor_config.json", "processor_config.json"):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
        content = json.loads(Path(found).read_text()) if found else {}
        processor = content.get("image_processor", content)
        if "image_mean" not in processor or "image_std" not in processor:
            continue
        size = processor.get("crop_size") if processor.get("do_center_crop", True) else None
        size = size or processor.get("size") or getattr(getattr(config, "vision_config", config), "image_size", None)
        if isinstance(size, dict):
            size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
        if size is None:
            break
        height, width = (size, size) if isinstance(size, int) else size
        return processor["image_mean"], processor["image_std"], (height, width)
    raise ValueError(f"No image_mean, image_std and size found in the preprocessor_config.json of {name}; build FeatureEncoder with them.")
