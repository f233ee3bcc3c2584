"""The study with next to no budget: everything runs, is kept, and says what was measured; and its rules on made-up numbers."""

import json

import numpy as np
import pytest

from visiongraft.cli import main
from visiongraft.methods.point_bridge import study as study_module
from visiongraft.methods.point_bridge import study_claims as claims
from visiongraft.methods.point_bridge.episodes import read_episodes
from visiongraft.methods.point_bridge.small import load_policy
from visiongraft.methods.point_bridge.study_cells import (
    CAMERA_ERRORS,
    CELLS,
    CLEAR,
    FEWER_POINTS,
    HELD_OUT_PAIR,
    MEASURED,
    NEW_PAIR,
    SIMULATION,
    TWIN,
    environments,
    eyes_of,
)
from visiongraft.methods.point_bridge.study_data import CAMERA, TrainingEyes, shares
from visiongraft.methods.point_bridge.study_figures import draw_figures
from visiongraft.methods.point_bridge.study_options import TABLETOP, StudyBudget, StudyOptions
from visiongraft.methods.point_bridge.study_policies import CO_TRAINED, IMAGE, MERGED, POINTS, SCENE, SINGLE, VARIANTS
from visiongraft.methods.point_bridge.study_report import bundled_table, study_report
from visiongraft.methods.point_bridge.study_values import Pooled, difference, pool, pooled, rates
from visiongraft.robots.environments import make_environment
from visiongraft.robots.points import SimulatorPoints
from visiongraft.robots.results import wilson_interval
from visiongraft.studies import Report

TASK = "tabletop/stack"
OF_ONE_TASK = [name for name in VARIANTS if name != SINGLE]
SMALLEST = {
    "pairs": "[0]",
    "sources": 1,
    "demonstrations": 2,
    "twin_demonstrations": 1,
    "scene_points": 32,
    "image_size": 32,
    "size": "tiny",
    "steps": 6,
    "image_steps": 6,
    "bundle_steps": 6,
    "batch_size": 4,
    "episodes": 2,
    "side_episodes": 1,
    "max_steps": 3,
}


def run(folder, *words, tasks=f"[{TASK}]"):
    budget = [word for name, value in SMALLEST.items() for word in (f"--budget.{name}", str(value))]
    return main(["point_bridge", "study", "--seeds", "[0]", "--tasks", tasks, "--output", str(folder), *budget, *words])


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert run(folder) == 0
    return folder


def test_the_study_writes_a_report_with_every_claim_table_and_figure(smallest):
    report = Report.read(smallest)
    assert [claim.name for claim in report.claims] == [
        "zero-shot transfer",
        "small gap",
        "co-training",
        "distractors, points",
        "distractors, scene cloud",
        "number of points",
        "held-out pair",
        "camera error",
    ]
    assert not any(claim.held for claim in report.claims)  # six steps teach nothing, and equal failure is no success
    assert [len(table.rows) for table in report.tables] == [5, 5, 5, 10, 5]
    assert len(report.figures) == 4 and all((smallest / figure.path).stat().st_size > 5000 for figure in report.figures)
    text = (smallest / "report.md").read_text()
    assert "did not hold" in text and "stay below 40 %" in text and "0% (0% to 66%)" in text
    json.loads((smallest / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_second_run_computes_nothing_anew_and_another_budget_does(smallest, monkeypatch):
    calls = []
    for name in ("make_demonstrations", "train_variant", "roll_out", "twin_sheet", "episode_sheet"):
        monkeypatch.setattr(study_module, name, lambda *a, name=name: calls.append(name))
    before = Report.read(smallest)
    assert run(smallest) == 0
    after = Report.read(smallest)
    assert not calls and after.claims == before.claims and after.tables == before.tables
    monkeypatch.setattr(study_module, "make_demonstrations", lambda *a: (_ for _ in ()).throw(ValueError("made again")))
    assert run(smallest, "--budget.steps", "7") == 2


def test_an_interrupted_study_continues_with_what_is_missing(smallest, monkeypatch):
    measured = []
    unit = next((smallest / "units").glob("cell-0-image-twin-stack-*.json"))
    kept = json.loads(unit.read_text())["result"]
    unit.unlink()
    original = study_module.roll_out
    monkeypatch.setattr(study_module, "roll_out", lambda *a: measured.append(a[:3]) or original(*a))
    monkeypatch.setattr(study_module, "train_variant", lambda *a: pytest.fail("trained again"))
    assert run(smallest) == 0
    assert measured == [(IMAGE, TWIN, TASK)] and json.loads(unit.read_text())["result"] == kept


def test_all_policies_learn_from_the_same_demonstrations_recorded_once(smallest):
    folder = smallest / "seed-0" / "stack" / "data"
    simulation, twin = read_episodes(folder / "simulation.safetensors"), read_episodes(folder / "twin.safetensors")
    assert len(simulation) == 2 and len(twin) == 1
    for episode in simulation:
        assert episode.object_points.shape[1:] == (2, 128, 3) and episode.scene_points.shape[1:] == (32, 3)
        assert episode.images[CAMERA].shape[1:] == (32, 32, 3) and episode.images[CAMERA].std() > 5
    assert twin[0].images is None and twin[0].scene_points is None and twin[0].object_points.shape[1:] == (2, 128, 3)
    policies = {name: load_policy(_policy(smallest, name), tasks=[TASK]) for name in OF_ONE_TASK}
    sizes = {name: sum(p.numel() for p in policy.model.actor.parameters()) for name, policy in policies.items()}
    assert len(set(sizes.values())) == 1  # equal trunk and head
    assert len({policy.fingerprint for policy in policies.values()}) == 5


def _policy(folder, name):
    return folder / "seed-0" / "stack" / name.replace(",", "").replace(" ", "-") / "policy"


def test_roll_outs_have_starts_of_their_own_for_every_pair_and_the_same_for_all_policies(smallest):
    def starts(name, cell):
        rows = (_policy(smallest, name).parent / "cells" / cell / "stack" / "pair-0" / "episodes.jsonl").read_text().splitlines()
        return [json.loads(row)["seed"] for row in rows]

    assert sorted(starts(POINTS, "twin")) == sorted(starts(IMAGE, "twin")) == sorted(starts(SCENE, "simulation"))
    held_out = _policy(smallest, POINTS).parent / "cells" / "twin-held-out-pair" / "stack"
    assert [path.name for path in held_out.iterdir()] == [f"pair-{HELD_OUT_PAIR}"]


@pytest.mark.slow
def test_two_tasks_have_policies_for_each_and_for_both_and_a_bundled_one(tmp_path):
    assert run(tmp_path, "--bundle", "true", tasks="[tabletop/stack, tabletop/put_in_bin]") == 0
    report = Report.read(tmp_path)
    assert "multi-task" in [claim.name for claim in report.claims] and report.tables[-1].title == "The bundled policy"
    parts = {part.name for part in (tmp_path / "seed-0").iterdir()}
    assert parts == {"stack", "put_in_bin", "stack-put_in_bin"}  # a policy for each task beside those for both
    assert {part.name for part in (tmp_path / "seed-0" / "stack").iterdir()} == {"data", "points-single-task"}
    policy = load_policy(tmp_path / "weights" / "policy", tasks=["tabletop/stack", "tabletop/put_in_bin"])
    assert policy.model.config.use_language and policy.card.object_counts == (2,)
    assert sum(file.stat().st_size for file in (tmp_path / "weights").rglob("*") if file.is_file()) < 4e6


@pytest.mark.parametrize(
    "words, message",
    [
        (("--seeds", "[]"), "at least one seed"),
        (("--tasks", "[tabletop/juggle]"), "tabletop/put_on_plate"),
        (("--budget.pairs", "[4]"), "held out"),
        (("--budget.episodes", "0"), "episodes must be at least 1"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(tmp_path, capsys, words, message):
    assert main(["point_bridge", "study", "--output", str(tmp_path / "study"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "study").exists()


# --- what is recorded and shown ---------------------------------------------------------------------------------------------


def test_recorded_points_are_those_of_the_simulator_and_no_depth_is_kept():
    eyes = TrainingEyes(size=(60, 80), points=16, scene_points=24, image_size=20, seed=3)
    environment = make_environment(TASK, view=eyes.view, pair=1)
    observation, _ = environment.reset(seed=5)
    observer, alone = eyes(environment), SimulatorPoints(environment, 16, 3, CAMERA)
    observer.reset(observation)
    alone.reset(observation)
    seen = observer(observation)
    np.testing.assert_array_equal(seen["object_points"], alone(observation)["object_points"])
    assert seen["scene_points"].shape == (24, 3) and (seen["scene_points"][:, 2] >= 0).all()
    np.testing.assert_array_equal(seen["images"][CAMERA], environment.render_view(CAMERA, ("images",), (20, 20))["images"])
    assert "depth" not in seen and "depth" in observation


def test_cells_change_only_what_they_are_named_after():
    budget = StudyBudget()
    plain = environments(CELLS[TWIN], TASK, budget)
    assert list(plain) == [0, 1, 2, 3] and all(place.options == {"twin": True, "pair": pair} for pair, place in plain.items())
    assert environments(CELLS[SIMULATION], TASK, budget)[2].options == {"pair": 2}
    assert environments(CELLS[NEW_PAIR], TASK, budget)[4].options == {"twin": True, "pair": 4}
    assert environments(CELLS[CLEAR], TASK, budget)[0].options == {"twin": True, "pair": 0, "distractors": False}
    assert environments(CELLS[CAMERA_ERRORS[0.05]], TASK, budget)[0].options == {"twin": True, "pair": 0, "camera_error": 0.05}
    seen = {cell: eyes_of(CELLS[cell], "points", budget, 0) for cell in CELLS}
    assert (seen[SIMULATION].perception, seen[TWIN].perception, seen[TWIN].points) == ("aligned", "segmentation", 128)
    assert seen[FEWER_POINTS[16]].points == 16 and seen[FEWER_POINTS[16]].size == seen[TWIN].size
    assert eyes_of(CELLS[TWIN], "scene", budget, 0).points == 256 and eyes_of(CELLS[TWIN], "image", budget, 0).size == (64, 64)


def test_shares_are_even_and_sum_up():
    assert shares(50, 4) == [13, 13, 12, 12] and shares(10, 4) == [3, 3, 2, 2] and shares(1, 2) == [1, 0]


# --- values and rules -------------------------------------------------------------------------------------------------------


def made_up(values, seeds=2, episodes=100):
    """Results where a policy's cell has the given success rate (a number, or one a seed), and 50 % everywhere else."""
    results = []
    for seed in range(seeds):
        cells = {}
        for name, measured in MEASURED.items():
            cells[name] = {}
            for cell in measured:
                rate = values.get((name, cell), 0.5)
                rate = rate if isinstance(rate, float) else rate[seed]
                cells[name][cell] = {task: {"successes": round(rate * episodes), "episodes": episodes} for task in TABLETOP}
        training = {name: {"stack": {"parameters": 10, "steps": 5, "loss": 0.25}} for name in VARIANTS}
        data = {task: {"demonstrations": 4, "steps": 40.0, "twin demonstrations": 2, "attempts": 5} for task in TABLETOP}
        results.append({"cells": cells, "training": training, "data": data, "pictures": {"success": True}})
    return results


HELD = [
    (claims.zero_shot_transfer, {(POINTS, TWIN): 0.8, (IMAGE, TWIN): 0.6, (SCENE, TWIN): 0.1}),
    (claims.small_gap, {(POINTS, SIMULATION): 0.7, (POINTS, TWIN): (0.5, 0.75)}),
    (claims.multi_task, {(SINGLE, TWIN): 0.7, (POINTS, TWIN): (0.64, 0.68)}),
    (claims.co_training_helps, {(POINTS, TWIN): 0.7, (CO_TRAINED, TWIN): (0.71, 0.9)}),
    (claims.distractors_leave_points, {(POINTS, CLEAR): 0.7, (POINTS, TWIN): 0.61}),
    (claims.distractors_mislead_clouds, {(SCENE, CLEAR): 0.3, (SCENE, TWIN): 0.15}),
    (claims.number_of_points, {(POINTS, TWIN): 0.6, (POINTS, FEWER_POINTS[64]): 0.52}),
    (claims.held_out_pair, {(POINTS, TWIN): 0.6, (POINTS, NEW_PAIR): 0.46}),
    (claims.camera_error, {(POINTS, TWIN): 0.6, (POINTS, CAMERA_ERRORS[0.05]): (0.59, 0.1)}),
]
FAILING = {(IMAGE, SIMULATION): 0.1, (SCENE, SIMULATION): (0.39, 0.39)}
NOT_HELD = [
    (claims.zero_shot_transfer, {(POINTS, TWIN): 0.8, (IMAGE, TWIN): 0.0, (SCENE, TWIN): 0.1} | FAILING),  # nothing to transfer
    (claims.zero_shot_transfer, {(POINTS, TWIN): 0.8, (IMAGE, TWIN): (0.1, 0.1), (SCENE, TWIN): (0.1, 0.61)}),  # in one seed
    (claims.small_gap, {(POINTS, SIMULATION): 0.7, (POINTS, TWIN): 0.59}),
    (claims.small_gap, {(POINTS, SIMULATION): 0.1, (POINTS, TWIN): 0.1}),  # no gap, but nothing works
    (claims.multi_task, {(SINGLE, TWIN): 0.7, (POINTS, TWIN): (0.7, 0.59)}),
    (claims.multi_task, {(SINGLE, TWIN): 0.1, (POINTS, TWIN): 0.2}),
    (claims.co_training_helps, {(POINTS, TWIN): 0.7, (CO_TRAINED, TWIN): (0.7, 0.9)}),
    (claims.distractors_leave_points, {(POINTS, CLEAR): 0.7, (POINTS, TWIN): 0.59}),
    (claims.distractors_mislead_clouds, {(SCENE, CLEAR): 0.3, (SCENE, TWIN): 0.16}),
    (claims.distractors_mislead_clouds, {(SCENE, CLEAR): 0.05, (SCENE, TWIN): 0.0}),  # nothing to fall from
    (claims.number_of_points, {(POINTS, TWIN): 0.6, (POINTS, FEWER_POINTS[64]): 0.72}),
    (claims.held_out_pair, {(POINTS, TWIN): 0.45, (POINTS, NEW_PAIR): 0.35}),
    (claims.camera_error, {(POINTS, TWIN): 0.6, (POINTS, CAMERA_ERRORS[0.05]): (0.6, 0.1)}),
]


@pytest.mark.parametrize("claim, values, held", [(*case, True) for case in HELD] + [(*case, False) for case in NOT_HELD])
def test_rules_decide_made_up_numbers(claim, values, held):
    made = claim(made_up(values))
    assert made.held is held and len(made.with_graft) == len(made.without) == 2


def test_the_strongest_baseline_is_chosen_in_every_seed():
    claim = claims.zero_shot_transfer(made_up({(IMAGE, TWIN): (0.3, 0.1), (SCENE, TWIN): (0.2, 0.4)}))
    assert claim.without == (0.3, 0.4)


def test_episodes_are_pooled_over_seeds_and_tasks_and_intervals_are_wilsons():
    results = made_up({(POINTS, TWIN): (0.2, 0.6)}, episodes=10)
    found = pooled(results, POINTS, TWIN)
    assert found == Pooled(24, 60) and found.rate == 0.4 and found.interval == wilson_interval(24, 60)
    z, n, p = 1.959964, 60, 0.4
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert found.interval == pytest.approx(((p + z**2 / (2 * n)) / (1 + z**2 / n) - half, (p + z**2 / (2 * n)) / (1 + z**2 / n) + half))
    assert pooled(results, POINTS, TWIN, TASK) == Pooled(8, 20) and rates(results, POINTS, TWIN) == (0.2, 0.6)
    assert pool([{"successes": 1, "episodes": 1}, {"successes": 0, "episodes": 3}]).rate == 0.25  # by episode, not by cell
    assert difference((0.5, 0.7), (0.4, 0.4)) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no episodes"):
        pool([])


def test_a_report_of_made_up_numbers_tells_them(tmp_path):
    results = made_up(
        {
            (POINTS, TWIN): 0.8,
            (IMAGE, SIMULATION): 0.1,
            (IMAGE, TWIN): 0.0,
            (MERGED, TWIN): 0.3,
            (CO_TRAINED, TWIN): 0.7,
            (SINGLE, TWIN): 0.9,
        }
    )
    cells = {cell: {task: {"successes": 9, "episodes": 10} for task in TABLETOP} for cell in (SIMULATION, TWIN)}
    bundled = {"training": {"steps": 7, "parameters": 8}, "cells": cells, "bytes": 3_140_000}
    report = study_report(StudyOptions(output=tmp_path, seeds=(0, 1)), results, bundled, {}, 100.0)
    held = {claim.name: claim.held for claim in report.claims}
    assert held["zero-shot transfer"] and held["co-training"] is False and held["multi-task"] is False and len(held) == 9
    text = report.to_markdown()
    assert "| points | 50% (46% to 54%) | 80% (77% to 83%)" in text and "stay below 40 %: image (10% (8% to 13%))" in text
    assert "3.14 MB" in text and bundled_table(bundled).rows[-1] == ["all", "90% (74% to 97%)", "90% (74% to 97%)"]
    assert all((tmp_path / figure.path).is_file() for figure in draw_figures(tmp_path, results)[2:])
