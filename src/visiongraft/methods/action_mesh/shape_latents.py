"""Between pictures, latents and meshes of one moment: stage 0, the encoding of a mesh, and the mesh of latents."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.isosurfaces import extract_isosurface
from visiongraft.geometry.meshes import surface_samples
from visiongraft.media.meshes import clean_mesh
from visiongraft.methods.action_mesh.guidance import join_branches
from visiongraft.methods.action_mesh.image_features import DINOV2, image_features, preparation_of
from visiongraft.methods.action_mesh.sampler import StepCallback, check_cancel

SURFACE_POINTS = 16_384
MAX_FACES = 40_000


@torch.no_grad()
def picture_tokens(encoder: Any, feature_extractor: Any, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch words dim"]:
    """Tokens of pictures in [0, 1], in float32.

    Args:
        encoder: Transformers' ``Dinov2Model`` (or another of its vision models with ``last_hidden_state``); or any module or function
            that maps such pictures to tokens, which prepares them itself.
        feature_extractor: image processor of a Transformers model; ``None``: DINOv2's preparation.
        images: prepared frames.

    Raises:
        ValueError: no encoder, or a processor of another kind.
    """
    if encoder is None:
        raise ValueError("The pipeline has no image encoder; give image_encoder, or the frames' tokens as image_context.")
    from transformers import PreTrainedModel

    if isinstance(encoder, PreTrainedModel):
        return image_features(encoder, images, DINOV2 if feature_extractor is None else preparation_of(feature_extractor)).float()
    return encoder(images).float()


@torch.no_grad()
def sample_shape(
    dit: Any,
    scheduler: Any,
    context: Float[Tensor, "batch words dim"],
    *,
    num_steps: int = 50,
    guidance_scale: float | int = 7.0,
    num_tokens: int = 2048,
    generator: torch.Generator | None = None,
    noise: Float[Tensor, "batch tokens channels"] | None = None,
    callback: StepCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    """Stage 0: latents of one shape for each picture, from noise to time 0.

    Guidance pushes from the zero context: ``v_0 + g (v_c - v_0)``, for g above 1.

    Args:
        dit: ``TripoSGDiT``.
        scheduler: ``RectifiedFlowScheduler``; a copy of it is used.
        context: tokens of the pictures.
        num_steps, guidance_scale: 50 and 7.0 are TripoSG's; ActionMesh takes 100 and 7.5.
        num_tokens: of the latents.
        generator: draws the noise, on its own device.
        noise: in place of drawn noise.
        callback: told after each step.
        cancel: asked before each step.

    Raises:
        ValueError: neither generator nor noise, or counts below 1.
        Cancelled: when ``cancel`` says so.

    Source: ActionMesh brief, 2.3.
    """
    if num_steps < 1 or num_tokens < 1:
        raise ValueError(f"Stage 0 needs at least 1 step and 1 token; got {num_steps} steps and {num_tokens} tokens.")
    if noise is None:
        if generator is None:
            raise ValueError("Stage 0 draws noise; give a torch.Generator, or the noise itself.")
        shape = (len(context), num_tokens, dit.config.in_channels)
        noise = torch.randn(shape, generator=generator, device=generator.device)
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(num_steps, device=context.device)
    x, branches = noise.to(context.device, torch.float32), [context.float()]
    if guidance_scale > 1:
        branches.insert(0, torch.zeros_like(branches[0]))
    contexts = torch.cat(branches)
    for step, t in enumerate(own.timesteps):
        check_cancel(cancel, f"before step {step + 1} of {num_steps} of stage 0")
        latents = torch.cat([x] * len(branches))
        velocity = dit(latents, t.float().expand(len(latents)), contexts).float()
        velocity = join_branches(velocity.chunk(len(branches)), [guidance_scale] * (len(branches) - 1))
        x = own.step(velocity, t, x, return_dict=False)[0]
        if callback is not None:
            callback(step + 1, num_steps)
    return x


@torch.no_grad()
def encode_mesh(
    vae: Any,
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    *,
    num_tokens: int = 2048,
    num_points: int = SURFACE_POINTS,
    generator: torch.Generator,
) -> Float[Tensor, "1 tokens channels"]:
    """Latents of a mesh: a draw from the VAE's posterior of points on its surface, with face normals.

    The encoder computes in float32, also with weights in half precision and under autocast; the latents are float32, as they are in all
    stages of the pipelines.

    Args:
        vae: ``TripoSGVAE``.
        vertices: in the box [-1, 1]^3.
        faces: of a closed surface; the VAE reconstructs sheets and open shells badly.
        num_tokens: of the latents.
        num_points: of the surface.
        generator: draws the points, their subset, and the latents.

    Raises:
        ValueError: a mesh without area.

    Source: ActionMesh brief, 2.2 and pitfall 10.
    """
    parameter = next(vae.parameters())
    samples = surface_samples(vertices, faces, num_points, generator)
    surface = torch.cat([samples.points, samples.normals], -1)[None].to(parameter.device)
    with torch.autocast(surface.device.type, enabled=False):
        return vae.encode(surface, num_tokens, generator=generator).sample(generator).float()


@torch.no_grad()
def extract_mesh(
    vae: Any,
    latents: Float[Tensor, "tokens channels"],
    *,
    resolution: int = 256,
    max_faces: int | None = MAX_FACES,
    query_chunk: int = 50_000,
    upstream_scale: bool = False,
) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """The cleaned mesh where the VAE's logits change sign, in the box [-1, 1]^3, on the CPU.

    Args:
        vae: ``TripoSGVAE``.
        latents: of one shape.
        resolution: cells along an axis.
        max_faces: the mesh is decimated to so many; ``None`` keeps all.
        query_chunk: points at once.
        upstream_scale: the released code's scale, for comparisons, see :func:`visiongraft.geometry.isosurfaces.extract_isosurface`.

    Raises:
        ValueError: latents that are not finite, or no surface; the message has the greatest logit.

    Source: ActionMesh brief, 2.9 (clean-up) and 2.10.
    """
    parameter = next(vae.parameters())
    context = vae.decode_context(latents[None].to(parameter.device))

    def field(points: Float[Tensor, "q 3"]) -> Float[Tensor, "q"]:
        return vae.query(context, points[None], chunk=query_chunk)[0].float()

    surface = extract_isosurface(field, resolution, chunk=query_chunk, upstream_scale=upstream_scale, device=parameter.device)
    cleaned = clean_mesh(surface.vertices, surface.faces, max_faces=max_faces)
    return cleaned.vertices, cleaned.faces
