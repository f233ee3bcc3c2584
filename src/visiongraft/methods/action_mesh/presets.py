"""How many steps each stage takes and how strongly it follows the pictures."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of the two samplers.

    Args:
        shape_steps, shape_guidance: of stage 0.
        steps, guidance: of stage I; guidance 1 evaluates one branch a step.
        shift: of stage I's schedule; 1 is none.

    Raises:
        ValueError: fewer than one step.

    Source: ActionMesh brief, 6.
    """

    shape_steps: int = 100
    shape_guidance: float | int = 7.5
    steps: int = 30
    guidance: float | int = 7.5
    shift: float | int = 3.0

    def __post_init__(self) -> None:
        if self.shape_steps < 1 or self.steps < 1:
            raise ValueError(f"A preset has at least one step in each stage; got {self.shape_steps} and {self.steps}.")


PRESETS = {"default": Preset(), "fast": Preset(shape_steps=50, steps=15)}


def preset_of(preset: str | Preset) -> Preset:
    """A preset by its name, or the one that is given.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, or a Preset; got {preset!r}.")
    return PRESETS[preset]
