"""Graft 1, the temporal 3D denoiser: TripoSG's transformer whose self-attention spans all frames of a window."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from visiongraft.methods.action_mesh.attention import LayerNorm, Linear
from visiongraft.methods.action_mesh.blocks import ACTION_MESH, TRIPOSG, Block, compute_dtype, refuse_on_cpu, renamed, run_block
from visiongraft.methods.action_mesh.embeddings import TimestepMLP, timestep_features
from visiongraft.methods.action_mesh.triposg_dit import check_channels
from visiongraft.nn.rotary import rotations


class TemporalDenoiser(ModelMixin, ConfigMixin):
    """Velocity of the latent sets of all frames of a window. The defaults are the released size (1.44 billion parameters).

    The velocity points to the data: ``latents - noise``, the opposite of ``visiongraft.flow``. With one frame and no mask it is
    :class:`~visiongraft.methods.action_mesh.triposg_dit.TripoSGDiT`. Names of tensors and options are ActionMesh's.

    Args:
        num_tokens_nominal, temporal_context_size: tokens of a frame and frames of a window that it was trained with; any others work.
        in_channels, num_layers, num_attention_heads, width, mlp_ratio, cross_attention_dim: as of the base.
        inflated_layers: blocks whose self-attention spans the frames; None for all.
        clear_autocast: forget autocast's copies of the weights after each block, which saves memory.
        compile_blocks, compile_mode: torch.compile of all blocks but the last.
        rope: rotary embedding of the frame number; False is the paper's ablation.

    Raises:
        ValueError: a layer that is none, a width that the heads do not divide, or heads of an odd width.

    Source: ActionMesh brief, 2.4.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        num_tokens_nominal: int = 2048,
        temporal_context_size: int = 16,
        in_channels: int = 64,
        num_layers: int = 21,
        num_attention_heads: int = 16,
        width: int = 2048,
        mlp_ratio: float | int = 4.0,
        cross_attention_dim: int = 1024,
        inflated_layers: Sequence[int] | None = None,
        clear_autocast: bool = False,
        compile_blocks: bool = False,
        compile_mode: str | None = None,
        rope: bool = True,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.inflated = frozenset(range(num_layers) if inflated_layers is None else inflated_layers)
        if wrong := sorted(self.inflated - set(range(num_layers))):
            raise ValueError(f"inflated_layers has {wrong}; this model has layers 0 to {num_layers - 1}.")
        self.time_proj = TimestepMLP(width)
        self.proj_in = Linear(in_channels, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_attention_heads,
                ACTION_MESH,
                context_dim=cross_attention_dim,
                qk_norm=True,
                skip=i > num_layers // 2,
                mlp_ratio=mlp_ratio,
            )
            for i in range(num_layers)
        )
        self.norm_out = LayerNorm(width)
        self.proj_out = Linear(width, in_channels)
        if rope:
            rotations(torch.zeros(1, 1), width // num_attention_heads)  # an odd head says so now
        if compile_blocks:
            for block in self.blocks[:-1]:
                block.compile(mode=compile_mode)

    def forward(
        self,
        latents: Float[Tensor, "batch frames tokens channels"],
        context: Float[Tensor, "batch frames image_tokens context_dim"],
        framestep: Float[Tensor, "batch frames"],
        timestep: Float[Tensor, "batch"],
        mask: Tensor | None = None,
        force: bool = False,
    ) -> Float[Tensor, "batch frames tokens channels"]:
        """Velocities towards the data; those of known frames have no meaning.

        Args:
            latents: noisy latent sets, clean ones where ``mask`` is 1.
            context: image tokens of each frame; zeros for none.
            framestep: frame numbers, in any order and with any gaps; only their differences matter.
            timestep: in [0, 1000], 1000 is noise; known frames get 0.
            mask: (batch, frames) of 0 and 1, where 1 is a known frame (source).
            force: run on the CPU whatever the size.

        Raises:
            ValueError: channels that do not fit, a mask that is not 0 and 1 or leaves nothing to generate, a window too large for the CPU.
        """
        batch, frames, tokens, _ = latents.shape
        check_channels(self, latents, context)
        refuse_on_cpu(latents.device, frames, tokens, force)
        times = frame_times(timestep, mask, frames)
        dtype, half, skips = compute_dtype(self), self.config.num_layers // 2, []
        time = self.time_proj(timestep_features(times.flatten(), self.config.width).to(dtype))
        x = torch.cat([time[:, None], self.proj_in(latents.to(dtype).flatten(0, 1))], dim=1)
        context, turns = context.to(dtype).flatten(0, 1), self._turns(framestep, tokens + 1)
        for i, block in enumerate(self.blocks):
            inflated, skip = i in self.inflated, skips.pop() if i > half else None
            # within one frame all tokens share a position, and attention sees only differences: no rotation is the same
            x = run_block(self, block, x, context, skip, turns if inflated else None, frames if inflated else 1)
            if i < half:
                skips.append(x)
            if self.config.clear_autocast:
                torch.clear_autocast_cache()
        return self.proj_out(self.norm_out(x[:, 1:])).unflatten(0, (batch, frames)).to(latents.dtype)

    def _turns(self, framestep: Float[Tensor, "batch frames"], tokens: int) -> Tensor | None:
        """Of the inflated sequence: the time token of a frame and its latents share the frame's position."""
        if not self.config.rope:
            return None
        centered = framestep - framestep.amin(dim=1, keepdim=True)
        return rotations(centered.repeat_interleave(tokens, dim=1), self.config.width // self.config.num_attention_heads)


def frame_times(timestep: Float[Tensor, "batch"], mask: Tensor | None, frames: int) -> Float[Tensor, "batch frames"]:
    """Model time of every frame: ``timestep * (1 - mask)``, so that known frames have 0.

    Raises:
        ValueError: a mask of another shape or with other values than 0 and 1, or one that leaves no frame to generate.

    Source: ActionMesh brief, 2.4.
    """
    times = timestep[:, None].expand(-1, frames)
    if mask is None:
        return times
    if tuple(mask.shape) != tuple(times.shape):
        raise ValueError(f"mask must be (batch, frames) = {tuple(times.shape)} of 0 and 1; got {tuple(mask.shape)}.")
    known = mask.bool()
    if bool((mask != known).any()):
        raise ValueError("mask must hold only 0 (generate) and 1 (known frame).")
    if bool(known.all(dim=1).any()):
        raise ValueError("All frames are sources, nothing to generate; at least one frame must have mask 0.")
    return times.masked_fill(known, 0.0)


def inflate(dit: nn.Module, layers: str | Sequence[int] = "all", rope: bool = True, **options: Any) -> TemporalDenoiser:
    """A temporal denoiser with the weights of an image-to-3D transformer; it has no others, and is the same at one frame.

    Args:
        dit: ``TripoSGDiT``, or a VecSet transformer with its configuration keys and tensor names.
        layers: blocks whose self-attention spans the frames: ``"all"``, or their numbers.
        rope: rotary embedding of the frame number.
        options: further options of :class:`TemporalDenoiser`, such as ``temporal_context_size``.

    Raises:
        ValueError: layers that are none.

    Source: ActionMesh brief, 2.4 and 4.
    """
    if isinstance(layers, str) and layers != "all":
        raise ValueError(f"layers must be 'all' or numbers of blocks; got {layers!r}.")
    config: Any = dit.config
    shared = ("in_channels", "num_layers", "num_attention_heads", "width", "mlp_ratio", "cross_attention_dim")
    chosen = list(range(config["num_layers"])) if isinstance(layers, str) else list(layers)
    sizes = {key: config[key] for key in shared}
    tensors = dit.state_dict()
    names = renamed(tensors, TRIPOSG, ACTION_MESH)
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced
        model = TemporalDenoiser(**sizes, inflated_layers=chosen, rope=rope, **options)
    model.load_state_dict({names[key]: tensor.detach().clone() for key, tensor in tensors.items()}, assign=True)
    return model.train(dit.training)
