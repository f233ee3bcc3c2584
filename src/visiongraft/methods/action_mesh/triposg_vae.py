"""TripoSG's autoencoder: a surface with normals to a set of latent tokens, and the set to an implicit function."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor, nn

from visiongraft.geometry.point_sets import farthest_points
from visiongraft.methods.action_mesh.attention import KeysValues, LayerNorm, Linear
from visiongraft.methods.action_mesh.blocks import TRIPOSG, Block, compute_dtype, in_chunks, offloadable, run_block
from visiongraft.methods.action_mesh.embeddings import num_point_features, point_features

CANDIDATES = 4
"""Random points per latent token among which the farthest points are looked for."""


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal distribution of latent sets.

    Attributes:
        mean, logvar: (batch, tokens, channels); logvar is clipped to [-30, 20].
        query_indices: which surface points the tokens stand for (batch, tokens).
    """

    mean: Tensor
    logvar: Tensor
    query_indices: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "batch tokens channels"]:
        """A draw; the generator may be on the CPU for latents elsewhere."""
        noise = randn_tensor(tuple(self.mean.shape), generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Float[Tensor, "batch tokens channels"]:
        """The mean."""
        return self.mean


class SurfaceEncoder(nn.Module):
    """Tokens of chosen surface points, which look at all surface points once and then at each other."""

    def __init__(self, num_features: int, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.proj_in = Linear(num_features, width)
        first = Block(width, num_heads, TRIPOSG, self_attention=False, context_dim=width, norm_context=True)
        self.blocks = nn.ModuleList([first, *(Block(width, num_heads, TRIPOSG) for _ in range(num_layers))])
        self.norm_out = LayerNorm(width)

    def forward(
        self, features: Float[Tensor, "batch points features"], chosen: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        surface = self.proj_in(features)
        x = surface.gather(1, chosen[..., None].expand(-1, -1, surface.shape[-1]))  # the projection of a subset is a subset of it
        x = run_block(self, self.blocks[0], x, surface)
        for block in self.blocks[1:]:
            x = run_block(self, block, x)
        return self.norm_out(x)


class FieldDecoder(nn.Module):
    """Latent tokens look at each other; then any point looks at them."""

    def __init__(self, num_features: int, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        last = Block(width, num_heads, TRIPOSG, self_attention=False, context_dim=width, norm_context=True)
        self.blocks = nn.ModuleList([*(Block(width, num_heads, TRIPOSG) for _ in range(num_layers)), last])
        self.proj_query = Linear(num_features, width)
        self.norm_out = LayerNorm(width)
        self.proj_out = Linear(width, 1)

    def context(self, tokens: Float[Tensor, "batch tokens width"]) -> KeysValues:
        for block in self.blocks[:-1]:
            tokens = run_block(self, block, tokens)
        return self.blocks[-1].keys_values(tokens)  # pyright: ignore[reportCallIssue]

    def forward(self, features: Float[Tensor, "batch points features"], context: KeysValues) -> Float[Tensor, "batch points"]:
        x = run_block(self, self.blocks[-1], self.proj_query(features), context)
        return -self.proj_out(self.norm_out(x)).squeeze(-1)


class TripoSGVAE(ModelMixin, ConfigMixin):
    """VecSet autoencoder of closed surfaces in [-1, 1]^3. The defaults are the released size (243 million parameters).

    Args:
        in_channels: coordinates of a point, 3.
        latent_channels: of a token.
        num_attention_heads: of encoder and decoder.
        num_layers_encoder, num_layers_decoder: self-attention blocks of each.
        width_encoder, width_decoder: of their tokens.
        embed_frequency: octaves of the points' embedding.
        embed_include_pi: whether its frequencies are multiples of pi.
        embedding_type: ``frequency``.

    Raises:
        ValueError: another embedding, or widths that the heads do not divide.

    Source: ActionMesh brief, 2.2.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 64,
        num_attention_heads: int = 8,
        num_layers_encoder: int = 8,
        num_layers_decoder: int = 16,
        width_encoder: int = 512,
        width_decoder: int = 1024,
        embed_frequency: int = 8,
        embed_include_pi: bool = False,
        embedding_type: str = "frequency",
    ) -> None:
        super().__init__()
        if embedding_type != "frequency" or in_channels != 3:
            raise ValueError(f"TripoSG's VAE embeds 3 coordinates by 'frequency'; got {in_channels} and {embedding_type!r}.")
        features = num_point_features(embed_frequency)
        self.encoder = SurfaceEncoder(features + 3, width_encoder, num_attention_heads, num_layers_encoder)
        self.quant = Linear(width_encoder, 2 * latent_channels)
        self.post_quant = Linear(latent_channels, width_decoder)
        self.decoder = FieldDecoder(features, width_decoder, num_attention_heads, num_layers_decoder)

    @offloadable
    def encode(
        self,
        surface: Float[Tensor, "batch points 6"],
        num_tokens: int = 2048,
        generator: torch.Generator | None = None,
        indices: Int[Tensor, "batch tokens"] | None = None,
    ) -> Posterior:
        """Distribution of the latent sets of surfaces.

        Args:
            surface: points in [-1, 1]^3, spread evenly by area, beside their unit normals. Keep them in float32: half precision costs
                1e-3 of the box. The encoder computes in float32 at least, whatever the dtype of its weights, and so is the answer.
            num_tokens: tokens of a latent set.
            generator: draws the points of which the tokens' are the farthest from each other.
            indices: the tokens' points, in place of choosing them; the same for all frames of a clip gives latents that correspond.

        Raises:
            ValueError: no tokens, or indices of another number of tokens.

        Source: ActionMesh brief, 2.2 and pitfall 10.
        """
        if indices is None:
            indices = choose_points(surface, num_tokens, generator)
        elif indices.shape[1] != num_tokens:
            raise ValueError(f"indices choose {indices.shape[1]} points, but num_tokens is {num_tokens}.")
        points = self._embed(surface[..., :3], torch.promote_types(compute_dtype(self), torch.float32))
        features = torch.cat([points, surface[..., 3:].to(points.dtype)], dim=-1)  # every layer computes in its input's dtype
        mean, logvar = self.quant(self.encoder(features, indices)).chunk(2, dim=-1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0), indices)

    @offloadable
    def decode_context(self, latents: Float[Tensor, "batch tokens channels"]) -> KeysValues:
        """What :meth:`query` needs of latent sets; computed once for all queries.

        Raises:
            ValueError: latents of other channels than the configuration's.
        """
        if latents.shape[-1] != self.config.latent_channels:
            raise ValueError(f"The latents have {latents.shape[-1]} channels; this VAE has latent_channels={self.config.latent_channels}.")
        return self.decoder.context(self.post_quant(latents.to(compute_dtype(self))))

    @offloadable
    def query(self, context: KeysValues, points: Float[Tensor, "batch points 3"], chunk: int = 50_000) -> Float[Tensor, "batch points"]:
        """Logits, positive inside: ``2 sigmoid(logit) - 1`` is the truncated signed distance with its sign turned.

        Args:
            context: of :meth:`decode_context`.
            points: in [-1, 1]^3.
            chunk: points at a time; the result does not depend on it.
        """
        return in_chunks(lambda piece: self.decoder(self._embed(piece, compute_dtype(self)), context), chunk, points)

    def forward(
        self, surface: Float[Tensor, "batch surface_points 6"], points: Float[Tensor, "batch points 3"], **options: Any
    ) -> Float[Tensor, "batch points"]:
        """Logits of the surfaces' reconstructions from the mean of their latents; options are :meth:`encode`'s."""
        return self.query(self.decode_context(self.encode(surface, **options).mode()), points)

    def _embed(self, points: Tensor, dtype: torch.dtype) -> Tensor:
        return point_features(points, self.config.embed_frequency, self.config.embed_include_pi).to(dtype)


def choose_points(
    surface: Float[Tensor, "batch points dim"], num_tokens: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch tokens"]:
    """Indices of farthest points among 4 x num_tokens random ones (drawn with repetition only where there are fewer points).

    Source: ActionMesh brief, 2.2.
    """
    batch, num_points, _ = surface.shape
    count, device = CANDIDATES * num_tokens, torch.device("cpu") if generator is None else generator.device
    if num_points >= count:
        dice = torch.rand(batch, num_points, generator=generator, device=device)
        drawn = dice.argsort(dim=1)[:, :count]
    else:
        drawn = torch.randint(num_points, (batch, count), generator=generator, device=device)
    drawn = drawn.to(surface.device)
    candidates = surface[..., :3].gather(1, drawn[..., None].expand(-1, -1, 3))
    return drawn.gather(1, farthest_points(candidates.float(), num_tokens))
