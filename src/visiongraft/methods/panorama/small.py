"""The bundled small models: the classes of FLUX.1 and Wan2.1, sized to be trained on a laptop.

Panoramas of 64 x 128 pixels, inputs of 32 x 32, clips of 9 frames. Autoencoders and transformers are trained by the study; the text
encoders stay as they were drawn (each word gets a fixed random vector, which is enough for a transformer to learn what it means).
"""

import re
import string
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    WanTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
from visiongraft.methods.panorama.video_pipeline import PanoramaVideoPipeline

HEIGHT, CONDITION_SIZE, NUM_FRAMES = 64, 32, 9
TEXT_WIDTH, TEXT_LENGTH, MAX_LETTERS = 32, 28, 256
# the convolutions of the small encoder reach 38 pixels, those of its decoder 13 latent columns (51 pixels)
_PADDING = {"pad_fraction": 0.125, "min_pad": 52, "pad_multiple": 4}

Model = TypeVar("Model")


def image_graft(**changes: Any) -> GraftConfig:
    """The graft's configuration at small scale, for images."""
    return GraftConfig.image(**{"base": "small", "height": HEIGHT, "condition_size": CONDITION_SIZE, **_PADDING, **changes})


def video_graft(**changes: Any) -> GraftConfig:
    """The graft's configuration at small scale, for videos."""
    sizes = {"height": HEIGHT, "condition_size": CONDITION_SIZE, "num_frames": NUM_FRAMES, "flow_shift": 1.0}
    return GraftConfig.video(**{"base": "small-video", **sizes, **_PADDING, **changes})


def seeded(seed: int, make: Callable[[], Model]) -> Model:
    """A model whose initial weights depend on the seed alone; global randomness stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def small_vae(seed: int) -> AutoencoderKL:
    """An untrained image autoencoder: stride 4, 4 latent channels, convolutions only (0.38 million parameters)."""
    # Diffusers annotates these as tuples of one
    shape: dict[str, Any] = {
        "block_out_channels": (24, 40, 40),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return seeded(
        seed,
        lambda: AutoencoderKL(
            **shape,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=HEIGHT,
            force_upcast=False,
            scaling_factor=1.0,
            shift_factor=0.0,
        ),
    )


def small_video_vae(seed: int) -> AutoencoderKLWan:
    """An untrained causal video autoencoder: stride 4 in space and time, 4 latent channels."""
    return seeded(
        seed,
        lambda: AutoencoderKLWan(
            base_dim=12,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            scale_factor_spatial=4,
            scale_factor_temporal=4,
        ),
    )


def small_transformer(seed: int) -> FluxTransformer2DModel:
    """An untrained transformer of FLUX's class (1.8 million parameters)."""
    return seeded(
        seed,
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        ),
    )


def small_video_transformer(seed: int) -> WanTransformer3DModel:
    """An untrained transformer of Wan's class (1.1 million parameters)."""
    return seeded(
        seed,
        lambda: WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT_WIDTH,
            freq_dim=64,
            ffn_dim=384,
            num_layers=4,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        ),
    )


def word_tokenizer(captions: Iterable[str]) -> T5Tokenizer:
    """T5's tokenizer with one token for each word of the captions; other words are unknown to it."""
    words = sorted({word for caption in captions for word in re.findall(r"[^\s,.()]+", caption)} | {"A", "360°", "image", "video", "of"})
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words), *words, *",.()", "▁("]
    vocabulary = [(piece, 0.0 if i < 3 else -1.0) for i, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


def letter_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: a token for each letter."""
    letters = string.ascii_lowercase + string.digits + string.punctuation + "Â°"  # the two bytes of the degree sign
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=MAX_LETTERS)


def image_pipeline(
    vae: AutoencoderKL, transformer: FluxTransformer2DModel, captions: Iterable[str], graft: GraftConfig | None = None
) -> PanoramaImagePipeline:
    """A complete image pipeline around a small autoencoder and transformer.

    Args:
        vae: trained or not.
        transformer: trained or not.
        captions: whose words the text encoder knows.
        graft: configuration; default :func:`image_graft`.
    """
    tokenizer, letters = word_tokenizer(captions), letter_tokenizer()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, num_heads=4, d_ff=64, num_layers=1)
    special: dict[str, Any] = {name: getattr(letters, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    clip = CLIPTextConfig(
        vocab_size=len(letters),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=MAX_LETTERS,
        projection_dim=TEXT_WIDTH,
        **special,
    )
    return PanoramaImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=seeded(0, lambda: CLIPTextModel(clip)).eval(),
        tokenizer=letters,
        text_encoder_2=seeded(0, lambda: T5EncoderModel(t5)).eval(),
        tokenizer_2=tokenizer,
        transformer=transformer.eval(),
        graft=graft or image_graft(),
    )


def video_pipeline(
    vae: AutoencoderKLWan, transformer: WanTransformer3DModel, captions: Iterable[str], graft: GraftConfig | None = None
) -> PanoramaVideoPipeline:
    """A complete video pipeline around a small autoencoder and transformer; see :func:`image_pipeline`."""
    tokenizer = word_tokenizer(captions)
    umt5 = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, num_heads=4, d_ff=64, num_layers=1)
    return PanoramaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=seeded(0, lambda: UMT5EncoderModel(umt5)).eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        transformer=transformer.eval(),
        graft=graft or video_graft(),
    )
