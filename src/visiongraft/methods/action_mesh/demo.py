"""The gallery section: two clips turned into animated meshes on the spot, with and without the grafts, beside the study's numbers."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.animated_glb import read_animated_glb, write_animated_glb
from visiongraft.media.images import resize, save_image, to_image_tensor
from visiongraft.media.video_writing import write_video
from visiongraft.methods.action_mesh.contact_sheets import place_colors
from visiongraft.methods.action_mesh.frames import composite_on_white, prepare_frames, read_frames
from visiongraft.methods.action_mesh.load_pipeline import load_pipeline
from visiongraft.methods.action_mesh.matting import matte_frames
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.methods.action_mesh.shape_latents import extract_mesh, picture_tokens, sample_shape
from visiongraft.methods.action_mesh.small import WEIGHTS, preset_for, resolution_for
from visiongraft.methods.action_mesh.study_clips import Clips, held_out_clips
from visiongraft.methods.action_mesh.study_measures import light_protocol, measure_meshes
from visiongraft.methods.action_mesh.viewer import viewer_snippet
from visiongraft.studies import Figure, Report, Section, Table
from visiongraft.worlds.mesh_cameras import MeshCamera, orbit_camera
from visiongraft.worlds.mesh_rasteriser import render_animation, render_mesh

_SEED = 20_260_123  # of animals that no training and no study has seen
_MOTIONS = {"const": "an animal whose tail stays on one side", "mixed": "an animal whose tail crosses over"}
_DRAWN = 24  # clips, of which the one that shows best what is meant is taken
_POINTS, _ICP_STEPS = 600, 60
_VIDEO_SIDE, _LABEL = 192, 24
_TILE, _FILM_TILE = (112, 144), (150, 208)
_FPS, _LOOPS = 8, 5
_SHEET_CAMERA = orbit_camera(25, 55, half_width=1.05)
_SINGLE, _TRUE = (0.83, 0.42, 0.30), (0.62, 0.64, 0.68)
_NAMES = ("the video", "single frames", "stage I + II", "the truth")


@dataclass(frozen=True, eq=False)
class _Made:
    """What was seen of one clip and what was made of it."""

    name: str
    clips: Clips
    place: int
    frames: Float[Tensor, "frames 3 height width"]
    single: list[Mesh]
    moving: list[Mesh]
    true: list[Mesh]

    def colors(self) -> dict[str, Any]:
        """The animated mesh has a colour for each vertex, which it keeps; meshes made frame by frame have no vertices in common."""
        return {"single": _SINGLE, "moving": place_colors(self.moving[0].vertices), "true": _TRUE}


def demo(output: Path, *, weights: str | Path = "small", study_folder: Path = WEIGHTS / "study") -> Section:
    """Animates two held-out clips from their video files alone, and makes a mesh of each of their frames by itself.

    Args:
        output: folder for videos, meshes and pictures.
        weights: see :func:`visiongraft.methods.action_mesh.load_pipeline.load_pipeline`; they must have stage 0.
        study_folder: of the report that is shown.

    Returns:
        The method's section of the gallery.
    """
    pipeline = load_pipeline(weights)
    pipeline.set_progress_bar_config(disable=True)
    made = [_make(pipeline, motion, output) for motion in _MOTIONS]
    study = Report.read(study_folder)
    for figure in study.figures:
        figure.path = str(study_folder / figure.path)
    return Section(
        method="action_mesh",
        title="Animated meshes from video",
        arxiv="2601.16148",
        lead=(
            "A model that turns one picture into one 3D shape is taught time: all frames of a clip are denoised together, and a second "
            "graft then tells every vertex of one mesh where it goes. The result is a mesh of one topology that any 3D program plays. What "
            "is shown first was computed just now, from two short video files, by four small networks that were trained for minutes on "
            "procedural animals."
        ),
        figures=[_sheet(made, output / "animations.png"), *study.figures],
        tables=[_table(made), *study.tables],
        claims=list(study.claims),
        notes=list(study.notes),
        commands=[
            "visiongraft action_mesh animate clip.mp4",
            "visiongraft action_mesh animate clip.mp4 --mesh dragon.glb --fit_scale 0.8",
            "visiongraft action_mesh animate clip.mp4 --weights facebook/ActionMesh --device cuda --low_memory true",
            "visiongraft action_mesh view clip-animated.glb --formats '[html, turntable]' -o clip.html",
            "visiongraft action_mesh study",
        ],
        html=_films(made, output) + _viewers(made[0], output),
    )


def _make(pipeline: ActionMeshPipeline, motion: str, output: Path) -> _Made:
    """One clip, from the video file on as ``animate --mesh`` does it: keyed, cropped, and the animal's mesh in the first frame given."""
    count = int(pipeline.denoiser.config.temporal_context_size)
    clips = held_out_clips(motion, _DRAWN, count, _POINTS, 16, _SEED, count)
    place = _telling(clips.creatures.angles, motion)
    vertices, faces, _ = clips.mesh(place)
    file = output / f"{motion}.mp4"
    write_video(_front(vertices, faces, clips.shape(place).color), file, _FPS)
    rgba = matte_frames(read_frames(file))
    preset, resolution = preset_for(pipeline.denoiser), resolution_for(pipeline.denoiser)
    given = Mesh(vertices[0], faces)
    extent = float((vertices[0].amax(0) - vertices[0].amin(0)).max())
    animation = pipeline(rgba, mesh=given, fit_scale=extent / 2, preset=preset, window=count, slide=count - 1, seed=_SEED)
    context = picture_tokens(pipeline.image_encoder, pipeline.feature_extractor, prepare_frames(rgba))
    latents = sample_shape(
        pipeline.dit,
        pipeline.scheduler,
        context,
        num_steps=preset.shape_steps,
        guidance_scale=preset.shape_guidance,
        num_tokens=pipeline.denoiser.config.num_tokens_nominal,
        generator=torch.Generator().manual_seed(_SEED),
    )
    single = [Mesh(*extract_mesh(pipeline.vae, latent, resolution=resolution)) for latent in latents]
    moving = [Mesh(moved, animation.faces) for moved in animation.vertices]
    return _Made(motion, clips, place, rgba[:, :3], single, moving, [Mesh(moved, faces) for moved in vertices])


def _telling(angles: Float[Tensor, "clips frames"], motion: str) -> int:
    """The clip whose tail is farthest to one side: in every frame, or in the first and, on the other side, in the last."""
    least = angles.abs().amin(1)
    ends = torch.minimum(angles[:, 0].abs(), angles[:, -1].abs()) * (angles[:, 0] * angles[:, -1] < 0)
    return int((least if motion == "const" else ends).argmax())


def _front(vertices: Tensor, faces: Tensor, color: tuple[float, float, float]) -> Float[Tensor, "frames 3 side side"]:
    return composite_on_white(render_animation(vertices, faces, orbit_camera(), _VIDEO_SIDE, color=color)).clamp(0, 1)


def _drawn(mesh: Mesh, camera: MeshCamera, color: Any, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    return composite_on_white(render_mesh(mesh.vertices, mesh.faces, camera, size, color=color)).clamp(0, 1)


def _shown(frame: Float[Tensor, "3 side side"], size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """The middle of a frame of the video."""
    height, width = size
    top = (width - height) // 2
    return resize(frame, (width, width)).clamp(0, 1)[:, top : top + height]


def _sheet(made: list[_Made], path: Path) -> Figure:
    """Frames, and below them the meshes seen obliquely from above, where the video's depth shows."""
    rows: list[Tensor] = []
    for one in made:
        colors = one.colors()
        tiles = [[_shown(frame, _TILE) for frame in one.frames]]
        tiles += [[_drawn(mesh, _SHEET_CAMERA, colors[way], _TILE) for mesh in getattr(one, way)] for way in colors]
        labelled = [torch.cat([_text(name, 4 * _LABEL, _TILE[0]), *row], -1) for name, row in zip(_NAMES, tiles, strict=True)]
        rows += [_text(_MOTIONS[one.name], labelled[0].shape[-1], _LABEL), *labelled]
    save_image(torch.cat(rows, 1), path)
    return Figure(
        title="Animated just now",
        path=str(path),
        alt="Frames of two clips, the meshes made of each frame by itself, the animated mesh, and the truth, seen from above",
        caption="The video is seen from the front and is all that the models get. The meshes below are seen obliquely from above: a tail "
        "that points towards the viewer and one that points away look the same from the front, so that meshes made frame by frame take "
        "either side. The grafts are given the first frame's mesh, and move it (colours stay with its vertices). Of the clips drawn "
        "these have their tails farthest to one side, in every frame or before and after crossing over; results played no part. "
        "Where a tail crosses, nothing in the picture says whether it goes on or turns back.",
    )


def _films(made: list[_Made], output: Path) -> str:
    """Turntables before and after, beside the video and the truth."""
    cards = []
    for one in made:
        colors, order = one.colors(), [*range(len(one.frames)), *range(len(one.frames) - 2, 0, -1)]
        total, header = _LOOPS * len(order), torch.cat([_text(name, _FILM_TILE[1], _LABEL) for name in _NAMES], -1)
        frames = []
        for number in range(total):
            index, camera = order[number % len(order)], orbit_camera(360 * number / total, 30, half_width=1.15)
            seen = [_shown(one.frames[index], _FILM_TILE)]
            seen += [_drawn(getattr(one, way)[index], camera, color, _FILM_TILE) for way, color in colors.items()]
            frames.append(torch.cat([header, torch.cat(seen, -1)], 1))
        path = write_video(frames, output / f"{one.name}-turntable.mp4", _FPS)
        cards.append(_card(path, f"{_MOTIONS[one.name].capitalize()}: the clip forwards and back while a camera goes around the meshes"))
    return "".join(cards)


def _card(path: Path, said: str) -> str:
    film = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure class="card" style="margin:0 0 1rem"><video controls muted loop playsinline autoplay style="width:100%;display:block" '
        f'aria-label="{escape(said)}" src="data:video/mp4;base64,{film}"></video><figcaption>{escape(said)}.</figcaption></figure>'
    )


def _viewers(one: _Made, output: Path) -> str:
    """The animated GLB as a viewer plays it, and the meshes of single frames."""
    vertices = torch.stack([mesh.vertices for mesh in one.moving])
    path = write_animated_glb(output / f"{one.name}.glb", vertices, one.moving[0].faces, fps=_FPS)
    read = read_animated_glb(path)
    after = viewer_snippet(
        read.vertices,
        read.faces,
        title="Stage I + II: one mesh that moves",
        note=f"The first clip's animated GLB, {len(read.vertices[0]):,} vertices.",
        fps=_FPS,
        yaw_deg=25,
        pitch_deg=50,
    )
    before = viewer_snippet(
        [mesh.vertices for mesh in one.single],
        [mesh.faces for mesh in one.single],
        title="Single frames: another mesh each time",
        note="The same frames by the base alone: no vertex of one mesh belongs to one of the next.",
        fps=_FPS,
        yaw_deg=25,
        pitch_deg=50,
    )
    return (
        '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:1rem">'
        f"<div>{before}</div><div>{after}</div></div>"
    )


def _table(made: list[_Made]) -> Table:
    protocol, rows = light_protocol(_POINTS, _ICP_STEPS), []
    for one in made:
        for name, meshes in (("single frames", one.single), ("stage I + II", one.moving)):
            values = measure_meshes(meshes, one.clips, one.place, protocol, name != "single frames")
            counts = sorted({len(mesh.vertices) for mesh in meshes})
            rows.append(
                [
                    one.name,
                    name,
                    f"{values['cd_3d']:.3f}",
                    f"{values['cd_4d']:.3f}",
                    f"{values['cd_m']:.3f}" if "cd_m" in values else "–",
                    f"{values['agree']:.0f} of {values['counted']:.0f}",
                    f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}",
                ]
            )
    return Table(
        title="How near these are to the truth",
        columns=["clip", "made by", "CD-3D", "CD-4D", "CD-M", "side kept", "vertices"],
        rows=rows,
        note="CD-3D aligns every frame by itself, CD-4D all as the first; CD-M follows vertices; smaller is better. Side kept: frames in "
        "which the tail is on the side that the first frame says, of those where it is clear. The animated mesh is moved "
        "from the true one in the first frame, that of single frames is not. "
        "Two clips say little; the study has more.",
    )


def _text(text: str, width: int, height: int) -> Float[Tensor, "3 height width"]:
    """A label on white, in its middle."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((width / 2, height / 2), text, fill=(70, 76, 84), font=ImageFont.load_default(14), anchor="mm")
    return to_image_tensor(image)
