"""Animations in files, for training: one npz a clip, or ActionBench's folders; and writing made-up ones.

An npz has ``points`` (frames, points, 6) and ``frames`` (frames, 3 or 4, height, width; uint8, or float in [0, 1]), and may have
``framestep`` (frames,), ``context`` (frames, tokens, dim), ``caption``, and ``queries`` (frames, q, 3) with ``sdf`` (frames, q).
A folder of ActionBench has ``surfaces.npy`` (frames, points, 6) and one picture a frame.

Source: ActionMesh brief, 4 (actionbench) and 8 (training code).
"""

import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.media.files import atomic_write
from visiongraft.media.images import list_images
from visiongraft.methods.action_mesh.data import Item, ProceduralAnimations, Queries
from visiongraft.methods.action_mesh.surface_distance import signed_distance
from visiongraft.methods.action_mesh.toy_video import coverage
from visiongraft.training.order import derived_seed

SURFACES = "surfaces.npy"
_OUTSIDE = 1.01  # points beyond this are not in the world's box


class AnimationFolder(Dataset):
    """Clips of the animations in a folder; an item is a pure function of the seed, the animation's name and the number of its draw.

    Items have a stretch of consecutive frames, so that motion keeps its speed, and a random subset of the tracked points. Of files
    that hold distance queries of their own a random subset of them is taken; of others they are drawn and measured from the points.

    Args:
        folder: with npz files or ActionBench folders, at any depth.
        num_frames: of an item; animations with fewer are refused when they are asked for.
        num_points: tracked points of an item, without repetition where there are enough; None: all.
        near, uniform, near_sigma: of the distance queries, see :class:`visiongraft.methods.action_mesh.data.Queries`.
        image_size: frames are averaged to this side; None: as they are.
        draws: items of each animation.
        seed: of everything that is drawn.

    Raises:
        FileNotFoundError: no such folder, or no animations in it.
        ValueError: sizes below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        num_frames: int = 16,
        num_points: int | None = 16_384,
        near: int = 0,
        uniform: int = 0,
        near_sigma: float = 0.06,
        image_size: int | None = None,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        if min(num_frames, num_points or 1, image_size or 1, draws) < 1 or 0 in (num_points, image_size):
            raise ValueError(
                f"num_frames, num_points, image_size and draws must be at least 1; "
                f"got {num_frames}, {num_points}, {image_size} and {draws}."
            )
        self.folder, self.files = Path(folder), list_animations(folder)
        self.num_frames, self.num_points, self.image_size, self.draws, self.seed = num_frames, num_points, image_size, draws, seed
        self.queries = Queries(near=near, uniform=uniform, sigma=near_sigma)

    def __len__(self) -> int:
        return len(self.files) * self.draws

    def __getitem__(self, index: int) -> Item:
        """One clip.

        Raises:
            ValueError: a file that is damaged, or an animation with too few frames; the message names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"The data set has {len(self)} items; got index {index}.")
        path = self.files[index // self.draws]
        name = path.relative_to(self.folder).as_posix()
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "clip", name, index % self.draws))
        animation = read_animation(path)
        frames = len(animation["points"])
        if frames < self.num_frames:
            told = f"{path} has {frames} frames, fewer than the {self.num_frames} of a clip"
            raise ValueError(f"{told}; train on fewer frames, or leave it out.")
        start = int(torch.randint(frames - self.num_frames + 1, (), generator=generator))
        item = {key: value[start : start + self.num_frames] for key, value in animation.items() if isinstance(value, Tensor)}
        if self.image_size is not None:
            item["frames"] = F.adaptive_avg_pool2d(item["frames"], self.image_size)
        self._add_queries(item, generator)
        item["points"] = item["points"][:, _subset(item["points"].shape[1], self.num_points, generator)]
        return item

    def caption(self, index: int) -> str:
        """The caption of an item's animation; empty where there is none."""
        return read_animation(self.files[index // self.draws]).get("caption", "")

    def _add_queries(self, item: Item, generator: torch.Generator) -> None:
        """Stored or new distance queries, as many as are asked for."""
        stored = item.pop("queries", None), item.pop("sdf", None)
        if not len(self.queries):
            return
        if stored[0] is not None and stored[1] is not None:
            kept = _subset(stored[0].shape[1], len(self.queries), generator)
            item["queries"], item["sdf"] = stored[0][:, kept], stored[1][:, kept]
            return
        item["queries"] = self.queries.draw(item["points"], generator)
        item["sdf"] = torch.stack([signed_distance(q, p) for q, p in zip(item["queries"], item["points"], strict=True)])


def list_animations(folder: str | Path) -> list[Path]:
    """The npz files and ActionBench folders below a folder, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: no such folder, or none in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give one with npz files of points and frames, or ActionBench's folders.")
    shown = [path for path in folder.rglob("*") if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    found = [path for path in shown if path.suffix == ".npz"] + [path.parent for path in shown if path.name == SURFACES]
    if not found:
        raise FileNotFoundError(f"The folder {folder} has no .npz files and no folders with {SURFACES}; write animations first.")
    return sorted(found)


def read_animation(path: str | Path) -> dict[str, Any]:
    """A whole animation: ``points``, ``frames`` (RGBA), ``framestep``, and what else is stored.

    Args:
        path: npz file or ActionBench folder; see the module.

    Raises:
        ValueError: a file that is damaged, lacks something, or holds arrays that do not fit; the message names it.
        FileNotFoundError: an ActionBench folder without pictures.
    """
    path = Path(path)
    stored = _read_bench(path) if path.is_dir() else _read_npz(path)
    points = stored["points"] = _checked(stored, "points", path, 3)
    if points.shape[-1] != 6:
        raise ValueError(f"{path}: points are (frames, points, 6), xyz and normal; got {tuple(points.shape)}.")
    lengths = points[..., 3:].norm(dim=-1)
    if not bool((lengths > 1e-6).all()):
        raise ValueError(f"{path}: {int((lengths <= 1e-6).sum())} normals have no length; compute them anew.")
    points[..., 3:] /= lengths[..., None]
    reach = float(points[..., :3].abs().max())
    if reach > _OUTSIDE:
        warnings.warn(f"{path}: points reach {reach:.3g}, but models see [-1, 1]^3; scale the whole animation into it.", stacklevel=2)
    stored["frames"] = _rgba(_checked(stored, "frames", path, 4), path)
    stored.setdefault("framestep", np.arange(len(points)))
    for name, dimensions in (("framestep", 1), ("context", 3), ("queries", 3), ("sdf", 2)):
        if name in stored:
            stored[name] = _checked(stored, name, path, dimensions)
    if ("queries" in stored) != ("sdf" in stored):
        raise ValueError(f"{path} has one of queries and sdf; distance queries need both.")
    for name, value in stored.items():
        if isinstance(value, Tensor) and len(value) != len(points):
            raise ValueError(f"{path}: {name} has {len(value)} frames, but points has {len(points)}.")
    return stored


def _read_npz(path: Path) -> dict[str, Any]:
    known = ("points", "frames", "framestep", "context", "queries", "sdf")
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened):  # np.load takes other formats, too
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                stored: dict[str, Any] = {name: file[name] for name in known if name in file}
                if "caption" in file:
                    stored["caption"] = str(file["caption"])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no npz file of plain arrays ({error}).") from error
    return stored


def _read_bench(folder: Path) -> dict[str, Any]:
    try:
        points = np.load(folder / SURFACES, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{folder / SURFACES} is damaged or no plain array ({error}).") from error
    pictures = _pictures(folder)
    frames = [_pixels(picture) for picture in pictures]
    for picture, frame in zip(pictures, frames, strict=True):
        if frame.shape != frames[0].shape:
            first = f"{frames[0].shape[1]}x{frames[0].shape[0]}"
            raise ValueError(f"{picture} has {frame.shape[1]}x{frame.shape[0]} pixels, the first frame {first}; all frames have one size.")
    return {"points": points, "frames": np.stack(frames).transpose(0, 3, 1, 2)}


def _pictures(folder: Path) -> list[Path]:
    """Those of the folder itself, else of its first sub-folder that has some."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        try:
            return list_images(place)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"The folder {folder} has {SURFACES} but no pictures of its frames.")


def _pixels(picture: Path) -> UInt8[np.ndarray, "height width 4"]:
    try:
        return np.asarray(Image.open(picture).convert("RGBA"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{picture} is damaged or no picture ({error}).") from error


def _checked(stored: dict[str, Any], name: str, path: Path, dimensions: int) -> Float[Tensor, "..."]:
    """An array as a float32 tensor."""
    if name not in stored:
        have = ", ".join(sorted(stored)) or "nothing"
        raise ValueError(f"{path} lacks {name!r} (it has {have}); an animation has points (frames, points, 6) and frames.")
    array = np.asarray(stored[name])
    if array.dtype.kind not in "fiu" or array.ndim != dimensions or 0 in array.shape:
        raise ValueError(f"{path}: {name} is a numeric array of {dimensions} axes; got {array.dtype} of shape {array.shape}.")
    scale = 255 if name == "frames" and array.dtype == np.uint8 else 1
    tensor = torch.from_numpy(array.astype(np.float32)) / scale
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{path}: {name} has values that are not finite (NaN or infinite).")
    return tensor


def _rgba(frames: Float[Tensor, "t c h w"], path: Path) -> Float[Tensor, "t 4 h w"]:
    """Frames with alpha; what differs from white in RGB frames becomes opaque."""
    if frames.shape[1] not in (3, 4) or float(frames.min()) < -0.01 or float(frames.max()) > 1.01:
        raise ValueError(
            f"{path}: frames are (frames, 3 or 4, height, width), uint8 or in [0, 1]; got shape {tuple(frames.shape)}, "
            f"values from {float(frames.min()):.3g} to {float(frames.max()):.3g}."
        )
    if frames.shape[1] == 3:
        return torch.cat([frames, coverage(frames)[:, None]], 1).clamp(0, 1)
    return frames.clamp(0, 1)


def _subset(available: int, num: int | None, generator: torch.Generator) -> Tensor:
    """Random places, without repetition where there are enough."""
    if num is None or num == available:
        return torch.arange(available)
    if num < available:
        return torch.randperm(available, generator=generator)[:num]
    return torch.randint(available, (num,), generator=generator)


def write_animations(
    data: ProceduralAnimations, folder: str | Path, num: int, *, first: int = 0, names: Sequence[str] | None = None
) -> list[Path]:
    """Items of a data set as npz files that :class:`AnimationFolder` reads; existing ones are kept, so that a stopped run goes on.

    Args:
        data: whose items, with their captions.
        folder: is created.
        num: files.
        first: index of the first item.
        names: of the files, without suffix; the kind and the index by default.

    Raises:
        ValueError: fewer than one file, more than there are items, or as many names as there are not files.
    """
    if num < 1 or first < 0 or first + num > len(data) or (names is not None and len(names) != num):
        raise ValueError(f"Items {first} to {first + num - 1} of {len(data)} cannot be written to {len(names) if names else num} files.")
    paths = []
    for place, index in enumerate(range(first, first + num)):
        name = names[place] if names else f"{data.kind(index)}_{index:06d}"
        path = Path(folder) / f"{name}.npz"
        paths.append(path)
        if path.is_file():
            continue
        arrays: dict[str, Any] = {key: value.numpy() for key, value in data[index].items()}
        arrays["frames"] = (arrays["frames"] * 255).round().astype(np.uint8)
        arrays["caption"] = np.array(data.shape(index).caption)
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **arrays)
    return paths
