"""Animated meshes from video (ActionMesh, arXiv 2601.16148): a 3D latent diffusion model that learns time, and one topology.

Base: TripoSG, one picture to the latents of one shape. Grafts: stage I, the same transformer with self-attention over all frames, rotary
frame numbers and clean known latents; stage II, the VAE's decoder asked where every vertex of one mesh goes.

    pipeline = load_pipeline("small")  # of the module load_pipeline
    animation = animate_video(pipeline, read_frames("clip.mp4"), preset=preset_for(pipeline.denoiser))
    write_animated_glb("clip.glb", animation.vertices, animation.faces)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiongraft.methods.action_mesh.animation import Animation
    from visiongraft.methods.action_mesh.config import create
    from visiongraft.methods.action_mesh.frames import read_frames
    from visiongraft.methods.action_mesh.image_to_3d import ImageTo3DPipeline
    from visiongraft.methods.action_mesh.load_pipeline import load_shape_pipeline
    from visiongraft.methods.action_mesh.modes import animate_mesh, animate_video, transfer_motion
    from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
    from visiongraft.methods.action_mesh.released import build, load
    from visiongraft.methods.action_mesh.small import preset_for, resolution_for
    from visiongraft.methods.action_mesh.temporal_autoencoder import TemporalAutoencoder, temporalize
    from visiongraft.methods.action_mesh.temporal_denoiser import TemporalDenoiser, inflate

_HOME = {
    "ActionMeshPipeline": "pipeline",
    "Animation": "animation",
    "ImageTo3DPipeline": "image_to_3d",
    "TemporalAutoencoder": "temporal_autoencoder",
    "TemporalDenoiser": "temporal_denoiser",
    "animate_mesh": "modes",
    "animate_video": "modes",
    "build": "released",
    "create": "config",
    "inflate": "temporal_denoiser",
    "load": "released",
    "load_shape_pipeline": "load_pipeline",
    "preset_for": "small",
    "read_frames": "frames",
    "resolution_for": "small",
    "temporalize": "temporal_autoencoder",
    "transfer_motion": "modes",
}
__all__ = [
    "ActionMeshPipeline",
    "Animation",
    "ImageTo3DPipeline",
    "TemporalAutoencoder",
    "TemporalDenoiser",
    "animate_mesh",
    "animate_video",
    "build",
    "create",
    "inflate",
    "load",
    "load_shape_pipeline",
    "preset_for",
    "read_frames",
    "resolution_for",
    "temporalize",
    "transfer_motion",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
