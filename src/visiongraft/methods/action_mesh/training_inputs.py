"""What the denoisers and stage II learn on: latents of clouds and tokens of pictures, made on the fly by models that stay frozen."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visiongraft.methods.action_mesh.frames import composite_on_white
from visiongraft.methods.action_mesh.grouped_sampling import encode_clips
from visiongraft.methods.action_mesh.image_features import DINOV2, ImagePreparation, image_features

ImageTokens = Callable[[Float[Tensor, "pictures channels height width"]], Float[Tensor, "pictures tokens dim"]]


class PictureEncoder(nn.Module):
    """A frozen image encoder of Transformers as pictures to tokens; transparent pictures are put on white.

    Args:
        encoder: ``Dinov2Model``, or a model with the same call.
        preparation: of the pictures.

    Source: ActionMesh brief, 2.9.
    """

    def __init__(self, encoder: nn.Module, preparation: ImagePreparation = DINOV2) -> None:
        super().__init__()
        self.encoder, self.preparation = encoder.requires_grad_(False).eval(), preparation

    def forward(self, pictures: Float[Tensor, "pictures channels height width"]) -> Float[Tensor, "pictures tokens dim"]:
        """Tokens, the class token first; pictures are RGB or RGBA in [0, 1]."""
        colors = composite_on_white(pictures) if pictures.shape[1] == 4 else pictures
        return image_features(self.encoder, colors, self.preparation)


class FrozenEncoders:
    """The VAE's encoder and the picture encoder of a training.

    Args:
        vae: TripoSG's, or another with the same ``encode``; it is frozen.
        num_tokens: latent tokens of a frame.
        image_tokens: pictures in [0, 1] to tokens; None where batches bring their tokens as ``context``, or none are needed.
        grouped: encode the same point indices in every frame of a clip. Separate choices make stage I unstable.
        points_at_once: surface points encoded at a time, at least one clip's; what is drawn depends on it.

    Raises:
        ValueError: no tokens.

    Source: ActionMesh brief, 2.2 and 2.7.
    """

    def __init__(
        self, vae: Any, num_tokens: int, image_tokens: ImageTokens | None = None, *, grouped: bool = True, points_at_once: int = 1_000_000
    ) -> None:
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1; got {num_tokens}.")
        self.vae = vae.requires_grad_(False).eval()
        self.num_tokens, self.image_tokens, self.grouped, self.points_at_once = num_tokens, image_tokens, grouped, points_at_once

    def to(self, device: torch.device) -> None:
        """Moves the frozen models."""
        self.vae.to(device)
        if isinstance(self.image_tokens, nn.Module):
            self.image_tokens.to(device)

    @torch.no_grad()
    def latents(
        self, surface: Float[Tensor, "batch frames points 6"], generator: torch.Generator
    ) -> Float[Tensor, "batch frames tokens channels"]:
        """A draw from the posterior of every frame's cloud, in float32 whatever the precision of the training.

        Args:
            surface: tracked points with unit normals.
            generator: draws query points and the latents' noise.
        """
        clips = max(1, self.points_at_once // surface[0, ..., 0].numel())
        with torch.autocast(surface.device.type, enabled=False):
            parts = [
                encode_clips(self.vae, some, self.num_tokens, generator, grouped=self.grouped) for some in surface.float().split(clips)
            ]
        return torch.cat(parts)

    @torch.no_grad()
    def context(self, batch: dict[str, Tensor], keep: Bool[Tensor, " batch"] | None = None) -> Float[Tensor, "batch frames tokens dim"]:
        """Tokens of every frame's picture: ``context`` of the batch, or its ``frames`` encoded.

        Args:
            batch: with ``context`` (B, T, S, D) or ``frames`` (B, T, C, H, W).
            keep: (B) False for samples whose tokens are all zero, the unconditional context.

        Raises:
            ValueError: neither is there, or there are frames and no encoder.
        """
        if "context" in batch:
            tokens = batch["context"].float()
        elif "frames" in batch and self.image_tokens is not None:
            frames = batch["frames"]
            tokens = self.image_tokens(frames.flatten(0, 1)).float().unflatten(0, frames.shape[:2])
        else:
            told = "frames, and there is no picture encoder" if "frames" in batch else f"only {', '.join(sorted(batch))}"
            raise ValueError(f"A sample needs the tokens of its pictures (context), or frames and an encoder of them; it has {told}.")
        return tokens if keep is None else tokens * keep.to(tokens)[:, None, None, None]
