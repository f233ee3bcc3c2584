"""What the recipes of the four stages share: the optimiser, held-out batches, training times, the call that is validated."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from visiongraft.flow.times import TimeDistribution, sample_times, shift_times
from visiongraft.methods.action_mesh.train_options import StageSettings
from visiongraft.training import Optimizer

TRAIN_TIMESTEPS = 1000
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
VALIDATED_TOKENS = 1 << 16
"""Latent tokens that a denoiser is validated on at a time: their activations must fit beside the optimiser's state."""


def optimizer_of(module: str, settings: StageSettings) -> Optimizer:
    """AdamW over one module, as the settings say."""
    return Optimizer(
        modules=(module,),
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup_steps=settings.warmup,
    )


def training_times(count: int, shift: float, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Flow times of a batch: logit-normal(0, 1), then shifted towards noise.

    Source: ActionMesh brief, 5 (our choice).
    """
    return shift_times(sample_times(count, TimeDistribution(), generator), shift)


def noise_like(values: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of a tensor's shape, beside it."""
    return torch.randn(values.shape, generator=generator, device=generator.device).to(values.device)


def keep_context(count: int, dropout: float, generator: torch.Generator) -> Tensor:
    """False for the samples that learn without their pictures."""
    return torch.rand(count, generator=generator, device=generator.device) >= dropout


def held_out_batch(samples: Dataset, module: nn.Module) -> dict[str, Tensor]:
    """All samples of a data set as one batch beside a module."""
    device = next(module.parameters()).device
    items = [samples[index] for index in range(len(samples))]  # pyright: ignore[reportArgumentType]
    return {name: values.to(device) for name, values in default_collate(items).items() if isinstance(values, Tensor)}


def held_out_groups(latents: Float[Tensor, "batch frames tokens channels"], at_once: int = VALIDATED_TOKENS) -> list[slice]:
    """Clips that are validated together: as many as have ``at_once`` latent tokens, and at least one."""
    count, frames, tokens, _ = latents.shape
    size = max(1, at_once // (frames * tokens))
    return [slice(start, start + size) for start in range(0, count, size)]


def fixed_generator(module: nn.Module, seed: int = 0) -> torch.Generator:
    """The same randomness at every validation, beside a module."""
    return torch.Generator(next(module.parameters()).device).manual_seed(seed)
