"""The policy's trunk: a GPT over the tokens of an observation history."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class CausalTrunk(nn.Module):
    """Decoder-only transformer over tokens that are already vectors; every output sees its own token and earlier ones only.

    Args:
        token_dim: width of the tokens.
        hidden_size: width of the blocks.
        num_layers, num_heads: of the blocks.
        max_length: longest sequence.
        dropout: of embeddings, attention and residuals.

    Source: brief, 2.6 (trunk) and 4 (key layout).
    """

    def __init__(self, token_dim: int, hidden_size: int, num_layers: int, num_heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.input_projection = nn.Linear(token_dim, hidden_size)
        self.positions = nn.Embedding(max_length, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TrunkBlock(hidden_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.output_projection = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self, tokens: Float[Tensor, "batch length token_dim"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length hidden"]:
        """Features at every token.

        Args:
            tokens: in the order of time.
            mask: which tokens are there; None: all. What stands at an absent token is of no meaning.
        """
        length = tokens.shape[1]
        hidden = self.dropout(self.input_projection(tokens) + self.positions.weight[:length])
        visible = None if mask is None else _visible(mask)
        for block in self.blocks:
            hidden = block(hidden, visible)
        return self.output_projection(self.norm(hidden))


class TrunkBlock(nn.Module):
    """Causal self-attention and MLP, each behind a layer norm, with residuals."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CausalAttention(dim, num_heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), visible)
        return x + self.mlp(self.norm2(x))


class CausalAttention(nn.Module):
    """Multi-head causal attention with queries, keys and values from one fused linear layer."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=visible is None)
        return F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


def _visible(mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch 1 length length"]:
    """Which tokens each may look at: earlier ones that are there, and itself, so that no row of the softmax is empty."""
    length = mask.shape[1]
    ones = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    return ((ones.tril() & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=mask.device))[:, None]
