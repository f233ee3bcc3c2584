"""All ways to an animated mesh: every one ends in a clip and, where there is one, a mesh, and reuses the two grafts.

Generators are functions, see :mod:`visiongraft.methods.action_mesh.generators`: text to image, (image, text) to frames, text to frames.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.methods.action_mesh.animation import Animation
from visiongraft.methods.action_mesh.frames import composite_on_white
from visiongraft.methods.action_mesh.given_mesh import MeshSource, take_mesh
from visiongraft.methods.action_mesh.matting import Matting, matte_frames
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.worlds.mesh_cameras import orbit_camera
from visiongraft.worlds.mesh_rasteriser import render_mesh

ImageToVideo = Callable[[Tensor, str], Tensor]
TextToImage = Callable[[str], Tensor]
TextToVideo = Callable[[str], Tensor]

_ADAPTERS = {
    "image_to_video": "image_to_video(WanImageToVideoPipeline.from_pretrained(...))",
    "text_to_image": "text_to_image(AutoPipelineForText2Image.from_pretrained(...))",
}


def animate_video(
    pipeline: ActionMeshPipeline, frames: Float[Tensor, "frames channels height width"], *, matting: str | Matting = "auto", **options: Any
) -> Animation:
    """Video to animated mesh; the mesh is made from the anchor's frame.

    Args:
        pipeline: with stage 0.
        frames: in [0, 1], with or without alpha.
        matting: how the object is found, see :func:`visiongraft.methods.action_mesh.matting.matte_frames`.
        options: of the pipeline's call.

    Raises:
        ValueError: see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 (video -> 4D).
    """
    return pipeline(matte_frames(frames, matting), **options)


def animate_mesh(
    pipeline: ActionMeshPipeline,
    mesh: MeshSource,
    frames: Float[Tensor, "frames channels height width"],
    *,
    matting: str | Matting = "auto",
    **options: Any,
) -> Animation:
    """A given mesh moves as in the video; its vertices, faces and so its texture stay its own.

    Args:
        pipeline: stage 0 is not needed.
        mesh: as the video shows it in the anchor's frame.
        frames, matting, options: see :func:`animate_video`.

    Raises:
        ValueError: see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 ({3D+video}).
    """
    return pipeline(matte_frames(frames, matting), mesh, **options)


def transfer_motion(
    pipeline: ActionMeshPipeline,
    mesh: MeshSource,
    frames: Float[Tensor, "frames channels height width"],
    *,
    matting: str | Matting = "auto",
    mesh_yaw: float | int | str = "search",
    **options: Any,
) -> Animation:
    """A given mesh moves as another object in a video does. It works where parts correspond, as of a bird and a dragon.

    The mesh is turned so that its outline is most like the other object's, since the two have no common front; give ``mesh_yaw`` to
    turn it otherwise.

    Args:
        pipeline, mesh, frames, matting, options: see :func:`animate_mesh`.
        mesh_yaw: degrees, or ``search``.

    Raises:
        ValueError: see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 (motion transfer).
    """
    return animate_mesh(pipeline, mesh, frames, matting=matting, mesh_yaw=mesh_yaw, **options)


def animate_mesh_from_text(
    pipeline: ActionMeshPipeline,
    mesh: MeshSource,
    text: str,
    image_to_video: ImageToVideo | None = None,
    *,
    image_size: int = 512,
    color: tuple[float, float, float] = (0.72, 0.68, 0.62),
    fit_scale: float | int = 1.0,
    mesh_yaw: float | int = 0.0,
    matting: str | Matting = "auto",
    **options: Any,
) -> Animation:
    """A given mesh moves as a text says: it is rendered from the front before white, and a video generator moves the picture.

    Args:
        pipeline: stage 0 is not needed.
        mesh: to animate.
        text: how it moves.
        image_to_video: (picture in [0, 1], text) to frames.
        image_size: pixels of the picture's side.
        color: of the rendered mesh; its texture is not rendered.
        fit_scale, mesh_yaw: see the pipeline; the turned mesh is what the picture shows.
        matting, options: see :func:`animate_video`.

    Raises:
        ValueError: no video generator, or what it gives cannot be used; see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 ({3D+text}).
    """
    generate = _needed(image_to_video, "image_to_video", "an (image, text) -> frames function")
    if options.get("anchor", 0) != 0:
        raise ValueError(f"The picture of the mesh is the first frame of the generated clip, so that anchor is 0; got {options['anchor']}.")
    picture = front_view(mesh, image_size, mesh_yaw=mesh_yaw, color=color)
    frames = _checked_frames(generate(picture, text), "image_to_video")
    return animate_mesh(pipeline, mesh, frames, matting=matting, fit_scale=fit_scale, mesh_yaw=mesh_yaw, **options)


def animate_image_from_text(
    pipeline: ActionMeshPipeline,
    image: Float[Tensor, "channels height width"],
    text: str,
    image_to_video: ImageToVideo | None = None,
    *,
    matting: str | Matting = "auto",
    **options: Any,
) -> Animation:
    """The object in a picture becomes a mesh that moves as a text says: image to video, then video to animated mesh.

    Args:
        pipeline: with stage 0.
        image: in [0, 1]; with alpha it is put before white first.
        text: how it moves.
        image_to_video: (picture in [0, 1], text) to frames.
        matting, options: see :func:`animate_video`.

    Raises:
        ValueError: no video generator, or what it gives cannot be used; see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 ({image+text}).
    """
    generate = _needed(image_to_video, "image_to_video", "an (image, text) -> frames function")
    if image.shape[0] not in (3, 4):
        raise ValueError(f"An image has 3 channels, or 4 with alpha; got {image.shape[0]} (channels x height x width).")
    picture = composite_on_white(image) if image.shape[0] == 4 else image
    return animate_video(pipeline, _checked_frames(generate(picture, text), "image_to_video"), matting=matting, **options)


def animate_text(
    pipeline: ActionMeshPipeline,
    text: str,
    text_to_image: TextToImage | None = None,
    image_to_video: ImageToVideo | None = None,
    *,
    text_to_video: TextToVideo | None = None,
    motion: str | None = None,
    matting: str | Matting = "auto",
    **options: Any,
) -> Animation:
    """Text to animated mesh: text to image to video (the paper's way), or text to video.

    Args:
        pipeline: with stage 0.
        text: what is seen, and how it moves.
        text_to_image: text to a picture in [0, 1].
        image_to_video: (picture in [0, 1], text) to frames.
        text_to_video: text to frames, in place of the other two.
        motion: text for ``image_to_video``, where it is another.
        matting, options: see :func:`animate_video`.

    Raises:
        ValueError: a generator that is missing, or what one gives cannot be used; see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 (text -> 4D).
    """
    if text_to_video is not None:
        if text_to_image is not None or image_to_video is not None:
            raise ValueError("text_to_video takes the place of text_to_image and image_to_video; give it, or the other two.")
        return animate_video(pipeline, _checked_frames(text_to_video(text), "text_to_video"), matting=matting, **options)
    draw = _needed(text_to_image, "text_to_image", "a text -> image function")
    _needed(image_to_video, "image_to_video", "an (image, text) -> frames function")
    picture = draw(text)
    if picture.ndim != 3 or picture.shape[0] not in (3, 4):
        raise ValueError(f"text_to_image must give a picture of (3, height, width) in [0, 1]; got shape {tuple(picture.shape)}.")
    return animate_image_from_text(pipeline, picture, motion or text, image_to_video, matting=matting, **options)


def extrapolate(
    pipeline: ActionMeshPipeline,
    frames: Float[Tensor, "frames channels height width"],
    animation: Animation | None = None,
    *,
    matting: str | Matting = "auto",
    **options: Any,
) -> Animation:
    """A long video in windows of 16 frames that share one; from an animation of its first part, only the rest is made.

    Args:
        pipeline: stage 0 is needed where there is no animation.
        frames: all of them, those of the first part too: the crop is that of the whole clip.
        animation: of the first frames, as a pipeline returned it; they stay as they are.
        matting, options: see :func:`animate_video`; the anchor is the animation's.

    Raises:
        ValueError: an animation without latents, or a clip that is no longer than it; see the pipeline and the matting.

    Source: ActionMesh brief, 2.11 (extrapolation) and 2.8.
    """
    if animation is not None:
        options = {"anchor": animation.anchor} | options
    return animate_video(pipeline, frames, matting=matting, continue_from=animation, **options)


def front_view(
    mesh: MeshSource, size: int = 512, *, mesh_yaw: float | int = 0.0, color: tuple[float, float, float] = (0.72, 0.68, 0.62)
) -> Float[Tensor, "3 size size"]:
    """A picture of a mesh before white, from the front (+z), with a little room around it.

    Args:
        mesh: Y up.
        size: pixels of a side.
        mesh_yaw: turn about Y before, degrees.
        color: of the mesh.

    Raises:
        ValueError: a mesh that cannot be used.
    """
    taken = take_mesh(mesh, 1.0, mesh_yaw)
    # a box that fills 90 % of the picture is what the models were trained on
    camera = orbit_camera(half_width=1 / 0.9)
    return composite_on_white(render_mesh(taken.vertices, taken.faces, camera, size, color=color)).clamp(0, 1)


def _needed(generator: Callable[..., Any] | None, name: str, what: str) -> Callable[..., Any]:
    if generator is None:
        raise ValueError(
            f"This mode needs a generator: pass {name}=..., {what}, for example generators.{_ADAPTERS[name]}; "
            "or make the frames yourself and use animate_video or animate_mesh."
        )
    return generator


def _checked_frames(frames: Tensor, name: str) -> Float[Tensor, "frames channels height width"]:
    if frames.ndim != 4 or frames.shape[1] not in (3, 4):
        raise ValueError(f"{name} must give frames of (frames, 3, height, width) in [0, 1]; got shape {tuple(frames.shape)}.")
    if not bool(torch.isfinite(frames).all()):
        raise ValueError(f"{name} gave frames with values that are not finite; run it in bfloat16 or float32.")
    return frames.float().clamp(0, 1)
