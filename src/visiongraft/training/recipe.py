"""Recipe: what to train. Modules, data, losses, and which optimiser owns which parameters."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One AdamW optimiser and what it owns. Adversarial training has two, each with its own losses.

    Args:
        modules: names in :attr:`Recipe.modules`; their parameters that require a gradient are trained.
        learning_rate: peak learning rate.
        betas: of AdamW.
        weight_decay: of AdamW.
        schedule: name of a Diffusers schedule, such as constant, constant_with_warmup, linear, cosine.
        warmup_steps: steps of linear warm-up, where the schedule has one.
    """

    modules: tuple[str, ...]
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0


class Recipe(ABC):
    """What to train; :func:`visiongraft.training.train` says how.

    Attributes:
        modules: what is trained and checkpointed, by name. Frozen models are plain attributes.
        optimizers: optimisers by name, stepped in this order on the same batch.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    @abstractmethod
    def data(self) -> Dataset:
        """Map-style data set with a length. An item must be a pure function of its index (draw augmentation from a seed and the index):
        order, shuffling and resuming are the Trainer's, which asks for any index at any time."""

    @abstractmethod
    def losses(self, modules: dict[str, nn.Module], batch: Any, generator: torch.Generator, optimizer: str) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; ``optimizer`` minimises their sum.

        With several processes a module whose gradient is wanted must run through its call, with every trained parameter in
        use; run the ones that are not being trained, such as a generator in the discriminator's turn, under ``torch.no_grad``.

        Args:
            modules: the trained modules, wrapped for the precision and machines in use; call these, not ``self.modules``.
            batch: what :meth:`collate` made, on the device.
            generator: the step's randomness; a resumed run sees the same.
            optimizer: name of the optimiser whose losses are asked for.
        """

    def collate(self, items: list[Any]) -> Any:
        """Batch of items; PyTorch's default."""
        return default_collate(items)

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Moves frozen parts to the device; nothing by default."""

    def preview(self, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Pictures (3 x height x width in [0, 1]) to look at during training; none by default."""
        return {}

    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """Figures to log with the previews; none by default."""
        return {}
