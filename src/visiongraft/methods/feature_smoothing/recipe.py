"""Training of purifier and mapper against a frozen encoder (Algorithm 1 of arXiv 2601.16200): losses, recipes, a folder of images."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.media.images import list_images, read_image, resize
from visiongraft.methods.feature_smoothing.diffusion_purifier import SIGMA_RANGE, DiffusionPurifier
from visiongraft.methods.feature_smoothing.encoders import Encoder
from visiongraft.methods.feature_smoothing.smoothing import TokenMode, reduce_tokens
from visiongraft.training import Optimizer, Recipe
from visiongraft.training.order import derived_seed


class ImageFolder(Dataset):
    """Random resized crops (80 to 100 % of a side, half of them mirrored) of a folder's images, a pure function of seed and index.

    Args:
        folder: an image or a folder of images; no labels are needed.
        size: side of the square crops in pixels.
        seed: of the crops.
        crops_per_image: different crops of each image; the data set is this many times as long.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
    """

    def __init__(self, folder: Path, size: int, seed: int = 0, crops_per_image: int = 64) -> None:
        self.paths, self.size, self.seed = list_images(folder), size, seed
        self.crops_per_image = crops_per_image

    def __len__(self) -> int:
        return len(self.paths) * self.crops_per_image

    def __getitem__(self, index: int) -> Float[Tensor, "3 size size"]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = read_image(self.paths[index % len(self.paths)])
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "crop", index))
        scale, top, left, mirror = torch.rand(4, generator=generator).tolist()
        side = round(min(image.shape[1:]) * (0.8 + 0.2 * scale))
        y, x = round((image.shape[1] - side) * top), round((image.shape[2] - side) * left)
        crop = resize(image[:, y : y + side, x : x + side], (self.size, self.size))
        return crop.flip(-1) if mirror < 0.5 else crop


def feature_loss(
    clean: Float[Tensor, "batch tokens dim"], tokens: Float[Tensor, "batch tokens dim"], encoder: Encoder, modes: tuple[TokenMode, ...]
) -> Float[Tensor, ""]:
    """1 - cosine between unit features, averaged over token reductions: 1 - l_rb, to be minimised.

    Source: arXiv 2601.16200, Sec. 3.3; l_rb is a similarity and enters with a minus sign.
    """
    terms = []
    for mode in modes:
        reference, features = reduce_tokens(clean, mode, encoder.readout), reduce_tokens(tokens, mode, encoder.readout)
        terms.append(1 - (reference * features).sum(-1).mean())
    return torch.stack(terms).mean()


def statistics_loss(clean: Float[Tensor, "batch tokens dim"], mapped: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, ""]:
    """l_stats: squared differences of the mean and the standard deviation of each channel, over batch and tokens, summed.

    Raises:
        ValueError: a single token, which has no standard deviation.
    """
    if clean.shape[0] * clean.shape[1] < 2:
        raise ValueError("Token statistics need at least two tokens in a batch; got one. Raise the batch size.")
    a, b = clean.float().flatten(0, 1), mapped.float().flatten(0, 1)
    return ((a.mean(0) - b.mean(0)) ** 2 + (a.std(0) - b.std(0)) ** 2).sum()


def diffusion_loss(
    predicted: Float[Tensor, "batch channels height width"], noise: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """l_diff: mean squared error of the predicted noise (the variational term stays off)."""
    return F.mse_loss(predicted.float(), noise.float())


class PurifierRecipe(Recipe):
    """Stage 1: the purifier, with gradients through the frozen encoder.

    L = l_diff + feature_weight (1 - l_rb) + pixel_weight MSE. For the diffusion U-Net l_diff is the error of the predicted noise;
    for the preconditioned light U-Net that error is the pixel error up to a weight by noise level, so it has no term of its own.

    Args:
        encoder: frozen.
        purifier: trained.
        images: map-style data set of 3 x H x W images in [0, 1] at the encoder's size.
        sigma_range: noise levels, uniform per image, in pixel units.
        feature_weight, pixel_weight: lambda_1 and lambda_2.
        learning_rate, warmup_steps: AdamW with cosine schedule.
        modes: token reductions of the feature term.

    Raises:
        ValueError: noise levels that are not positive and increasing, or that the diffusion purifier does not cover.
    """

    def __init__(
        self,
        encoder: Encoder,
        purifier: nn.Module,
        images: Dataset,
        sigma_range: tuple[float, float] = (0.05, 0.5),
        feature_weight: float = 0.025,
        pixel_weight: float = 1.0,
        learning_rate: float = 2e-4,
        warmup_steps: int = 500,
        modes: tuple[TokenMode, ...] = ("flat", "pooled"),
    ) -> None:
        if not 0 < sigma_range[0] <= sigma_range[1]:
            raise ValueError(f"sigma_range must be positive and increasing; got {sigma_range}.")
        if isinstance(purifier, DiffusionPurifier) and not SIGMA_RANGE[0] <= sigma_range[0] <= sigma_range[1] <= SIGMA_RANGE[1]:
            raise ValueError(f"The diffusion purifier covers noise levels from {SIGMA_RANGE[0]} to {SIGMA_RANGE[1]}; got {sigma_range}.")
        self.encoder, self.images, self.sigma_range, self.modes = encoder.requires_grad_(False), images, sigma_range, modes
        self.feature_weight, self.pixel_weight = feature_weight, pixel_weight
        self.modules: dict[str, nn.Module] = {"purifier": purifier}
        self.optimizers = {
            "main": Optimizer(modules=("purifier",), learning_rate=learning_rate, schedule="cosine", warmup_steps=warmup_steps)
        }

    def data(self) -> Dataset:
        """The images."""
        return self.images

    def to(self, device: torch.device) -> None:
        """Moves the frozen encoder."""
        self.encoder.to(device)

    def losses(self, modules: dict[str, nn.Module], batch: Tensor, generator: torch.Generator, optimizer: str) -> dict[str, Tensor]:
        """``diffusion`` (diffusion U-Net only), ``feature`` and ``pixel``, weighted."""
        noisy, sigma, noise = add_noise(batch, self.sigma_range, generator)
        purifier, terms = modules["purifier"], {}
        if isinstance(self.modules["purifier"], DiffusionPurifier):
            purified, predicted = purifier(noisy, sigma, return_noise=True)
            terms["diffusion"] = diffusion_loss(predicted, noise)
        else:
            purified = purifier(noisy, sigma)
        with torch.no_grad():
            clean = self.encoder(batch)
        terms["feature"] = self.feature_weight * feature_loss(clean, self.encoder(purified), self.encoder, self.modes)
        terms["pixel"] = self.pixel_weight * F.mse_loss(purified.float(), batch)
        return terms

    def preview(self, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Eight images: clean, noisy at the middle of the range, purified."""
        purifier = modules["purifier"].eval()
        device = next(purifier.parameters()).device
        images = torch.stack([self.images[i] for i in range(min(8, len(self.images)))]).to(device)  # pyright: ignore
        middle = sum(self.sigma_range) / 2
        generator = torch.Generator(device=device).manual_seed(0)
        noisy, sigma, _ = add_noise(images, (middle, middle), generator)
        rows = [torch.cat(list(r), dim=2) for r in (images, noisy, purifier(noisy, sigma).float())]
        return {"clean-noisy-purified": torch.cat(rows, dim=1).clamp(0, 1)}


class MapperRecipe(Recipe):
    """Stage 2: the mapper behind the frozen encoder and purifier, with the same noise.

    L = (1 - l_rb) + statistics_weight l_stats / dim + identity_weight E||M(z, 0)||^2 / dim on clean tokens z, per token. The
    division by the width keeps the weights comparable between encoders.

    Args:
        encoder, purifier: frozen; the purifier may be absent.
        mapper: trained.
        images: map-style data set of 3 x H x W images in [0, 1] at the encoder's size.
        sigma_max: noise levels are uniform in [0, sigma_max].
        statistics_weight, identity_weight: lambda_3 and lambda_4.
        learning_rate, warmup_steps: AdamW (weight decay 0.01) with cosine schedule.
        modes: token reductions of the feature term.

    Raises:
        ValueError: a largest noise level that is not positive.
    """

    def __init__(
        self,
        encoder: Encoder,
        purifier: nn.Module | None,
        mapper: nn.Module,
        images: Dataset,
        sigma_max: float = 0.5,
        statistics_weight: float = 0.1,
        identity_weight: float = 0.1,
        learning_rate: float = 2e-4,
        warmup_steps: int = 500,
        modes: tuple[TokenMode, ...] = ("flat", "pooled"),
    ) -> None:
        if not sigma_max > 0:
            raise ValueError(f"sigma_max must be positive; got {sigma_max}.")
        self.encoder, self.images, self.modes = encoder.requires_grad_(False), images, modes
        self.purifier = None if purifier is None else purifier.eval().requires_grad_(False)
        self.sigma_max, self.statistics_weight, self.identity_weight = sigma_max, statistics_weight, identity_weight
        self._lowest = SIGMA_RANGE[0] if isinstance(purifier, DiffusionPurifier) else 1e-3  # a purifier needs some noise to expect
        self.modules: dict[str, nn.Module] = {"mapper": mapper}
        self.optimizers = {
            "main": Optimizer(
                modules=("mapper",), learning_rate=learning_rate, weight_decay=0.01, schedule="cosine", warmup_steps=warmup_steps
            )
        }

    def data(self) -> Dataset:
        """The images."""
        return self.images

    def to(self, device: torch.device) -> None:
        """Moves the frozen encoder and purifier."""
        self.encoder.to(device)
        if self.purifier is not None:
            self.purifier.to(device)

    def losses(self, modules: dict[str, nn.Module], batch: Tensor, generator: torch.Generator, optimizer: str) -> dict[str, Tensor]:
        """``feature``, ``statistics`` and ``identity``, weighted."""
        noisy, sigma, _ = add_noise(batch, (0.0, self.sigma_max), generator)
        with torch.no_grad():
            clean = self.encoder(batch)
            purified = noisy if self.purifier is None else self.purifier(noisy, sigma.clamp(min=self._lowest)).clamp(0, 1)
            tokens = self.encoder(purified)
        # one pass for both, since a wrapped module may be called once a step only
        levels = torch.cat([sigma, torch.zeros_like(sigma)])
        residual, at_zero = modules["mapper"](torch.cat([tokens, clean]), levels).chunk(2)
        mapped, dim = tokens + residual, tokens.shape[2]
        return {
            "feature": feature_loss(clean, mapped, self.encoder, self.modes),
            "statistics": self.statistics_weight * statistics_loss(clean, mapped) / dim,
            "identity": self.identity_weight * at_zero.float().square().sum(-1).mean() / dim,
        }


def add_noise(
    images: Float[Tensor, "batch channels height width"], sigma_range: tuple[float, float], generator: torch.Generator
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, " batch"], Float[Tensor, "batch channels height width"]]:
    """Images plus Gaussian noise of a level drawn for each image: (noisy, sigma, unit noise)."""
    uniform = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
    sigma = sigma_range[0] + (sigma_range[1] - sigma_range[0]) * uniform
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
    return images + sigma.view(-1, 1, 1, 1) * noise, sigma, noise
