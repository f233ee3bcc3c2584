"""What the study's measurements say: claims, beside tables and figures."""

from typing import Any

import numpy as np

import visiongraft
from visiongraft.methods.action_mesh.study_cells import CELLS, MOTIONS, MOVED, TRUE
from visiongraft.methods.action_mesh.study_claims import study_claims
from visiongraft.methods.action_mesh.study_figures import draw_figures
from visiongraft.methods.action_mesh.study_options import StudyBudget, StudyOptions
from visiongraft.methods.action_mesh.study_training import VARIANTS
from visiongraft.methods.action_mesh.study_values import Results, agreement, clip_values, interval, seed_values
from visiongraft.studies import Report, Table
from visiongraft.studies.claim import spread

HEADLINE = tuple(key for key, cell in CELLS.items() if cell.clips == "all")
SIDE = tuple(key for key, cell in CELLS.items() if cell.clips == "side")
LONG = tuple(key for key, cell in CELLS.items() if cell.clips == "long")


def study_report(
    options: StudyOptions, results: Results, bundled: dict[str, Any] | None, settings: dict[str, Any], elapsed: float
) -> Report:
    """Claims, tables and figures (written to ``options.output``) from the measurements of every seed.

    Args:
        options: of the study.
        results: one a seed.
        bundled: of the package's models, where they were written.
        settings: of the report.
        elapsed: seconds of all units.
    """
    plan = options.plan
    return Report(
        method="action_mesh",
        title="From shapes of single frames to one moving mesh",
        claims=study_claims(results, plan),
        tables=[
            *(distance_table(results, motion) for motion in MOTIONS),
            consistency_table(results),
            side_table(results, plan),
            long_table(results, plan),
            vertex_table(results),
            training_table(results),
            *([bundled_table(bundled, options)] if bundled else []),
        ],
        figures=draw_figures(options.output, results),
        notes=_notes(options, results),
        settings=settings,
        seeds=tuple(options.seeds),
        elapsed_s=elapsed,
        version=visiongraft.__version__,
    )


def distance_table(results: Results, motion: str) -> Table:
    """Distances of what the headline compares."""
    told = "the tail never crosses the middle" if motion == "const" else "as in training, half of the tails cross the middle"
    rows: list[list[Any]] = [
        [CELLS[key].label, *(_with_interval(results, key, name, (motion,)) for name in ("cd_3d", "cd_4d", "cd_m"))] for key in HEADLINE
    ]
    return Table(
        title=f"Distances to the truth, motion {motion}",
        columns=["result", "CD-3D", "CD-4D", "CD-M"],
        rows=rows,
        note=f"Held-out clips, {told}. Mean over clips and seeds with 95 % intervals, bootstrapped over seeds and clips. CD-3D aligns "
        "every frame, CD-4D only frame 0, CD-M follows points of one mesh. The light protocol is comparable with itself only.",
    )


def consistency_table(results: Results) -> Table:
    """Sides, overlaps and flicker of what the headline compares."""
    rows: list[list[Any]] = []
    for key in HEADLINE:
        row: list[Any] = [CELLS[key].label, *(spread(agreement(results, key, (motion,))) for motion in MOTIONS)]
        row += [_spread_of(results, key, name, ("const",)) for name in ("iou_3d", "iou_4d", "change", "detour", "jitter")]
        rows.append(row)
    counted = [int(sum(clip_values(r, "base", "counted", (motion,)).sum() for r in results)) for motion in MOTIONS]
    return Table(
        title="Consistency",
        columns=["result", "side, const", "side, mixed", "IoU-3D", "IoU-4D", "change", "detour", "jitter of vertices"],
        rows=rows,
        note=f"Side: share of frames ({counted[0]} and {counted[1]} counted) whose tail is where frame 0 makes one expect it; chance is "
        "0.5. The rest is of the motion const. IoU-3D lets every frame, IoU-4D only the clip be turned by half a turn about x. Change: "
        "chamfer distance of neighbouring frames; detour: how far a frame lies off the way between its neighbours; jitter: second "
        "differences of vertices. Mean over clips (range over seeds).",
    )


def side_table(results: Results, plan: StudyBudget) -> Table:
    """Ablations and anchors."""
    clips = plan.side_clips
    rows: list[list[Any]] = [
        [CELLS[key].label, *(_with_interval(results, key, name, MOTIONS, clips) for name in ("cd_3d", "cd_4d", "cd_m"))]
        for key in ("one", "two", *SIDE)
    ]
    return Table(
        title="Ablations and anchors",
        columns=["result", "CD-3D", "CD-4D", "CD-M"],
        rows=rows,
        note=f"The same {clips} clips of each motion and seed for all rows. Without sources nothing is known, not even the anchor.",
    )


def long_table(results: Results, plan: StudyBudget) -> Table:
    """Clips of two windows."""
    return Table(
        title=f"Clips of {plan.long_frames} frames, windows of {plan.frames}",
        columns=["result", "CD-3D", "CD-4D", "CD-M"],
        rows=[[CELLS[key].label, *(_with_interval(results, key, name) for name in ("cd_3d", "cd_4d", "cd_m"))] for key in LONG],
        note=f"{plan.long_clips} clips of each motion and seed. The first window has the true shape at frame 0, the second the frame that "
        "the first one made last.",
    )


def vertex_table(results: Results) -> Table:
    """Stage II vertex by vertex."""
    rows: list[list[Any]] = [["staying at the source", *_vertex_row(results, next(iter(MOVED)), "still")]]
    rows.append(["nearest vertex of the true target mesh", *_vertex_row(results, next(iter(MOVED)), "nearest")])
    for key, (variant, latents) in MOVED.items():
        told = "true latents" if latents == TRUE else "latents of stage I"
        rows.append([f"{VARIANTS[variant].label}, {told}", *_vertex_row(results, key, "error")])
    return Table(
        title="Where the vertices of the true mesh go",
        columns=["answer", *(f"mean error, {motion}" for motion in MOTIONS)],
        rows=rows,
        note="The mesh of frame 0 is the true one, so that every vertex has a true place in every frame. Mean distance over vertices that "
        "are on the surface at both times.",
    )


def training_table(results: Results) -> Table:
    """How the models were trained."""
    rows: list[list[Any]] = []
    for name, variant in VARIANTS.items():
        runs = [result["training"][name] for result in results]
        loss = next(key for key in runs[0]["curve"] if key != "step")
        last = [float(np.mean(run["curve"][loss][-10:])) for run in runs]
        rows.append([variant.label, runs[0]["parameters"], runs[0]["steps"], loss, spread(last)])
    return Table(
        title="Training",
        columns=["training", "parameters", "steps", "loss", "its end"],
        rows=rows,
        note="The loss is the mean of the last ten that were recorded. Stage I starts from the base, stage II from the VAE's decoder.",
    )


def bundled_table(bundled: dict[str, Any], options: StudyOptions) -> Table:
    """The models that the package ships."""
    cells: dict[str, dict[str, list[float]]] = bundled["cells"]
    rows: list[list[Any]] = []
    for motion, values in cells.items():
        agree, counted = sum(values["agree"]), sum(values["counted"])
        side = f"{agree / counted:.2f}" if counted else "–"
        rows.append([motion, *(float(np.mean(values[name])) for name in ("cd_3d", "cd_4d", "cd_m")), side, int(sum(values["empty"]))])
    return Table(
        title="The bundled models, from pictures alone",
        columns=["motion", "CD-3D", "CD-4D", "CD-M", "side", "frames without surface"],
        rows=rows,
        note=f"Those of seed {options.seeds[0]}, {bundled['bytes'] / 1e6:.2f} MB, loaded as a user loads them; {options.plan.side_clips} "
        "held-out clip(s) of each motion. Nothing is known: stage 0 makes the shape of frame 0, which may lie on either side.",
    )


def _vertex_row(results: Results, key: str, name: str) -> list[str]:
    return [_with_interval(results, key, name, (motion,)) for motion in MOTIONS]


def _with_interval(results: Results, key: str, name: str, motions: tuple[str, ...] = MOTIONS, clips: int | None = None) -> str:
    """Mean with its interval; a dash for what a cell does not have."""
    if not _has(results, key, name):
        return "–"
    groups = [clip_values(result, key, name, motions, clips) for result in results]
    low, high = interval(groups)
    return f"{np.mean([group.mean() for group in groups]):.3f} ({low:.3f} to {high:.3f})"


def _spread_of(results: Results, key: str, name: str, motions: tuple[str, ...]) -> str:
    return spread(seed_values(results, key, name, motions)) if _has(results, key, name) else "–"


def _has(results: Results, key: str, name: str) -> bool:
    rows = results[0]["cells"].get(key) or results[0]["moved"][key]
    return name in next(iter(rows.values()))


def _notes(options: StudyOptions, results: Results) -> list[str]:
    plan = options.plan
    empty = {CELLS[key].label: count for key in CELLS if (count := int(sum(clip_values(result, key, "empty").sum() for result in results)))}
    told = ", ".join(f"{label}: {count}" for label, count in empty.items())
    notes = [
        "The latent of the anchor is that of the true shape, through the VAE: this is the mode in which a mesh is given with the video. "
        "With stages I + II the mesh that moves is extracted from that latent, so that it is compared with stage I alike; only the table "
        f"of vertices moves the true mesh. Sampling: {plan.steps} Euler steps, guidance {plan.guidance:g}, shift 1.",
        "The world is a toy: one kind of animal, silhouettes of 16x16 pixels in place of photographs and DINOv2, one ambiguity (a tail "
        "towards or away from the viewer), models of half a million parameters. Directions count, not numbers.",
        "CD-4D aligns a clip by its frame 0 alone: where the tail is nearly straight there, the turn about it is hardly determined, and "
        "even true shapes come out worse.",
        "Frames without a surface are measured as a speck at the origin, so that they count as the failures that they are"
        + (f". There were: {told}." if told else "; there were none."),
    ]
    if options.scale == "smoke":
        notes.insert(
            0, "Scale smoke: a thirtieth of the training on one clip. It only shows that everything runs; no claim means anything."
        )
    return notes
