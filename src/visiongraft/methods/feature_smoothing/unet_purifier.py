"""The light purifier: a small noise-conditional U-Net that starts as a Wiener filter (the light variant of arXiv 2601.16200)."""

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class UNetPurifier(ModelMixin, ConfigMixin):
    """Estimates a clean image from image + sigma * noise, at any noise level.

    Preconditioned: P(y) = 0.5 + c_skip (y - 0.5) + c_out net(c_in (y - 0.5), sigma) with c_skip = s^2 / (s^2 + sigma^2),
    c_out = sigma s / sqrt(s^2 + sigma^2) and c_in = 1 / sqrt(s^2 + sigma^2), where s is ``data_std``. The last convolution
    starts at zero, so that training starts from the best linear shrinkage towards mid-grey.

    Args:
        widths: channels by level; each level halves the resolution.
        blocks_per_level: residual blocks a level, each way.
        patch_size: pixels a side folded into channels before the first level; 2 makes it about four times cheaper.
        embedding_dim: width of the noise-level embedding.
        data_std: standard deviation of clean pixels around 0.5.
        in_channels: colour channels.

    Raises:
        ValueError: widths that are empty or no multiples of 8, or another size that is not positive.
    """

    @register_to_config
    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 256),
        blocks_per_level: int = 2,
        patch_size: int = 1,
        embedding_dim: int = 128,
        data_std: float = 0.27,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not widths or any(width % 8 or width < 8 for width in widths):
            raise ValueError(f"widths must be positive multiples of 8 (groups of the normalisation); got {tuple(widths)}.")
        sizes = {"blocks_per_level": blocks_per_level, "patch_size": patch_size, "in_channels": in_channels, "data_std": data_std}
        for name, value in sizes.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive; got {value}.")
        pixels = in_channels * patch_size**2
        self.noise_mlp = nn.Sequential(nn.Linear(64, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim), nn.SiLU())
        self.conv_in = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.reduce, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(nn.ModuleList(ResidualBlock(width, width, embedding_dim) for _ in range(blocks_per_level)))
            if level + 1 < len(widths):
                self.reduce.append(nn.Conv2d(width, widths[level + 1], 3, stride=2, padding=1))
        self.middle = ResidualBlock(widths[-1], widths[-1], embedding_dim)
        for level, width in reversed(list(enumerate(widths))):
            inputs = [2 * width] + [width] * (blocks_per_level - 1)
            self.up.append(nn.ModuleList(ResidualBlock(i, width, embedding_dim) for i in inputs))
            if level > 0:
                self.enlarge.append(nn.Conv2d(width, widths[level - 1], 3, padding=1))
        self.norm_out = nn.GroupNorm(8, widths[0])
        self.conv_out = nn.Conv2d(widths[0], pixels, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, noisy: Float[Tensor, "batch channels height width"], sigma: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purified images, around [0, 1] but not clipped (a clip would stop gradients); any size that can be padded.

        Args:
            noisy: image + sigma * noise, unclipped, pixel units of [0, 1].
            sigma: noise level of each image, positive.

        Raises:
            ValueError: another number of channels, images too small to halve at every level, or levels that are not positive.
        """
        if noisy.shape[1] != self.config.in_channels:
            raise ValueError(f"The purifier expects {self.config.in_channels} channels; got {noisy.shape[1]}.")
        check_levels(sigma, len(noisy))
        height, width = noisy.shape[2:]
        factor = self.config.patch_size * 2 ** (len(self.config.widths) - 1)
        padded = reflect_pad(noisy, factor)
        exact = torch.promote_types(noisy.dtype, torch.float32)  # the ends cancel large terms: never in half precision
        level = sigma.to(exact).view(-1, 1, 1, 1)
        variance, data_variance = level**2, self.config.data_std**2
        centred = padded.to(exact) - 0.5
        inside = centred / torch.sqrt(data_variance + variance)
        residual = self._network(inside.to(self.dtype), sigma).to(exact)
        c_skip = data_variance / (data_variance + variance)
        c_out = level * self.config.data_std / torch.sqrt(data_variance + variance)
        purified = 0.5 + c_skip * centred + c_out * residual
        return purified[..., :height, :width].to(noisy.dtype)

    def _network(self, x: Tensor, sigma: Tensor) -> Tensor:
        embedding = self.noise_mlp(noise_features(sigma).to(x.dtype))
        x = self.conv_in(F.pixel_unshuffle(x, self.config.patch_size))
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, embedding)
            skips.append(x)
            if level < len(self.reduce):
                x = self.reduce[level](x)
        x = self.middle(x, embedding)
        for level, blocks in enumerate(self.up):
            x = torch.cat([x, skips.pop()], dim=1)
            for block in blocks:
                x = block(x, embedding)
            if level < len(self.enlarge):
                x = self.enlarge[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.config.patch_size)


class ResidualBlock(nn.Module):
    """Two convolutions with the noise level as scale and shift (FiLM) between them."""

    def __init__(self, channels_in: int, channels_out: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels_in), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.film = nn.Linear(embedding_dim, 2 * channels_out)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels_out), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(hidden))


def check_levels(sigma: Float[Tensor, "..."], images: int, zero_allowed: bool = False) -> None:
    """Refuses noise levels that would be spread over images or give NaN.

    Args:
        sigma: noise levels, in pixel units.
        images: how many images they are for.
        zero_allowed: accept images without noise.

    Raises:
        ValueError: not one level an image, or one that is negative, zero where that is refused, infinite or NaN.
    """
    if sigma.shape != (images,):
        raise ValueError(f"sigma must be one noise level an image, of shape ({images},); got shape {tuple(sigma.shape)}.")
    if torch.compiler.is_compiling():  # a compiled graph cannot branch on values
        return
    wrong = ~((sigma >= 0) if zero_allowed else (sigma > 0)) | sigma.isinf()
    if wrong.any():
        accepted = "finite and not negative" if zero_allowed else "finite and positive"
        raise ValueError(f"sigma must be {accepted}, in pixel units of [0, 1]; got {sigma[wrong][0]:.6g}.")


def reflect_pad(
    images: Float[Tensor, "batch channels height width"], factor: int
) -> Float[Tensor, "batch channels padded_height padded_width"]:
    """Images reflected at the bottom and right, to sides divisible by ``factor``; unchanged where they are.

    Raises:
        ValueError: a side that is too short to be reflected.
    """
    down, across = -images.shape[2] % factor, -images.shape[3] % factor
    if down >= images.shape[2] or across >= images.shape[3]:
        raise ValueError(
            f"The purifier halves images to sides divisible by {factor}; {images.shape[2]}x{images.shape[3]} pixels are too few to pad "
            f"to that by reflection. Give sides of more than {factor // 2} pixels."
        )
    return F.pad(images, (0, across, 0, down), mode="reflect") if down or across else images


def noise_features(sigma: Float[Tensor, " batch"], dim: int = 64, floor: float = 1e-3) -> Float[Tensor, "batch dim"]:
    """Sinusoidal features of log(max(sigma, floor)), float32."""
    frequencies = torch.exp(torch.linspace(0, math.log(100.0), dim // 2, device=sigma.device))
    angles = torch.log(sigma.float().clamp(min=floor))[:, None] * frequencies / 4
    return torch.cat([angles.sin(), angles.cos()], dim=1)
