"""The cells of the study: which models make what of the held-out clips, and what is measured of it.

The known latent is that of the true shape at the anchor (the VAE's): this is the mode in which a mesh is given with the video. Everything
goes through the pipeline's own functions.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.surfaces import Mesh
from visiongraft.methods.action_mesh.guidance import PairGuidance
from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler
from visiongraft.methods.action_mesh.sampler import frame_noise
from visiongraft.methods.action_mesh.shape_latents import sample_shape
from visiongraft.methods.action_mesh.stage_one import generate_latents
from visiongraft.methods.action_mesh.stage_two import deform_mesh
from visiongraft.methods.action_mesh.study_clips import Clips, held_out_clips, true_latents
from visiongraft.methods.action_mesh.study_measures import (
    decoded_meshes,
    light_protocol,
    measure_meshes,
    measure_overlap,
    motion_errors,
    true_meshes,
)
from visiongraft.methods.action_mesh.study_options import StudyBudget, StudyOptions
from visiongraft.methods.action_mesh.study_training import (
    AUTOENCODER,
    BASE,
    DENOISER,
    NO_NORMALS,
    NO_ROPE,
    NO_SOURCES,
    PAIR_IN_QUERIES,
    VAE,
    load_model,
)
from visiongraft.methods.action_mesh.windows import plan_windows
from visiongraft.training.order import derived_seed

FIRST, MIDDLE, LAST, NONE = "first", "middle", "last", "none"
TRUE = "true"
MOTIONS = ("const", "mixed")
"""Of the clips: ``mixed`` as in training; ``const``, the animals' tails never cross the middle, training has only by chance."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way from a clip to meshes.

    Args:
        label: in tables.
        latents: the training that makes them: ``base``, a denoiser or the VAE; ``true``: shapes are the truth itself.
        anchor: which frame's latent is known.
        same_noise: in all frames.
        motion: the training of stage II that moves the anchor's mesh; None: a mesh of each frame.
        clips: ``all``, ``side`` (fewer) or ``long`` ones.
        one_window: long clips in one window, longer than in training.
        overlap: count overlap, too.
    """

    label: str
    latents: str = DENOISER
    anchor: str = FIRST
    same_noise: bool = False
    motion: str | None = None
    clips: str = "all"
    one_window: bool = False
    overlap: bool = False


CELLS: dict[str, Cell] = {
    "base": Cell(label="single frames (base)", latents=BASE, anchor=NONE, overlap=True),
    "same-noise": Cell(label="single frames, same noise", latents=BASE, anchor=NONE, same_noise=True, overlap=True),
    "one": Cell(label="stage I", overlap=True),
    "two": Cell(label="stage I + II", motion=AUTOENCODER),
    "vae": Cell(label="VAE reconstruction", latents=VAE, overlap=True),
    "truth": Cell(label="true shapes, meshed alike", latents=TRUE),
    "no-rope": Cell(label="stage I without RoPE", latents=NO_ROPE, clips="side"),
    "no-sources": Cell(label="stage I trained and run without sources", latents=NO_SOURCES, anchor=NONE, clips="side"),
    "run-without-sources": Cell(label="stage I run without sources", anchor=NONE, clips="side"),
    "no-normals": Cell(label="stage I + II without normals", motion=NO_NORMALS, clips="side"),
    "pair-in-queries": Cell(label="stage I + II, pair in the queries", motion=PAIR_IN_QUERIES, clips="side"),
    "middle": Cell(label="stage I, anchor in the middle", anchor=MIDDLE, clips="side"),
    "last": Cell(label="stage I, anchor at the end", anchor=LAST, clips="side"),
    "two-middle": Cell(label="stage I + II, anchor in the middle", anchor=MIDDLE, motion=AUTOENCODER, clips="side"),
    "two-last": Cell(label="stage I + II, anchor at the end", anchor=LAST, motion=AUTOENCODER, clips="side"),
    "long-base": Cell(label="long clips, single frames", latents=BASE, anchor=NONE, clips="long"),
    "two-windows": Cell(label="long clips, stage I in two windows", clips="long"),
    "one-window": Cell(label="long clips, stage I in one window", clips="long", one_window=True),
    "long-two": Cell(label="long clips, stage I + II in two windows", motion=AUTOENCODER, clips="long"),
}
"""All cells by key."""
MOVED = {
    f"{variant}, {latents}": (variant, latents) for latents in (TRUE, DENOISER) for variant in (AUTOENCODER, NO_NORMALS, PAIR_IN_QUERIES)
}
"""Trainings of stage II on the true latents and on those of stage I, whose vertices are compared one by one."""


class Bench:
    """One seed's models, held-out clips and latents, each made when it is first asked for.

    Args:
        options: of the study.
        seed: of trainings, clips and noise.
    """

    def __init__(self, options: StudyOptions, seed: int) -> None:
        self.options, self.seed, self.plan = options, seed, options.plan
        self.model = functools.cache(self._model)
        self.clips = functools.cache(self._clips)
        self.known = functools.cache(self._known)
        self.latents = functools.cache(self._latents)

    def _model(self, name: str) -> Any:
        return load_model(name, self.seed, self.options).requires_grad_(False)

    def _clips(self, motion: str, kind: str) -> Clips:
        plan: StudyBudget = self.plan
        if kind == "side":
            return self.clips(motion, "all").first(plan.side_clips)
        count, frames = (plan.long_clips, plan.long_frames) if kind == "long" else (plan.clips, plan.frames)
        return held_out_clips(motion, count, frames, plan.points, plan.grid, self.seed, plan.frames)

    def _known(self, motion: str, kind: str) -> Float[Tensor, "clips frames tokens channels"]:
        """The VAE's latents of the true shapes."""
        if kind == "side":
            return self.known(motion, "all")[: self.plan.side_clips]
        return true_latents(self.model(VAE), self.clips(motion, kind), self._tokens(), self.seed)

    def _tokens(self) -> int:
        return self.model(DENOISER).config.num_tokens_nominal

    def _latents(
        self, name: str, anchor: str, same_noise: bool, motion: str, kind: str, one_window: bool
    ) -> Float[Tensor, "clips frames tokens channels"]:
        """Latents of all clips of a motion at once."""
        if name in (VAE, TRUE):
            return self.known(motion, kind)
        if kind == "side" and (name, anchor) in ((BASE, NONE), (DENOISER, FIRST)):
            return self.latents(name, anchor, same_noise, motion, "all", one_window)[: self.plan.side_clips]
        clips, known, plan = self.clips(motion, kind), self.known(motion, kind), self.plan
        noise_seed = derived_seed("noise of the study", self.seed, motion, kind) % 2**31
        if name == BASE:
            noise = frame_noise(tuple(known.shape), torch.Generator().manual_seed(noise_seed), 1.0 if same_noise else 0.0)  # pyright: ignore[reportArgumentType]
            options: dict[str, Any] = {"num_steps": plan.steps, "guidance_scale": plan.guidance, "noise": noise.flatten(0, 1)}
            made = sample_shape(self.model(BASE), RectifiedFlowScheduler(), clips.context.flatten(0, 1), **options)
            return made.unflatten(0, known.shape[:2])
        frame = anchor_frame(anchor, known.shape[1])
        window = known.shape[1] if one_window else plan.frames
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Without an anchor")
            bank = generate_latents(
                self.model(name),
                clips.context,
                TimeBank() if frame is None else TimeBank({frame: known[:, frame]}),
                anchor=frame,
                num_tokens=known.shape[2],
                channels=known.shape[3],
                window=window,
                slide=window - 1,
                num_steps=plan.steps,
                shift=1.0,
                guidance=PairGuidance.image(plan.guidance),
                seed=noise_seed,
                noise_correlation=1.0 if same_noise else 0.0,
            )
        return bank.stack(range(known.shape[1]), dim=1)

    def meshes(self, cell: Cell, motion: str, index: int) -> tuple[list[Mesh], int]:
        """One clip's mesh of every frame, and the number of those that have no surface."""
        clips, plan = self.clips(motion, cell.clips), self.plan
        if cell.latents == TRUE:
            return true_meshes(clips, index, plan.resolution), 0
        latents = self.cell_latents(cell, motion)[index]
        if cell.motion is None:
            return decoded_meshes(self.model(VAE), latents, plan.resolution)
        frame = anchor_frame(cell.anchor, len(latents)) or 0
        (mesh,), empty = decoded_meshes(self.model(VAE), latents[frame : frame + 1], plan.resolution)
        moved = self.moved(cell.motion, latents, mesh.vertices, mesh.faces, frame)
        return [Mesh(vertices, mesh.faces) for vertices in moved], empty

    def cell_latents(self, cell: Cell, motion: str) -> Float[Tensor, "clips frames tokens channels"]:
        """Latents of a cell's clips."""
        return self.latents(cell.latents, cell.anchor, cell.same_noise, motion, cell.clips, cell.one_window)

    def moved(self, name: str, latents: Tensor, vertices: Tensor, faces: Tensor, anchor: int) -> Float[Tensor, "frames v 3"]:
        """Vertices at every frame by stage II."""
        size = self.plan.frames
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*at the sides of the models' box.*")
            bank = deform_mesh(
                self.model(name),
                TimeBank(dict(enumerate(latents))),
                vertices,
                faces,
                plan_windows(anchor, len(latents), size, size - 1),
                targets_at_once=size,
            )
        return bank.stack()


def anchor_frame(anchor: str, frames: int) -> int | None:
    """Number of the known frame."""
    return {FIRST: 0, MIDDLE: frames // 2, LAST: frames - 1, NONE: None}[anchor]


def measure_cell(bench: Bench, key: str, motion: str) -> dict[str, list[float]]:
    """What a cell is measured as: one value a clip by name, see :func:`measure_meshes`; ``empty`` counts frames without surface."""
    cell = CELLS[key]
    clips = bench.clips(motion, cell.clips)
    protocol = light_protocol(bench.plan.points, bench.plan.icp_steps)
    rows: list[dict[str, float]] = []
    for index in range(len(clips)):
        meshes, empty = bench.meshes(cell, motion, index)
        row = measure_meshes(meshes, clips, index, protocol, cell.motion is not None) | {"empty": empty}
        if cell.overlap:
            row |= measure_overlap(bench.model(VAE), bench.cell_latents(cell, motion)[index], clips, index)
        rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]}


def measure_motion(bench: Bench, key: str, motion: str) -> dict[str, list[float]]:
    """Errors of stage II's vertices on the true meshes: one value a clip by name, see :func:`motion_errors`."""
    name, source = MOVED[key]
    clips = bench.clips(motion, "all")
    latents = bench.latents(source, FIRST, False, motion, "all", False)
    rows = []
    for index in range(len(clips)):
        vertices, faces, seen = clips.mesh(index)
        rows.append(motion_errors(bench.moved(name, latents[index], vertices[0], faces, 0), vertices, seen, 0))
    return {value: [row[value] for row in rows] for value in rows[0]}
