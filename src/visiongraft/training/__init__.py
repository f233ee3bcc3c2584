"""Recipe (what to train) and Trainer (how), for every method.

    class MyRecipe(Recipe): ...          # modules, optimizers, data(), losses()
    train(MyRecipe(), TrainerConfig(output=Path("runs/mine"), steps=1000))

Names are imported on first use, so that the configuration alone does not bring in torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiongraft.training.config import TrainerConfig
    from visiongraft.training.recipe import Optimizer, Recipe
    from visiongraft.training.trainer import train

__all__ = ["Optimizer", "Recipe", "TrainerConfig", "train"]

_HOMES = {"Optimizer": "recipe", "Recipe": "recipe", "TrainerConfig": "config", "train": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
