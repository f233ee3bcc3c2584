"""What ``image-to-3d`` does with files: a picture in, a mesh and a contact sheet out."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from visiongraft.media.files import ensure_writable_folder
from visiongraft.media.images import save_image
from visiongraft.media.meshes import write_mesh
from visiongraft.methods.action_mesh.animate_files import checked_device, weights_note
from visiongraft.methods.action_mesh.clip_makers import Clip, make_matting
from visiongraft.methods.action_mesh.contact_sheets import shape_sheet
from visiongraft.methods.action_mesh.frames import read_frames
from visiongraft.methods.action_mesh.load_pipeline import load_shape_pipeline, shape_source
from visiongraft.methods.action_mesh.shape_latents import MAX_FACES
from visiongraft.methods.action_mesh.small import preset_for, resolution_for, sees_silhouettes

if TYPE_CHECKING:
    from visiongraft.methods.action_mesh.commands import ImageTo3DOptions
    from visiongraft.methods.action_mesh.image_to_3d import ImageTo3DPipeline

SUFFIXES = (".glb", ".obj", ".ply")
_TOKENS = {True: 16, False: 2048}
"""Latent tokens by default: of the small models, and TripoSG's."""


def image_to_3d_files(options: "ImageTo3DOptions") -> int:
    """Runs ``image-to-3d``; prints the files.

    Raises:
        FileNotFoundError: a picture or weights that are not there.
        ValueError: a picture without an object, another suffix, or weights that do not fit.
    """
    if not options.image.is_file():
        raise FileNotFoundError(f"There is no picture {options.image}.")
    output = options.output or options.image.with_name(f"{options.image.stem}-3d.glb")
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"Meshes are written as {', '.join(SUFFIXES)}; got {output.name}.")
    sheet = output.with_suffix(".png")
    if options.image.resolve() in (output.resolve(), sheet.resolve()):
        raise ValueError(f"{options.image} would be overwritten; choose another --output.")
    for name, least in (("steps", 1), ("num_tokens", 1), ("resolution", 8), ("faces", 4)):
        if (value := getattr(options, name)) is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}; got {value}.")
    ensure_writable_folder(output.parent)
    clip = Clip(make_matting(options, options.device))
    picture = clip.take(_read(options.image, options.masks))[0]
    source = shape_source(options.weights, options.base)
    pipeline = _pipeline(source, options)
    print(weights_note(replace(options, weights=source)), file=sys.stderr)
    settings = preset_for(pipeline.transformer, shape_steps=options.steps, shape_guidance=options.guidance)
    shape = pipeline(
        picture,
        settings.shape_steps,
        settings.shape_guidance,
        options.num_tokens or _TOKENS[sees_silhouettes(pipeline.transformer)],
        options.seed,
        resolution=options.resolution or resolution_for(pipeline.transformer),
        faces=options.faces or MAX_FACES,
        callback=_Progress(settings.shape_steps),
    )
    assert shape.vertices is not None and shape.faces is not None and clip.shown is not None  # output_type is mesh
    print(write_mesh(output, shape.vertices, shape.faces))
    print(save_image(shape_sheet(clip.shown[0], shape.vertices, shape.faces), sheet))
    return 0


def _read(image: Path, masks: Path | None) -> torch.Tensor:
    return read_frames([image], None if masks is None else [masks], min_frames=1)


def _pipeline(source: str, options: "ImageTo3DOptions") -> "ImageTo3DPipeline":
    try:
        return load_shape_pipeline(
            source,
            device=checked_device(options.device),
            dtype=getattr(torch, options.dtype),
            image_encoder=options.image_encoder,
            low_memory=options.low_memory,
        )
    except FileNotFoundError as error:
        if source in (options.weights, options.base):
            raise
        raise FileNotFoundError(f"{options.weights} has no VAE and no stage 0; give a folder that has them as --base. ({error})") from error


class _Progress:
    """A bar of the steps."""

    def __init__(self, steps: int) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=steps, desc="stage 0")

    def __call__(self, step: int, steps: int) -> None:
        self.bar.update(step - self.bar.n)
        if step == steps:
            self.bar.close()
