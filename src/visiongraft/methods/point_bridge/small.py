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
        FileNotFoundError: no such folder, or no policy in it.
        ValueError: a damaged policy, or one of other tasks.
    """
    folder = WEIGHTS / "policy" if str(weights) == "small" else Path(weights)
    return PointBridgePolicy.from_pretrained(folder, tasks=tasks, device=device)
