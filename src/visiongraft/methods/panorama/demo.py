"""The gallery section: photographs and worlds lifted on the spot with the bundled weights, beside the study's numbers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_from_perspective
from visiongraft.media.images import center_square, resize
from visiongraft.methods.panorama import small
from visiongraft.methods.panorama.camera import CameraEstimates, estimate_cameras
from visiongraft.methods.panorama.released import BUNDLED, load
from visiongraft.methods.panorama.study_figures import enlarged, outlined, picture_grid
from visiongraft.methods.panorama.viewer import viewer_snippet
from visiongraft.methods.panorama.world_samples import WorldSamples, world_samples
from visiongraft.metrics.seams import seam_ratio
from visiongraft.studies import Figure, Report, Section, Table
from visiongraft.worlds.generation import KINDS
from visiongraft.worlds.scans import photograph

_SEED = 20_260_122  # of worlds that no training has seen
_PHOTOGRAPHS = ("astronaut", "rocket")


def demo(output: Path) -> Section:
    """Lifts one held-out world of each kind and two photographs, and a short clip.

    Args:
        output: folder for the pictures.

    Returns:
        The method's section of the gallery.
    """
    pipeline: Any = load("small")
    pipeline.set_progress_bar_config(disable=True)
    worlds = world_samples(len(KINDS), _SEED, height=small.HEIGHT, size=small.CONDITION_SIZE, progress=False)
    side = (small.CONDITION_SIZE, small.CONDITION_SIZE)
    photographs = torch.stack([resize(center_square(photograph(name)), side) for name in _PHOTOGRAPHS])
    inputs = torch.cat([worlds.inputs.float() / 255, photographs])
    prompts = [*worlds.captions, *(f"a photograph of the {name}" for name in _PHOTOGRAPHS)]
    panoramas = pipeline(list(inputs), prompts, generator=torch.Generator().manual_seed(0), output_type="pt").images
    cameras = estimate_cameras(inputs, panoramas)
    study_folder = BUNDLED["small"].parent / "study"
    study = Report.read(study_folder)
    for figure in study.figures:
        figure.path = str(study_folder / figure.path)
    return Section(
        method="panorama",
        title="Panoramas from any photo or video",
        arxiv="2601.16192",
        lead=(
            "A transformer is shown the clean tokens of an ordinary picture beside the noisy tokens of a whole panorama; nobody tells it "
            "the field of view, the pitch or the roll. Circular latent encoding keeps the left and right borders neighbours, so that no "
            "seam appears. The first two figures were computed just now, with small weights trained for minutes on procedural worlds: "
            "64 x 128 pixels, rough, and honest about it."
        ),
        figures=[_lifted(output / "lifted.png", inputs, panoramas, cameras, worlds), _clip(output / "clip.png"), *study.figures],
        tables=[_table(worlds, panoramas, cameras), *study.tables],
        claims=list(study.claims),
        notes=list(study.notes),
        commands=[
            "visiongraft panorama lift photo.jpg",
            "visiongraft panorama lift clip.mp4",
            "visiongraft panorama seam-check panorama.png",
            "visiongraft panorama study",
        ],
        html=viewer_snippet(
            panoramas[2],
            title="A landscape, lifted from one view",
            note="The panorama of the third row above: 64 x 128 pixels, drawn by the bundled weights.",
            hfov_deg=120.0,
        ),
    )


def _lifted(path: Path, inputs: Tensor, panoramas: Tensor, cameras: CameraEstimates, worlds: WorldSamples) -> Figure:
    """Input, panorama with the place of the input, and the truth where there is one."""
    rows = []
    seen = panorama_from_perspective(inputs, cameras.hfov, cameras.rotation, small.HEIGHT)[1]
    true = panorama_from_perspective(
        worlds.inputs.float() / 255, worlds.cameras[:, 0], rotation_from_angles(*worlds.cameras[:, 1:].unbind(1)), small.HEIGHT
    )[1]
    blank = torch.ones(3, 4 * small.HEIGHT, 8 * small.HEIGHT)
    for i, picture in enumerate(inputs):
        known = i < len(worlds)
        truth = outlined(worlds.panoramas[i].float() / 255, true[i], 4) if known else blank
        rows.append([enlarged(picture, 8), outlined(panoramas[i], seen[i], 4), truth])
    labels = [*KINDS, *(f"photo: {name}" for name in _PHOTOGRAPHS)]
    picture_grid(rows, ["input", "panorama; outline: the input, as found", "truth; outline: true camera"], labels, path, 1.6)
    return Figure(
        title="Lifted just now",
        path=str(path),
        alt="Six inputs, the panoramas made of them, and the true panoramas of the four worlds",
        caption="Worlds that no training has seen, and two photographs, which are far from anything the small weights know.",
    )


def _clip(path: Path) -> Figure:
    """First, middle and last frame of a lifted clip."""
    pipeline: Any = load("small-video")
    pipeline.set_progress_bar_config(disable=True)
    worlds = world_samples(2, _SEED, height=small.HEIGHT, size=small.CONDITION_SIZE, frames=small.NUM_FRAMES, progress=False)
    clip, truth = worlds.inputs[1].float() / 255, worlds.panoramas[1].float() / 255
    frames = pipeline(
        clip, worlds.captions[1], guidance_scale=1.0, num_inference_steps=30, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).frames[0]
    chosen = [0, small.NUM_FRAMES // 2, small.NUM_FRAMES - 1]
    rows = [[enlarged(clip[i], 8), enlarged(frames[i], 4), enlarged(truth[i], 4)] for i in chosen]
    picture_grid(rows, ["input", "panorama", "truth"], [f"frame {i}" for i in chosen], path, 1.6)
    return Figure(
        title="A clip, lifted just now",
        path=str(path),
        alt="Three frames of a clip, of the panorama video made of it, and of the truth",
        caption="The camera walks and turns; the panorama keeps the direction of the first frame in its middle. The video weights were "
        "trained for a few minutes on 40 worlds, and know little more than sky and ground.",
    )


def _table(worlds: WorldSamples, panoramas: Tensor, cameras: CameraEstimates) -> Table:
    degrees = worlds.cameras.rad2deg()
    made, true = seam_ratio(panoramas), seam_ratio(worlds.panoramas.float() / 255)
    found = torch.stack([cameras.hfov_deg, cameras.pitch_deg, cameras.roll_deg], 1)
    rows: list[list[Any]] = []
    for i, name in enumerate([*KINDS, *_PHOTOGRAPHS]):
        angles = [f"{float(found[i, k]):.0f}" for k in range(3)]
        if i < len(worlds):
            angles = [f"{angle} ({float(degrees[i, k]):.0f})" for angle, k in zip(angles, (0, 2, 3), strict=True)]
        ratio = f"{float(made[i]):.2f}" + (f" ({float(true[i]):.2f})" if i < len(worlds) else "")
        rows.append([name, *angles, f"{float(cameras.ncc[i]):.2f}", bool(cameras.reliable[i]), ratio])
    return Table(
        title="What these panoramas say of their inputs' cameras",
        columns=["input", "field of view", "pitch", "roll", "correlation", "reliable", "seam ratio"],
        rows=rows,
        note="Degrees; in brackets the truth.",
    )
