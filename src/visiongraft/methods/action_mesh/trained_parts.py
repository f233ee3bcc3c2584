"""One model of the four, from wherever it lies: a training run, its own folder, a pipeline's, or a released checkpoint."""

from pathlib import Path
from typing import Any

from visiongraft.methods.action_mesh.released import build
from visiongraft.methods.action_mesh.released_files import ComponentFiles, local_folder, read_config, read_tensors

_FOLDERS = {"vae": ("vae",), "dit": ("base", "transformer", "dit"), "denoiser": ("denoiser",), "autoencoder": ("autoencoder",)}
"""Where a part is within a training run, a checkpoint or a pipeline."""
_KEYS = {"vae": "width_encoder", "denoiser": "inflated_layers", "autoencoder": "in_extra_channels", "dit": "cross_attention_dim"}
"""A key of its configuration that the parts after it lack."""
_COMPONENTS = {"vae": "triposg_vae", "dit": "triposg_dit", "denoiser": "denoiser", "autoencoder": "autoencoder"}


def load_part(source: str | Path, *parts: str) -> Any:
    """A trained model in evaluation mode and float32, its weights loaded strictly.

    Args:
        source: folder of the model, or a folder that has it: of a training run, of a pipeline, of a released checkpoint; or a hub id.
        parts: ``vae``, ``dit``, ``denoiser``, ``autoencoder``: which are wanted; the first one that is found is taken.

    Raises:
        FileNotFoundError: nothing there, none of the parts, or files of it are missing.
        ValueError: a folder of another part, or weights that do not fit its configuration.
    """
    folder = local_folder(source).resolve()
    for place in (folder, *(folder / name for part in parts for name in _FOLDERS[part])):
        found = _part_of(place)
        if found in parts:
            files = ComponentFiles.all_of(place.parent, (place.name,))[place.name]
            try:
                return build(_COMPONENTS[found], read_config(files.config), read_tensors(files))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
    wanted, here = " or ".join(parts), _part_of(folder)
    if here is not None:
        raise ValueError(f"{folder} holds {_article(here)}, but {_article(wanted)} is needed here; give the folder of one.")
    names = ", ".join(dict.fromkeys(name for part in parts for name in _FOLDERS[part]))
    raise FileNotFoundError(f"{folder} holds no {wanted}: there is no config.json of one in it, nor in its folder {names}.")


def _article(part: str) -> str:
    return f"{'an' if part[0] in 'aeiou' else 'a'} {part}"


def _part_of(folder: Path) -> str | None:
    """Which part a folder's configuration describes."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = read_config(file)
    return next((part for part, key in _KEYS.items() if key in config), None)
