"""Does a transformer find where an input belongs without being told the camera? The study's second experiment (arXiv 2601.16192).

In pixel space, on worlds that are a colour for every direction, one transformer of FLUX's class is trained for each way of giving it
the input: as tokens of the sequence without any camera, or warped into the panorama's channels with the true or an assumed camera.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.flow.losses import flow_matching_loss
from visiongraft.flow.paths import interpolate
from visiongraft.flow.sampling import sample
from visiongraft.flow.times import TimeDistribution, sample_times, time_grid
from visiongraft.geometry.cameras import camera_rays, rotation_from_angles
from visiongraft.geometry.panoramas import panorama_from_perspective, panorama_rays
from visiongraft.methods.panorama.sequence_flux import flux_velocity
from visiongraft.methods.panorama.small import seeded
from visiongraft.metrics.masked import masked_psnr
from visiongraft.training import Optimizer, Recipe, TrainerConfig, train
from visiongraft.worlds.waves import wave_worlds

HEIGHT, SIZE, TEXT_WIDTH = 16, 16, 16
ASSUMED_HFOV_DEG = 75.0


class CameraRanges(NamedTuple):
    """Uniform ranges of the inputs' cameras, in degrees."""

    hfov: tuple[float, float] = (40.0, 110.0)
    pitch: tuple[float, float] = (-45.0, 45.0)
    roll: tuple[float, float] = (-15.0, 15.0)

    def draw(self, count: int, generator: torch.Generator | None) -> Float[Tensor, "count 4"]:
        """(hfov, yaw, pitch, roll) in radians; the yaw is 0."""
        low, high = (torch.tensor([self.hfov[i], 0.0, self.pitch[i], self.roll[i]]) for i in (0, 1))
        return (low + (high - low) * torch.rand(count, 4, generator=generator)) * (math.pi / 180)


ALL_CAMERAS = CameraRanges()
ONE_CAMERA = CameraRanges((ASSUMED_HFOV_DEG, ASSUMED_HFOV_DEG), (0.0, 0.0), (0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way of giving the transformer its input.

    Args:
        condition: ``sequence``: clean tokens, no camera; ``channels``: warped into the panorama, with a mask.
        camera: camera of the warp: the ``true`` one, or the ``assumed`` one (75 degrees, level).
        training: cameras of the training inputs.
        canonical: upright targets; else the panorama is turned so that the input lies at its centre, pitch and roll included.
    """

    condition: str = "sequence"
    camera: str = "true"
    training: CameraRanges = ALL_CAMERAS
    canonical: bool = True


VARIANTS = {
    "sequence, no camera": Variant(),
    "channels, true camera": Variant(condition="channels"),
    "channels, assumed camera": Variant(condition="channels", camera="assumed"),
    "sequence, one training camera": Variant(training=ONE_CAMERA),
    "sequence, target not canonical": Variant(canonical=False),
}


class Pairs(NamedTuple):
    """Panoramas, their inputs and the inputs' cameras (hfov, yaw, pitch, roll in radians); colours in [0, 1]."""

    panorama: Float[Tensor, "count 3 height width"]
    image: Float[Tensor, "count 3 size size"]
    camera: Float[Tensor, "count 4"]


def pairs(count: int, ranges: CameraRanges, generator: torch.Generator | None, canonical: bool = True) -> Pairs:
    """Fresh worlds; both pictures are evaluated on their own rays."""
    worlds, camera = wave_worlds(count, generator), ranges.draw(count, generator)
    rotation = rotation_from_angles(*camera[:, 1:].unbind(1))
    rays = panorama_rays(HEIGHT, 2 * HEIGHT).expand(count, -1, -1, -1)
    if not canonical:
        rays = torch.einsum("bij,bhwj->bhwi", rotation, rays)
    view = torch.einsum("bij,bhwj->bhwi", rotation, camera_rays(camera[:, 0], SIZE, SIZE))
    return Pairs(worlds.color(rays), worlds.color(view), camera)


class PairBatches(Dataset):
    """As many fresh pairs as are asked for, made a batch at a time from torch's global randomness (which the Trainer seeds)."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> Pairs:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Pairs]:
        made = pairs(len(indices), self.variant.training, None, self.variant.canonical)
        return [Pairs(*parts) for parts in zip(*made, strict=True)]


class PositionedEmbedding(nn.Linear):
    """A token embedding with a learned vector for each place in the sequence.

    FLUX's rotary positions are relative; a pretrained base has learned where on the panorama a token lies, and this network starts
    from nothing.
    """

    def __init__(self, width: int, dim: int, length: int) -> None:
        super().__init__(width, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(length, dim))

    def forward(self, input: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens dim"]:
        """Embedded tokens of a sequence that begins with the panorama's."""
        return super().forward(input) + self.positions[: input.shape[1]]


def transformer_for(variant: Variant, seed: int) -> FluxTransformer2DModel:
    """Width 96, four blocks, tokens of 4 x 4 pixels; for channels the warped input and its mask come on top."""
    width = 48 if variant.condition == "sequence" else 48 + 48 + 16

    def make() -> FluxTransformer2DModel:
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=width,
            out_channels=48,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=24,
            num_attention_heads=4,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 8, 8),
        )
        transformer.x_embedder = PositionedEmbedding(width, transformer.inner_dim, (2 * HEIGHT**2 + SIZE**2) // 16)
        return transformer

    return seeded(seed, make)


def warped(image: Tensor, camera: Float[Tensor, "count 4"]) -> tuple[Tensor, Bool[Tensor, "count 1 height width"]]:
    """An input on the panorama, and where it lies, by a camera (hfov, yaw, pitch, roll)."""
    return panorama_from_perspective(image, camera[:, 0], rotation_from_angles(*camera[:, 1:].unbind(1)), HEIGHT)


def assumed_camera(count: int) -> Float[Tensor, "count 4"]:
    """The camera one would assume of any photo: level, 75 degrees wide."""
    return torch.tensor([math.radians(ASSUMED_HFOV_DEG), 0.0, 0.0, 0.0]).expand(count, 4)


def predicted_velocity(transformer: Any, variant: Variant, noisy: Tensor, t: Tensor, image: Tensor, camera: Tensor) -> Tensor:
    """Velocity at a noisy panorama in [-1, 1], given the input in [0, 1].

    Pixels are folded 2 x 2 into channels, and packed 2 x 2 again as FLUX packs its latents.
    """
    text = noisy.new_zeros(len(noisy), 1, TEXT_WIDTH)
    parts, condition = [F.pixel_unshuffle(noisy, 2)], None
    if variant.condition == "sequence":
        condition = F.pixel_unshuffle(2 * image - 1, 2)
    else:
        given, mask = warped(image, camera if variant.camera == "true" else assumed_camera(len(image)))
        parts += [F.pixel_unshuffle((2 * given - 1) * mask, 2), F.pixel_unshuffle(mask.float(), 2)]
    latents = flux_velocity(transformer, torch.cat(parts, 1), condition, t, text, text[:, 0])
    return F.pixel_shuffle(latents, 2)


class PlacementRecipe(Recipe):
    """Flow matching on panoramas of wave worlds; times are sigmoid(N(0.8, 1))."""

    def __init__(self, variant: Variant, seed: int, learning_rate: float = 2e-3) -> None:
        self.variant = variant
        self.modules = {"transformer": transformer_for(variant, seed)}
        self.optimizers = {"main": Optimizer(modules=("transformer",), learning_rate=learning_rate, schedule="cosine", warmup_steps=50)}

    def data(self) -> Dataset:
        """Fresh worlds without end."""
        return PairBatches(self.variant)

    def collate(self, items: list[Pairs]) -> Pairs:
        """Batch of pairs."""
        return Pairs(*(torch.stack(parts) for parts in zip(*items, strict=True)))

    def losses(self, modules: dict[str, Any], batch: Pairs, generator: torch.Generator, optimizer: str) -> dict[str, Tensor]:
        """Mean squared error of the velocity."""
        data = 2 * batch.panorama - 1
        noise = torch.randn(data.shape, generator=generator, device=data.device)
        t = sample_times(len(data), TimeDistribution(kind="logit_normal", mean=0.8, std=1.0), generator)
        noisy = interpolate(data, noise, t)
        velocity = predicted_velocity(modules["transformer"], self.variant, noisy, t, batch.image, batch.camera)
        return {"velocity": flow_matching_loss(velocity, data, noise)}


def train_variant(name: str, seed: int, steps: int, folder: Path) -> FluxTransformer2DModel:
    """Trains one variant into ``folder``; continues where it stopped."""
    config = TrainerConfig(
        output=folder, steps=steps, batch_size=32, seed=seed, ema_decay=0.99, logger="none", checkpoint_every=200, keep_checkpoints=1
    )
    return train(PlacementRecipe(VARIANTS[name], seed), config)["transformer"]  # pyright: ignore[reportReturnType]


@torch.no_grad()
def generate(transformer: Any, variant: Variant, image: Tensor, camera: Tensor, generator: torch.Generator, steps: int = 20) -> Tensor:
    """Panoramas in [0, 1] from inputs, from noise in Euler steps without guidance."""
    noise = torch.randn(len(image), 3, HEIGHT, 2 * HEIGHT, generator=generator)
    velocity = lambda y, t: predicted_velocity(transformer, variant, y, t, image, camera)
    return ((sample(velocity, noise, time_grid(steps)) + 1) / 2).clamp(0, 1)


def visible_psnr(panorama: Tensor, truth: Pairs) -> Float[Tensor, " count"]:
    """PSNR in dB of each panorama where its input sees it."""
    return masked_psnr(panorama, truth.panorama, warped(truth.image, truth.camera)[1])
