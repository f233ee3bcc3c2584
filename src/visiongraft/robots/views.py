"""What an environment is asked to render. Needs no simulator, so that what plans an evaluation can be imported without one."""

from dataclasses import dataclass
from typing import Literal

Modality = Literal["images", "depth", "segmentation"]


@dataclass(frozen=True, kw_only=True)
class View:
    """What an environment renders into its observations; nothing by default, so that state-only work is fast.

    Args:
        cameras: names of cameras.
        modalities: any of images, depth, segmentation.
        size: height and width in pixels.
        renderer: ``egl``, ``osmesa``, ``raycast``, or ``auto`` for the first of them that works here.
    """

    cameras: tuple[str, ...] = ()
    modalities: tuple[Modality, ...] = ("images",)
    size: tuple[int, int] = (128, 128)
    renderer: str = "auto"
