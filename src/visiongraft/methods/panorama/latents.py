"""What a Diffusers image or video VAE says about its latents: strides, valid sizes and the constants that normalise them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Autoencoder = Any  # an image or video VAE of Diffusers: config, dtype, encoder, encode, decode


def spatial_stride(vae: Autoencoder) -> int:
    """Pixels a latent column covers, as the VAE states it.

    Raises:
        ValueError: a VAE that states no spatial stride.
    """
    stated = vae.__dict__.get("spatial_compression_ratio") or vae.config.get("spatial_compression_ratio")
    if stated:
        return int(stated)
    channels = vae.config.get("block_out_channels")
    if not channels:
        name = type(vae).__name__
        raise ValueError(f"{name} states no spatial stride; set vae.spatial_compression_ratio to the pixels a latent column covers.")
    return 2 ** (len(channels) - 1)


def temporal_factor(vae: Autoencoder) -> int:
    """Frames a latent frame covers, as the video VAE states it.

    Raises:
        ValueError: a VAE that states no temporal factor.
    """
    for name in ("temporal_compression_ratio", "scale_factor_temporal"):
        stated = vae.__dict__.get(name) or vae.config.get(name)
        if stated:
            return int(stated)
    halvings = vae.config.get("temperal_downsample")  # the spelling of Diffusers
    if halvings is None:
        name = type(vae).__name__
        raise ValueError(f"{name} states no temporal factor; set vae.temporal_compression_ratio to the frames a latent frame covers.")
    return 2 ** sum(halvings)


def encodes_videos(vae: Autoencoder) -> bool:
    """Whether the encoder takes batch x channels x frames x height x width."""
    # the encoder decides: Stable Video Diffusion's decoder has 3-D convolutions too, but takes frames as a batch; Qwen 2.1 has none
    return "temperal_downsample" in vae.config or any(isinstance(module, nn.Conv3d) for module in vae.encoder.modules())


def check_frames(vae: Autoencoder, num_frames: int) -> None:
    """Refuses a number of frames that the VAE would not give back; Diffusers drops or repeats frames in silence.

    Raises:
        ValueError: with the numbers that are accepted.
    """
    period, remainders = temporal_factor(vae), (1,)
    if type(vae).__name__ == "AutoencoderKLCogVideoX":  # encodes batches of 8 frames; a first frame of its own is optional
        period, remainders = vae.num_sample_frames_batch_size, (0, 1)
    if num_frames % period in [remainder % period for remainder in remainders]:
        return
    accepted = " or ".join(f"{period}k" + f"+{remainder}" * (remainder > 0) for remainder in remainders)
    example = period * -(-(num_frames - remainders[-1]) // period) + remainders[-1]
    raise ValueError(f"num_frames must be {accepted} (e.g. {example}); got {num_frames}.")


def normalise_latents(vae: Autoencoder, latents: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch channels *grid"]:
    """Latents as the base's generator sees them: ``(latents - mean) * factor`` with the VAE's own constants.

    Args:
        vae: AutoencoderKL (scale and shift), Wan, Qwen, LTX, Mochi, Cosmos (vectors), CogVideoX, Hunyuan, DC (scale), FLUX.2 (statistics
            of 2 x 2 packed latents; the latents stay unpacked) or any other that states one of these.
        latents: as the VAE encodes them.

    Raises:
        ValueError: constants that are missing or do not fit the number of channels.
    """
    mean, factor = latent_constants(vae, latents)
    return ((latents - mean) * factor).to(latents.dtype)


def denormalise_latents(vae: Autoencoder, latents: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch channels *grid"]:
    """Inverse of :func:`normalise_latents`: latents as the VAE decodes them."""
    mean, factor = latent_constants(vae, latents)
    return (latents / factor + mean).to(latents.dtype)


def latent_constants(vae: Autoencoder, latents: Float[Tensor, "batch channels *grid"]) -> tuple[Tensor, Tensor]:
    """Mean and factor, in at least float32, that broadcast over the latents.

    Raises:
        ValueError: see :func:`normalise_latents`.
    """
    options: Any = {"device": latents.device, "dtype": torch.promote_types(latents.dtype, torch.float32)}
    config, buffers = vae.config, dict(vae.named_buffers(recurse=False))
    mean, std = (buffers.get(name, config.get(name)) for name in ("latents_mean", "latents_std"))
    scale = torch.tensor(config.get("scaling_factor") or 1.0, **options)
    if mean is not None and std is not None:
        mean, std = (broadcast_constants(vae, torch.as_tensor(values).to(**options), latents) for values in (mean, std))
        return mean, scale / std
    if isinstance(getattr(vae, "bn", None), nn.BatchNorm2d):
        return packed_statistics(vae, latents, options)
    if config.get("scaling_factor") is None:
        raise ValueError(
            f"{type(vae).__name__} states no constants for its latents (scaling_factor, or latents_mean and latents_std); "
            "give them with vae.register_to_config(scaling_factor=...), 1.0 for latents as they are."
        )
    return torch.tensor(config.get("shift_factor") or 0.0, **options), scale


def broadcast_constants(vae: Autoencoder, values: Tensor, latents: Tensor) -> Tensor:
    """One number a channel (Cosmos: one for every channel and latent frame) in the latents' layout."""
    channels = latents.shape[1]
    for_each_frame = type(vae).__name__ == "AutoencoderKLCosmos" and values.numel() % channels == 0
    if values.numel() != channels and not for_each_frame:
        raise ValueError(
            f"{type(vae).__name__} states {values.numel()} latents_mean or latents_std for latents of {channels} channels; "
            f"configure it with {channels} of each."
        )
    return values.reshape(1, channels, -1, *[1] * (latents.ndim - 3))[:, :, : latents.shape[2]]


def packed_statistics(vae: Autoencoder, latents: Tensor, options: Any) -> tuple[Tensor, Tensor]:
    """FLUX.2 normalises latents packed 2 x 2 by running statistics; here the same numbers in the places of the unpacked latents."""
    high, wide = vae.config["patch_size"]
    height, width = latents.shape[-2:]
    std = torch.sqrt(vae.bn.running_var.to(**options) + vae.config["batch_norm_eps"])
    tiles = (
        values.reshape(1, -1, high, wide).repeat(1, 1, height // high, width // wide) for values in (vae.bn.running_mean.to(**options), std)
    )
    mean, std = tiles
    return mean, 1 / std
