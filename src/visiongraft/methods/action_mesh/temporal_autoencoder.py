"""Graft 2, the temporal 3D autoencoder: from the latent sets of all frames and a pair of times to where the surface goes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from visiongraft.methods.action_mesh.attention import KeysValues, LayerNorm, Linear, cast, widened
from visiongraft.methods.action_mesh.blocks import (
    ACTION_MESH,
    TRIPOSG,
    Block,
    compute_dtype,
    in_chunks,
    offloadable,
    refuse_on_cpu,
    renamed,
    run_block,
)
from visiongraft.methods.action_mesh.embeddings import num_point_features, pair_features, point_features
from visiongraft.nn.rotary import rotations

MODES = ("direct", "residual")


@dataclass(frozen=True)
class MotionContext:
    """What queries look at: the window's tokens as the last block sees them, and the pair of times where queries carry it."""

    tokens: KeysValues
    pair: Tensor | None = None


class TemporalAutoencoder(ModelMixin, ConfigMixin):
    """Decoder of motion. The defaults are the released size (214 million parameters); the encoder is the base's, frame by frame.

    Args:
        temporal_context_size: frames of a window that it was trained with; any other number works.
        in_channels: coordinates of a point, 3.
        in_extra_channels: 3 for normals beside the queries' positions, 0 without them.
        out_dim: coordinates of the answer, 3.
        latent_channels: of a latent token.
        width, num_layers, num_attention_heads: of the self-attention blocks.
        embed_frequency, embed_include_pi: of the points' embedding.
        prediction_mode: ``direct`` answers with positions (as released), ``residual`` with the way from the query to there.
        verbose: a key of the authors' configuration without effect.
        pair_in_queries: add the pair of times to the queries in place of tokens; the paper's ablation.
        rope: rotary embedding of the frame number.

    Raises:
        ValueError: an unknown mode, channels that are not those above, or widths that do not fit.

    Source: ActionMesh brief, 2.6.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        temporal_context_size: int = 16,
        in_channels: int = 3,
        in_extra_channels: int = 3,
        out_dim: int = 3,
        latent_channels: int = 64,
        width: int = 1024,
        num_layers: int = 16,
        num_attention_heads: int = 8,
        embed_frequency: int = 8,
        embed_include_pi: bool = False,
        prediction_mode: str = "direct",
        verbose: bool = False,
        pair_in_queries: bool = False,
        rope: bool = True,
    ) -> None:
        super().__init__()
        if prediction_mode not in MODES:
            raise ValueError(f"prediction_mode must be one of {', '.join(MODES)}; got {prediction_mode!r}.")
        if in_channels != 3 or out_dim != 3 or in_extra_channels not in (0, 3):
            raise ValueError(
                "Queries have 3 coordinates and 0 or 3 extra channels (normals), answers 3 coordinates; got "
                f"in_channels={in_channels}, in_extra_channels={in_extra_channels}, out_dim={out_dim}."
            )
        self.gradient_checkpointing = False
        self.post_quant = Linear(latent_channels, width)
        last = Block(width, num_attention_heads, ACTION_MESH, self_attention=False, context_dim=width, norm_context=True)
        self.blocks = nn.ModuleList([*(Block(width, num_attention_heads, ACTION_MESH) for _ in range(num_layers)), last])
        self.proj_query = Linear(num_point_features(embed_frequency) + in_extra_channels, width)
        self.norm_out = LayerNorm(width)
        self.proj_out = Linear(width, out_dim)
        pair_features(torch.zeros(1), torch.zeros(1), width)  # a width that does not fit says so now
        if rope:
            rotations(torch.zeros(1, 1), width // num_attention_heads)

    @offloadable
    def decode_context(
        self,
        latents: Float[Tensor, "batch frames tokens channels"],
        framestep: Float[Tensor, "batch frames"],
        source: Float[Tensor, "batch"],
        target: Float[Tensor, "batch"],
        force: bool = False,
    ) -> MotionContext:
        """What :meth:`query` needs of a window for one pair of times; the pair is among its tokens, so each target has its own.

        Args:
            latents: clean latent sets of the frames.
            framestep: frame numbers, in any order; at least two different ones.
            source, target: frame numbers of the queries and of the answers, within the window's range.
            force: run on the CPU whatever the size.

        Raises:
            ValueError: channels that do not fit, fewer than two distinct times, a time outside the window, a window too large for the CPU.
        """
        _, frames, tokens, channels = latents.shape
        if channels != self.config.latent_channels:
            raise ValueError(f"The latents have {channels} channels; this model has latent_channels={self.config.latent_channels}.")
        refuse_on_cpu(latents.device, frames, tokens, force)
        first, last = framestep.amin(dim=1), framestep.amax(dim=1)
        source_alpha, target_alpha = _relative(torch.stack([source, target]), first, last)
        pair = pair_features(source_alpha, target_alpha, self.config.width)[:, None]
        x, positions = self.post_quant(cast(latents, compute_dtype(self))).flatten(1, 2), framestep - first[:, None]
        spread = positions.repeat_interleave(tokens, dim=1)
        if not self.config.pair_in_queries:  # one pair token a frame, after all latents, at the position of its frame
            x, spread = torch.cat([x, cast(pair, x.dtype).expand(-1, frames, -1)], dim=1), torch.cat([spread, positions], dim=1)
        turns = rotations(spread, self.config.width // self.config.num_attention_heads) if self.config.rope else None
        for block in self.blocks[:-1]:
            x = run_block(self, block, x, None, None, turns)
        with _full_precision(x):
            tokens_seen = self.blocks[-1].keys_values(widened(x))  # pyright: ignore[reportCallIssue]
        return MotionContext(tokens_seen, pair if self.config.pair_in_queries else None)

    @offloadable
    def query(
        self,
        context: MotionContext,
        points: Float[Tensor, "batch points 3"],
        normals: Float[Tensor, "batch points 3"] | None = None,
        chunk: int = 10_000,
    ) -> Float[Tensor, "batch points 3"]:
        """Positions at the target time, in [-1, 1], in float32 at least.

        Args:
            context: of :meth:`decode_context`.
            points: on the surface at the source time, in [-1, 1]^3.
            normals: unit normals there; needed unless in_extra_channels is 0.
            chunk: points at a time; the result does not depend on it, and memory does not on the number of points.

        Raises:
            ValueError: normals that are missing.
        """
        if normals is None and self.config.in_extra_channels:
            raise ValueError("This model needs the normals of the query points (in_extra_channels=3); give them as normals.")
        extra = normals if self.config.in_extra_channels else None
        with _full_precision(points):
            return in_chunks(lambda *piece: self._positions(context, *piece), chunk, points, extra)

    def forward(
        self,
        latents: Float[Tensor, "batch frames tokens channels"],
        framestep: Float[Tensor, "batch frames"],
        source: Float[Tensor, "batch"],
        target: Float[Tensor, "batch"],
        points: Float[Tensor, "batch points 3"],
        normals: Float[Tensor, "batch points 3"] | None = None,
    ) -> Float[Tensor, "batch points 3"]:
        """:meth:`decode_context` and :meth:`query` in one, for training."""
        return self.query(self.decode_context(latents, framestep, source, target), points, normals)

    def _positions(self, context: MotionContext, points: Tensor, normals: Tensor | None) -> Tensor:
        points = widened(points)
        features = point_features(points, self.config.embed_frequency, self.config.embed_include_pi)
        features = features if normals is None else torch.cat([features, cast(normals, features.dtype)], dim=-1)
        x = self.proj_query(features)
        x = x if context.pair is None else x + cast(context.pair, x.dtype)
        x = run_block(self, self.blocks[-1], x, KeysValues(*(cast(value, x.dtype) for value in context.tokens)))
        answer = 2 * torch.sigmoid(-self.proj_out(self.norm_out(x))) - 1
        return (answer if self.config.prediction_mode == "direct" else points + answer).clamp(-1.0, 1.0)


def _relative(times: Float[Tensor, "pair batch"], first: Float[Tensor, "batch"], last: Float[Tensor, "batch"]) -> Tensor:
    """Where source and target lie between the window's first and last time, in [0, 1]."""
    if not bool((last > first).all()):
        raise ValueError("Stage II needs at least two distinct timesteps in a window.")
    if not bool(((times >= first) & (times <= last)).all()):
        raise ValueError(
            f"Source {times[0].tolist()} and target {times[1].tolist()} must lie within the window, which runs from {first.tolist()} to "
            f"{last.tolist()}; give them in units of framestep."
        )
    return (times - first) / (last - first)


def _full_precision(x: Tensor) -> AbstractContextManager:
    """Positions would be too coarse in half precision: cross-attention and head leave autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" and torch.is_autocast_enabled(kind) else nullcontext()


def temporalize(vae: nn.Module, generator: torch.Generator | None = None, **options: Any) -> TemporalAutoencoder:
    """A temporal autoencoder with the weights of an image-to-3D autoencoder's decoder.

    The projection of the queries gets columns of zeros for the normals; the head for three coordinates is new.

    Args:
        vae: ``TripoSGVAE``, or a VecSet autoencoder with its configuration keys and tensor names.
        generator: draws the new head.
        options: of :class:`TemporalAutoencoder` that are not sizes of the decoder, such as ``prediction_mode``.

    Source: ActionMesh brief, 3 and 4.
    """
    config: Any = vae.config
    sizes = {"latent_channels": config["latent_channels"], "width": config["width_decoder"], "num_layers": config["num_layers_decoder"]}
    sizes |= {key: config[key] for key in ("num_attention_heads", "embed_frequency", "embed_include_pi")}
    with torch.device("meta"):
        model = TemporalAutoencoder(**sizes, **options)
    tensors = {
        key.removeprefix("decoder."): tensor.detach().clone()
        for key, tensor in vae.state_dict().items()
        if key.startswith(("decoder.", "post_quant."))
    }
    names = renamed(tensors, TRIPOSG, ACTION_MESH)
    tensors = {names[key]: tensor for key, tensor in tensors.items()}
    old = tensors["proj_query.weight"]
    tensors["proj_query.weight"] = torch.cat([old, old.new_zeros(len(old), model.config.in_extra_channels)], dim=1)
    for name, parameter in (("proj_out.weight", model.proj_out.weight), ("proj_out.bias", model.proj_out.bias)):
        tensors[name] = _uniform(parameter.shape, old.shape[0] ** -0.5, old, generator)
    model.load_state_dict(tensors, assign=True)
    return model.train(vae.training)


def _uniform(shape: torch.Size, bound: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in [-bound, bound], as PyTorch initialises a linear layer."""
    device = like.device if generator is None else generator.device
    return (bound * (2 * torch.rand(shape, generator=generator, device=device) - 1)).to(like)
