"""SAM 2 with random weights, as small as it goes."""

import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

_VISION = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    },
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}


def tiny_sam2() -> Sam2Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Sam2Model(Sam2Config(vision_config=_VISION, prompt_encoder_config={"image_size": 128})).eval()


def tiny_sam2_video(num_maskmem: int = 4, max_object_pointers_in_encoder: int = 6) -> Sam2VideoModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Sam2VideoConfig(
            image_size=128,
            num_maskmem=num_maskmem,
            max_object_pointers_in_encoder=max_object_pointers_in_encoder,
            memory_attention_rope_feat_sizes=[8, 8],
            prompt_encoder_config={"image_size": 128},
            vision_config=_VISION,
        )
        return Sam2VideoModel(config).eval()
