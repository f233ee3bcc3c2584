"""ActionBench over folders: every prediction that has a ground truth, one CSV row each, and a JSON summary.

    summary = evaluate_folder("actionbench/data", "predictions", "results.csv", device="cuda")

Ground truth is ``<uid>/surfaces.npy`` (frames, points, 6): tracked points with normals. A prediction is a folder of the same name with one
mesh a frame (``mesh_00.glb``, ...), or one animated mesh (``.npz`` or an animated ``.glb``). Columns and keys that ActionBench's own script
writes keep its names, so that tools that read its files read these.
"""

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from visiongraft.geometry.surfaces import Mesh
from visiongraft.media.files import atomic_write, ensure_writable_folder
from visiongraft.methods.action_mesh.benchmark_files import PATTERN, TRUTH, find_predictions, find_truth, read_prediction, read_surfaces
from visiongraft.metrics.animated_meshes import (
    AnimationProtocol,
    AnimationScores,
    check_one_topology,
    cloud_flicker,
    find_variant,
    sample_frames,
    score_animation,
    vertex_flicker,
)

_MEANS = ("cd_3d", "cd_4d", "cd_motion", "flicker", "detour")


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """A row of the CSV file.

    Args:
        uid: name of the sample's folder.
        cd_3d, cd_4d: see :mod:`visiongraft.metrics.animated_meshes`.
        cd_motion: CD-M; none where it was left out.
        flicker: second difference of the aligned vertices; none without one topology or with fewer than 3 frames.
        flicker_truth: the same of the ground truth's points, to compare with.
        detour: of :func:`visiongraft.metrics.animated_meshes.cloud_flicker`, which needs no common topology.
        n_frames: of the ground truth.
        status: ``success`` or ``error``.
        error_message: why.
    """

    uid: str
    cd_3d: float | None = None
    cd_4d: float | None = None
    cd_motion: float | None = None
    flicker: float | None = None
    flicker_truth: float | None = None
    detour: float | None = None
    n_frames: int = 0
    status: str = "success"
    error_message: str = ""


@runtime_checkable
class FolderOptions(Protocol):
    """What ``visiongraft action_mesh evaluate`` asks for; see :func:`evaluate_folder`."""

    ground_truth: Path
    predictions: Path
    output: Path
    variant: str
    motion: bool
    pattern: str
    recompute: bool
    device: str


def evaluate_files(options: FolderOptions) -> int:
    """Evaluates as the command line asks, prints the summary, and returns 0, or 1 where samples failed or are missing.

    Raises:
        FileNotFoundError, ValueError: as :func:`evaluate_folder`.
    """
    summary = evaluate_folder(
        options.ground_truth,
        options.predictions,
        options.output,
        options.variant,
        motion=options.motion,
        pattern=options.pattern,
        recompute=options.recompute,
        device=options.device,
        progress=True,
    )
    print(f"{summary['n_success']} of {summary['n_ground_truth']} samples evaluated ({options.variant})")
    for name in _MEANS:
        value = summary[f"{name}_mean"]
        print(f"{name}: {'-' if value is None else f'{value:.3f}'}")
    for uid, message in summary["failed"].items():
        print(f"failed: {uid}: {message}")
    print(f"written to {options.output} and {summary_path(options.output)}")
    return 0 if summary["complete"] else 1


def evaluate_folder(
    ground_truth: str | Path,
    predictions: str | Path,
    output: str | Path,
    variant: str | AnimationProtocol = "released",
    *,
    motion: bool = True,
    pattern: str = PATTERN,
    recompute: bool = False,
    device: torch.device | str = "cpu",
    search: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """Scores every prediction that has a ground truth. What is done is written down after each sample; a second run goes on from there.

    Samples that failed are tried again. A sample that has a row is not looked at again, even if its files have changed since:
    ``recompute`` starts over.

    Args:
        ground_truth: folder of ``<uid>/surfaces.npy``.
        predictions: folder of ``<uid>/mesh_*.glb`` or of one animated mesh each.
        output: the CSV file; the summary stands beside it with the suffix ``.summary.json``.
        variant: ``released``, ``paper``, ``light`` or a protocol; see :data:`visiongraft.metrics.animated_meshes.VARIANTS`.
        motion: measure CD-M. Leave it out for meshes that were made frame by frame.
        pattern: which files of a prediction are frames, in natural order (2 before 10).
        recompute: start over.
        device: where clouds are aligned.
        search: how nearest points are found; see :func:`visiongraft.metrics.chamfer.nearest_points`.
        progress: show a bar.

    Returns:
        The summary: ``cd_3d_mean`` and so on over the samples that succeeded, how many those are and of how many, which predictions
        are missing, which have no ground truth, what failed and why, and ``complete``: whether the means are over the whole ground truth.

    Raises:
        FileNotFoundError: no ground truth, no predictions, or none with a name in common.
        ValueError: an unknown variant, or an output that was written with other settings.
        PermissionError: an output that cannot be written.

    Source: ActionMesh brief, 7 and 10.
    """
    ground_truth, predictions, output = Path(ground_truth), Path(predictions), Path(output)
    protocol = find_variant(variant)
    true, predicted = find_truth(ground_truth), find_predictions(predictions, pattern)
    common = sorted(true & predicted)
    if not common:
        raise FileNotFoundError(
            f"No prediction has the name of a ground truth: {predictions} has {_some(predicted)}, {ground_truth} has {_some(true)}. "
            "Name each prediction's folder like its ground truth."
        )
    settings = {"protocol": asdict(protocol), "motion": motion, "pattern": pattern}
    ensure_writable_folder(output.parent)
    if recompute:
        output.unlink(missing_ok=True)  # no row of other settings may stay beside a new summary
    known = _known_results(output, settings)
    results: list[SampleResult] = []
    for uid in tqdm(common, desc="evaluating", disable=not progress):
        result = known.get(uid)
        if result is None:
            result = _evaluate_sample(ground_truth / uid, predictions / uid, protocol, motion, pattern, device, search)
        results.append(result)
        # rows of an earlier run that are still to come must outlive a kill
        waiting = [known[name] for name in common[len(results) :] if name in known]
        _write(output, results + waiting, _summary(results + waiting, true, predicted, settings))
    summary = _summary(results, true, predicted, settings)
    if not summary["complete"]:
        warnings.warn(
            f"The means are over {summary['n_success']} of {summary['n_ground_truth']} samples: {len(summary['missing_predictions'])} have "
            f"no prediction, {summary['n_failed']} failed; they do not compare with means over all.",
            stacklevel=2,
        )
    return summary


def _evaluate_sample(
    truth_folder: Path,
    folder: Path,
    protocol: AnimationProtocol,
    motion: bool,
    pattern: str,
    device: torch.device | str,
    search: str,
) -> SampleResult:
    num_frames = 0
    try:
        truth = read_surfaces(truth_folder / TRUTH)
        num_frames = len(truth)
        meshes = read_prediction(folder, num_frames, pattern)
        scores = score_animation(truth, meshes, protocol, motion=motion, device=device, search=search)
        flickers = _flickers(truth, meshes, scores, protocol, search) if num_frames > 2 else {}
    except (ValueError, OSError) as error:
        return SampleResult(uid=folder.name, n_frames=num_frames, status="error", error_message=" ".join(str(error).split()))
    return SampleResult(
        uid=folder.name, cd_3d=scores.cd_3d, cd_4d=scores.cd_4d, cd_motion=scores.cd_motion, n_frames=num_frames, **flickers
    )


def _flickers(
    truth: Float[Tensor, "frames q 3"], meshes: Sequence[Mesh], scores: AnimationScores, protocol: AnimationProtocol, search: str
) -> dict[str, Any]:
    """Flicker in the units of the truth."""
    clouds = scores.pose.apply(sample_frames(meshes, protocol.queries, protocol.seed))
    found = {"flicker_truth": vertex_flicker(truth), "detour": cloud_flicker(clouds, 0, search=search).detour}
    try:
        check_one_topology(meshes)
    except ValueError:
        return found
    return found | {"flicker": vertex_flicker(scores.pose.apply(torch.stack([mesh.vertices for mesh in meshes])))}


def summary_path(output: str | Path) -> Path:
    """Where the summary of an evaluation stands."""
    return Path(output).with_suffix(".summary.json")


def _known_results(output: Path, settings: Mapping[str, Any]) -> dict[str, SampleResult]:
    """Samples that succeeded in an earlier run with the same settings."""
    if not output.exists():
        return {}
    advice = "Choose another output, or give recompute to start over."
    try:
        stored = json.loads(summary_path(output).read_text(encoding="utf-8"))["settings"]
        with output.open(encoding="utf-8", newline="") as file:
            rows = [_parsed(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{output} cannot be gone on with: it or its summary is not of an evaluation ({error!r}). {advice}") from error
    if stored != json.loads(json.dumps(settings)):
        raise ValueError(f"{output} was written with other settings ({stored}). {advice}")
    return {row.uid: row for row in rows if row.status == "success"}


def _parsed(row: Mapping[str, str]) -> SampleResult:
    texts = {"uid", "status", "error_message"}
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(SampleResult)}
    numbers: dict[str, Any] = {name: float(value) if value else None for name, value in values.items() if name not in texts}
    numbers["n_frames"] = int(values["n_frames"])
    return SampleResult(**(values | numbers))


def _write(output: Path, results: Sequence[SampleResult], summary: Mapping[str, Any]) -> None:
    # the summary first: it says with which settings the rows were made
    with atomic_write(summary_path(output)) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(SampleResult)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in sorted(results, key=lambda result: result.uid))


def _summary(results: Sequence[SampleResult], true: set[str], predicted: set[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    done = [result for result in results if result.status == "success"]
    return {
        "n_ground_truth": len(true),
        "n_predictions": len(predicted),
        "n_total": len(results),
        "n_success": len(done),
        "n_failed": len(results) - len(done),
        "success_rate": len(done) / len(results),
        "complete": len(done) == len(true),
        **{f"{name}_mean": _mean([getattr(result, name) for result in done]) for name in _MEANS},
        "missing_predictions": sorted(true - predicted),
        "without_ground_truth": sorted(predicted - true),
        "failed": {result.uid: result.error_message for result in results if result.status != "success"},
        "settings": dict(settings),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Of all samples, or nothing: a mean over those that happen to have the number would be of another set."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _some(names: set[str]) -> str:
    listed = ", ".join(sorted(names)[:3])
    return f"{len(names)} ({listed}{', ...' if len(names) > 3 else ''})"
