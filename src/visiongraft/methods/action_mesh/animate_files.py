"""What ``animate`` does with files: a clip, a picture, a mesh or a text in; an animated mesh and a contact sheet out."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.media.animated_glb import AnimatedMesh
from visiongraft.media.mesh_sequences import read_animation
from visiongraft.methods.action_mesh import clip_makers, modes
from visiongraft.methods.action_mesh.animate_options import AnimateOptions, Weights
from visiongraft.methods.action_mesh.animate_request import Request, understood
from visiongraft.methods.action_mesh.animation import Animation
from visiongraft.methods.action_mesh.animation_outputs import plan_outputs, write_outputs
from visiongraft.methods.action_mesh.clip_makers import Clip, make_matting
from visiongraft.methods.action_mesh.contact_sheets import animation_sheet
from visiongraft.methods.action_mesh.frames import read_frames
from visiongraft.methods.action_mesh.known_motion import known_animation
from visiongraft.methods.action_mesh.load_pipeline import load_pipeline
from visiongraft.methods.action_mesh.mesh_yaw import search_yaw
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.methods.action_mesh.shape_latents import MAX_FACES
from visiongraft.methods.action_mesh.small import SMALL_NOTE, preset_for, resolution_for
from visiongraft.methods.action_mesh.stage_two import QUERY_CHUNK
from visiongraft.methods.action_mesh.windows import plan_windows


def animate_files(options: AnimateOptions) -> int:
    """Runs ``animate``; says on stderr what it understood, and prints the files.

    Raises:
        FileNotFoundError: an input or weights that are not there.
        ValueError: inputs that cannot be used or do not go together; see the parts.
    """
    request = understood(options)
    given = [Path(options.input), options.mesh, options.mesh_sequence, options.masks]
    outputs = plan_outputs(options.output, options.formats, request.name, [path for path in given if path is not None])
    _check_numbers(options)
    known = None if options.mesh_sequence is None else read_animation(options.mesh_sequence)
    clip = Clip(make_matting(options, options.device))
    source = None if request.makes_clip else clip.take(_read_clip(request, options))
    picture = None if request.picture is None else read_frames([request.picture], min_frames=1)[0]
    pipeline = load_weights(options)
    _tell(weights_note(options))
    job = _Job(request, options, pipeline, clip)
    if source is not None:
        animation = job.of_clip(source, known)
    else:
        animation = job.of_generated(picture)
    assert clip.shown is not None  # every mode takes its frames through the clip
    if animation.user_mesh is not None and (animation.user_mesh.yaw_deg or _wanted_yaw(options, request) == "auto"):
        _tell(f"The mesh was turned by {animation.user_mesh.yaw_deg:g} degrees about Y for the models, and back.")
    files = write_outputs(
        outputs,
        animation.vertices,
        animation.faces,
        [time / options.play_fps for time in animation.times],
        animation_sheet(clip.shown, animation),
        template=_template(animation),
        title=request.name.name.removesuffix("-animated"),
        note=weights_note(options),
    )
    for path in files:
        print(path)
    return 0


def load_weights(options: Weights) -> ActionMeshPipeline:
    """The pipeline that the options name, where they want it."""
    return load_pipeline(
        options.weights,
        base=options.base,
        device=checked_device(options.device),
        dtype=getattr(torch, options.dtype),
        image_encoder=options.image_encoder,
        low_memory=options.low_memory,
    )


def weights_note(options: Weights) -> str:
    """A sentence on the weights."""
    return SMALL_NOTE if options.weights == "small" else f"Made with {options.weights}."


def checked_device(name: str) -> str:
    """The device's name.

    Raises:
        ValueError: no such device here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"There is no device {name!r} here ({reason}); use cpu, or cuda with a GPU.") from error
    return name


@dataclass(frozen=True)
class _Job:
    """One animation: what is asked for, the models, and the clip that is kept for the contact sheet."""

    request: Request
    options: AnimateOptions
    pipeline: ActionMeshPipeline
    clip: Clip

    def of_clip(self, frames: Float[Tensor, "frames 4 height width"], known: AnimatedMesh | None) -> Animation:
        """Modes whose frames were read."""
        options, mode = self.options, self.request.mode
        if options.anchor is not None and not 0 <= options.anchor < len(frames):
            raise ValueError(f"The anchor must be a frame of the clip, 0 to {len(frames) - 1}; got {options.anchor}.")
        if options.anchor is None and mode != "video":
            raise ValueError(f"Mode {mode} has a known mesh, so that it needs the frame that shows it: give --anchor a number.")
        call = self._call(len(frames))
        if mode == "video":
            return modes.animate_video(self.pipeline, frames, **call)
        if mode == "extrapolate":
            return modes.extrapolate(self.pipeline, frames, self._known(known, len(frames)), **call)
        yaw = _wanted_yaw(options, self.request)
        call |= {"fit_scale": options.fit_scale, "mesh_yaw": "search" if yaw == "auto" else yaw}
        move = modes.transfer_motion if mode == "motion-transfer" else modes.animate_mesh
        return move(self.pipeline, str(self.request.mesh), frames, **call)

    def of_generated(self, picture: Float[Tensor, "4 height width"] | None) -> Animation:
        """Modes whose frames a generator makes."""
        options, request = self.options, self.request
        count = options.generator_frames or options.window or self._trained_frames()
        call = self._call(count)
        if request.mode == "text" and options.text_video_generator is not None:
            video = self.clip.of(clip_makers.text_to_video(options, count))
            return modes.animate_text(self.pipeline, str(request.prompt), text_to_video=video, **call)
        video = self.clip.of(clip_makers.image_to_video(options, count))
        if request.mode == "text":
            draw = clip_makers.text_to_image(options)
            return modes.animate_text(self.pipeline, str(request.prompt), draw, video, motion=request.motion, **call)
        if picture is not None:
            return modes.animate_image_from_text(self.pipeline, picture, str(request.motion), video, **call)
        call |= {"fit_scale": options.fit_scale, "mesh_yaw": options.mesh_yaw or 0.0, "image_size": options.generator_size or 512}
        return modes.animate_mesh_from_text(self.pipeline, str(request.mesh), str(request.motion), video, **call)

    def _call(self, count: int) -> dict[str, Any]:
        """Options of the pipeline's call for a clip of so many frames."""
        options, denoiser = self.options, self.pipeline.denoiser
        window = options.window or self._trained_frames()
        slide = options.slide or window - 1
        windows = plan_windows(options.anchor or 0, count, window, slide)
        if len(windows) > 1:
            _tell(f"{count} frames are made in {len(windows)} windows of at most {window}.")
        changes = {"steps": options.steps, "guidance": options.guidance}
        changes |= {"shape_steps": options.shape_steps, "shape_guidance": options.shape_guidance}
        return {
            "matting": "alpha",  # the clip's frames have theirs
            "anchor": options.anchor,
            "preset": preset_for(denoiser, options.preset, **changes),
            "seed": options.seed,
            "window": window,
            "slide": slide,
            "num_tokens": options.num_tokens,
            "subsampling_level": options.subsampling_level,
            "noise_correlation": options.corr_noise,
            "split_cfg_batch": options.split_cfg_batch,
            "query_chunk": options.query_chunk or QUERY_CHUNK,
            "resolution": options.resolution or resolution_for(denoiser),
            "max_faces": options.faces or MAX_FACES,
            "force": options.force,
        }

    def _trained_frames(self) -> int:
        return int(self.pipeline.denoiser.config.temporal_context_size)

    def _known(self, known: AnimatedMesh | None, count: int) -> Animation | None:
        """The animation of the clip's first frames, encoded."""
        if known is None:
            return None
        options = self.options
        if not len(known.vertices) < count:
            raise ValueError(
                f"{options.mesh_sequence} has {len(known.vertices)} meshes and the clip {count} frames; give a clip that begins with the "
                "meshes' frames and goes on."
            )
        if options.anchor != 0:
            raise ValueError(f"The known meshes are those of the clip's first frames, so that the anchor is 0; got {options.anchor}.")
        yaw = _wanted_yaw(options, self.request)
        if yaw == "auto":
            assert self.clip.shown is not None
            yaw, _ = search_yaw(known.vertices[0], known.faces, self.clip.shown[0])
        path = options.mesh_sequence
        return known_animation(
            self.pipeline,
            known.vertices,
            known.faces,
            fit_scale=options.fit_scale,
            yaw_deg=float(yaw),
            num_tokens=options.num_tokens,
            seed=options.seed,
            path=path if path is not None and path.suffix.lower() == ".glb" else None,
        )


def _wanted_yaw(options: AnimateOptions, request: Request) -> float | str:
    """Degrees by which a given mesh is turned, or ``auto``."""
    usual = "auto" if request.mode == "motion-transfer" else 0.0
    return usual if options.mesh_yaw is None else options.mesh_yaw


def _read_clip(request: Request, options: AnimateOptions) -> Float[Tensor, "frames 4 height width"]:
    return read_frames(
        str(request.clip),
        None if options.masks is None else str(options.masks),
        first=options.first,
        stride=options.stride,
        max_frames=options.max_frames,
        fps=options.fps,
        max_side=options.max_side,
    )


def _check_numbers(options: AnimateOptions) -> None:
    """Options that would only be refused after the weights are loaded and the clip is made."""
    least = {"window": 2, "slide": 1, "num_tokens": 1, "query_chunk": 1, "subsampling_level": 1}
    least |= {"resolution": 8, "faces": 4, "steps": 1, "shape_steps": 1, "generator_frames": 2, "generator_stride": 1, "generator_steps": 1}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name} must be at least {smallest}; got {value}.")
    if not 0 <= options.corr_noise <= 1:
        raise ValueError(f"--corr_noise must be from 0 to 1; got {options.corr_noise:g}.")
    if not 0 < options.fit_scale <= 1:
        raise ValueError(f"--fit_scale must be above 0 and at most 1; got {options.fit_scale:g}.")
    if not options.play_fps > 0:
        raise ValueError(f"--play_fps must be positive; got {options.play_fps:g}.")


def _template(animation: Animation) -> Path | None:
    """The GLB whose textures are kept."""
    path = None if animation.user_mesh is None else animation.user_mesh.path
    return path if path is not None and path.suffix.lower() == ".glb" else None


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
