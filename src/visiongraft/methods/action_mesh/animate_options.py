"""Options of ``visiongraft action_mesh animate``. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

Mode = Literal["video", "mesh", "mesh-text", "image-text", "text", "motion-transfer", "extrapolate"]
Format = Literal["glb", "obj", "npz", "turntable", "html"]
SUFFIXES: dict[str, Format] = {".glb": "glb", ".npz": "npz", ".mp4": "turntable", ".html": "html"}
MATTINGS = Literal["auto", "alpha", "keying", "rmbg", "sam2"]


@dataclass(kw_only=True)
class Weights:
    """Weights and how they run.

    Args:
        weights: small (bundled), a folder of trained parts (denoiser, autoencoder, vae, dit), or facebook/ActionMesh or a folder of it
        base: folder or hub id of the VAE and stage 0 where the weights bring none; default: VAST-AI/TripoSG
        image_encoder: folder or hub id of a DINOv2; default: the base's
        dtype: dtype of the weights
        device: torch device, such as cpu or cuda
        low_memory: have each model on the device for its stage only
    """

    weights: str = "small"
    base: str | None = None
    image_encoder: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    low_memory: bool = False


@dataclass(kw_only=True)
class MattingOptions:
    """How the object is told from what is around it.

    Args:
        masks: a folder of pictures or a video, white where the object is, one for every frame
        matting: auto (alpha that came with the pictures, else keying), alpha, keying (a plain background), rmbg or sam2
        matting_model: of rmbg, package.module:function of yours that gives the network; of sam2, a folder or hub id
        click: place of the object for sam2, in pixels from the left and from the top
        click_frame: number of the frame that was clicked on
    """

    masks: Path | None = None
    matting: MATTINGS = "auto"
    matting_model: str | None = None
    click: tuple[float, float] | None = None
    click_frame: int = 0


@dataclass(kw_only=True)
class GeneratorOptions:
    """Models that make the clip where there is only a text; folders or hub ids of Diffusers pipelines.

    Args:
        image_generator: text to picture
        video_generator: picture and text to video, a Wan image-to-video pipeline
        text_video_generator: text to video, a Wan pipeline, in place of the other two
        generator_dtype: of their weights
        generator_frames: of the clip; default: the window
        generator_stride: every how manieth generated frame is kept
        generator_steps: sampling steps of each; default: the pipeline's own
        generator_size: side of the picture of the mesh or of the text in pixels; videos have about as many pixels; default: 512, and the
            generators' own
    """

    image_generator: str | None = None
    video_generator: str | None = None
    text_video_generator: str | None = None
    generator_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    generator_frames: int | None = None
    generator_stride: int = 1
    generator_steps: int | None = None
    generator_size: int | None = None


@dataclass(kw_only=True)
class AnimateOptions(Weights, MattingOptions, GeneratorOptions):
    """Options of ``animate``.

    Args:
        input: a video, a folder of pictures, one picture, or a mesh; with --mode text the text itself
        mesh: to be animated by the clip (.glb, .obj, ...); it keeps its vertices, faces and textures
        mesh_sequence: the known animation of the clip's first frames, which goes on: a folder of meshes, .glb or .npz; for extrapolate
        text: how it moves
        mode: what to do; default: video, or mesh where one is given, mesh-text for a mesh, image-text for one picture, extrapolate with a
            mesh_sequence
        output: file (.glb, .npz, .html, .mp4) or folder; default: <input>-animated.glb. A contact sheet (.png) is written beside it
        formats: what is written: glb, obj (a folder of a file a frame), npz, turntable (.mp4), html; default: what the output's name says,
            else glb
        anchor: frame that shows the mesh; null: none is known
        first: number of the first frame of the clip to use
        stride: every how manieth frame to use
        max_frames: at most so many
        fps: frames a second that a video is read at, before the stride; default: all
        max_side: pixels of the longer side above which frames are made smaller
        preset: of the samplers: default or fast
        steps: of stage I; default: the preset's
        guidance: of stage I
        shape_steps: of stage 0
        shape_guidance: of stage 0
        corr_noise: how alike the noise of the frames is, from 0 to 1
        window: frames made together; default: as many as the weights were trained on
        slide: new frames of each further window; default: all but one
        num_tokens: of a frame's latents; default: what the weights were trained on
        query_chunk: vertices at once in stage II
        subsampling_level: 1: a mesh a frame; 2 adds one between each two, 3 three
        resolution: cells of the mesh's extraction along an axis
        faces: most faces of a generated mesh; default: 40000
        fit_scale: half the extent of a given mesh in the models' box; below 1 it leaves room for motion outward
        mesh_yaw: degrees by which a given mesh is turned to look as in the anchor's frame, or auto: the one of four turns whose outline is
            most like it; default: 0, for motion-transfer auto
        split_cfg_batch: guidance branches one by one, for less memory; default: with low_memory
        force: run windows of more than 20,000 tokens on a CPU
        play_fps: frames a second of what is written
        seed: fixes all noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("input",)
    input: str
    mesh: Path | None = None
    mesh_sequence: Path | None = None
    text: str | None = None
    mode: Mode | None = None
    output: Path | None = None
    formats: list[Format] | None = None
    anchor: int | None = 0
    first: int = 0
    stride: int = 1
    max_frames: int | None = None
    fps: float | None = None
    max_side: int | None = None
    preset: Literal["default", "fast"] = "default"
    steps: int | None = None
    guidance: float | None = None
    shape_steps: int | None = None
    shape_guidance: float | None = None
    corr_noise: float = 0.0
    window: int | None = None
    slide: int | None = None
    num_tokens: int | None = None
    query_chunk: int | None = None
    subsampling_level: int = 1
    resolution: int | None = None
    faces: int | None = None
    fit_scale: float = 1.0
    mesh_yaw: float | Literal["auto"] | None = None
    split_cfg_batch: bool | None = None
    force: bool = False
    play_fps: float = 8.0
    seed: int = 44
