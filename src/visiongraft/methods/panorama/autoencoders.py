"""Training of the small autoencoders, on crops that never wrap: like the bases' own, they have not seen a panorama's border."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.methods.panorama.circular import CircularPadding, encode_latents
from visiongraft.training import Optimizer, Recipe


class Crops(Dataset):
    """Square crops at random places of pictures or clips in memory, in [-1, 1]."""

    def __init__(self, pixels: UInt8[Tensor, "count *frames 3 height width"], size: int) -> None:
        self.pixels, self.size = pixels, size

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.pixels.shape[-2:]
        top = int(torch.randint(height - self.size + 1, ()))
        left = int(torch.randint(width - self.size + 1, ()))
        crop = self.pixels[index, ..., top : top + self.size, left : left + self.size]
        return crop.float() / 127.5 - 1


class AutoencoderRecipe(Recipe):
    """Reconstruction with L1 + 2 MSE + 1e-4 KL, on one process.

    Args:
        vae: an image autoencoder, or a causal video autoencoder.
        pixels: panoramas; for a video autoencoder clips of 4k+1 frames.
        size: side of the crops.
        learning_rate: peak of AdamW's cosine schedule.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderKLWan, pixels: Tensor, size: int, learning_rate: float = 3e-3) -> None:
        self._video, self._crops = pixels.dim() == 5, Crops(pixels, size)
        self.modules = {"vae": vae}
        self.optimizers = {"main": Optimizer(modules=("vae",), learning_rate=learning_rate, schedule="cosine", warmup_steps=50)}

    def data(self) -> Dataset:
        """Crops, drawn anew each time."""
        return self._crops

    def losses(self, modules: dict[str, Any], batch: Tensor, generator: torch.Generator, optimizer: str) -> dict[str, Tensor]:
        """Reconstruction and divergence from the unit Gaussian."""
        vae = modules["vae"]
        pixels = batch.transpose(1, 2) if self._video else batch
        posterior = vae.encode(pixels).latent_dist
        restored = vae.decode(posterior.sample(generator)).sample
        divergence = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
        return {"l1": F.l1_loss(restored, pixels), "mse": 2 * F.mse_loss(restored, pixels), "kl": 1e-4 * divergence}


@torch.no_grad()
def set_latent_statistics(vae: Any, pixels: UInt8[Tensor, "count *frames 3 height width"], padding: CircularPadding) -> None:
    """Writes mean and standard deviation of the latents into the autoencoder's configuration, so that they are normalised.

    Args:
        vae: trained; its constants are still those of an untrained one.
        pixels: panoramas to measure on.
        padding: of their circular encoding.
    """
    values = pixels.float() / 127.5 - 1
    batches = (values.transpose(1, 2) if pixels.dim() == 5 else values).split(16)
    latents = torch.cat([encode_latents(vae, batch, padding=padding) for batch in batches])
    if isinstance(vae, AutoencoderKLWan):
        axes = [0, 2, 3, 4]
        vae.register_to_config(latents_mean=latents.mean(axes).tolist(), latents_std=latents.std(axes).tolist())
    else:
        vae.register_to_config(scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean()))
