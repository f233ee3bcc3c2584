"""A folder of equirectangular images or videos as training pairs: checked, turned at random, and seen through a random camera."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import yaw_panorama
from visiongraft.media.images import list_images, read_image
from visiongraft.media.video import VIDEO_SUFFIXES, iter_video, probe_video
from visiongraft.methods.panorama.augmentation import CameraRanges, View, crop_at, draw_view, resize_panorama, training_pair
from visiongraft.methods.panorama.config import GraftConfig, Mode, with_prefix
from visiongraft.methods.panorama.seam_check import BROKEN_RATIO, NOT_FULL
from visiongraft.methods.panorama.trajectories import FPS, CameraPath, draw_path
from visiongraft.metrics.seams import seam_ratio
from visiongraft.training.order import derived_seed


@dataclass(frozen=True)
class Draw:
    """What is random about one training pair.

    Args:
        view: yaw of the panorama; camera of an image's input.
        path: cameras of a video's input; None for images.
        start: second of the video at which the clip begins.
    """

    view: View
    path: CameraPath | None = None
    start: float = 0.0

    def describe(self) -> dict[str, Any]:
        """Plain values that tell it from any other draw."""
        values: dict[str, Any] = {"yaw": self.view.yaw_pixels}
        if self.path is None:
            return values | asdict(self.view)
        path = hashlib.sha256(torch.cat([self.path.hfov[None], self.path.yaw, self.path.pitch, self.path.roll]).numpy().tobytes())
        return values | {"path": path.hexdigest(), "start": self.start}


class Pair(NamedTuple):
    """A panorama, upright and turned, and what a camera at its longitude 0 sees; in [0, 1], videos with frames first."""

    panorama: Float[Tensor, "*frames 3 height 2*height"]
    condition: Float[Tensor, "*frames 3 size size"]


class PanoramaFolder(Dataset):
    """Pairs of all panoramas of a folder, each drawn several times.

    A pair is a function of the file's name, the number of the draw and the seed alone: new files leave the pairs of the others as
    they were, and what was cached of them stays good.

    Args:
        files: equirectangular images, or videos for a graft of that mode; see :func:`list_panoramas`.
        config: mode and sizes.
        ranges: of the cameras.
        draws: pairs of each file.
        seed: fixes all of them.
        real_paths: real camera paths, drawn one time in five in place of simulated ones; videos only.
        yaw_multiple: yaws are multiples of this many pixels.
        root: folder that file names are relative to.

    Raises:
        ValueError: no draws.
    """

    def __init__(
        self,
        files: Sequence[Path],
        config: GraftConfig,
        *,
        ranges: CameraRanges = CameraRanges(),  # noqa: B008 (frozen)
        draws: int = 8,
        seed: int = 0,
        real_paths: Sequence[Float[Tensor, "_ 3"]] = (),
        yaw_multiple: int = 1,
        root: Path | None = None,
    ) -> None:
        if draws < 1:
            raise ValueError(f"draws must be at least 1; got {draws}.")
        self.files, self.config, self.ranges, self.draws, self.seed = list(files), config, ranges, draws, seed
        self.real_paths, self.yaw_multiple, self._root = real_paths, yaw_multiple, root
        self._timings: dict[Path, tuple[float, float]] = {}
        self._held: tuple[Path, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.files) * self.draws

    def file(self, index: int) -> Path:
        """The panorama that a pair is of."""
        return self.files[index // self.draws]

    def caption(self, index: int) -> str:
        """Its caption with the graft's prefix."""
        return with_prefix(read_caption(self.file(index)), self.config.caption_prefix)

    def draw(self, index: int) -> Draw:
        """What is random about a pair; no pixel is read for it.

        Raises:
            ValueError: a video that is shorter than a clip.
        """
        file, config = self.file(index), self.config
        name = file.relative_to(self._root).as_posix() if self._root else file.name
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "pair", name, index % self.draws))
        view = draw_view(config.width, self.ranges, generator, self.yaw_multiple)
        if config.mode == "image":
            return Draw(view)
        duration, frame = self._timing(file)
        last = (config.num_frames - 1) / FPS  # when the clip's last frame is shown
        if last > duration - 1e-3:
            raise ValueError(
                f"{file} is {duration:.2f} s long; a clip of {config.num_frames} frames at {FPS:g} fps needs {last + 1 / FPS:.2f} s. "
                "Give longer videos, or train on fewer frames."
            )
        start = max(duration - frame - last, 0.0) * float(torch.rand(1, generator=generator))
        return Draw(view, draw_path(config.num_frames, generator, self.ranges, self.real_paths), start)

    def __getitem__(self, index: int) -> Pair:
        """One pair, read and rendered.

        Raises:
            ValueError: a file that is damaged or no full panorama; the message names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        file, drawn, config = self.file(index), self.draw(index), self.config
        if drawn.path is None:
            if self._held is None or self._held[0] != file:  # draws of a file follow each other
                self._held = (file, read_panorama(file))
            panorama = self._held[1]
            _warn_if_small(file, panorama, config.height)
            return Pair(*training_pair(panorama, drawn.view, config.height, config.condition_size))
        return _clip_pair(file, drawn.view.yaw_pixels, drawn.path, drawn.start, config)

    def _timing(self, file: Path) -> tuple[float, float]:
        """Seconds of a video and of one of its frames."""
        if file not in self._timings:
            info = probe_video(file)
            self._timings[file] = (info.num_frames / info.fps, 1 / info.fps)
        return self._timings[file]


def list_panoramas(folder: str | Path, mode: Mode) -> list[Path]:
    """The images or videos of a folder and its subfolders (hidden ones left out), in natural order.

    Raises:
        FileNotFoundError: no such folder, or none of that kind in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give a folder of equirectangular {mode}s.")
    inner = [path for path in folder.rglob("*") if path.is_dir() and not any(part[0] == "." for part in path.relative_to(folder).parts)]
    found: list[Path] = []
    for place in (folder, *sorted(inner)):
        if mode == "video":
            found += sorted(path for path in place.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != ".")
        else:
            try:
                found += list_images(place)
            except FileNotFoundError:
                continue
    if not found:
        raise FileNotFoundError(f"The folder {folder} and its subfolders have no {mode}s; give a folder of equirectangular {mode}s.")
    return found


def read_caption(file: Path) -> str:
    """The text file of the same name beside a panorama, on one line; empty where there is none.

    Raises:
        ValueError: not UTF-8 text.
    """
    text = file.with_suffix(".txt")
    if not text.is_file():
        return ""
    try:
        return " ".join(text.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"The caption {text} is not UTF-8 text; convert it first.") from error


def read_panorama(file: Path) -> Float[Tensor, "3 height 2*height"]:
    """A whole equirectangular image.

    Raises:
        ValueError: damaged, transparent, or no full panorama; the message names the file.
    """
    return check_full_panorama(read_image(file, alpha="refuse"), file)


def check_full_panorama(panorama: Float[Tensor, "3 height width"], file: Path) -> Float[Tensor, "3 height width"]:
    """The panorama, unchanged.

    Raises:
        ValueError: not W = 2H, a last column that repeats the first, or borders that do not meet; the message names the file.
    """
    height, width = panorama.shape[-2:]
    if width == 2 * height + 1 and _repeats_first_column(panorama):
        raise ValueError(f"{file}: ERP must have W = 2H; got {width}x{height}. The last column repeats the first: drop it.")
    if width != 2 * height:
        raise ValueError(f"{file}: ERP must have W = 2H; got {width}x{height}. Give a panorama of 360 x 180 degrees.")
    if _repeats_first_column(panorama):
        raise ValueError(f"{file}: the last column repeats the first, but they are neighbours; drop it and resize to W = 2H.")
    ratio = float(seam_ratio(panorama[None])[0])
    if ratio > BROKEN_RATIO:
        raise ValueError(f"{file}: {NOT_FULL} (seam ratio {ratio:.1f}, at most {BROKEN_RATIO:g} accepted).")
    return panorama


def _repeats_first_column(panorama: Float[Tensor, "3 height width"]) -> bool:
    """Whether first and last column are equal where other neighbours are not (in flat pictures they may well be)."""
    equal = (panorama[..., 1:] == panorama[..., :-1]).all(-2).all(-2)
    return bool((panorama[..., 0] == panorama[..., -1]).all()) and float(equal.float().mean()) < 0.01


def _clip_pair(file: Path, yaw_pixels: int, path: CameraPath, start: float, config: GraftConfig) -> Pair:
    """Frame by frame, so that only frames of the training size are kept."""
    turn = torch.tensor(2 * torch.pi * yaw_pixels / config.width)
    rotations = rotation_from_angles(path.yaw + turn, path.pitch, path.roll)
    targets, crops = [], []
    for frame, rotation in zip(iter_video(file, fps=FPS, start=start, num_frames=config.num_frames), rotations, strict=True):
        if not targets:
            check_full_panorama(frame, file)
            _warn_if_small(file, frame, config.height)
        targets.append(yaw_panorama(resize_panorama(frame, config.height), yaw_pixels))
        crops.append(crop_at(frame, path.hfov, rotation, config.condition_size))
    return Pair(torch.stack(targets), torch.stack(crops))


def _warn_if_small(file: Path, panorama: Tensor, height: int) -> None:
    if panorama.shape[-2] < height:
        told = f"{file} has {panorama.shape[-2]} rows and is enlarged to {height}: the model will learn its blur. Train at less height."
        warnings.warn(told, stacklevel=3)
