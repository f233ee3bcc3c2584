"""The policy network: points (or images, or a scene cloud), proprioception and language in, chunks of normalised actions out."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from visiongraft.methods.point_bridge.encoders import ImageEncoder, PointNet
from visiongraft.methods.point_bridge.heads import MAX_QUERIES, ActionHead, DiffusionHead, MixtureHead
from visiongraft.methods.point_bridge.trunk import CausalTrunk

_CHOICES = {
    "observed": ("points", "scene", "image"),
    "tokens": ("shared", "per_object", "combined"),
    "head": ("deterministic", "mixture", "diffusion"),
    "action_mode": ("pose", "points"),
    "image_pooling": ("mean", "soft_argmax"),
}

SIZES: dict[str, dict[str, Any]] = {
    "official": {},
    "small": {
        "token_dim": 96,
        "hidden_size": 96,
        "num_layers": 4,
        "point_widths": (32, 64, 96),
        "head_feedforward": 192,
        "chunk": 12,
        "dropout": 0.0,
        "image_widths": (16, 32, 48),
        "image_blocks": 1,
        "image_stride": 2,
        "image_pooling": "soft_argmax",
    },
    "tiny": {
        "token_dim": 16,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "point_widths": (8, 16),
        "head_feedforward": 32,
        "head_layers": 1,
        "chunk": 4,
        "dropout": 0.0,
        "image_widths": (4, 8),
        "image_blocks": 1,
        "image_stride": 2,
        "image_size": 32,
    },
}
"""Arguments of :class:`PointBridgeModel` that differ from the authors'."""


class Actor(nn.Module):
    """Learned action token, trunk and head: from tokens of each time step to a chunk of actions for it."""

    def __init__(self, trunk: CausalTrunk, head: ActionHead, token_dim: int) -> None:
        super().__init__()
        self.action_token = nn.Parameter(torch.randn(1, 1, 1, token_dim))
        self.trunk, self.head = trunk, head

    def features(
        self, prompt: Tensor | None, steps: Float[Tensor, "batch history tokens token_dim"], mask: Tensor | None
    ) -> Float[Tensor, "batch history hidden"]:
        """Trunk's output at the action token that ends each step."""
        batch, history = steps.shape[:2]
        steps = torch.cat([steps, self.action_token.to(steps.dtype).expand(batch, history, -1, -1)], dim=2)
        per_step, sequence = steps.shape[2], steps.flatten(1, 2)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(batch, history, 1)], dim=2).flatten(1)
        if prompt is not None:
            sequence = torch.cat([prompt[:, None], sequence], dim=1)
            mask = None if mask is None else torch.cat([mask.new_ones(batch, 1), mask], dim=1)
        outputs = self.trunk(sequence, mask)
        return outputs[:, (prompt is not None) + per_step - 1 :: per_step]


class PointBridgeModel(ModelMixin, ConfigMixin):
    """Behaviour-cloning transformer over an observation history. The defaults are the authors'; ``SIZES`` has smaller ones.

    Args:
        observed: what the policy sees: ``points`` of robot and objects; ``scene``, one unfiltered cloud; ``image``, one token a camera.
        tokens: of ``points``: ``shared`` (the released code: a robot token and one token for all objects), ``per_object`` (a robot token
            and one for each object) or ``combined`` (one token for everything, as the paper's text says).
        history: time steps seen.
        use_proprio, use_language: whether there is a proprioception token and a language token (multi-task).
        head: ``deterministic``, ``mixture`` or ``diffusion``.
        action_mode: ``pose`` (10 numbers, see robots.actions) or ``points`` (future robot points and three times the gripper command).
        num_key_points: of the robot, which ``points`` predicts; 8 on the authors'.
        token_dim, hidden_size, num_layers, num_heads, max_length, dropout: of tokens and trunk.
        point_widths: of the PointNet.
        chunk, head_layers, head_feedforward: of the head.
        proprio_dim, language_dim: of the inputs.
        num_cameras, image_size, image_widths, image_blocks, image_stride, image_pooling: of ``image``, see ``ImageEncoder``.
        mixture_modes, diffusion_steps, inference_steps: of the other heads.

    Raises:
        ValueError: a choice that is none, a chunk or a history that does not fit, or a width that the heads do not divide.

    Source: arXiv 2601.16212; brief, 2.6.
    """

    _no_split_modules = ["TrunkBlock"]

    @register_to_config
    def __init__(
        self,
        observed: str = "points",
        tokens: str = "shared",
        history: int = 1,
        use_proprio: bool = True,
        use_language: bool = True,
        head: str = "deterministic",
        action_mode: str = "pose",
        num_key_points: int = 8,
        token_dim: int = 512,
        hidden_size: int = 256,
        num_layers: int = 8,
        num_heads: int = 4,
        max_length: int = 65,
        dropout: float = 0.1,
        point_widths: Sequence[int] = (64, 128, 256),
        chunk: int = 40,
        head_layers: int = 2,
        head_feedforward: int = 2048,
        proprio_dim: int = 10,
        language_dim: int = 384,
        num_cameras: int = 1,
        image_size: int = 64,
        image_widths: Sequence[int] = (64, 128, 256, 512),
        image_blocks: int = 2,
        image_stride: int = 4,
        image_pooling: str = "mean",
        mixture_modes: int = 5,
        diffusion_steps: int = 100,
        inference_steps: int = 10,
    ) -> None:
        super().__init__()
        _check(self.config)
        if observed == "image":
            condition = token_dim if use_language else None
            self.encoder = ImageEncoder(token_dim, tuple(image_widths), image_blocks, image_stride, condition, image_pooling)
        else:
            self.encoder = PointNet(token_dim, tuple(point_widths))
        if use_proprio:
            self.proprio_projector = _projector(proprio_dim, token_dim)
        if use_language:
            self.language_projector = _projector(language_dim, token_dim)
        trunk = CausalTrunk(token_dim, hidden_size, num_layers, num_heads, max_length, dropout)
        self.actor = Actor(trunk, _head(self.config), token_dim)
        self.apply(_initialise)

    def forward(
        self,
        observation: dict[str, Tensor],
        actions: Float[Tensor, "batch history chunk action"] | None = None,
        generator: torch.Generator | None = None,
        noise: Float[Tensor, "batch history chunk action"] | None = None,
    ) -> Tensor:
        """Loss against ``actions``, or the actions themselves (batch, history, chunk, action) where none are given.

        Args:
            observation: normalised tensors, as ``observed`` and the options need them: ``robot_points`` (batch, history, 8, 3),
                ``object_points`` (batch, history, objects, points, 3), ``object_mask`` (batch, objects) of the objects that are there
                (all, when left out), ``scene_points`` (batch, history, points, 3), ``images`` (batch, history, cameras, 3, size, size) in
                [0, 1], ``proprioception`` (batch, history, 10), ``language`` (batch, 384). Others are not looked at.
            actions: normalised labels of every step of the history.
            generator: of the diffusion head's training noise.
            noise: that a diffusion head acts from.

        Raises:
            ValueError: something is missing, or of another shape than the configuration says.
        """
        prompt = self.language_projector(_given(observation, "language")) if self.config.use_language else None
        steps, mask = self._tokens(observation, prompt)
        length = (prompt is not None) + steps.shape[1] * (steps.shape[2] + 1)
        if length > self.config.max_length:
            raise ValueError(
                f"The sequence has {length} tokens; max_length is {self.config.max_length}. Use fewer objects or less history."
            )
        features = self.actor.features(prompt, steps, mask)
        batch, history = features.shape[:2]
        if actions is not None:
            return self.actor.head.loss(features.flatten(0, 1), actions.flatten(0, 1), generator)
        predicted = self.actor.head(features.flatten(0, 1), None if noise is None else noise.flatten(0, 1))
        return predicted.unflatten(0, (batch, history))

    def _tokens(self, observation: dict[str, Tensor], prompt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens of each step (batch, history, tokens, token_dim), and which of them are there (None: all)."""
        if self.config.observed == "image":
            tokens, mask = self._image_tokens(_given(observation, "images"), prompt), None
        elif self.config.observed == "scene":
            tokens, mask = self.encoder(_given(observation, "scene_points"))[:, :, None], None
        else:
            tokens, mask = self._point_tokens(observation)
        history = tokens.shape[1]
        if history != self.config.history:
            raise ValueError(f"The model sees a history of {self.config.history} steps; got {history}.")
        if self.config.use_proprio:
            proprio = self.proprio_projector(_given(observation, "proprioception"))
            tokens = torch.cat([tokens, proprio[:, :, None]], dim=2)
            mask = None if mask is None else torch.cat([mask, mask.new_ones(*mask.shape[:2], 1)], dim=2)
        return tokens, mask

    def _point_tokens(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        robot, objects = _given(observation, "robot_points"), _given(observation, "object_points")
        batch, history, count, points = objects.shape[:4]
        mask = observation.get("object_mask")
        there = None if mask is None else mask[:, None, :].expand(batch, history, count)
        if self.config.tokens == "per_object":
            tokens = torch.cat([self.encoder(robot)[:, :, None], self.encoder(objects)], dim=2)
            return tokens, None if there is None else torch.cat([there.new_ones(batch, history, 1), there], dim=2)
        cloud = objects.flatten(2, 3)
        visible = None if there is None else there.repeat_interleave(points, dim=2)
        if self.config.tokens == "combined":
            if visible is not None:
                visible = torch.cat([visible.new_ones(*robot.shape[:3]), visible], dim=2)
            return self.encoder(torch.cat([robot, cloud], dim=2), visible)[:, :, None], None
        return torch.stack([self.encoder(robot), self.encoder(cloud, visible)], dim=2), None

    def _image_tokens(self, images: Tensor, prompt: Tensor | None) -> Tensor:
        batch, history, cameras, _, height, width = images.shape
        size, expected = self.config.image_size, self.config.num_cameras
        if (cameras, height, width) != (expected, size, size):
            raise ValueError(f"The model sees {expected} cameras of {size}x{size} pixels; got {cameras} of {height}x{width}.")
        condition = None if prompt is None else prompt.repeat_interleave(history * cameras, dim=0)
        return self.encoder(images.flatten(0, 2), condition).unflatten(0, (batch, history, cameras))


def create_model(size: str = "official", **options: Any) -> PointBridgeModel:
    """A model of one of ``SIZES`` with random weights.

    Args:
        size: ``official``, ``small`` or ``tiny``.
        options: arguments of :class:`PointBridgeModel`, which win.

    Raises:
        ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}.")
    return PointBridgeModel(**{**SIZES[size], **options})


def action_dim(config: Any) -> int:
    """Numbers of an action of a model's configuration: a pose and the gripper command, or points and three times the command."""
    return 10 if config.action_mode == "pose" else 3 * config.num_key_points + 3


def _check(config: Any) -> None:
    for name, accepted in _CHOICES.items():
        if config[name] not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {config[name]!r}.")
    if not 1 <= config.chunk <= MAX_QUERIES:
        raise ValueError(f"chunk must lie between 1 and {MAX_QUERIES}, the size of the query table; got {config.chunk}.")
    if min(config.history, config.num_cameras) < 1 or config.num_key_points < 3:
        raise ValueError(
            "history and num_cameras must be at least 1 and num_key_points at least 3; "
            f"got {config.history}, {config.num_cameras} and {config.num_key_points}."
        )
    if config.hidden_size % config.num_heads:
        raise ValueError(f"hidden_size {config.hidden_size} must be a multiple of num_heads {config.num_heads}.")


def _projector(dim: int, token_dim: int) -> nn.Sequential:
    """Two layers; the authors' sequence has a dropout of 0 between them, so that the second layer is number 3."""
    return nn.Sequential(nn.Linear(dim, token_dim), nn.ReLU(), nn.Dropout(0.0), nn.Linear(token_dim, token_dim))


def _head(config: Any) -> ActionHead:
    options = {
        "hidden_size": config.hidden_size,
        "action_dim": action_dim(config),
        "chunk": config.chunk,
        "num_layers": config.head_layers,
        "num_heads": config.num_heads,
        "feedforward": config.head_feedforward,
        "dropout": config.dropout,
    }
    if config.head == "mixture":
        return MixtureHead(modes=config.mixture_modes, **options)
    if config.head == "diffusion":
        return DiffusionHead(train_steps=config.diffusion_steps, inference_steps=config.inference_steps, **options)
    return ActionHead(**options)


def _initialise(module: nn.Module) -> None:
    """The authors': orthogonal linear layers without bias, narrow embeddings; attention in the head keeps PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, ImageEncoder):
        for block in module.blocks:
            if block.film is not None:  # unmodulated at first; applied after the block's own layers
                nn.init.zeros_(block.film.weight)  # pyright: ignore[reportArgumentType]


def _given(observation: dict[str, Tensor], name: str) -> Tensor:
    if name not in observation:
        raise ValueError(f"The model needs {name!r}; the observation has {', '.join(observation) or 'nothing'}.")
    return observation[name]
