"""What turns one time step's observation into tokens: PointNet for clouds, a residual network with FiLM for images."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class PointNet(nn.Module):
    """One token from a cloud, whatever the order and number of its points.

    Args:
        token_dim: width of the token.
        widths: of the layers every point passes, each with layer norm and ReLU.

    Source: brief, 2.6 (encoder).
    """

    def __init__(self, token_dim: int, widths: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.final_projection = nn.Linear(widths[-1], token_dim)

    def forward(
        self, points: Float[Tensor, "*batch points 3"], mask: Bool[Tensor, "*batch points"] | None = None
    ) -> Float[Tensor, "*batch token_dim"]:
        """Token of each cloud.

        Args:
            points: normalised.
            mask: which points are there; a cloud with none gives the token of a cloud whose features are all zero.
        """
        features = self.mlp(points)  # at least zero after the last ReLU
        if mask is not None:
            features = features * mask[..., None]
        return self.final_projection(features.amax(dim=-2))


class ImageEncoder(nn.Module):
    """One token from an image: a residual network whose blocks are modulated by the instruction (FiLM).

    Args:
        token_dim: width of the token.
        widths: of the stages; each but the first halves the sides.
        blocks: residual blocks a stage; (64, 128, 256, 512) with 2 is a ResNet-18.
        stride: of the first convolution.
        condition_dim: width of the language token that modulates; None: no modulation.
        pooling: ``mean`` (ResNet's) or ``soft_argmax``: expected coordinates of every channel, which keep where something is.

    Source: brief, 2.6 and 7 (image baseline); group norm in place of batch norm, so that one episode runs as a batch does.
    """

    def __init__(
        self,
        token_dim: int,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        blocks: int = 2,
        stride: int = 4,
        condition_dim: int | None = None,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], stride + 3 - stride % 2, stride, (stride + 2) // 2),
            nn.GroupNorm(_groups(widths[0]), widths[0]),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        for number, width in enumerate(widths):
            for block in range(blocks):
                before = widths[max(number - 1, 0)] if block == 0 else width
                stages.append(FilmBlock(before, width, 2 if number and not block else 1, condition_dim))
        self.blocks = nn.ModuleList(stages)
        self.final_projection = nn.Linear(widths[-1] * (2 if pooling == "soft_argmax" else 1), token_dim)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], condition: Float[Tensor, "batch condition_dim"] | None = None
    ) -> Float[Tensor, "batch token_dim"]:
        """Token of each image in [0, 1]."""
        hidden = self.stem(2 * images - 1)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.final_projection(soft_argmax(hidden) if self.pooling == "soft_argmax" else hidden.mean(dim=(2, 3)))


class FilmBlock(nn.Module):
    """Two convolutions beside a shortcut, scaled and shifted per channel by the condition; unmodulated when new."""

    def __init__(self, before: int, width: int, stride: int, condition_dim: int | None) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.GroupNorm(_groups(width), width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(_groups(width), width)
        self.shortcut = nn.Conv2d(before, width, 1, stride) if stride != 1 or before != width else nn.Identity()
        self.film = None if condition_dim is None else nn.Linear(condition_dim, 2 * width)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        hidden = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.film is not None:
            scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return F.relu(hidden + self.shortcut(x))


def soft_argmax(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch coordinates"]:
    """Expected x of every channel, then expected y, in [-1, 1], under a softmax over the pixels."""
    height, width = features.shape[2:]
    probability = features.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    x = probability.sum(2) @ torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
    y = probability.sum(3) @ torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
    return torch.cat([x, y], dim=1)


def _groups(width: int) -> int:
    """Largest number of groups up to 8 that divides the width."""
    return next(groups for groups in range(8, 0, -1) if width % groups == 0)
