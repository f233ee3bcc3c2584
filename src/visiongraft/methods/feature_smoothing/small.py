"""The bundled small encoder: a Transformers CLIP of 32x32 images, and how it is trained.

It is saved as any CLIP is (``config.json``, ``model.safetensors``, ``tokenizer.json``, ``preprocessor_config.json``), so that
the small scale takes the same code path as a released model.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from visiongraft.media.files import atomic_write
from visiongraft.methods.feature_smoothing.encoders import load_encoder
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.recipe import MapperRecipe, PurifierRecipe
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier
from visiongraft.training import Optimizer, Recipe, TrainerConfig, train
from visiongraft.worlds.captioned import CLASS_PROMPTS, CaptionedImages, held_out_images, training_images
from visiongraft.worlds.shapes import COLOURS

IMAGE_SIZE, PATCH = 32, 8
_MEAN, _STD = (0.45, 0.4, 0.38), (0.3, 0.3, 0.3)
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "unk_token": "<unknown>", "eos_token": "<end>"}


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the words of the captions."""
    words = sorted({word for prompt in CLASS_PROMPTS for word in prompt.split()} | {*COLOURS, "on", "ground"})
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL.values(), *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [(name, vocabulary[name]) for name in ("<start>", "<end>")]
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **_SPECIAL)


def small_clip(tokenizer: PreTrainedTokenizerFast, seed: int) -> CLIPModel:
    """An untrained CLIP: 16 patch tokens of width 128, three layers; a two-layer text tower; 64-dimensional embeddings."""
    config = CLIPConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def save_clip(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a CLIP folder that ``load_encoder`` and Transformers read."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "resample": 3,
    }
    with atomic_write(folder / "preprocessor_config.json") as path:
        path.write_text(json.dumps(processor, indent=2) + "\n")


class _CaptionedItems(Dataset):
    """(image, class, caption tokens, whether the caption names the class only) for each training image."""

    def __init__(self, images: CaptionedImages, tokenizer: PreTrainedTokenizerFast) -> None:
        self.images = images
        self.tokens = tokenizer(images.captions, padding="max_length", return_tensors="pt")["input_ids"]
        self.plain = torch.tensor([c == CLASS_PROMPTS[k] for c, k in zip(images.captions, images.labels.tolist(), strict=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images[index], self.images.labels[index], self.tokens[index], self.plain[index]


def caption_matches(labels: Int[Tensor, " batch"], tokens: Int[Tensor, "batch length"], plain: Tensor) -> Float[Tensor, "batch batch"]:
    """1 where caption j is true of image i: the same caption, or one that names the class of image i and no more."""
    same = (tokens[:, None] == tokens[None]).all(-1)
    return (same | ((labels[:, None] == labels[None]) & plain[None])).float()


class ClipRecipe(Recipe):
    """Contrastive training of the small CLIP on clean images; several captions of a batch may be true of one image.

    Args:
        seed: fixes initial weights and images; training order and batches follow the Trainer's seed.
        learning_rate: of AdamW, cosine schedule.
    """

    def __init__(self, seed: int = 0, learning_rate: float = 1.5e-3, warmup_steps: int = 60) -> None:
        self.tokenizer = small_tokenizer()
        self.seed = seed
        self.modules: dict[str, nn.Module] = {"clip": small_clip(self.tokenizer, seed)}
        self.optimizers = {
            "main": Optimizer(
                modules=("clip",),
                learning_rate=learning_rate,
                weight_decay=0.05,
                betas=(0.9, 0.98),
                schedule="cosine",
                warmup_steps=warmup_steps,
            )
        }
        self._mean, self._std = torch.tensor(_MEAN).view(3, 1, 1), torch.tensor(_STD).view(3, 1, 1)

    def data(self) -> Dataset:
        """Captioned images, drawn from the recipe's seed."""
        return _CaptionedItems(training_images(self.seed), self.tokenizer)

    def losses(self, modules, batch, generator: torch.Generator, optimizer: str) -> dict[str, Tensor]:
        """Cross-entropy to the true captions of each image, and to the true images of each caption."""
        images, labels, tokens, plain = batch
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        output = modules["clip"](
            input_ids=tokens,
            pixel_values=(images - mean) / std,
            attention_mask=(tokens != self.tokenizer.pad_token_id).long(),
        )
        logits = output.logits_per_image.float()
        matches = caption_matches(labels, tokens, plain)
        return {
            "captions_of_image": F.cross_entropy(logits, matches / matches.sum(1, keepdim=True)) / 2,
            "images_of_caption": F.cross_entropy(logits.T, matches.T / matches.T.sum(1, keepdim=True)) / 2,
        }

    def validate(self, modules) -> dict[str, float]:
        """Zero-shot accuracy on held-out digits and shapes, over all class prompts."""
        clip = modules["clip"].eval()
        data = held_out_images(self.seed)
        prompts = self.tokenizer(list(CLASS_PROMPTS), padding="max_length", return_tensors="pt")
        with torch.inference_mode():
            pixels = (data.images() - self._mean) / self._std
            logits = clip(pixel_values=pixels, **prompts).logits_per_image
        clip.train()
        return {"zero_shot_accuracy": float((logits.argmax(1) == data.labels).float().mean())}


@dataclass(kw_only=True)
class SmallBudget:
    """Training steps of the small encoder, its purifier and its mapper."""

    encoder: int = 1500
    purifier: int = 600
    mapper: int = 400
    batch_size: int = 128


def train_small(folder: Path, budget: SmallBudget, seed: int) -> dict[str, float]:
    """Trains encoder, purifier and mapper of one seed into ``folder`` (clip, purifier, mapper); continues where it stopped.

    Returns:
        Wall seconds of each part, and the encoder's zero-shot accuracy on held-out images.
    """
    started = time.monotonic()
    encoder_recipe = ClipRecipe(seed)
    common: dict[str, Any] = {"seed": seed, "logger": "none", "checkpoint_every": 250, "keep_checkpoints": 1}
    clip = train(
        encoder_recipe,
        TrainerConfig(output=folder / "runs" / "encoder", steps=budget.encoder, batch_size=budget.batch_size, **common),
    )["clip"]
    accuracy = encoder_recipe.validate({"clip": clip})["zero_shot_accuracy"]
    save_clip(clip, encoder_recipe.tokenizer, folder / "clip")
    seconds = {"encoder": time.monotonic() - started}

    images, encoder = training_images(seed), load_encoder(str(folder / "clip"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        purifier = UNetPurifier(widths=(32, 64, 96), blocks_per_level=1, patch_size=2)
        mapper = SmoothnessMapper(128, num_prefix_tokens=encoder.num_prefix_tokens)
    half = budget.batch_size // 2
    purifier: Any = train(
        PurifierRecipe(encoder, purifier, images, learning_rate=2e-3, warmup_steps=30),
        TrainerConfig(output=folder / "runs" / "purifier", steps=budget.purifier, batch_size=half, **common),
    )["purifier"]
    purifier.save_pretrained(folder / "purifier")
    seconds["purifier"] = time.monotonic() - started - seconds["encoder"]
    mapper: Any = train(
        MapperRecipe(encoder, purifier.eval(), mapper, images, learning_rate=1e-3, warmup_steps=30),
        TrainerConfig(output=folder / "runs" / "mapper", steps=budget.mapper, batch_size=half, **common),
    )["mapper"]
    mapper.save_pretrained(folder / "mapper")
    seconds["mapper"] = time.monotonic() - started - seconds["encoder"] - seconds["purifier"]
    return {**{f"{part}_seconds": round(value, 1) for part, value in seconds.items()}, "zero_shot_accuracy": accuracy}
