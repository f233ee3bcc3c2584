"""The smoothness mapper: a small residual block behind the encoder that undoes what noise does to tokens."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.unet_purifier import check_levels, noise_features

_NOISE_DIM = 128


class SmoothnessMapper(ModelMixin, ConfigMixin):
    """Residual on encoder tokens, conditioned on the noise level; zero when new.

    Args:
        dim: token width.
        num_prefix_tokens: class and register tokens in front, which bypass the convolution over the patch grid.
        num_blocks: attention, convolution and MLP blocks.
        gate: multiply the residual by sigma / (sigma + 0.05), so that it vanishes without noise.

    Raises:
        ValueError: a width or a number of blocks that is not positive, or a negative number of prefix tokens.

    Source: arXiv 2601.16200, Sec. 3.3 (noise-aware residual module); widths, depth and order are ours.
    """

    @register_to_config
    def __init__(self, dim: int, num_prefix_tokens: int = 0, num_blocks: int = 1, gate: bool = False) -> None:
        super().__init__()
        if dim < 1 or num_blocks < 1 or num_prefix_tokens < 0:
            raise ValueError(
                f"A mapper needs dim and num_blocks >= 1 and num_prefix_tokens >= 0; got {dim}, {num_blocks} and {num_prefix_tokens}."
            )
        self.noise_mlp = nn.Sequential(nn.Linear(64, _NOISE_DIM), nn.SiLU(), nn.Linear(_NOISE_DIM, _NOISE_DIM))
        self.blocks = nn.ModuleList(MapperBlock(dim, num_prefix_tokens) for _ in range(num_blocks))
        self.norm_out = nn.LayerNorm(dim)
        self.proj_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        sigma: Float[Tensor, " batch"],
        grid_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The residual to add to the tokens.

        Args:
            tokens: of the noisy (or purified) image, prefix tokens first.
            sigma: noise level of each image, in pixel units; zero is allowed.
            grid_size: patches (down, across); default: a square.

        Raises:
            ValueError: tokens of another width, patch tokens that do not fill the grid, or negative levels.
        """
        if tokens.shape[2] != self.config.dim:
            raise ValueError(f"The mapper was made for tokens of width {self.config.dim}; got {tokens.shape[2]}.")
        check_levels(sigma, len(tokens), zero_allowed=True)
        patches = tokens.shape[1] - self.config.num_prefix_tokens
        grid = grid_size or (math.isqrt(max(patches, 0)),) * 2
        if grid[0] * grid[1] != patches:
            raise ValueError(
                f"{patches} patch tokens ({self.config.num_prefix_tokens} prefix tokens left out) do not fill a {grid[0]}x{grid[1]} "
                "grid; pass grid_size=(down, across)."
            )
        embedding = F.silu(self.noise_mlp(noise_features(sigma).to(self.dtype)))
        hidden = tokens.to(self.dtype)
        for block in self.blocks:
            hidden = block(hidden, embedding, grid)
        residual = self.proj_out(self.norm_out(hidden))
        if self.config.gate:
            residual = residual * (sigma / (sigma + 0.05)).to(residual.dtype).view(-1, 1, 1)
        return residual.to(tokens.dtype)


class MapperBlock(nn.Module):
    """Attention, depth-wise convolution on the patch grid and MLP, each on noise-modulated normalised tokens."""

    def __init__(self, dim: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.film = nn.Linear(_NOISE_DIM, 6 * dim)
        self.norm1, self.attn = nn.LayerNorm(dim), SelfAttention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dwconv, self.pwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Linear(dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor, grid: tuple[int, int]) -> Tensor:
        film = self.film(embedding).unsqueeze(1).chunk(6, dim=-1)  # three pairs of scale and shift
        x = x + self.attn((1 + film[0]) * self.norm1(x) + film[1])
        x = x + self._convolve((1 + film[2]) * self.norm2(x) + film[3], grid)
        return x + self.mlp((1 + film[4]) * self.norm3(x) + film[5])

    def _convolve(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        maps = self.dwconv(patches.transpose(1, 2).unflatten(2, grid))
        mixed = self.pwconv(F.gelu(maps.flatten(2).transpose(1, 2)))
        return torch.cat([torch.zeros_like(prefix), mixed], dim=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with dim / 64 heads (one for narrower tokens), or the next smaller number that divides the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
