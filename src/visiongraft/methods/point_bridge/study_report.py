"""What the study's measurements say: claims, beside tables and figures."""

from typing import Any

import visiongraft
from visiongraft.methods.point_bridge.study_cells import CELLS, CLEAR, MEASURED, NEW_PAIR, SIMULATION, TWIN
from visiongraft.methods.point_bridge.study_claims import study_claims
from visiongraft.methods.point_bridge.study_figures import draw_figures
from visiongraft.methods.point_bridge.study_options import StudyBudget, StudyOptions
from visiongraft.methods.point_bridge.study_policies import IMAGE, MERGED, POINTS, SCENE, VARIANTS
from visiongraft.methods.point_bridge.study_values import Results, pool, pooled, rates
from visiongraft.studies import Claim, Report, Table
from visiongraft.studies.claim import range_text

_COMPARED = (SIMULATION, TWIN, NEW_PAIR)


def study_report(
    options: StudyOptions, results: Results, bundled: dict[str, Any] | None, settings: dict[str, Any], elapsed: float
) -> Report:
    """Claims, tables and figures (written to ``options.output``) from the measurements of every seed."""
    claims: list[Claim] = study_claims(results)
    return Report(
        method="point_bridge",
        title="Policies on points, from simulation to its twin",
        claims=claims,
        tables=[
            policy_table(results),
            *(task_table(results, cell) for cell in (SIMULATION, TWIN)),
            side_table(results),
            training_table(results),
            *([bundled_table(bundled)] if bundled else []),
        ],
        figures=draw_figures(options.output, results),
        notes=_notes(options.budget, results),
        settings=settings | {"tasks": list(options.tasks)},
        seeds=tuple(options.seeds),
        elapsed_s=elapsed,
        version=visiongraft.__version__,
    )


def policy_table(results: Results) -> Table:
    """Every policy in the cells that all are measured in."""
    names = [name for name in VARIANTS if name in results[0]["cells"]]
    return Table(
        title="Success by policy, all tasks",
        columns=["policy", *_COMPARED, "episodes a cell", "seeds in the twin"],
        rows=[
            [
                name,
                *(str(pooled(results, name, cell)) for cell in _COMPARED),
                pooled(results, name, TWIN).episodes,
                range_text(rates(results, name, TWIN)) or "one seed",
            ]
            for name in names
        ],
        note="Episodes of all tasks and seeds together, with Wilson 95 % intervals, which do not cover the variance of training; the last "
        "column is the range of success over seeds.",
    )


def task_table(results: Results, cell: str) -> Table:
    """Every policy on every task."""
    names = [name for name in VARIANTS if name in results[0]["cells"]]
    tasks = list(results[0]["data"])
    return Table(
        title=f"Success by task, {cell}",
        columns=["policy", *(task.partition("/")[2] for task in tasks)],
        rows=[[name, *(str(pooled(results, name, cell, task)) for task in tasks)] for name in names],
    )


def side_table(results: Results) -> Table:
    """Distractors, camera errors, numbers of points and perceptions."""
    names = (POINTS, SCENE, IMAGE)
    cells = [TWIN, *(cell for cell in CELLS if cell not in _COMPARED)]
    return Table(
        title="What the twin is made of, and what the policy is shown",
        columns=["cell", *names, "episodes of points"],
        rows=[
            [
                cell if cell != TWIN else "twin (distractors, 128 points, segmentation)",
                *(str(pooled(results, name, cell)) if cell in MEASURED[name] else "–" for name in names),
                pooled(results, POINTS, cell).episodes,
            ]
            for cell in cells
        ],
        note="All tasks and seeds together, with Wilson 95 % intervals. Only roll-outs change from cell to cell, the policies are the "
        "same: with 8, 16 or 64 points an object too, since a PointNet takes any number.",
    )


def training_table(results: Results) -> Table:
    """What the policies were trained on and for how long."""
    rows: list[list[Any]] = []
    for name in VARIANTS:
        if name not in results[0]["training"]:
            continue
        runs = [run for result in results for run in result["training"][name].values()]
        losses = [run["loss"] for run in runs]
        rows.append([name, runs[0]["parameters"], runs[0]["steps"], f"{sum(losses) / len(losses):.4g}", len(runs)])
    data = [row for result in results for row in result["data"].values()]
    mean_steps = sum(row["steps"] for row in data) / len(data)
    success = sum(row["demonstrations"] for row in data) / sum(row["attempts"] for row in data)
    return Table(
        title="Training",
        columns=["policy", "parameters", "steps", "last loss", "trainings"],
        rows=rows,
        note=f"A task and seed has {data[0]['demonstrations']} simulated demonstrations of {mean_steps:.0f} steps on average, "
        f"{success:.0%} of the generator's attempts; co-training adds {data[0]['twin demonstrations']} of the twin.",
    )


def bundled_table(bundled: dict[str, Any]) -> Table:
    """The policy that the package ships."""
    cells = bundled["cells"]
    tasks = list(next(iter(cells.values())))
    columns = list(cells)
    rows: list[list[Any]] = [[task.partition("/")[2], *(str(pool([cells[cell][task]])) for cell in columns)] for task in tasks]
    rows.append(["all", *(str(pool(cells[cell].values())) for cell in columns)])
    run = bundled["training"]
    return Table(
        title="The bundled policy",
        columns=["task", *columns],
        rows=rows,
        note=f"One training of {run['steps']} steps on the demonstrations of all seeds, {run['parameters']} parameters, "
        f"{bundled['bytes'] / 1e6:.2f} MB. Starts are of a seed of their own.",
    )


def _notes(budget: StudyBudget, results: Results) -> list[str]:
    simulated = {name: pooled(results, name, SIMULATION) for name in (IMAGE, SCENE, MERGED)}
    weak = [f"{name} ({rate})" for name, rate in simulated.items() if rate.rate < 0.4]
    fair = (
        f"In simulation itself these stay below 40 %: {', '.join(weak)}. What they do in the twin is then no statement about transfer."
        if weak
        else "All baselines reach 40 % or more in simulation, so that their columns of the twin are about transfer."
    )
    return [
        f"{fair} Every policy of a seed learned from the same demonstrations with the same trunk, batch and rate; image policies took "
        f"{budget.image_steps} steps a task and random shifts, the others {budget.steps}. All but the single-task policies are one policy "
        "for all tasks, which reads the instruction.",
        "The twin is not a robot: other colours, textures, lights, friction, gains and camera, three distractors, and points lifted from "
        "noisy rendered depth with the simulator's instance masks. The scene cloud is lifted from depth without noise, which favours it. "
        f"{CLEAR[0].upper()}{CLEAR[1:]} has everything but the distractors.",
        "Policies on points are rolled out in simulation with points aligned to the camera's depth, as they were trained; "
        '"simulation, whole surfaces" has points of all sides, as the paper evaluates.',
        "Intervals count episodes as independent; seeds differ by more, see their ranges.",
    ]
