"""Training of the base: flow matching of one frame's shape latents, given the frame's picture."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from visiongraft.methods.action_mesh.losses import noisy_latents, velocity_loss
from visiongraft.methods.action_mesh.recipe_parts import (
    TRAIN_TIMESTEPS,
    VALIDATION_TIMES,
    fixed_generator,
    held_out_batch,
    keep_context,
    noise_like,
    optimizer_of,
    training_times,
)
from visiongraft.methods.action_mesh.train_options import OFFICIAL, StageSettings
from visiongraft.methods.action_mesh.training_inputs import FrozenEncoders
from visiongraft.training import Recipe


class BaseRecipe(Recipe):
    """``E |v(z_sigma, 1000 sigma, picture) - (z - eps)|^2`` over single frames.

    Args:
        dit: trained; a ``TripoSGDiT`` or another module with its call.
        samples: map-style data set of dicts: ``points`` (T, P, 6), ``context`` (T, S, D) or ``frames`` (T, C, H, W); every frame is a
            sample of its own, so that items of one frame are best.
        encoders: the frozen VAE and picture encoder.
        settings: of the stage.
        held_out: samples that are not trained on, for validation.

    Source: ActionMesh brief, 2.3 and 9.
    """

    def __init__(
        self,
        dit: nn.Module,
        samples: Dataset,
        encoders: FrozenEncoders,
        settings: StageSettings = OFFICIAL["base"],
        *,
        held_out: Dataset | None = None,
    ) -> None:
        self.samples, self.encoders, self.settings, self.held_out = samples, encoders, settings, held_out
        self.modules: dict[str, nn.Module] = {"base": dit.requires_grad_(True)}
        self.optimizers = {"main": optimizer_of("base", settings)}

    def data(self) -> Dataset:
        """The samples."""
        return self.samples

    def to(self, device: torch.device) -> None:
        """Moves the frozen encoders."""
        self.encoders.to(device)

    def losses(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], generator: torch.Generator, optimizer: str
    ) -> dict[str, Tensor]:
        """``flow``: mean squared error of the velocity."""
        latents = self.encoders.latents(batch["points"], generator)
        keep = keep_context(len(latents), self.settings.context_dropout, generator)
        sigma = training_times(latents.shape[0] * latents.shape[1], self.settings.shift, generator).to(latents.device)
        return {"flow": self._loss(modules["base"], batch, latents, sigma, noise_like(latents, generator), keep)}

    @torch.no_grad()
    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """``flow``: the loss on held-out samples with all pictures, averaged over five fixed times."""
        if self.held_out is None:
            return {}
        module: Any = modules["base"].eval()
        batch, generator = held_out_batch(self.held_out, module), fixed_generator(module)
        latents = self.encoders.latents(batch["points"], generator)
        count, losses = latents.shape[0] * latents.shape[1], []
        for time in VALIDATION_TIMES:
            sigma = torch.full((count,), time, device=latents.device)
            losses.append(self._loss(module, batch, latents, sigma, noise_like(latents, generator), None))
        return {"flow": float(torch.stack(losses).mean())}

    def _loss(self, dit: nn.Module, batch: dict[str, Tensor], latents: Tensor, sigma: Tensor, noise: Tensor, keep: Tensor | None) -> Tensor:
        context = self.encoders.context(batch, keep).flatten(0, 1)
        alone, noise = (values.flatten(0, 1)[:, None] for values in (latents, noise))
        noisy = noisy_latents(alone, noise, sigma, sigma.new_zeros(len(sigma), 1))
        velocity = dit(noisy[:, 0], sigma * TRAIN_TIMESTEPS, context)
        return velocity_loss(velocity[:, None], alone, noise)
