"""The bundled small policy, and policies by name."""

from collections.abc import Sequence
from pathlib import Path

import torch

from visiongraft.methods.point_bridge.policy import PointBridgePolicy

WEIGHTS = Path(__file__).parent / "weights"


def load_policy(
    weights: str | Path = "small", *, tasks: Sequence[str] | None = None, device: str | torch.device | None = None
) -> PointBridgePolicy:
    """A policy.

    Args:
        weights: ``small`` (bundled: the three tabletop tasks, trained by ``visiongraft point_bridge study``) or a folder.
        tasks: that it will be asked to do; refused where it was not trained on them. None: no check.
        device: torch device.

    Raises:
        FileNotFoundError: no such folder, no policy in it, or no bundled one.
        ValueError: a damaged policy, or one of other tasks.
    """
    folder = WEIGHTS / "policy" if str(weights) == "small" else Path(weights)
    if str(weights) == "small" and not folder.is_dir():
        raise FileNotFoundError(
            "This version bundles no small policy yet; train one with visiongraft point_bridge study or train, and give its folder."
        )
    return PointBridgePolicy.from_pretrained(folder, tasks=tasks, device=device)
