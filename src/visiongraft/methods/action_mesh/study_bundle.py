"""The models that the package ships: those of the study's first seed, measured as a user has them, from pictures alone."""

import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.files import atomic_write
from visiongraft.methods.action_mesh.load_pipeline import load_pipeline
from visiongraft.methods.action_mesh.presets import Preset
from visiongraft.methods.action_mesh.study_cells import MOTIONS, Bench
from visiongraft.methods.action_mesh.study_clips import Clips
from visiongraft.methods.action_mesh.study_measures import light_protocol, measure_meshes, nothing
from visiongraft.methods.action_mesh.study_options import StudyOptions
from visiongraft.methods.action_mesh.study_training import AUTOENCODER, BASE, DENOISER, VAE, VARIANTS, seed_folder

BUNDLED = {VAE: "vae", BASE: "dit", DENOISER: "denoiser", AUTOENCODER: "autoencoder"}
"""Folders of the package's models by training."""
_PICTURE = 96
_SHADE = 0.5


def weights_folder(options: StudyOptions) -> Path:
    """Where the package's models are written."""
    return options.output / "weights" / "small"


def write_bundle(options: StudyOptions) -> int:
    """Writes the models of the first seed as the package has them, in half precision; returns their size in bytes."""
    weights = weights_folder(options)
    for name, part in BUNDLED.items():
        shutil.rmtree(weights / part, ignore_errors=True)
        shutil.copytree(seed_folder(options, options.seeds[0]) / name / VARIANTS[name].stage, weights / part)
        for file in (weights / part).glob("*.safetensors"):
            halved = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in load_file(file).items()}
            with atomic_write(file) as temporary:
                save_file(halved, temporary, metadata={"format": "pt"})
    return sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())


def measure_bundle(bench: Bench) -> dict[str, dict[str, list[float]]]:
    """The whole pipeline on held-out clips with nothing known: stage 0 makes frame 0, its mesh is moved. One value a clip by motion."""
    pipeline = load_pipeline(weights_folder(bench.options))
    pipeline.set_progress_bar_config(disable=True)
    return {motion: _measured(pipeline, bench, bench.clips(motion, "side")) for motion in MOTIONS}


def _measured(pipeline: Any, bench: Bench, clips: Clips) -> dict[str, list[float]]:
    plan, rows = bench.plan, []
    preset = Preset(shape_steps=plan.steps, shape_guidance=plan.guidance, steps=plan.steps, guidance=plan.guidance, shift=1)
    options: dict[str, Any] = {"preset": preset, "window": plan.frames, "slide": plan.frames - 1, "targets_at_once": plan.frames}
    protocol = light_protocol(plan.points, plan.icp_steps)
    for index in range(len(clips)):
        empty = 0
        try:
            made = pipeline(picture_frames(clips, index), seed=bench.seed, resolution=plan.resolution, **options)
            meshes = [Mesh(vertices, made.faces) for vertices in made.vertices]
        except ValueError as error:
            if "no zero crossing" not in str(error):
                raise
            meshes, empty = [nothing()] * plan.frames, plan.frames
        rows.append(measure_meshes(meshes, clips, index, protocol, tracked=True) | {"empty": empty})
    return {name: [row[name] for row in rows] for name in rows[0]}


def picture_frames(clips: Clips, index: int) -> Float[Tensor, "frames 4 side side"]:
    """A clip as a user's video with alpha would be: larger than what the models see, and not cropped."""
    alpha = clips.animal(index).silhouettes(_PICTURE, "world")[0]
    return torch.stack([*[torch.full_like(alpha, _SHADE)] * 3, alpha], 1)
