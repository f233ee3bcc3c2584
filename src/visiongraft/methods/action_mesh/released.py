"""The authors' checkpoints: facebook/ActionMesh and VAST-AI/TripoSG as published, by folder, hub id or tensors. Safetensors only."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visiongraft.methods.action_mesh.released_files import ComponentFiles, local_folder, read_config, read_tensors
from visiongraft.methods.action_mesh.temporal_autoencoder import TemporalAutoencoder
from visiongraft.methods.action_mesh.temporal_denoiser import TemporalDenoiser
from visiongraft.methods.action_mesh.triposg_dit import TripoSGDiT
from visiongraft.methods.action_mesh.triposg_vae import TripoSGVAE

if TYPE_CHECKING:
    from visiongraft.methods.action_mesh.image_to_3d import ImageTo3DPipeline

COMPONENTS: dict[str, Any] = {
    "denoiser": TemporalDenoiser,
    "autoencoder": TemporalAutoencoder,
    "triposg_dit": TripoSGDiT,
    "triposg_vae": TripoSGVAE,
}
_SIGNS = {
    "denoiser": ("time_proj.linear_1.weight", "blocks.0.s_attn.to_q.weight"),
    "autoencoder": ("proj_query.weight", "blocks.0.s_attn.to_q.weight"),
    "triposg_dit": ("time_proj.linear_1.weight", "blocks.0.attn1.to_q.weight"),
    "triposg_vae": ("quant.weight", "encoder.proj_in.weight"),
}
"""Tensors that only this component has together."""

_NO_OPTIONS = ("_class_name", "_diffusers_version", "_name_or_path")
_SHOWN = 4
ACTION_MESH_PARTS = ("denoiser", "autoencoder")
TRIPOSG_PARTS = ("transformer", "vae", "scheduler", "image_encoder_dinov2", "feature_extractor_dinov2")


@dataclass(frozen=True)
class ActionMeshModels(Mapping[str, nn.Module]):
    """The two grafts; also a mapping, so that ``ActionMeshPipeline(**models, ...)`` takes them."""

    denoiser: TemporalDenoiser
    autoencoder: TemporalAutoencoder

    def __getitem__(self, name: str) -> nn.Module:
        if name not in ACTION_MESH_PARTS:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(ACTION_MESH_PARTS)

    def __len__(self) -> int:
        return len(ACTION_MESH_PARTS)


def load(
    path_or_hub_id: str | Path,
    *,
    torch_dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    **hub: Any,
) -> "ActionMeshModels | ImageTo3DPipeline":
    """Models from a repository as its authors published it.

    Args:
        path_or_hub_id: a folder or hub id: of ActionMesh (``denoiser/``, ``autoencoder/``) or TripoSG (``model_index.json``,
            ``transformer/``, ``vae/`` …).
        torch_dtype: of the weights; what is stored otherwise is cast.
        device: to move to.
        hub: ``revision``, ``cache_dir``, ``token`` or ``local_files_only`` of the download.

    Returns:
        :class:`ActionMeshModels`, or TripoSG's ``ImageTo3DPipeline``. The encoder and stage 0 of ActionMesh are TripoSG's.

    Raises:
        FileNotFoundError: nothing there, or files missing; the message lists them.
        ValueError: pickles, damaged files, or a checkpoint of another component.
    """
    folder = local_folder(path_or_hub_id, **hub)
    if any((folder / part).is_dir() for part in ("transformer", "vae")) or (folder / "model_index.json").is_file():
        loaded: Any = _triposg(folder, torch_dtype)
    elif any((folder / part).is_dir() for part in ACTION_MESH_PARTS):
        files = ComponentFiles.all_of(folder, ACTION_MESH_PARTS)
        loaded = ActionMeshModels(**{part: _from_files(part, files[part], torch_dtype) for part in ACTION_MESH_PARTS})
    else:
        raise FileNotFoundError(
            f"{folder} is neither ActionMesh's repository (folders denoiser/ and autoencoder/) nor TripoSG's (model_index.json, "
            "transformer/, vae/); give the folder above those, or 'facebook/ActionMesh' or 'VAST-AI/TripoSG'."
        )
    if device is not None:
        for model in loaded.values() if isinstance(loaded, ActionMeshModels) else [loaded]:
            model.to(device)
    return loaded


def _triposg(folder: Path, dtype: torch.dtype) -> "ImageTo3DPipeline":
    from transformers import AutoImageProcessor, Dinov2Model

    from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler

    absent = [name for name in TRIPOSG_PARTS if not (folder / name).is_dir()]
    if absent:
        raise FileNotFoundError(f"{folder} is an incomplete copy of TripoSG: it lacks {', '.join(f'{name}/' for name in absent)}.")
    files = ComponentFiles.all_of(folder, ("transformer", "vae"))
    encoder: Any = Dinov2Model
    processor: Any = AutoImageProcessor
    try:
        image_encoder = encoder.from_pretrained(folder / "image_encoder_dinov2", use_safetensors=True, dtype=dtype)
        feature_extractor = processor.from_pretrained(folder / "feature_extractor_dinov2")
        scheduler_config: Any = RectifiedFlowScheduler.load_config(folder / "scheduler")
    except OSError as error:
        raise FileNotFoundError(f"{folder} is an incomplete copy of TripoSG: {str(error).splitlines()[0]}") from error
    pipeline = import_module("visiongraft.methods.action_mesh.image_to_3d").ImageTo3DPipeline
    return pipeline(
        transformer=_from_files("triposg_dit", files["transformer"], dtype),
        vae=_from_files("triposg_vae", files["vae"], dtype),
        scheduler=RectifiedFlowScheduler.from_config(scheduler_config),
        image_encoder_dinov2=image_encoder,
        feature_extractor_dinov2=feature_extractor,
    )


def _from_files(component: str, files: ComponentFiles, dtype: torch.dtype) -> Any:
    config, tensors = read_config(files.config), read_tensors(files)
    try:
        model = _empty(component, config)
        _check(component, model, tensors)
    except ValueError as error:
        raise ValueError(f"{files.folder}: {error}") from error
    model.load_state_dict({key: tensor.to(dtype) for key, tensor in tensors.items()}, assign=True)
    return model.eval()


def build(component: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Our module from the authors' configuration and tensor names, loaded strictly.

    Args:
        component: ``denoiser`` or ``autoencoder`` (ActionMesh), ``triposg_dit`` or ``triposg_vae`` (TripoSG).
        config: the authors' keys; what is left out has the released value, and unknown keys are left out with a warning.
        state_dict: the component's tensors in any precision; they are copied and cast to float32. Meta tensors give a module without
            memory.

    Returns:
        ``TemporalDenoiser``, ``TemporalAutoencoder``, ``TripoSGDiT`` or ``TripoSGVAE``, in evaluation mode.

    Raises:
        ValueError: an unknown component; missing, unexpected or misshaped tensors, with a hint where they are another component's.

    Source: ActionMesh brief, 4.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(COMPONENTS)}; got {component!r}.")
    model = _empty(component, config)
    _check(component, model, state_dict)
    tensors = {key: tensor if tensor.is_meta else tensor.detach().to(torch.float32, copy=True) for key, tensor in state_dict.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _empty(component: str, config: Mapping[str, Any]) -> Any:
    """The module without memory; unknown keys of its configuration are named and left out."""
    kind = COMPONENTS[component]
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    given = {key: value for key, value in config.items() if key not in _NO_OPTIONS}
    if unknown := sorted(set(given) - known):
        warnings.warn(f"The {component}'s configuration has keys that are not used: {', '.join(unknown)}.", stacklevel=3)
    with torch.device("meta"):
        return kind(**{key: value for key, value in given.items() if key in known})


def _check(component: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compares names and shapes with the module's."""
    other = next((name for name, signs in _SIGNS.items() if all(sign in tensors for sign in signs)), component)
    if other != component:
        raise ValueError(f"These tensors are of {_article(other)}, not of {_article(component)}: load them as component={other!r}.")
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"The tensors do not fit {_article(component)} of this configuration: {'; '.join(problems[:_SHOWN])}{more}.")


def _article(component: str) -> str:
    names = {
        "denoiser": "ActionMesh's denoiser (stage I)",
        "autoencoder": "ActionMesh's autoencoder (stage II)",
        "triposg_dit": "TripoSG's transformer",
        "triposg_vae": "TripoSG's VAE",
    }
    return names[component]
