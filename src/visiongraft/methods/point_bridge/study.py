"""The small-scale study of Point Bridge: does a policy that sees a few filtered points cross into the twin, and what does it need for that?

Per seed and task: scripted demonstrations of four instance pairs and generated ones from them, recorded once with points, a picture and an
unfiltered cloud. Per seed: policies of one trunk for all tasks on the same demonstrations, which see different things, and one on points
for each task; roll-outs of each in simulation and in the visually shifted twin. Nothing is tuned in between.
About two hours of one CPU core a seed, and half an hour more for the bundled policy.
"""

import functools
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.study_cells import MEASURED, NEW_PAIR, SIMULATION, TWIN, WHOLE_SURFACES, roll_out
from visiongraft.methods.point_bridge.study_data import make_demonstrations
from visiongraft.methods.point_bridge.study_options import StudyBudget, StudyOptions
from visiongraft.methods.point_bridge.study_pictures import EPISODE_PICTURE, TWIN_PICTURE, episode_sheet, twin_sheet
from visiongraft.methods.point_bridge.study_policies import POINTS, SINGLE, VARIANTS, train_policy, train_variant
from visiongraft.methods.point_bridge.study_report import study_report
from visiongraft.studies import Report, Study

BUNDLED_CELLS = (SIMULATION, WHOLE_SURFACES, TWIN, NEW_PAIR)
_NOT_OF_THE_STUDY = ("bundle_steps", "slots")
"""Parts of the budget that the study's own results do not depend on."""
_BUNDLED_SEED = 0
_BUNDLED_STARTS = 10_007


def run_study(options: StudyOptions) -> Report:
    """Trains and measures every seed, writes report.json, report.md and figures to ``options.output``, and returns the report.

    With ``bundle`` the policy of the package is trained too, into ``options.output / "weights" / "policy"``. Processes may share the
    work, each with seeds or tasks of its own, on one output; a last call with all of them then trains what is missing and reports.
    """
    settings = {name: value for name, value in asdict(options.budget).items() if name not in _NOT_OF_THE_STUDY}
    study = Study(name="point_bridge", output=options.output, settings=settings)
    results = [_seed(study, options, seed) for seed in options.seeds]
    bundled = bundle(study, options) if options.bundle else None
    for picture in (TWIN_PICTURE, EPISODE_PICTURE):
        shutil.copyfile(_folder(options, options.seeds[0]) / _named(options.tasks) / picture, options.output / picture)
    report = study_report(options, results, bundled, settings, study.seconds)
    report.write(options.output)
    return report


def _seed(study: Study, options: StudyOptions, seed: int) -> dict[str, Any]:
    """Everything of one seed: ``data`` by task, ``training`` by policy and task, ``cells`` by policy, cell and task."""
    budget = options.budget
    folders = {task: _data_folder(options, seed, task) for task in options.tasks}
    result: dict[str, Any] = {"data": {}, "training": {}, "cells": {name: {cell: {} for cell in MEASURED[name]} for name in VARIANTS}}
    for task, folder in folders.items():
        result["data"][task] = study.unit(
            f"data-{seed}-{_short(task)}", lambda task=task, folder=folder: make_demonstrations(task, seed, budget, folder)
        )
    for name, variant in VARIANTS.items():
        if name == SINGLE and len(options.tasks) == 1:  # it is the other one
            del result["cells"][name]
            continue
        for tasks in [(task,) for task in options.tasks] if variant.single_task else [options.tasks]:
            folder = _folder(options, seed) / _named(tasks) / _slug(name)
            data = {task: [folders[task]] for task in tasks}
            trained = study.unit(
                f"train-{seed}-{_slug(name)}-{_named(tasks)}",
                lambda name=name, data=data, folder=folder: train_variant(name, data, seed, budget, folder),
            )
            result["training"].setdefault(name, {})[_named(tasks)] = trained
            measured = _roll_outs(study, f"{seed}", name, MEASURED[name], tasks, folder, seed, budget)
            for cell, found in measured.items():
                result["cells"][name][cell] |= found
    succeeded = result["cells"][POINTS][TWIN][options.tasks[0]]["succeeded"]
    pictures = study.unit(f"pictures-{seed}-{_named(options.tasks)}", lambda: _pictures(options, seed, succeeded))
    result["pictures"] = pictures
    return result


def _roll_outs(
    study: Study, key: str, name: str, cells: tuple[str, ...], tasks: tuple[str, ...], folder: Path, seed: int, budget: StudyBudget
) -> dict[str, dict[str, Any]]:
    """Cells of one trained policy by cell and task. The policy is read when the first cell asks for it."""
    policy = functools.cache(lambda: PointBridgePolicy.from_pretrained(folder / "policy", tasks=tasks))
    trained_on = f"-{_named(tasks)}" if len(tasks) > 1 else ""

    def work(cell: str, task: str) -> dict[str, Any]:
        return roll_out(name, cell, task, policy(), seed, budget, folder / "cells" / _slug(cell) / _short(task))

    return {
        cell: {
            task: study.unit(f"cell-{key}-{_slug(name)}{trained_on}-{_slug(cell)}-{_short(task)}", lambda c=cell, t=task: work(c, t))
            for task in tasks
        }
        for cell in cells
    }


def _pictures(options: StudyOptions, seed: int, succeeded: list[list[int]]) -> dict[str, Any]:
    """The twin's looks, and an episode of the points policy: its first success, or its first start where there is none."""
    folder, budget, task = _folder(options, seed) / _named(options.tasks), options.budget, options.tasks[0]
    twin_sheet(task, seed, budget, folder / TWIN_PICTURE)
    policy = PointBridgePolicy.from_pretrained(folder / _slug(POINTS) / "policy")
    pair, start = succeeded[0] if succeeded else (budget.pairs[0], seed)
    return {"success": episode_sheet(policy, task, pair, start, budget, seed, folder / EPISODE_PICTURE)}


# --- the bundled policy -----------------------------------------------------------------------------------------------------


def bundle(study: Study, options: StudyOptions) -> dict[str, Any]:
    """Trains the policy that the package ships on the demonstrations of all seeds, and measures it from starts of its own."""
    budget, output = options.budget, options.output
    data = {task: [_data_folder(options, seed, task) for seed in options.seeds] for task in options.tasks}
    named = f"{_named(options.tasks)}-{'-'.join(map(str, options.seeds))}-{budget.bundle_steps}-steps"
    folder = output / "bundled" / named
    variant = VARIANTS[POINTS]
    trained = study.unit(f"bundle-train-{named}", lambda: train_policy(variant, data, _BUNDLED_SEED, budget, folder, budget.bundle_steps))
    cells = _roll_outs(study, f"bundle-{named}", POINTS, BUNDLED_CELLS, options.tasks, folder, _BUNDLED_STARTS, budget)
    weights = output / "weights" / "policy"
    shutil.rmtree(weights, ignore_errors=True)
    shutil.copytree(folder / "policy", weights)  # saved anew it would hold the path that it was read from
    size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
    return {"training": trained, "cells": cells, "bytes": size}


def _folder(options: StudyOptions, seed: int) -> Path:
    return options.output / f"seed-{seed}"


def _data_folder(options: StudyOptions, seed: int, task: str) -> Path:
    return _folder(options, seed) / _short(task) / "data"


def _short(task: str) -> str:
    return task.partition("/")[2]


def _named(tasks: tuple[str, ...]) -> str:
    return "-".join(map(_short, tasks))


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")
