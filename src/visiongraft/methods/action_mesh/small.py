"""The bundled small models, which see silhouettes in place of DINOv2's tokens, and how they are sampled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from visiongraft.methods.action_mesh.presets import PRESETS, Preset
from visiongraft.methods.action_mesh.toy_video import CONTEXT_DIM

WEIGHTS = Path(__file__).parent / "weights"
SMALL_FOLDER = WEIGHTS / "small"
"""The bundled ``vae``, ``dit``, ``denoiser`` and ``autoencoder``."""
SMALL_NOTE = (
    "Made with the bundled small weights, which see 16 x 16 silhouettes and were trained for minutes on procedural creatures. "
    "They show that everything works, not what your object deserves; --weights facebook/ActionMesh takes the authors'."
)
SMALL_PRESETS = {
    "default": Preset(shape_steps=20, shape_guidance=2.0, steps=20, guidance=2.0, shift=1.0),
    "fast": Preset(shape_steps=10, shape_guidance=2.0, steps=10, guidance=2.0, shift=1.0),
}
"""As the study measures them. Source: ActionMesh brief, 9."""


def sees_silhouettes(model: Any) -> bool:
    """Whether a denoiser or base was trained on :func:`visiongraft.methods.action_mesh.toy_video.toy_context`, by its context's width."""
    return model.config.cross_attention_dim == CONTEXT_DIM


def preset_for(model: Any, name: str = "default", **changes: Any) -> Preset:
    """The settings of the samplers that suit the weights.

    Args:
        model: denoiser or base.
        name: ``default`` or ``fast``.
        changes: fields of :class:`visiongraft.methods.action_mesh.presets.Preset` that are given otherwise; those that are None stay.

    Raises:
        ValueError: another name, or fewer than one step.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}.")
    own = (SMALL_PRESETS if sees_silhouettes(model) else PRESETS)[name]
    return replace(own, **{field: value for field, value in changes.items() if value is not None})


def resolution_for(model: Any) -> int:
    """Cells along an axis at which meshes are extracted, where none are asked for: small models have no finer detail than 64."""
    return 64 if sees_silhouettes(model) else 256
