"""Behaviour cloning of the policy."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from visiongraft.methods.point_bridge.dataset import PolicyDataset
from visiongraft.methods.point_bridge.model import PointBridgeModel
from visiongraft.training import Optimizer, Recipe

BATCH_SIZE = 16
STEPS = 300_000


class PointBridgeRecipe(Recipe):
    """One loss: the head's, over all numbers of the chunk, padding included, without a weight for the gripper.

    The authors clip nothing and keep the rate constant: ``TrainerConfig(steps=300_000, batch_size=16, clip_norm=None)``.

    Args:
        model: trained.
        data: training windows.
        held_out: windows of other episodes for validation; they are drawn with their own seed and noise.
        learning_rate, weight_decay: of AdamW.
        schedule, warmup_steps: such as ``cosine`` with 500; the authors' is constant.
        validation_samples: windows of ``held_out`` that are measured.

    Raises:
        ValueError: no validation samples.

    Source: brief, 5.
    """

    def __init__(
        self,
        model: PointBridgeModel,
        data: PolicyDataset,
        held_out: PolicyDataset | None = None,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        schedule: str = "constant",
        warmup_steps: int = 0,
        validation_samples: int = 128,
    ) -> None:
        if validation_samples < 1:
            raise ValueError(f"validation_samples must be at least 1; got {validation_samples}.")
        self.samples, self.held_out, self.validation_samples = data, held_out, validation_samples
        self.modules: dict[str, nn.Module] = {"model": model}
        self.optimizers = {
            "main": Optimizer(
                modules=("model",), learning_rate=learning_rate, weight_decay=weight_decay, schedule=schedule, warmup_steps=warmup_steps
            )
        }

    def data(self) -> Dataset:
        """The windows."""
        return self.samples

    def losses(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], generator: torch.Generator, optimizer: str
    ) -> dict[str, Tensor]:
        """``actions``: the head's loss."""
        return {"actions": modules["model"](batch, batch["actions"], generator)}

    @torch.no_grad()
    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """``actions``: the head's loss on held-out windows; the same windows and randomness every time."""
        if self.held_out is None:
            return {}
        model = modules["model"].eval()
        device = next(model.parameters()).device
        generator, count = torch.Generator(device).manual_seed(0), min(self.validation_samples, len(self.held_out))
        total = 0.0
        for start in range(0, count, BATCH_SIZE):
            items = [self.held_out[index] for index in range(start, min(start + BATCH_SIZE, count))]
            batch = {name: values.to(device) for name, values in default_collate(items).items()}
            total += float(model(batch, batch["actions"], generator)) * len(items)
        return {"actions": total / count}
