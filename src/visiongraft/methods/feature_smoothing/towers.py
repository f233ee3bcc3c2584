"""Vision towers of Transformers models: where they sit, how they pool, and which cannot be smoothed."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

IMAGE_LEVEL_HINT = (
    "Smooth at image level instead: wrap the whole path from image to features, processor included, in an Encoder and "
    "use SmoothedEncoder, which adds the noise before the processor."
)

# Class name -> path of the tower inside the model ("" is the model itself).
TOWER_PATHS = {
    "CLIPVisionModel": "",
    "CLIPVisionModelWithProjection": "",
    "SiglipVisionModel": "",
    "Siglip2VisionModel": "",
    "Dinov2Model": "",
    "Dinov2WithRegistersModel": "",
    "CLIPModel": "vision_model",
    "SiglipModel": "vision_model",
    "Siglip2Model": "vision_model",
    "LlavaModel": "vision_tower",
    "LlavaForConditionalGeneration": "model.vision_tower",
    "PaliGemmaModel": "vision_tower",
    "PaliGemmaForConditionalGeneration": "model.vision_tower",
    "InternVLModel": "vision_tower",
    "InternVLForConditionalGeneration": "model.vision_tower",
    "SmolVLMModel": "vision_model",
    "SmolVLMForConditionalGeneration": "model.vision_model",
    "Idefics3Model": "vision_model",
    "Idefics3ForConditionalGeneration": "model.vision_model",
    "IdeficsModel": "vision_model",
    "IdeficsForVisionText2Text": "model.vision_model",
}
_MAY_SPLIT_IMAGES = re.compile(r"InternVL|SmolVLM|Idefics3")
_REFUSED = {
    re.compile(r"Qwen\d.*(VL|Vision|Omni)"): (
        "its tower takes pre-cut patch rows in which every pixel of a still image occurs twice (two frames a patch): "
        "independent noise on the rows is not Gaussian noise on the image"
    ),
    re.compile(r"LlavaNext|LlavaOnevision|VideoLlava"): (
        "it cuts an image into any-resolution crops: one pixel occurs in the overview and in a tile, and independent "
        "noise on both is not Gaussian noise on the image"
    ),
    re.compile(r"PixtralVision"): "it packs all images of a batch into one sequence, so an image has no output of its own",
}


class ClassTokenReadout(nn.Module):
    """The pooled embedding of CLIP and DINOv2: the class token, normalised and projected where the model does so."""

    def __init__(self, norm: nn.Module | None = None, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch embedding"]:
        pooled = tokens[:, 0]
        pooled = self.norm(pooled) if self.norm is not None else pooled
        return self.projection(pooled) if self.projection is not None else pooled


@dataclass(frozen=True)
class Tower:
    """A vision tower found in a model.

    Args:
        module: the tower itself.
        path: its dotted path in the model; "" if it is the model.
        projection: linear map that the model applies to the tower's ``pooler_output`` (CLIP), or ``None``.
        layer: where the model reads tokens: -1 is ``last_hidden_state``, any other value indexes ``hidden_states``;
            ``None`` if it reads several layers.
        drop_cls: whether the model drops the class token before reading.
        may_split_images: whether its processor may cut one image into several overlapping crops.
    """

    module: Any
    path: str
    projection: nn.Linear | None = None
    layer: int | None = -1
    drop_cls: bool = False
    may_split_images: bool = False


def find_tower(model: nn.Module, path: str | None = None) -> Tower:
    """The vision tower of a model, by class or by dotted path.

    Args:
        model: a Transformers model of a class in ``TOWER_PATHS`` (or a subclass), or any module with ``path``.
        path: dotted path of the tower, for models that are not in the table; "" is the model itself.

    Raises:
        NotImplementedError: the tower's input does not allow Gaussian noise on pixels (Qwen-VL, any-resolution crops).
        ValueError: unknown model class, or no module at ``path``.

    Source: derivation in docs/methods/feature_smoothing.md.
    """
    names = [cls.__name__ for cls in type(model).__mro__]
    if path is None:
        refuse_ungraftable(model)
        path = next((TOWER_PATHS[name] for name in names if name in TOWER_PATHS), None)
        if path is None:
            raise ValueError(
                f"No vision tower is known for {names[0]}; known are {', '.join(TOWER_PATHS)}. Give the tower's dotted "
                'path, for example path="model.vision_tower".'
            )
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"{names[0]} has no module at path {path!r}: {error}") from error
    refuse_ungraftable(model)
    refuse_ungraftable(module)
    layer, drop_cls = _feature_read_by(model)
    projection = getattr(model, "visual_projection", None) if path == "vision_model" else None
    return Tower(module, path, projection, layer, drop_cls, bool(_MAY_SPLIT_IMAGES.match(names[0])))


def refuse_ungraftable(module: nn.Module) -> None:
    """Raises NotImplementedError with the reason if noise at the tower's input would not be noise on the image."""
    for pattern, reason in _REFUSED.items():
        name = next((cls.__name__ for cls in type(module).__mro__ if pattern.match(cls.__name__)), None)
        if name is not None:
            raise NotImplementedError(f"{name} cannot be smoothed at its vision tower: {reason}. {IMAGE_LEVEL_HINT}")


def _feature_read_by(model: nn.Module) -> tuple[int | None, bool]:
    config: Any = getattr(model, "config", None)
    layer = getattr(config, "vision_feature_layer", -1)
    if not isinstance(layer, int):
        return None, False
    if layer == -1 and type(model).__name__.startswith("Llava"):
        layer = config.vision_config.num_hidden_layers  # LLaVA means hidden_states[-1], which is before SigLIP's last norm
    return layer, getattr(config, "vision_feature_select_strategy", "full") == "default"


def pooling_of(tower: Any, projection: nn.Module | None = None) -> Callable[..., Tensor] | None:
    """The tower's own pooling of its last hidden state, then ``projection``; ``None`` for a tower that does not pool.

    A SigLIP 2 pooling also takes the attention mask of its patch rows.
    """
    names = {cls.__name__ for cls in type(tower).__mro__}
    if "CLIPVisionModelWithProjection" in names:
        return ClassTokenReadout(tower.vision_model.post_layernorm, tower.visual_projection)
    if names & {"CLIPVisionModel", "IdeficsVisionTransformer"}:
        return ClassTokenReadout(tower.post_layernorm, projection)
    if names & {"Dinov2Model", "Dinov2WithRegistersModel"}:
        return ClassTokenReadout()
    if names & {"SiglipVisionModel", "Siglip2VisionModel"} and tower.use_head:
        return tower.head
    return None


def count_prefix_tokens(tower: Any) -> int:
    """Class and register tokens in front of the patch tokens of a known tower."""
    embeddings = getattr(tower, "vision_model", tower).embeddings
    has_class_token = hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token")
    return int(has_class_token) + getattr(tower.config, "num_register_tokens", 0)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size that a configuration writes as one or as two numbers."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def images_to_rows(images: Float[Tensor, "batch channels height width"], patch: int) -> Float[Tensor, "batch rows pixels"]:
    """Images cut into SigLIP 2's patch rows: row-major patches, pixels ordered (row, column, channel)."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // patch) * (width // patch), patch * patch * channels)


def rows_to_images(
    rows: Float[Tensor, "batch rows pixels"], grid: tuple[int, int], patch: int
) -> Float[Tensor, "batch channels height width"]:
    """Inverse of :func:`images_to_rows`; rows beyond the grid are padding and are dropped."""
    high, wide = grid
    cut = rows[:, : high * wide].reshape(rows.shape[0], high, wide, patch, patch, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(rows.shape[0], -1, high * patch, wide * patch)


class PatchRowTower(nn.Module):
    """Lets SigLIP 2's patch-row tower take plain images of one size."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower
        self.training = tower.training

    def forward(self, pixel_values: Float[Tensor, "batch channels height width"], **kwargs: object) -> object:
        patch = pair(self.tower.config.patch_size)[0]
        rows = images_to_rows(pixel_values, patch)
        grid = torch.tensor([[pixel_values.shape[2] // patch, pixel_values.shape[3] // patch]], device=rows.device)
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        return self.tower(rows, pixel_attention_mask=mask, spatial_shapes=grid.expand(len(rows), 2), **kwargs)
