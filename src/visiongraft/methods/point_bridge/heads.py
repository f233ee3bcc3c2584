"""Action heads: from one feature vector a time step to a chunk of normalised actions."""

import math

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MAX_QUERIES = 100
_MIN_SCALE = 0.01


class ActionHead(nn.Module):
    """Learned queries, one an action of the chunk, that read the feature vector through a causal transformer decoder.

    Its output is the action itself and its loss the mean squared error: the authors' negative log likelihood of Normal(action, 0.1) is
    50 MSE - 1.3836.

    Args:
        hidden_size: width of the feature.
        action_dim: numbers of an action.
        chunk: actions of a chunk, at most 100.
        num_layers, num_heads, feedforward, dropout: of the decoder (post-norm).
        outputs: numbers the decoder gives for each query; None: ``action_dim``.

    Source: brief, 2.6 (deterministic head).
    """

    def __init__(
        self,
        hidden_size: int,
        action_dim: int,
        chunk: int,
        num_layers: int,
        num_heads: int,
        feedforward: int,
        dropout: float,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.chunk, self.action_dim = chunk, action_dim
        self.queries = nn.Embedding(MAX_QUERIES, hidden_size)
        self.action_encoder = nn.Linear(action_dim, hidden_size)
        layer = nn.TransformerDecoderLayer(hidden_size, num_heads, feedforward, dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, num_layers)
        self.output_projection = nn.Linear(hidden_size, outputs or action_dim)
        # the authors' checkpoints hold it and never use it; a gradient that never comes would stop distributed training
        self.action_encoder.requires_grad_(False)

    def decode(self, memory: Float[Tensor, "batch tokens hidden"], queries: Float[Tensor, "batch chunk hidden"]) -> Tensor:
        """What the decoder says of each query."""
        causal = nn.Transformer.generate_square_subsequent_mask(self.chunk, device=memory.device, dtype=memory.dtype)
        return self.output_projection(self.decoder(queries, memory, tgt_mask=causal, tgt_is_causal=True))

    def forward(
        self, features: Float[Tensor, "batch hidden"], noise: Float[Tensor, "batch chunk action"] | None = None
    ) -> Float[Tensor, "batch chunk outputs"]:
        """Normalised actions of each feature; ``noise`` is for heads that sample."""
        return self.decode(features[:, None], self._queries(len(features)))

    def loss(
        self,
        features: Float[Tensor, "batch hidden"],
        actions: Float[Tensor, "batch chunk action"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the normalised actions."""
        return F.mse_loss(self(features).float(), actions.float())

    def _queries(self, batch: int) -> Tensor:
        return self.queries.weight[: self.chunk].expand(batch, -1, -1)


class MixtureHead(ActionHead):
    """A Gaussian mixture with diagonal covariance for every action of the chunk; acts by the mean of its most likely mode.

    Args:
        modes: of the mixture.
        options: see :class:`ActionHead`.
    """

    def __init__(self, *, modes: int, action_dim: int, **options) -> None:
        super().__init__(action_dim=action_dim, outputs=modes * (1 + 2 * action_dim), **options)
        self.modes = modes

    def mixture(self, features: Float[Tensor, "batch hidden"]) -> tuple[Tensor, Tensor, Tensor]:
        """(log weights (batch, chunk, modes), means and standard deviations (batch, chunk, modes, action))."""
        raw = super().forward(features).float().unflatten(-1, (self.modes, -1))
        means, scales = raw[..., 1 : 1 + self.action_dim], F.softplus(raw[..., 1 + self.action_dim :]) + _MIN_SCALE
        return raw[..., 0].log_softmax(-1), means, scales

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        weights, means, _ = self.mixture(features)
        best = weights.argmax(-1)[..., None, None].expand(-1, -1, 1, self.action_dim)
        return means.gather(2, best)[:, :, 0].to(features.dtype)

    def loss(self, features: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Negative log likelihood, per number of the action."""
        weights, means, scales = self.mixture(features)
        squares = ((actions.float()[:, :, None] - means) / scales).square()
        likelihood = -0.5 * squares.sum(-1) - scales.log().sum(-1) - 0.5 * self.action_dim * math.log(2 * math.pi)
        return -torch.logsumexp(weights + likelihood, dim=-1).mean() / self.action_dim


class DiffusionHead(ActionHead):
    """Denoises a chunk: noisy actions and the noise level come in, the noise goes out. Acts by deterministic DDIM from given noise.

    Args:
        train_steps: noise levels of training.
        inference_steps: of DDIM.
        options: see :class:`ActionHead`.

    Source: brief, 2.6 (other heads; the schedule is squaredcos_cap_v2) and 3; the denoiser is ours, since the authors' does not run.
    """

    def __init__(self, *, train_steps: int, inference_steps: int, **options) -> None:
        super().__init__(**options)
        self.action_encoder.requires_grad_(True)
        settings = {"num_train_timesteps": train_steps, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
        self.noising = DDPMScheduler(**settings, clip_sample=True)
        self.sampler = DDIMScheduler(**settings, clip_sample=True)
        self.inference_steps = inference_steps
        width = self.queries.embedding_dim
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def denoise(self, features: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """Noise in ``noisy`` at an integer ``level`` a sample."""
        half = self.queries.embedding_dim // 2
        rates = torch.exp(-math.log(1e4) * torch.arange(half, device=features.device) / half)
        angles = level[:, None] * rates
        time = self.time_mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(features.dtype))
        return self.decode(torch.stack([features, time], dim=1), self.action_encoder(noisy) + self._queries(len(features)))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            raise ValueError("A diffusion head acts from noise; pass noise of shape (batch, history, chunk, action).")
        self.sampler.set_timesteps(self.inference_steps)
        sample = noise.to(features.dtype)
        for step in self.sampler.timesteps.tolist():
            level = torch.full((len(features),), step, device=features.device)
            sample = self.sampler.step(self.denoise(features, sample, level), step, sample, eta=0.0).prev_sample
        return (sample + 1) / 2

    def loss(self, features: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the noise; actions of [0, 1] are noised as [-1, 1]."""
        device = generator.device if generator is not None else features.device
        noise = torch.randn(actions.shape, generator=generator, device=device).to(features)
        levels = int(self.noising.config["num_train_timesteps"])
        level = torch.randint(levels, (len(features),), generator=generator, device=device).to(features.device)
        noisy = self.noising.add_noise(2 * actions.to(features.dtype) - 1, noise, level)  # pyright: ignore[reportArgumentType]
        return F.mse_loss(self.denoise(features, noisy, level).float(), noise.float())
