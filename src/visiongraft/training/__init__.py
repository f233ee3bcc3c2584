"""Recipe (what to train) and Trainer (how), for every method.

    class MyRecipe(Recipe): ...          # modules, optimizers, data(), losses()
    train(MyRecipe(), TrainerConfig(output=Path("runs/mine"), steps=1000))
"""

from visiongraft.training.recipe import Optimizer, Recipe
from visiongraft.training.trainer import TrainerConfig, train

__all__ = ["Optimizer", "Recipe", "TrainerConfig", "train"]
