"""Training of the shape autoencoder: a truncated signed distance at points near the surface and in the box, and a KL."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from visiongraft.methods.action_mesh.grouped_sampling import grouped_indices
from visiongraft.methods.action_mesh.losses import gaussian_kl, sdf_losses
from visiongraft.methods.action_mesh.recipe_parts import fixed_generator, held_out_batch, optimizer_of
from visiongraft.methods.action_mesh.train_options import OFFICIAL, StageSettings
from visiongraft.training import Recipe


class ReconstructionCall(nn.Module):
    """The VAE with a whole pass as its forward, so that whatever wraps it in training wraps the whole."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self,
        surface: Float[Tensor, "batch points 6"],
        indices: Int[Tensor, "batch tokens"],
        queries: Float[Tensor, "batch queries 3"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch queries"], Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"]]:
        """Logits at the queries from a draw of the posterior (its mean without a generator), and the posterior's mean and logvar."""
        posterior = self.vae.encode(surface, indices.shape[1], indices=indices)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return self.vae.query(self.vae.decode_context(latents), queries), posterior.mean, posterior.logvar

    def save_pretrained(self, folder: str | Path) -> None:
        """The VAE's folder."""
        self.vae.save_pretrained(folder)


class VAERecipe(Recipe):
    """``L1 |u - f| + L2 (u - f)^2 + KL``, with ``u = tanh(logit / 2)`` and ``f`` the truncated signed distance.

    TripoSG also has losses on surface normals and on the field's gradient; their weights are not known and they are left out.

    Args:
        vae: trained.
        samples: map-style data set of dicts: ``points`` (T, P, 6) with unit normals, ``queries`` (T, Q, 3), ``sdf`` (T, Q) at them,
            positive outside; every frame is a sample of its own, so that items of one frame are best.
        settings: of the stage; see :class:`visiongraft.methods.action_mesh.train_options.StageSettings`.
        held_out: samples that are not trained on, for validation.

    Source: ActionMesh brief, 5 and 9.
    """

    def __init__(self, vae: Any, samples: Dataset, settings: StageSettings = OFFICIAL["vae"], *, held_out: Dataset | None = None) -> None:
        self.samples, self.settings, self.held_out = samples, settings, held_out
        self.modules: dict[str, nn.Module] = {"vae": ReconstructionCall(vae.requires_grad_(True))}
        self.optimizers = {"main": optimizer_of("vae", settings)}

    def data(self) -> Dataset:
        """The samples."""
        return self.samples

    def losses(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], generator: torch.Generator, optimizer: str
    ) -> dict[str, Tensor]:
        """``sdf_l1`` and ``sdf_l2`` (where they have a weight) and ``kl``."""
        surface, queries, sdf = (batch[name].flatten(0, 1) for name in ("points", "queries", "sdf"))
        indices = grouped_indices(surface[:, None], self.settings.tokens, generator)
        logits, mean, logvar = modules["vae"](surface, indices, queries, generator)
        absolute, squared = sdf_losses(logits, sdf, self.settings.truncation)
        weighted = {
            "sdf_l1": (self.settings.l1_weight, absolute),
            "sdf_l2": (self.settings.l2_weight, squared),
            "kl": (self.settings.kl_weight, gaussian_kl(mean, logvar)),
        }
        return {name: weight * value for name, (weight, value) in weighted.items() if weight}

    @torch.no_grad()
    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """On held-out samples from the posterior's mean: ``sdf_l2``, and ``occupancy``, the share of query points on the right side."""
        if self.held_out is None:
            return {}
        module = modules["vae"].eval()
        batch = held_out_batch(self.held_out, module)
        surface, queries, sdf = (batch[name].flatten(0, 1) for name in ("points", "queries", "sdf"))
        indices = grouped_indices(surface[:, None], self.settings.tokens, fixed_generator(module))
        logits, _, _ = module(surface, indices, queries)
        right, squared = (logits > 0) == (sdf < 0), sdf_losses(logits, sdf, self.settings.truncation)[1]
        return {"sdf_l2": float(squared), "occupancy": float(right.float().mean())}
