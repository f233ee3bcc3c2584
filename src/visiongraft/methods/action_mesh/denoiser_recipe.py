"""Training of stage I: flow matching of all frames' latents together, of which a few are given clean."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from visiongraft.methods.action_mesh.losses import draw_sources, noisy_latents, velocity_loss
from visiongraft.methods.action_mesh.recipe_parts import (
    TRAIN_TIMESTEPS,
    VALIDATION_TIMES,
    fixed_generator,
    held_out_batch,
    held_out_groups,
    keep_context,
    noise_like,
    optimizer_of,
    training_times,
)
from visiongraft.methods.action_mesh.train_options import OFFICIAL, StageSettings
from visiongraft.methods.action_mesh.training_inputs import FrozenEncoders
from visiongraft.training import Recipe


class DenoiserRecipe(Recipe):
    """``E |v(z_sigma, 1000 sigma, pictures, framesteps, mask) - (z - eps)|^2`` over target frames.

    Source frames come in clean with time zero, sampled once from the posterior; the loss is not asked of them. One time a clip, noise of
    its own for every frame.

    Args:
        denoiser: trained; a ``TemporalDenoiser``, best from ``inflate`` of a trained base.
        samples: map-style data set of dicts: ``points`` (T, P, 6) tracked points with normals, ``context`` (T, S, D) or ``frames``
            (T, C, H, W), and optionally ``framestep`` (T), else 0 to T-1.
        encoders: the frozen VAE and picture encoder.
        settings: of the stage. ``sources=(0, 0)`` trains without masked generation (an ablation), ``mask_dropout`` makes some clips have
            no sources (for guidance of three terms).
        held_out: samples that are not trained on, for validation.

    Source: ActionMesh brief, 2.4 and 5.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        samples: Dataset,
        encoders: FrozenEncoders,
        settings: StageSettings = OFFICIAL["denoiser"],
        *,
        held_out: Dataset | None = None,
    ) -> None:
        self.samples, self.encoders, self.settings, self.held_out = samples, encoders, settings, held_out
        self.modules: dict[str, nn.Module] = {"denoiser": denoiser.requires_grad_(True)}
        self.optimizers = {"main": optimizer_of("denoiser", settings)}

    def data(self) -> Dataset:
        """The samples."""
        return self.samples

    def to(self, device: torch.device) -> None:
        """Moves the frozen encoders."""
        self.encoders.to(device)

    def losses(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], generator: torch.Generator, optimizer: str
    ) -> dict[str, Tensor]:
        """``flow``: mean squared error of the velocity on target frames."""
        latents = self.encoders.latents(batch["points"], generator)
        count, frames = latents.shape[:2]
        mask = draw_sources(count, frames, self.settings.sources, generator)
        nothing_known = torch.rand(count, 1, generator=generator, device=generator.device) < self.settings.mask_dropout
        mask = mask.masked_fill(nothing_known, 0).to(latents.device)
        keep = keep_context(count, self.settings.context_dropout, generator)
        sigma = training_times(count, self.settings.shift, generator).to(latents.device)
        context = self.encoders.context(batch, keep)
        return {"flow": self._loss(modules["denoiser"], batch, latents, context, sigma, noise_like(latents, generator), mask)}

    @torch.no_grad()
    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """``flow``: the loss on held-out clips with all pictures and the first frame given, averaged over five fixed times."""
        if self.held_out is None:
            return {}
        module: Any = modules["denoiser"].eval()
        batch, generator = held_out_batch(self.held_out, module), fixed_generator(module)
        latents, context = self.encoders.latents(batch["points"], generator), self.encoders.context(batch)
        mask = latents.new_zeros(latents.shape[:2])
        if self.settings.sources[1]:
            mask[:, 0] = 1
        losses = []
        for time in VALIDATION_TIMES:
            sigma = torch.full((len(latents),), time, device=latents.device)
            noise = noise_like(latents, generator)
            for some in held_out_groups(latents):
                clips = {name: values[some] for name, values in batch.items()}
                loss = self._loss(module, clips, latents[some], context[some], sigma[some], noise[some], mask[some])
                losses.append(loss * len(latents[some]) / len(latents))  # a clip counts the same in every group
        return {"flow": float(torch.stack(losses).sum() / len(VALIDATION_TIMES))}

    def _loss(
        self,
        denoiser: nn.Module,
        batch: dict[str, Tensor],
        latents: Tensor,
        context: Tensor,
        sigma: Tensor,
        noise: Tensor,
        mask: Tensor,
    ) -> Tensor:
        noisy = noisy_latents(latents, noise, sigma, mask)
        velocity = denoiser(noisy, context, framesteps(batch, latents), sigma * TRAIN_TIMESTEPS, mask)
        return velocity_loss(velocity, latents, noise, mask)


def framesteps(batch: dict[str, Tensor], latents: Float[Tensor, "batch frames tokens channels"]) -> Float[Tensor, "batch frames"]:
    """The clips' frame numbers, which may be fractional: as the batch says, else 0, 1, 2 ..."""
    if "framestep" in batch:
        return batch["framestep"].to(latents.device, torch.float32)
    return torch.arange(latents.shape[1], device=latents.device, dtype=torch.float32).expand(latents.shape[:2])
