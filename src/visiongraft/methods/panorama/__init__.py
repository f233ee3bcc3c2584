"""Panoramas from any photo or video (360Anything, arXiv 2601.16192): no field of view, no pose, no seam.

Base: FLUX.1 (image) or Wan2.1 (video). Graft: the clean tokens of the perspective input beside the noisy tokens of the panorama,
and circular latent encoding, which keeps the left and right borders of a panorama neighbours.

    pipeline = load("small")
    panorama = pipeline(image, "a street at noon", generator=torch.Generator().manual_seed(0), output_type="pt").images
    camera = estimate_cameras(pipeline.prepare_images(image), panorama)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiongraft.methods.panorama.camera import estimate_cameras
    from visiongraft.methods.panorama.circular import CircularPadding, decode_latents, encode_latents
    from visiongraft.methods.panorama.config import GraftConfig
    from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
    from visiongraft.methods.panorama.released import build, load
    from visiongraft.methods.panorama.video_pipeline import PanoramaVideoPipeline

_HOME = {
    "CircularPadding": "circular",
    "GraftConfig": "config",
    "PanoramaImagePipeline": "image_pipeline",
    "PanoramaVideoPipeline": "video_pipeline",
    "build": "released",
    "decode_latents": "circular",
    "encode_latents": "circular",
    "estimate_cameras": "camera",
    "load": "released",
}
__all__ = [
    "CircularPadding",
    "GraftConfig",
    "PanoramaImagePipeline",
    "PanoramaVideoPipeline",
    "build",
    "decode_latents",
    "encode_latents",
    "estimate_cameras",
    "load",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
