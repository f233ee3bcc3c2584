"""Low-rank adapters on the transformers of FLUX and Wan, and where they go."""

from typing import Any, Literal, get_args

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from visiongraft.methods.panorama.config import Mode

Part = Literal["attention", "mlp", "embedding"]

_TARGETS: dict[Mode, dict[Part, str]] = {
    "image": {
        "attention": r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
        "mlp": r"single_transformer_blocks\.\d+\.(proj_mlp|proj_out)",
        "embedding": "x_embedder",
    },
    "video": {
        "attention": r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
        "mlp": r"blocks\.\d+\.ffn\.net\.(0\.proj|2)",
        "embedding": "patch_embedding",
    },
}
DEFAULT_PARTS: dict[Mode, tuple[Part, ...]] = {"image": ("attention", "embedding"), "video": ("attention", "mlp", "embedding")}


def add_lora(
    transformer: Any, mode: Mode, rank: int = 64, *, parts: tuple[Part, ...] | None = None, dropout: float = 0.05, seed: int = 0
) -> int:
    """Freezes a transformer and adds a LoRA to train, in float32 whatever the base's dtype, with alpha equal to the rank.

    Where the transformer has a LoRA already (``pipeline.load_lora_weights``), that one is made trainable instead: training
    continues from it.

    Args:
        transformer: ``FluxTransformer2DModel`` (``image``) or ``WanTransformer3DModel`` (``video``).
        mode: which of the two.
        rank: of the matrices.
        parts: ``attention``, ``mlp`` (FLUX: of the single-stream blocks) and ``embedding`` of the latent tokens; None: attention and
            embedding for FLUX, all for Wan.
        dropout: of a new LoRA's input, in training.
        seed: of the initial Gaussian values.

    Returns:
        The rank: that of the LoRA which was there, or ``rank``.

    Raises:
        ValueError: a rank below 1, unknown parts, or a transformer with several LoRAs.

    Source: arXiv 2601.16192, fine-tuning.
    """
    transformer.requires_grad_(False)
    there = list(getattr(transformer, "peft_config", {}))
    if len(there) > 1:
        raise ValueError(f"The transformer has {len(there)} LoRAs ({', '.join(there)}); fuse all but the one to train.")
    if there:
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        rank = transformer.peft_config[there[0]].r
    else:
        parts = DEFAULT_PARTS[mode] if parts is None else parts
        if rank < 1 or not parts or set(parts) - {*get_args(Part)}:
            raise ValueError(f"A LoRA has a rank of at least 1 and parts of {', '.join(get_args(Part))}; got rank {rank}, {parts}.")
        targets = "|".join(f"({_TARGETS[mode][part]})" for part in parts)
        lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, init_lora_weights="gaussian", target_modules=targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer.add_adapter(lora)
        # the config goes into the saved file, and Diffusers leaves what it loads in training mode: it would sample with dropout
        lora.lora_dropout = 0.0
    cast_training_params(transformer, torch.float32)
    return rank
