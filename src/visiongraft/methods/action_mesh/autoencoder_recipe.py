"""Training of stage II: where tracked points of a source frame are in a target frame, told from the latents of all frames."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from visiongraft.methods.action_mesh.denoiser_recipe import framesteps
from visiongraft.methods.action_mesh.losses import draw_pairs, tracked_point_loss
from visiongraft.methods.action_mesh.recipe_parts import fixed_generator, held_out_batch, noise_like, optimizer_of
from visiongraft.methods.action_mesh.train_options import OFFICIAL, StageSettings
from visiongraft.methods.action_mesh.training_inputs import FrozenEncoders
from visiongraft.training import Recipe


class AutoencoderRecipe(Recipe):
    """``E |x_target - D(latents, source, target, x_source, n_source)|^2`` over tracked points and random pairs of frames.

    The loss stays near that of "nothing moves" for hundreds of steps and then drops quickly; do not judge it early.

    Args:
        autoencoder: trained; a ``TemporalAutoencoder``, best from ``temporalize`` of the VAE.
        samples: map-style data set of dicts: ``points`` (T, P, 6) tracked points with normals, and optionally ``framestep`` (T). The
            query points are drawn from the same points.
        encoders: the frozen VAE; no picture encoder is used.
        settings: of the stage; ``latent_noise`` makes it robust to the errors of stage I.
        held_out: samples that are not trained on, for validation.

    Source: ActionMesh brief, 2.6 and 5.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        samples: Dataset,
        encoders: FrozenEncoders,
        settings: StageSettings = OFFICIAL["autoencoder"],
        *,
        held_out: Dataset | None = None,
    ) -> None:
        self.samples, self.encoders, self.settings, self.held_out = samples, encoders, settings, held_out
        self.modules: dict[str, nn.Module] = {"autoencoder": autoencoder.requires_grad_(True)}
        self.optimizers = {"main": optimizer_of("autoencoder", settings)}

    def data(self) -> Dataset:
        """The samples."""
        return self.samples

    def to(self, device: torch.device) -> None:
        """Moves the frozen encoder."""
        self.encoders.to(device)

    def losses(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], generator: torch.Generator, optimizer: str
    ) -> dict[str, Tensor]:
        """``position``: mean squared error of coordinates."""
        predicted, wanted, _ = self._predict(modules["autoencoder"], batch, generator)
        return {"position": tracked_point_loss(predicted, wanted)}

    @torch.no_grad()
    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """On held-out clips and fixed pairs: ``rmse``, the root of the mean squared distance, and ``rmse_still`` if nothing moved."""
        if self.held_out is None:
            return {}
        module = modules["autoencoder"].eval()
        predicted, wanted, start = self._predict(module, held_out_batch(self.held_out, module), fixed_generator(module))
        return {
            name: float((3 * tracked_point_loss(values, wanted)).sqrt()) for name, values in (("rmse", predicted), ("rmse_still", start))
        }

    def _predict(self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(predicted, true, source) positions of randomly chosen points."""
        surface = batch["points"].float()
        latents = self.encoders.latents(surface, generator)
        if self.settings.latent_noise:
            latents = latents + self.settings.latent_noise * noise_like(latents, generator)
        count, frames, points, _ = surface.shape
        source, target = (index.to(surface.device) for index in draw_pairs(count, frames, generator))
        dice = torch.rand(count, points, generator=generator, device=generator.device).to(surface.device)
        chosen = dice.argsort(1)[:, : self.settings.query_points, None].expand(-1, -1, 6)
        clip = torch.arange(count, device=surface.device)
        start, end = (surface[clip, frame].gather(1, chosen) for frame in (source, target))
        step = framesteps(batch, latents)
        predicted = module(latents, step, step[clip, source], step[clip, target], start[..., :3], start[..., 3:])
        return predicted, end[..., :3], start[..., :3]
