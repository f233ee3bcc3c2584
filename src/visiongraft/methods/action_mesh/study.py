"""The small-scale study of ActionMesh: do the two grafts turn single shapes into one moving mesh, and what do they need for that?

Per seed: a VAE and a base on single frames of procedural animals, both grafts from them, and each graft without one of its parts; all on
held-out clips whose pictures leave the depth open. Nothing is tuned in between.
"""

import shutil
from dataclasses import asdict
from typing import Any

from visiongraft.methods.action_mesh.study_bundle import measure_bundle, write_bundle
from visiongraft.methods.action_mesh.study_cells import CELLS, MOTIONS, MOVED, Bench, measure_cell, measure_motion
from visiongraft.methods.action_mesh.study_options import StudyOptions
from visiongraft.methods.action_mesh.study_pictures import SHEET, animation_sheet
from visiongraft.methods.action_mesh.study_report import study_report
from visiongraft.methods.action_mesh.study_training import VARIANTS, seed_folder, train_variant
from visiongraft.studies import Report, Study


def run_study(options: StudyOptions) -> Report:
    """Trains and measures every seed, writes report.json, report.md and figures to ``options.output``, and returns the report.

    With ``bundle`` the first seed's models are written to ``options.output / "weights" / "small"``. Processes may share the work, each
    with seeds of its own, on one output; a last call with all of them then trains what is missing and reports.
    """
    settings = asdict(options.plan)
    study = Study(name="action_mesh", output=options.output, settings=settings)
    results = [_seed(study, options, seed) for seed in options.seeds]
    shutil.copyfile(seed_folder(options, options.seeds[0]) / SHEET, options.output / SHEET)
    bundled = _bundle(study, options) if options.bundle else None
    report = study_report(options, results, bundled, settings, study.seconds)
    report.write(options.output)
    return report


def _seed(study: Study, options: StudyOptions, seed: int) -> dict[str, Any]:
    """Everything of one seed: ``training`` by variant, ``cells`` and ``moved`` by key and motion."""
    training = {name: study.unit(f"train-{seed}-{name}", lambda name=name: train_variant(name, seed, options)) for name in VARIANTS}
    bench = Bench(options, seed)
    cells = {
        key: {motion: study.unit(f"cell-{seed}-{key}-{motion}", lambda k=key, m=motion: measure_cell(bench, k, m)) for motion in MOTIONS}
        for key in CELLS
    }
    moved = {
        key: {motion: study.unit(f"moved-{seed}-{key}-{motion}", lambda k=key, m=motion: measure_motion(bench, k, m)) for motion in MOTIONS}
        for key in MOVED
    }
    study.unit(f"pictures-{seed}", lambda: animation_sheet(bench, seed_folder(options, seed) / SHEET))
    return {"training": training, "cells": cells, "moved": moved}


def _bundle(study: Study, options: StudyOptions) -> dict[str, Any]:
    """The package's models: ``bytes``, and ``cells`` by motion."""
    seed = options.seeds[0]
    size = write_bundle(options)
    return {"bytes": size, "cells": study.unit(f"bundle-{seed}", lambda: measure_bundle(Bench(options, seed)))}
