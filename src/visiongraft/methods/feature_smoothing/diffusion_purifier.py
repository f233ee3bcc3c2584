"""The paper's purifier: the ImageNet guided-diffusion U-Net as a one-step denoiser at the matched noise level."""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor

from visiongraft.methods.feature_smoothing.unet_purifier import check_levels, reflect_pad

TimestepMode = Literal["ceil", "nearest", "fractional"]
_STEPS, _BETA_FIRST, _BETA_LAST = 1000, 1e-4, 0.02
SIGMA_RANGE = (0.005, 78.7)
"""Noise levels that the diffusion schedule covers, in pixel units."""


def alpha_bar() -> Float[Tensor, " steps"]:
    """Cumulative signal share of the linear schedule (1,000 steps, beta from 1e-4 to 0.02), float64."""
    betas = torch.linspace(_BETA_FIRST, _BETA_LAST, _STEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def matched_timestep(sigma: float, mode: TimestepMode = "ceil") -> tuple[float, float]:
    """The diffusion step whose noise-to-signal ratio is that of pixel noise ``sigma``, and its cumulative signal share.

    An image in [-1, 1] has noise 2 sigma, so sqrt((1 - abar_t) / abar_t) = 2 sigma.

    Args:
        sigma: noise level in pixel units of [0, 1].
        mode: ``ceil``: first step with at least that ratio; ``nearest``; ``fractional``: exact (the embedding takes fractions).

    Returns:
        (t, abar). For ``fractional``, abar is exactly that of sigma.

    Raises:
        ValueError: a level outside ``SIGMA_RANGE``.

    Source: denoised smoothing by diffusion (Carlini et al., arXiv 2206.10550); arXiv 2601.16200, Sec. 3.3.
    """
    tolerance = 1e-6  # levels arrive as float32
    if not SIGMA_RANGE[0] * (1 - tolerance) <= sigma <= SIGMA_RANGE[1] * (1 + tolerance):
        raise ValueError(
            f"The diffusion schedule covers noise levels sigma from {SIGMA_RANGE[0]:.4f} to {SIGMA_RANGE[1]}; got {sigma:.6g}."
        )
    shares = alpha_bar()
    ratios = torch.sqrt((1 - shares) / shares)
    target = 2 * float(sigma)
    above = int(torch.searchsorted(ratios, torch.tensor(target, dtype=torch.float64)))
    if mode == "ceil" or above == 0:
        return float(above), float(shares[above])
    below_ratio, above_ratio = float(ratios[above - 1]), float(ratios[above])
    if mode == "nearest":
        nearest = above - 1 if target - below_ratio < above_ratio - target else above
        return float(nearest), float(shares[nearest])
    return above - 1 + (target - below_ratio) / (above_ratio - below_ratio), 1 / (1 + target**2)


class DiffusionPurifier(ModelMixin, ConfigMixin):
    """One-step denoising: the smoothing noise *is* the diffusion noise; none is added.

    x_t = sqrt(abar_t) (2 y - 1), eps = U-Net(x_t, t) (the first half of its outputs), x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t).
    The default configuration is the ImageNet 256 unconditional model (552.8 M parameters). ``enable_gradient_checkpointing()`` lets
    attacks and training go through it in far less memory.

    Args:
        sample_size: image side the U-Net was trained at; any side works.
        block_out_channels: channels by level.
        layers_per_block: residual blocks a level.
        attention_levels: levels, from the finest, that have attention.
        attention_head_dim: head width.
        norm_num_groups: groups of every normalisation.
        t_mode: see :func:`matched_timestep`.
        pad: reflect-pad sides that the U-Net cannot halve often enough (336 to 352) and crop back; else they are refused.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        block_out_channels: Sequence[int] = (256, 256, 512, 512, 1024, 1024),
        layers_per_block: int = 2,
        attention_levels: Sequence[int] = (3, 4, 5),
        attention_head_dim: int = 64,
        norm_num_groups: int = 32,
        t_mode: TimestepMode = "ceil",
        pad: bool = True,
    ) -> None:
        super().__init__()
        attends = [level in attention_levels for level in range(len(block_out_channels))]
        self.unet = UNet2DModel(
            sample_size=sample_size,
            in_channels=3,
            out_channels=6,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            attention_head_dim=attention_head_dim,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=norm_num_groups,
            norm_eps=1e-5,
            upsample_type="resnet",
            downsample_type="resnet",
            flip_sin_to_cos=True,
            freq_shift=0,
        )

    def forward(
        self, noisy: Float[Tensor, "batch channels height width"], sigma: Float[Tensor, " batch"], return_noise: bool = False
    ) -> (
        Float[Tensor, "batch channels height width"]
        | tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch channels height width"]]
    ):
        """Purified images, clipped to [0, 1]; with ``return_noise`` also the estimate of N(0, I) in ``noisy``.

        Args:
            noisy: image + sigma * noise, unclipped, pixel units of [0, 1].
            sigma: noise level of each image, within ``SIGMA_RANGE``.

        Raises:
            ValueError: other than 3 channels, a noise level outside ``SIGMA_RANGE``, or with ``pad=False`` a size that does not halve.
        """
        if noisy.shape[1] != 3:
            raise ValueError(f"The diffusion purifier expects 3 channels; got {noisy.shape[1]}.")
        levels, inverse = torch.unique(sigma, return_inverse=True)
        matched = [matched_timestep(float(level), self.config.t_mode) for level in levels]
        check_levels(sigma, len(noisy))
        steps, shares = (torch.tensor(values, device=noisy.device, dtype=torch.float64)[inverse] for values in zip(*matched, strict=True))
        share = shares.float().view(-1, 1, 1, 1)
        scaled = share.sqrt() * (2 * self._padded(noisy).float() - 1)
        noise = self.unet(scaled.to(self.dtype), steps.float()).sample[:, :3].float()
        height, width = noisy.shape[2:]
        scaled, noise = scaled[..., :height, :width], noise[..., :height, :width]
        clean = ((scaled - (1 - share).sqrt() * noise) / share.sqrt()).clamp(-1, 1)
        purified = ((clean + 1) / 2).to(noisy.dtype)
        if not return_noise:
            return purified
        # the matched step's noise differs a little from sigma, except with t_mode="fractional"
        ratio = ((1 - share) / share).sqrt() / (2 * sigma.float().view(-1, 1, 1, 1))
        return purified, noise * ratio

    def _padded(self, images: Tensor) -> Tensor:
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        height, width = images.shape[2:]
        if not self.config.pad and (height % factor or width % factor):
            raise ValueError(f"The diffusion purifier needs sides divisible by {factor}; got {height}x{width}. Resize, or set pad=True.")
        return reflect_pad(images, factor)
