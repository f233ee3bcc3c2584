"""From one picture to a mesh: TripoSG as a Diffusers pipeline."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.methods.action_mesh.frames import prepare_frames
from visiongraft.methods.action_mesh.memory import Stagewise, autocast
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler
from visiongraft.methods.action_mesh.sampler import StepCallback
from visiongraft.methods.action_mesh.shape_latents import MAX_FACES, extract_mesh, picture_tokens, sample_shape
from visiongraft.methods.action_mesh.triposg_dit import TripoSGDiT
from visiongraft.methods.action_mesh.triposg_vae import TripoSGVAE


@dataclass(frozen=True, eq=False, kw_only=True)
class Shape:
    """A generated mesh.

    Args:
        vertices: in the box [-1, 1]^3, Y up; ``None`` with ``output_type="latent"``.
        faces: counter-clockwise seen from outside.
        latents: that it was extracted from.
    """

    latents: Float[Tensor, "tokens channels"]
    vertices: Float[Tensor, "v 3"] | None = None
    faces: Int[Tensor, "f 3"] | None = None


class ImageTo3DPipeline(Stagewise, DiffusionPipeline):
    """A mesh from one picture.

    Example::

        pipeline = load("VAST-AI/TripoSG")
        shape = pipeline(picture, generator=torch.Generator().manual_seed(0))

    Args:
        transformer: the velocity network.
        vae: of shapes.
        scheduler: of stage 0.
        image_encoder_dinov2: Transformers' ``Dinov2Model``, or a module or function from pictures to tokens.
        feature_extractor_dinov2: its image processor; ``None``: DINOv2's preparation.

    Source: ActionMesh brief, 2.3 and 3; the components are named as TripoSG's.
    """

    model_cpu_offload_seq = "image_encoder_dinov2->transformer->vae"
    _optional_components = ["feature_extractor_dinov2"]

    def __init__(
        self,
        transformer: TripoSGDiT,
        vae: TripoSGVAE,
        scheduler: RectifiedFlowScheduler,
        image_encoder_dinov2: Any,
        feature_extractor_dinov2: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            image_encoder_dinov2=image_encoder_dinov2,
            feature_extractor_dinov2=feature_extractor_dinov2,
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Float[Tensor, "channels height width"],
        num_inference_steps: int = 50,
        guidance_scale: float | int = 7.0,
        num_tokens: int = 2048,
        generator: torch.Generator | int = 0,
        output_type: str = "mesh",
        resolution: int = 256,
        faces: int | None = MAX_FACES,
        *,
        query_chunk: int = 50_000,
        upstream_scale: bool = False,
        precision: str = "auto",
        callback: StepCallback | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Shape:
        """Generates a mesh.

        Args:
            image: in [0, 1]; with alpha (4 channels) it is cropped and put before white, without (3 channels) it is taken as it is,
                which should be square and before white.
            num_inference_steps, guidance_scale: of stage 0.
            num_tokens: of the latents.
            generator: source of the noise, or a seed.
            output_type: ``mesh``; ``latent`` leaves the mesh out.
            resolution: cells of the extraction along an axis.
            faces: the mesh is decimated to so many; ``None`` keeps all.
            query_chunk: points of the extraction at once.
            upstream_scale: the released code's smaller scale, for comparisons.
            precision: of autocast, see :func:`visiongraft.methods.action_mesh.memory.autocast`.
            callback: told (steps done, steps).
            cancel: asked before each step.

        Raises:
            ValueError: another output type or other channels, no foreground, latents without a surface.
            Cancelled: when ``cancel`` says so.
        """
        if output_type not in ("mesh", "latent"):
            raise ValueError(f"output_type must be mesh or latent; got {output_type!r}.")
        prepared = prepared_frames(image[None])
        seed = generator if isinstance(generator, torch.Generator) else torch.Generator().manual_seed(generator)
        device = self.stage_device
        half: Callable[[], AbstractContextManager[Any]] = lambda: autocast(device, "shape", precision)
        with self.working("image_encoder_dinov2") as encoder, half():
            tokens = picture_tokens(encoder, self.feature_extractor_dinov2, prepared.to(device))
        with self.working("transformer") as transformer, half():
            latents = sample_shape(
                transformer,
                self.scheduler,
                tokens,
                num_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                num_tokens=num_tokens,
                generator=seed,
                callback=callback,
                cancel=cancel,
            )[0]
        if output_type == "latent":
            return Shape(latents=latents)
        with self.working("vae") as vae, half():
            vertices, triangles = extract_mesh(
                vae, latents, resolution=resolution, max_faces=faces, query_chunk=query_chunk, upstream_scale=upstream_scale
            )
        return Shape(latents=latents, vertices=vertices, faces=triangles)


def prepared_frames(frames: Float[Tensor, "frames channels height width"]) -> Float[Tensor, "frames 3 side side"]:
    """Square frames before white: RGBA is cropped to the object, RGB is taken for prepared already.

    Raises:
        ValueError: other channels, values outside [0, 1] or not finite, RGB that is not square, or frames without an object.
    """
    channels, height, width = frames.shape[1:]
    if channels not in (3, 4):
        raise ValueError(f"Frames have 3 channels, or 4 with alpha; got {channels} (frames x channels x height x width).")
    if not bool(((frames >= 0) & (frames <= 1)).all()):
        raise ValueError("Frames have values in [0, 1]; some are outside or NaN. Divide 8-bit pixels by 255.")
    if channels == 4:
        return prepare_frames(frames)
    if height != width:
        raise ValueError(
            f"Frames without alpha are taken for prepared ones, square and before white; got {width}x{height} (width x height). "
            "Give RGBA, for which matting.matte_frames finds the alpha."
        )
    return frames
