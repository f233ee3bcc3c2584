"""How the small models are trained: an autoencoder on crops of worlds, then a transformer on its latents, through the usual recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiongraft.methods.panorama import small
from visiongraft.methods.panorama.autoencoders import AutoencoderRecipe, set_latent_statistics
from visiongraft.methods.panorama.cache import TensorCache
from visiongraft.methods.panorama.circular import encode_latents
from visiongraft.methods.panorama.encoded import EncodedSamples, PairEncoder
from visiongraft.methods.panorama.recipe import PanoramaRecipe, training_shift
from visiongraft.methods.panorama.world_samples import WorldSamples, world_samples
from visiongraft.training import TrainerConfig, train

CROP = 64
HELD_OUT, CLIPS = 7_919, 5_003
"""Added to a seed: worlds of its tests, and of clips, are never those of its training."""


@dataclass(kw_only=True)
class SmallBudget:
    """What the small models are trained on, and for how long.

    Args:
        scenes: of each seed; the bundled image models take those of seed 0.
        draws: cameras of each scene or clip.
        vae: steps of the image autoencoder.
        transformer: steps of each image transformer of the study.
        image: steps of the bundled image transformer.
        clips: of the bundled video models.
        video_vae: steps of the bundled video autoencoder.
        video: steps of the bundled video transformer.
        batch_size: samples a step of the image transformers.
    """

    scenes: int = 600
    draws: int = 4
    vae: int = 1200
    transformer: int = 1000
    image: int = 4000
    clips: int = 100
    video_vae: int = 600
    video: int = 1500
    batch_size: int = 16


def worlds(scenes: int, seed: int, cache: Path, draws: int = 1, frames: int = 1) -> WorldSamples:
    """Worlds at small scale; see :func:`visiongraft.methods.panorama.world_samples.world_samples`."""
    return world_samples(scenes, seed, height=small.HEIGHT, size=small.CONDITION_SIZE, draws=draws, frames=frames, cache=cache)


def train_vae(samples: WorldSamples, seed: int, steps: int, folder: Path) -> Any:
    """A small autoencoder for the samples (images or clips), with the statistics of its latents."""
    video = samples.panoramas.dim() == 5
    vae, padding = (
        (small.small_video_vae(seed), small.video_graft().padding) if video else (small.small_vae(seed), small.image_graft().padding)
    )
    config = _config(folder, steps, seed, batch_size=2 if video else 8)
    trained: Any = train(AutoencoderRecipe(vae, samples.panoramas, CROP), config)["vae"]
    set_latent_statistics(trained, samples.panoramas[:64], padding)
    return trained


@torch.no_grad()
def encode_samples(pipeline: Any, samples: WorldSamples, folder: Path, circular: bool = True) -> EncodedSamples:
    """Latents of all samples and embeddings of their captions.

    Args:
        pipeline: a small image or video pipeline.
        samples: of its kind.
        folder: remembers the captions' embeddings.
        circular: circular latents of the panoramas, or ordinary ones.
    """
    padding, video = pipeline.graft.padding, samples.panoramas.dim() == 5

    def latents(pixels: Tensor, **options: Any) -> Tensor:
        layout = (lambda p: p.transpose(1, 2)) if video else (lambda p: p)
        parts = pixels.split(4 if video else 32)
        return torch.cat([encode_latents(pipeline.vae, layout(part.float() / 127.5 - 1), warn=False, **options) for part in parts])

    encoder = PairEncoder(pipeline, pipeline.graft, TensorCache(folder / "captions"))
    prefix = pipeline.graft.caption_prefix
    words = {caption: encoder.caption(prefix + caption) for caption in sorted(set(samples.captions))}
    names = words[samples.captions[0]]
    text = {name: torch.stack([words[caption][name] for caption in samples.captions]) for name in names}
    panoramas = latents(samples.panoramas, circular=circular, padding=padding)
    return EncodedSamples({"panorama": panoramas, "condition": latents(samples.inputs, circular=False), **text})


def train_transformer(pipeline: Any, samples: EncodedSamples, seed: int, steps: int, batch_size: int, folder: Path) -> Any:
    """The pipeline's transformer, trained on encoded samples with the recipe of the real one."""
    graft = pipeline.graft
    null = PairEncoder(pipeline, graft, TensorCache(folder / "captions")).caption("")
    height, width = samples.tensors["panorama"].shape[-2:]
    recipe = PanoramaRecipe(
        pipeline.transformer,
        graft,
        samples,
        null_text=null,
        shift=training_shift(graft, pipeline.scheduler, height * width // 4),
        vae=pipeline.vae,
        learning_rate=1e-3,
        warmup_steps=100,
    )
    config = _config(folder, steps, seed, batch_size=batch_size, ema_decay=0.995)
    trained: Any = train(recipe, config)["graft"]
    return trained.transformer.eval()


def _config(folder: Path, steps: int, seed: int, **changes: Any) -> TrainerConfig:
    values: dict[str, Any] = {"checkpoint_every": 500, "keep_checkpoints": 1, "logger": "none", **changes}
    return TrainerConfig(output=folder, steps=steps, seed=seed, **values)
