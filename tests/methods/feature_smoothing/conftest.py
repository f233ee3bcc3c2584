"""Random models of the real Transformers classes, as small as their configurations allow."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn

IMAGE_TOKEN = 60
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_ROWS = {**{key: value for key, value in _VISION.items() if key != "image_size"}, "num_patches": 16}
_TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    **_TOKENS,
}
_LANGUAGE = {**_TEXT, "num_key_value_heads": 2}
_IDEFICS_VISION = {
    "embed_dim": 16,
    "image_size": 16,
    "intermediate_size": 32,
    "patch_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _llava(vision: object, **options: object) -> nn.Module:
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_LANGUAGE),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=16,
        **options,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _internvl() -> nn.Module:
    vision = transformers.InternVLVisionConfig(**{**_VISION, "image_size": [16, 16], "patch_size": [4, 4]})
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=transformers.Qwen2Config(**_LANGUAGE), image_token_id=IMAGE_TOKEN
    )
    return transformers.InternVLForConditionalGeneration(config)


def _paligemma() -> nn.Module:
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=transformers.GemmaConfig(**_LANGUAGE, head_dim=8),
        image_token_id=IMAGE_TOKEN,
        projection_dim=16,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def _idefics() -> nn.Module:
    config = transformers.IdeficsConfig(
        vision_config=_IDEFICS_VISION,
        additional_vocab_size=0,
        cross_layer_interval=1,
        use_resampler=False,
        **{key: value for key, value in _TEXT.items() if key != "max_position_embeddings"},
    )
    return transformers.IdeficsForVisionText2Text(config)


def _idefics3(prefix: str) -> nn.Module:
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=dict(_VISION),
        text_config=transformers.LlamaConfig(**_LANGUAGE),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)


def _qwen(prefix: str) -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**_LANGUAGE, "rope_parameters": rope}
    vision = {"depth": 1, "num_heads": 2, "patch_size": 4, "hidden_size": 16}
    if prefix == "Qwen2VL":
        vision |= {"embed_dim": 16, "mlp_ratio": 1}
    else:
        vision |= {"out_hidden_size": 16, "intermediate_size": 16}
    if prefix == "Qwen3VL":
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text["head_dim"] = 8
    config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)


def _llava_crops(prefix: str, vision: object, text: object) -> nn.Module:
    config = getattr(transformers, f"{prefix}Config")(vision_config=vision, text_config=text)
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "CLIPVisionModel": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION)),
    "CLIPVisionModelWithProjection": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**_VISION, projection_dim=8)
    ),
    "CLIPModel": lambda: transformers.CLIPModel(transformers.CLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=8)),
    "SiglipVisionModel": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_VISION)),
    "SiglipModel": lambda: transformers.SiglipModel(transformers.SiglipConfig(vision_config=_VISION, text_config=_TEXT)),
    "Siglip2VisionModel": lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**_ROWS)),
    "Siglip2Model": lambda: transformers.Siglip2Model(transformers.Siglip2Config(vision_config=_ROWS, text_config=_TEXT)),
    "Dinov2Model": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4, mlp_ratio=2)
    ),
    "Dinov2WithRegistersModel": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4, mlp_ratio=2
        )
    ),
    "Llava": lambda: _llava(transformers.CLIPVisionConfig(**_VISION)),
    "LlavaSiglipTwoLayers": lambda: _llava(
        transformers.SiglipVisionConfig(**_VISION),
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
    ),
    "LlavaPixtral": lambda: _llava(transformers.PixtralVisionConfig(**_VISION)),
    "LlavaNext": lambda: _llava_crops("LlavaNext", transformers.CLIPVisionConfig(**_VISION), transformers.LlamaConfig(**_LANGUAGE)),
    "LlavaOnevision": lambda: _llava_crops(
        "LlavaOnevision", transformers.SiglipVisionConfig(**_VISION), transformers.Qwen2Config(**_LANGUAGE)
    ),
    "Qwen2VL": lambda: _qwen("Qwen2VL"),
    "Qwen2_5_VL": lambda: _qwen("Qwen2_5_VL"),
    "Qwen3VL": lambda: _qwen("Qwen3VL"),
    "PaliGemma": _paligemma,
    "InternVL": _internvl,
    "SmolVLM": lambda: _idefics3("SmolVLM"),
    "Idefics3": lambda: _idefics3("Idefics3"),
    "Idefics": _idefics,
}


@pytest.fixture
def tiny_model() -> Callable[[str], nn.Module]:
    """Builds a random model in eval mode by name; the same weights each time."""

    def build(name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _BUILDERS[name]().eval()
            with torch.no_grad():  # larger weights than the initialisation's, so that noise moves the features
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return build
