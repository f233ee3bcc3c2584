"""Gaussian smoothing of a feature encoder: noise in pixel space, purify, encode, map, average (arXiv 2601.16200, Sec. 3)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

TokenMode = Literal["flat", "per_token", "pooled"]


@dataclass(kw_only=True)
class SmoothingConfig:
    """How an encoder is smoothed.

    Args:
        sigma: standard deviation of the Gaussian noise, in pixel units of an image in [0, 1] (0.25 is 64 grey levels of 255).
        n0: noise samples averaged for one image at inference. 8 is the paper's operating point.
        chunk_size: noisy images that go through the encoder in one pass; bounds the memory.
        token_mode: how tokens become the certified unit feature: ``flat`` (all tokens, one certificate), ``per_token``
            (one certificate a token) or ``pooled`` (the encoder's own embedding; it is not what a language model sees).
        restore_norm: scale smoothed tokens back to the mean norm of the noisy tokens (what a projector was trained on).
        clamp_after_purifier: clip purified images to [0, 1].
    """

    sigma: float = 0.25
    n0: int = 8
    chunk_size: int = 64
    token_mode: TokenMode = "flat"
    restore_norm: bool = True
    clamp_after_purifier: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.sigma, (int, float)) and math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a positive number in pixel units of [0, 1]; got {self.sigma}. Common values: 0.12, 0.25, 0.5.")
        for name in ("n0", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.token_mode not in ("flat", "per_token", "pooled"):
            raise ValueError(f"token_mode must be flat, per_token or pooled; got {self.token_mode!r}.")


def draw_noise(
    images: Float[Tensor, "batch channels height width"],
    sigma: float,
    samples: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "noisy channels height width"]:
    """Independent noisy copies of each image, image-major (all copies of image 0 first).

    Drawn in float32 in the pixel space of the certificate and never clipped: clipping would be harmless for the bound, but
    a purifier expects Gaussian input. On a device without its own generator, noise is drawn where the generator lives.

    Args:
        images: in [0, 1].
        sigma: standard deviation, in the same units.
        samples: copies per image.
        generator: source of randomness; ``None`` uses fresh global randomness.

    Returns:
        ``batch * samples`` float32 images.
    """
    device = generator.device if generator is not None else images.device
    noise = torch.randn((images.shape[0] * samples, *images.shape[1:]), generator=generator, device=device, dtype=torch.float32)
    return noise.to(images.device).mul_(sigma).add_(images.float().repeat_interleave(samples, dim=0))


def unit(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Features divided by their l2 norm in float32; a zero feature stays zero, so that the norm never exceeds 1."""
    features = features.float()
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / torch.where(norm > 0, norm, torch.ones_like(norm))


def reduce_tokens(
    tokens: Float[Tensor, "batch tokens dim"], mode: TokenMode, readout: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "batch parts feature"]:
    """The certified feature of a token sequence: ``parts`` unit vectors (one, or one a token).

    Args:
        tokens: raw encoder tokens; an encoder that gives one vector has one token.
        mode: ``flat``: all unit tokens concatenated over sqrt(tokens); ``per_token``: each unit token; ``pooled``: the
            unit read-out (the mean token if the encoder has none).
        readout: maps tokens to a pooled embedding.

    Returns:
        batch x 1 x feature, or batch x tokens x dim for ``per_token``.
    """
    if mode == "per_token":
        return unit(tokens)
    if mode == "pooled":
        return unit(readout(tokens) if readout is not None else tokens.mean(1)).unsqueeze(1)
    return unit(tokens).flatten(1).unsqueeze(1) / math.sqrt(tokens.shape[1])


class SmoothedEncoder(nn.Module):
    """An encoder under Gaussian smoothing, with an optional purifier in front and mapper behind.

    ``forward`` is what is deployed (``n0`` fresh samples); the certificate is computed from ``sample_features``.

    Args:
        encoder: maps images in [0, 1] to tokens (B N D) or vectors (B D); an optional attribute ``readout`` maps tokens to
            a pooled embedding. Deterministic and in eval mode: the output for an image may not depend on its batch.
        config: noise level, samples and token reduction.
        purifier: maps (noisy images, sigma) to images.
        mapper: maps (tokens, sigma) to a residual on the tokens.

    Source: arXiv 2601.16200, Sec. 3.1 (smoothing) and 3.3 (purifier and mapper).
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: SmoothingConfig,
        purifier: nn.Module | None = None,
        mapper: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.config, self.purifier, self.mapper = config, purifier, mapper
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "SmoothedEncoder":
        """Refuses training mode: with dropout or batch statistics an encoder is no function of its image."""
        if mode:
            raise ValueError("A smoothed encoder stays in eval mode; train purifier and mapper with their recipes.")
        return super().train(False)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patch tokens."""
        return getattr(self.encoder, "num_prefix_tokens", 0)

    def readout(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch embedding"]:
        """The encoder's pooled embedding of (smoothed) tokens; the mean token if it has no read-out of its own."""
        readout = getattr(self.encoder, "readout", None)
        return readout(tokens) if readout is not None else tokens.mean(1)

    def encode(self, noisy: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Everything after the noise: purifier, encoder, mapper. Deterministic and differentiable."""
        level = torch.full((noisy.shape[0],), self.config.sigma, device=noisy.device)
        if self.purifier is not None:
            noisy = self.purifier(noisy, level)
            noisy = noisy.clamp(0, 1) if self.config.clamp_after_purifier else noisy
        tokens = self._base_tokens(noisy)
        return tokens if self.mapper is None else tokens + self.mapper(tokens, level).to(tokens.dtype)

    def reduce(self, tokens: Float[Tensor, "batch tokens dim"], mode: TokenMode | None = None) -> Float[Tensor, "batch parts feature"]:
        """Unit features of tokens under the configured (or the given) token mode; see :func:`reduce_tokens`."""
        return reduce_tokens(tokens, mode or self.config.token_mode, self.readout)

    def reference(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch parts feature"]:
        """Unit features of the untouched encoder on clean images: the fixed direction u = f(x) of the certificate."""
        return self.reduce(self._base_tokens(images))

    def token_samples(
        self,
        images: Float[Tensor, "batch channels height width"],
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[Float[Tensor, "batch chunk tokens dim"]]:
        """Tokens of fresh noisy copies, in chunks of at most ``chunk_size`` noisy images over the batch."""
        step = max(1, self.config.chunk_size // images.shape[0])
        for start in range(0, samples, step):
            count = min(step, samples - start)
            tokens = self.encode(draw_noise(images, self.config.sigma, count, generator))
            if not torch.isfinite(tokens).all():
                raise ValueError("The encoder gave NaN or infinite features on a noisy image; use float32 or bfloat16, not float16.")
            yield tokens.unflatten(0, (images.shape[0], count))

    def mean_feature(
        self,
        images: Float[Tensor, "batch channels height width"],
        samples: int,
        generator: torch.Generator | None = None,
        mode: TokenMode | None = None,
    ) -> Float[Tensor, "batch parts feature"]:
        """Average of unit features over fresh noise: the estimate of g(x), norm at most 1, differentiable in the images."""
        total = torch.zeros(())
        for tokens in self.token_samples(images, samples, generator):
            features = self.reduce(tokens.flatten(0, 1), mode).unflatten(0, tokens.shape[:2])
            total = total + features.sum(1)
        return total / samples

    def forward(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Smoothed tokens from ``n0`` fresh noise samples, as they are deployed.

        A fixed generator voids the certificate (an attacker could optimise against the realised noise): give one in tests only.
        """
        return average_tokens(self.token_samples(images, self.config.n0, generator), self.config.restore_norm)

    def _base_tokens(self, images: Tensor) -> Tensor:
        tokens = self.encoder(images)
        return tokens.unsqueeze(1) if tokens.dim() == 2 else tokens


def average_tokens(chunks: Iterator[Float[Tensor, "batch chunk tokens dim"]], restore_norm: bool) -> Float[Tensor, "batch tokens dim"]:
    """Mean unit token over noise samples, accumulated in float32.

    Args:
        chunks: noisy tokens, some samples at a time.
        restore_norm: give the mean direction the mean norm of the noisy tokens; per-token cosines are unaffected.

    Returns:
        Tokens in the dtype of the chunks; with ``restore_norm=False`` the mean of unit tokens (norm at most 1).
    """
    direction = norm = torch.zeros(())
    count, dtype = 0, torch.float32
    for tokens in chunks:
        dtype = tokens.dtype
        direction = direction + unit(tokens).sum(1)
        norm = norm + torch.linalg.vector_norm(tokens.float(), dim=-1).sum(1)
        count += tokens.shape[1]
    if restore_norm:
        return (unit(direction) * (norm / count).unsqueeze(-1)).to(dtype)
    return (direction / count).to(dtype)
