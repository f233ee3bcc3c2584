"""Mistakes in a recipe, found before they cost a run."""

from typing import Any

from diffusers.optimization import SchedulerType
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from visiongraft.training.recipe import Recipe

_RESERVED = {"checkpoints", "logs", "previews"}
_SCHEDULES = tuple(name.value for name in SchedulerType if name is not SchedulerType.PIECEWISE_CONSTANT)


def check_recipe(recipe: Recipe) -> None:
    """Finds the mistakes in a recipe that would otherwise show late or never.

    Raises:
        ValueError: names what is wrong.
    """
    kind, owners = type(recipe).__name__, {}
    if not recipe.modules or not recipe.optimizers:
        raise ValueError(f"{kind} needs at least one module and one optimizer; set self.modules and self.optimizers.")
    for name in {*recipe.modules} & _RESERVED:
        raise ValueError(f"{kind} has a module named {name!r}, a folder the Trainer writes itself; rename it.")
    for name, spec in recipe.optimizers.items():
        if spec.schedule not in _SCHEDULES:
            raise ValueError(f"Schedule {spec.schedule!r} of optimizer {name!r} is unknown; choose one of {', '.join(_SCHEDULES)}.")
        for module in spec.modules:
            if module not in recipe.modules:
                raise ValueError(f"Optimizer {name!r} names the module {module!r}; {kind} has {', '.join(recipe.modules)}.")
            if module in owners:
                raise ValueError(f"Module {module!r} belongs to optimizers {owners[module]!r} and {name!r}; it can have one only.")
            owners[module] = name
        if not any(p.requires_grad for module in spec.modules for p in recipe.modules[module].parameters()):
            raise ValueError(f"Optimizer {name!r} has no parameter that requires a gradient; unfreeze one of {', '.join(spec.modules)}.")


def check_data(data: Any, recipe: Recipe) -> Dataset:
    """The data set, if any sample of it can be asked for at any time.

    Raises:
        ValueError: it cannot; says what was given.
    """
    if isinstance(data, IterableDataset) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            f"{type(recipe).__name__}.data must give a map-style data set, with a length and items by index, so that a run can be "
            f"resumed exactly; got {type(data).__name__}."
        )
    return data


def check_losses(terms: Any, recipe: Recipe, optimizer: str) -> dict[str, Tensor]:
    """The losses, if they are a dict of scalar tensors.

    Raises:
        ValueError: they are not; says what was given.
    """
    if not isinstance(terms, dict) or not terms:
        raise ValueError(f"{type(recipe).__name__}.losses must return a dict of named scalars for {optimizer!r}; got {terms!r}.")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.numel() != 1:
            given = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"Loss {name!r} of {type(recipe).__name__} must be a scalar tensor; got {given}. Average it first.")
    return terms
