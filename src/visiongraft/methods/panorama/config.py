"""What a panorama graft is: the base it was grafted onto, its sizes, and how its condition tokens enter. Kept beside the weights."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from visiongraft.media.files import atomic_write

if TYPE_CHECKING:
    from visiongraft.methods.panorama.circular import CircularPadding

FILE_NAME = "graft_config.json"
Mode = Literal["image", "video"]
CondTimestep = Literal["shared", "zero"]


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """Facts that training and inference must agree on.

    Args:
        base: hub id or folder of the base pipeline that the weights belong to.
        mode: ``image`` (FLUX) or ``video`` (Wan).
        height: of the panorama in pixels; it is twice as wide.
        condition_size: side of the square perspective input in pixels.
        num_frames: 1 for images, 4k+1 for videos.
        time_offset: distance of the condition tokens from the panorama tokens on the time axis of the rotary embedding.
        pad_fraction: circular padding at each side as a part of the width, in (0, 1].
        min_pad: least circular padding in pixels, the reach of the VAE's convolutions.
        pad_multiple: the padding is rounded up to a multiple of this many pixels.
        cond_timestep: condition tokens modulated with the panorama's time (``shared``) or with time 0 (``zero``).
        caption_prefix: phrase that every caption starts with; empty: none.
        lora_rank: of the trained LoRA; None for a full fine-tune.
        flow_shift: constant shift of the sampling times; None: the base scheduler's own rule.

    Raises:
        ValueError: a value out of range; the message says which values are accepted.

    Source: arXiv 2601.16192, the image and video models.
    """

    base: str
    mode: Mode
    height: int
    condition_size: int
    num_frames: int
    time_offset: float
    pad_fraction: float = 0.125
    min_pad: int = 112
    pad_multiple: int = 16
    cond_timestep: CondTimestep = "shared"
    caption_prefix: str
    lora_rank: int | None = None
    flow_shift: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("mode", get_args(Mode)), ("cond_timestep", get_args(CondTimestep))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}; got {getattr(self, name)!r}.")
        for name, least in (("height", 2), ("condition_size", 1), ("num_frames", 1), ("min_pad", 0), ("pad_multiple", 1)):
            if not _is_whole(value := getattr(self, name)) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        if self.mode == "image" and self.num_frames != 1:
            raise ValueError(f"num_frames of an image graft must be 1; got {self.num_frames}. Use mode='video' for clips.")
        if self.num_frames % 4 != 1:
            raise ValueError(f"num_frames must be 4k+1 (e.g. 81); got {self.num_frames}.")
        if not math.isfinite(self.time_offset):
            raise ValueError(f"time_offset must be finite; got {self.time_offset}.")
        if not 0 < self.pad_fraction <= 1:
            raise ValueError(f"pad_fraction must be in (0, 1], a part of the panorama's width; got {self.pad_fraction}.")
        if self.lora_rank is not None and (not _is_whole(self.lora_rank) or self.lora_rank < 1):
            raise ValueError(f"lora_rank must be None (full fine-tune) or at least 1; got {self.lora_rank!r}.")
        if self.flow_shift is not None and not 0 < self.flow_shift < math.inf:
            raise ValueError(f"flow_shift must be None (the base scheduler's rule) or positive; got {self.flow_shift}.")

    @classmethod
    def image(cls, **changes: Any) -> "GraftConfig":
        """The paper's image model: FLUX.1-dev, 512x512 -> 1024x2048."""
        defaults: dict[str, Any] = {
            "base": "black-forest-labs/FLUX.1-dev",
            "mode": "image",
            "height": 1024,
            "condition_size": 512,
            "num_frames": 1,
            "time_offset": 1.0,
            "caption_prefix": "A 360° image of ",
        }
        return cls(**defaults | changes)

    @classmethod
    def video(cls, **changes: Any) -> "GraftConfig":
        """The paper's video model: Wan2.1-14B, 256x256 -> 512x1024, 81 frames."""
        defaults: dict[str, Any] = {
            "base": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
            "mode": "video",
            "height": 512,
            "condition_size": 256,
            "num_frames": 81,
            "time_offset": 0.1,
            "caption_prefix": "A 360° video of ",
            "flow_shift": 3.0,
        }
        return cls(**defaults | changes)

    @property
    def width(self) -> int:
        """Of the panorama in pixels: twice its height."""
        return 2 * self.height

    @property
    def padding(self) -> "CircularPadding":
        """Circular padding of the panorama's encoding and decoding."""
        from visiongraft.methods.panorama.circular import CircularPadding

        return CircularPadding(pad_fraction=self.pad_fraction, min_pad=self.min_pad, multiple=self.pad_multiple)

    def changed(self, **changes: Any) -> "GraftConfig":
        """A copy with other values, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``graft_config.json`` holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GraftConfig":
        """A config from plain values; what is left out takes the paper's value of the mode.

        Raises:
            ValueError: no mode or base, unknown names, values out of range.
        """
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"A graft config has no {', '.join(unknown)}; it has {', '.join(sorted(names))}.")
        if missing := sorted({"base", "mode"} - set(values)):
            raise ValueError(f"A graft config must name its {' and '.join(missing)}; got only {', '.join(sorted(values)) or 'nothing'}.")
        if values["mode"] not in get_args(Mode):
            raise ValueError(f"mode must be {' or '.join(map(repr, get_args(Mode)))}; got {values['mode']!r}.")
        return cls.video(**values) if values["mode"] == "video" else cls.image(**values)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def write_config(config: GraftConfig, folder: str | Path) -> Path:
    """Writes ``graft_config.json`` into a folder, whole or not at all, and returns its path."""
    path = Path(folder) / FILE_NAME
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_config(folder: str | Path) -> GraftConfig:
    """The config of a graft's folder (or of a ``graft_config.json`` given itself).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or values that do not fit.
    """
    path = Path(folder)
    path = path if path.name == FILE_NAME else path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; a graft's folder has a {FILE_NAME} beside its weights.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one JSON object; got a {type(values).__name__}.")
    try:
        return GraftConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def with_prefix(caption: str, prefix: str) -> str:
    """The caption with the graft's phrase in front, unless it is there already; an empty caption (the null text) stays empty.

    Source: arXiv 2601.16192, captions.
    """
    caption = caption.strip()
    if not caption or caption.casefold().startswith(prefix.strip().casefold()):
        return caption
    return prefix + caption
