"""TripoSG's transformer: from noise to the latent set of a shape, given an image."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from visiongraft.methods.action_mesh.attention import LayerNorm, Linear
from visiongraft.methods.action_mesh.blocks import TRIPOSG, Block, compute_dtype, run_block
from visiongraft.methods.action_mesh.embeddings import TimestepMLP, timestep_features


class TripoSGDiT(ModelMixin, ConfigMixin):
    """Velocity of the latent set of one shape. The defaults are the released size (1.44 billion parameters).

    The velocity points to the data: ``latents - noise``, the opposite of ``visiongraft.flow``. Tensors have TripoSG's names and their
    storage layout.

    Args:
        in_channels: of a latent token.
        num_layers: blocks; the first half hands its outputs to the second, last in first out.
        num_attention_heads: heads of width / num_attention_heads channels.
        width: of the tokens.
        cross_attention_dim: channels of the image tokens.
        mlp_ratio: inner width of the feed-forward layers by the width.

    Raises:
        ValueError: a width that the heads do not divide.

    Source: ActionMesh brief, 2.3.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 64,
        num_layers: int = 21,
        num_attention_heads: int = 16,
        width: int = 2048,
        cross_attention_dim: int = 1024,
        mlp_ratio: float | int = 4.0,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.time_proj = TimestepMLP(width)
        self.proj_in = Linear(in_channels, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_attention_heads,
                TRIPOSG,
                context_dim=cross_attention_dim,
                qk_norm=True,
                skip=i > num_layers // 2,
                mlp_ratio=mlp_ratio,
            )
            for i in range(num_layers)
        )
        self.norm_out = LayerNorm(width)
        self.proj_out = Linear(width, in_channels)

    def forward(
        self,
        latents: Float[Tensor, "batch tokens channels"],
        timestep: Float[Tensor, "batch"],
        context: Float[Tensor, "batch image_tokens context_dim"],
    ) -> Float[Tensor, "batch tokens channels"]:
        """Velocity towards the data.

        Args:
            latents: noisy latent set; its order has no meaning.
            timestep: in [0, 1000], 1000 is noise.
            context: image tokens; zeros for none (classifier-free guidance).

        Raises:
            ValueError: latents or context of other channels than the configuration's.
        """
        check_channels(self, latents, context)
        dtype = compute_dtype(self)
        time = self.time_proj(timestep_features(timestep, self.config.width).to(dtype))
        x = torch.cat([time[:, None], self.proj_in(latents.to(dtype))], dim=1)
        context, half, skips = context.to(dtype), self.config.num_layers // 2, []
        for i, block in enumerate(self.blocks):
            x = run_block(self, block, x, context, skips.pop() if i > half else None)
            if i < half:
                skips.append(x)
        return self.proj_out(self.norm_out(x[:, 1:])).to(latents.dtype)


def check_channels(model: ModelMixin, latents: Tensor, context: Tensor) -> None:
    """Compares the last axes of a denoiser's inputs with its configuration.

    Raises:
        ValueError: another number of channels; the message has both.
    """
    for name, value, key in (("latents", latents, "in_channels"), ("context", context, "cross_attention_dim")):
        expected = model.config[key]
        if value.shape[-1] != expected:
            raise ValueError(f"The {name} have {value.shape[-1]} channels; this {type(model).__name__} has {key}={expected}.")
