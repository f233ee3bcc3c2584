"""Pipelines from wherever their parts lie: the bundled small weights, a folder of our own training, or the released checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from visiongraft.methods.action_mesh.image_features import DINOV2_LARGE, load_image_encoder
from visiongraft.methods.action_mesh.image_to_3d import ImageTo3DPipeline
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler
from visiongraft.methods.action_mesh.released import ActionMeshModels, load
from visiongraft.methods.action_mesh.released_files import local_folder
from visiongraft.methods.action_mesh.small import SMALL_FOLDER, sees_silhouettes
from visiongraft.methods.action_mesh.toy_video import CONTEXT_DIM, toy_context
from visiongraft.methods.action_mesh.trained_parts import load_part

TRIPOSG = "VAST-AI/TripoSG"
_STAGE_0 = ("dit", "base", "transformer")
"""Folders that stage 0 may have."""
ImageEncoder = str | nn.Module | Callable[..., Any]
"""``toy``, a hub id or folder of a DINOv2, or the encoder itself."""


def load_pipeline(
    source: str | Path = "small",
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    image_encoder: ImageEncoder | None = None,
    low_memory: bool = False,
) -> ActionMeshPipeline:
    """The whole pipeline.

    Args:
        source: ``small`` (bundled), or a folder or hub id that has a ``denoiser`` and an ``autoencoder``: of our training (one run's
            output each, such as ``runs/action_mesh``), of a pipeline that was saved, or
            ActionMesh's own (``facebook/ActionMesh``). Where it has a ``vae`` and a ``dit`` (or ``base``) too, those are taken.
        base: folder or hub id of the VAE and stage 0 where the source has none; default: TripoSG's.
        device: to compute on.
        dtype: of the weights; default: float32.
        image_encoder: pictures to tokens; default: silhouettes for weights that were trained on them, else the DINOv2 of TripoSG's folder,
            else DINOv2-large from the hub.
        low_memory: have each model on the device for its stage only.

    Returns:
        The pipeline. A folder without stage 0 gives one that animates given meshes only.

    Raises:
        FileNotFoundError: no such folder or hub id, parts that are missing, or no bundled weights.
        ValueError: pickles, damaged files, weights of another part, or parts that do not fit together.
    """
    folder = SMALL_FOLDER if str(source) == "small" else local_folder(source)
    parts: dict[str, Any] = {}
    if _has(folder, "transformer") and not _has(folder, "denoiser"):
        raise ValueError(f"{folder} is TripoSG's folder, the base: give it as base, and ActionMesh's or your own as the weights.")
    if not _has(folder, "vae"):
        parts |= cast(ActionMeshModels, load(folder))
    else:
        parts |= {part: _part(folder, part, part) for part in ("denoiser", "autoencoder", "vae")}
        if _has(folder, *_STAGE_0):
            parts["dit"] = _part(folder, "dit", *_STAGE_0)
    if "vae" not in parts or base is not None:
        # what the source has goes first
        parts = _of_base(TRIPOSG if base is None else base) | parts
    if parts.get("dit") is not None:
        parts.setdefault("scheduler", RectifiedFlowScheduler())
    _check_fit(parts)
    _cast(parts, dtype)
    if image_encoder is not None:
        parts.pop("feature_extractor", None)
    parts["image_encoder"] = _encoder(image_encoder, parts["denoiser"], parts.get("image_encoder"), dtype)
    return _placed(ActionMeshPipeline(**parts), device, low_memory)


def load_shape_pipeline(
    source: str | Path = "small",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    image_encoder: ImageEncoder | None = None,
    low_memory: bool = False,
) -> ImageTo3DPipeline:
    """Stage 0 alone: one picture to a mesh.

    Args:
        source: ``small`` (bundled), or a folder or hub id that has a ``vae`` and a ``dit`` (or ``base``): of our training, or TripoSG's.
        device, dtype, image_encoder, low_memory: see :func:`load_pipeline`.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_pipeline`.
    """
    parts = _of_base(SMALL_FOLDER if str(source) == "small" else source)
    _cast(parts, dtype)
    extractor = parts.get("feature_extractor") if image_encoder is None else None
    pipeline = ImageTo3DPipeline(
        transformer=parts["dit"],
        vae=parts["vae"],
        scheduler=parts["scheduler"],
        image_encoder_dinov2=_encoder(image_encoder, parts["dit"], parts.get("image_encoder"), dtype),
        feature_extractor_dinov2=extractor,
    )
    return _placed(pipeline, device, low_memory)


def shape_source(weights: str, base: str | None = None) -> str:
    """Where stage 0 of these weights lies: in the base where one is given, in TripoSG's where they are ActionMesh's grafts alone."""
    if base is not None:
        return base
    folder = Path(weights).expanduser()
    grafts = _has(folder, "denoiser", "autoencoder") and not _has(folder, "vae", *_STAGE_0)
    return TRIPOSG if grafts or weights == "facebook/ActionMesh" else weights


def _has(folder: Path, *names: str) -> bool:
    return _home(folder, *names) is not None


def _home(folder: Path, *names: str) -> Path | None:
    """Where the first of these parts lies: in its own folder, or in that of the run that trained it (``vae/vae``)."""
    places = (place for name in names for place in (folder / name, folder / name / name))
    return next((place for place in places if (place / "config.json").is_file()), None)


def _part(folder: Path, part: str, *names: str) -> Any:
    """A part from its own folder, so that another part in there is told by its kind."""
    return load_part(_home(folder, *names) or folder, part)


def _of_base(source: str | Path) -> dict[str, Any]:
    """VAE, stage 0 and, from TripoSG's folder, its image encoder."""
    folder = local_folder(source)
    if (folder / "image_encoder_dinov2").is_dir():
        tripo = load(folder)
        if not isinstance(tripo, ImageTo3DPipeline):
            raise ValueError(f"{folder} has no vae and transformer; give the folder of TripoSG, or of a vae and a dit of your own.")
        return {
            "vae": tripo.vae,
            "dit": tripo.transformer,
            "scheduler": tripo.scheduler,
            "image_encoder": tripo.image_encoder_dinov2,
            "feature_extractor": tripo.feature_extractor_dinov2,
        }
    return {"vae": _part(folder, "vae", "vae"), "dit": _part(folder, "dit", *_STAGE_0), "scheduler": RectifiedFlowScheduler()}


def _encoder(given: ImageEncoder | None, model: Any, own: Any, dtype: torch.dtype | None) -> Any:
    wanted = model.config.cross_attention_dim
    if given is None:
        if own is not None:
            return own
        given = "toy" if sees_silhouettes(model) else DINOV2_LARGE
    if given == "toy":
        if wanted != CONTEXT_DIM:
            raise ValueError(f"Silhouettes (image_encoder toy) have {CONTEXT_DIM} channels, and these weights were trained on {wanted}.")
        return toy_context
    if not isinstance(given, str):
        return given
    encoder = load_image_encoder(given) if dtype is None else load_image_encoder(given, dtype=dtype)
    if encoder.config.hidden_size != wanted:
        raise ValueError(
            f"The image encoder {given} has {encoder.config.hidden_size} channels, and these weights were trained on {wanted}."
        )
    return encoder


def _check_fit(parts: dict[str, Any]) -> None:
    """Parts of several trainings: latents and pictures must be of one width."""
    channels = {"vae": "latent_channels", "dit": "in_channels", "denoiser": "in_channels", "autoencoder": "latent_channels"}
    found = {part: parts[part].config[key] for part, key in channels.items() if parts.get(part) is not None}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{part} {number}" for part, number in found.items())
        raise ValueError(f"The parts have latents of several widths ({listed}): they are of different trainings. Give the base they share.")
    contexts = {part: parts[part].config.cross_attention_dim for part in ("dit", "denoiser") if parts.get(part) is not None}
    if len(set(contexts.values())) > 1:
        listed = ", ".join(f"{part} {number}" for part, number in contexts.items())
        raise ValueError(f"The parts see pictures of several widths ({listed}): they are of different trainings. Give the base they share.")


def _cast(parts: dict[str, Any], dtype: torch.dtype | None) -> None:
    for part in ("denoiser", "autoencoder", "vae", "dit"):
        if dtype is not None and parts.get(part) is not None and parts[part].dtype != dtype:
            nn.Module.to(parts[part], dtype)  # Diffusers' own warns of modules to be kept in float32, of which there are none


def _placed(pipeline: Any, device: str | torch.device, low_memory: bool) -> Any:
    if low_memory:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)
