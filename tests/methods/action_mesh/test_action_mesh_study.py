"""The study with next to no budget: everything runs, is kept, and says what was measured; its read-outs and rules on made-up shapes."""

import json

import numpy as np
import pytest
import torch

from visiongraft.geometry.surfaces import Mesh
from visiongraft.methods.action_mesh import study as study_module
from visiongraft.methods.action_mesh import study_bundle, study_report
from visiongraft.methods.action_mesh.load_pipeline import load_pipeline
from visiongraft.methods.action_mesh.study_cells import CELLS, MOTIONS, MOVED, Bench, anchor_frame
from visiongraft.methods.action_mesh.study_claims import study_claims
from visiongraft.methods.action_mesh.study_clips import held_out_clips, overlap_points
from visiongraft.methods.action_mesh.study_measures import (
    light_protocol,
    measure_meshes,
    motion_errors,
    nothing,
    overlaps,
    right_sides,
    side_agreement,
    surface,
    true_meshes,
)
from visiongraft.methods.action_mesh.study_options import StudyBudget, StudyOptions, study
from visiongraft.methods.action_mesh.study_training import NO_ROPE, NO_SOURCES, PAIR_IN_QUERIES, VARIANTS, training_options
from visiongraft.methods.action_mesh.study_values import agreement, interval, paired, seed_values
from visiongraft.methods.action_mesh.train_options import SMALL
from visiongraft.metrics.animated_meshes import VARIANTS as PROTOCOLS
from visiongraft.studies import Report
from visiongraft.worlds.creatures import Creatures

SMALLEST = StudyBudget(
    size="tiny",
    vae_steps=60,
    base_steps=30,
    denoiser_steps=30,
    autoencoder_steps=30,
    clips=1,
    side_clips=1,
    long_clips=1,
    frames=3,
    long_frames=4,
    steps=2,
    resolution=8,
    grid=8,
    points=40,
    icp_steps=5,
    batch_size=4,
)


def options(folder, **changes):
    return StudyOptions(output=folder, seeds=(0,), scale="smoke", budget=SMALLEST, **changes)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert study(options(folder, bundle=True)) == 0
    return folder


def test_the_study_writes_a_report_with_every_claim_table_and_figure(smallest):
    report = Report.read(smallest)
    assert len(report.claims) == 14 and len({claim.name for claim in report.claims}) == 14
    labels = {row[0] for table in report.tables for row in table.rows}
    assert labels >= {cell.label for cell in CELLS.values()} | {variant.label for variant in VARIANTS.values()}
    assert [len(table.rows) for table in report.tables] == [6, 6, 6, 11, 4, 8, 8, 2]
    assert len(report.figures) == 3 and all((smallest / figure.path).stat().st_size > 5000 for figure in report.figures)
    assert report.notes[0].startswith("Scale smoke") and "{3D" not in report.to_markdown()
    json.loads((smallest / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_second_run_computes_nothing_anew(smallest, monkeypatch):
    for name in ("train_variant", "measure_cell", "measure_motion", "animation_sheet"):
        monkeypatch.setattr(study_module, name, lambda *a, name=name: pytest.fail(f"{name} again"))
    monkeypatch.setattr(study_report, "draw_figures", lambda *a: [])
    before = Report.read(smallest)
    study(options(smallest))
    after = Report.read(smallest)
    # as text, since some values are NaN; the last table is of the bundle
    assert str(before.claims) == str(after.claims) and before.tables[:-1] == after.tables


def test_an_interrupted_study_continues_with_what_is_missing(smallest, monkeypatch):
    unit = next((smallest / "units").glob("cell-0-last-mixed-*.json"))
    kept = json.loads(unit.read_text())["result"]
    unit.unlink()
    measured, original = [], study_module.measure_cell
    monkeypatch.setattr(study_module, "measure_cell", lambda *a: measured.append(a[1:]) or original(*a))
    monkeypatch.setattr(study_report, "draw_figures", lambda *a: [])
    study(options(smallest))
    assert measured == [("last", "mixed")] and json.loads(unit.read_text())["result"] == kept


def test_the_bundle_is_the_first_seeds_models_in_half_precision(smallest):
    pipeline = load_pipeline(smallest / "weights" / "small")
    trained = Bench(options(smallest), 0).model("denoiser").state_dict()
    for name, tensor in pipeline.denoiser.state_dict().items():
        assert torch.equal(tensor.float(), trained[name].half().float())
    assert set(study_bundle.BUNDLED.values()) == {part.name for part in (smallest / "weights" / "small").iterdir()}


def test_cells_differ_only_in_what_they_say(smallest):
    bench = Bench(options(smallest), 0)
    latents = {key: bench.cell_latents(CELLS[key], "const") for key in CELLS}
    known = bench.known("const", "all")
    assert torch.equal(latents["one"][:, 0], known[:, 0]) and torch.equal(latents["last"][:, 2], known[:, 2])
    assert torch.equal(latents["middle"][:, 1], known[:, 1]) and not torch.equal(latents["middle"][:, 0], known[:, 0])
    for key in ("no-sources", "run-without-sources", "base"):
        assert not any(torch.equal(latents[key][:, k], known[:, k]) for k in range(3))
    assert torch.equal(latents["two"], latents["one"]) and torch.equal(latents["vae"], known)
    assert latents["two-windows"].shape[1] == 4 and not torch.equal(latents["two-windows"], latents["one-window"])
    assert not torch.equal(latents["base"], latents["same-noise"]) and not torch.equal(latents["no-rope"], latents["one"])
    assert [anchor_frame(name, 6) for name in ("first", "middle", "last", "none")] == [0, 3, 5, None]


def test_full_trainings_are_the_small_settings_and_ablations_change_one_option(tmp_path):
    plain = StudyOptions(output=tmp_path)
    made = {name: training_options(name, 1, plain) for name in VARIANTS}
    for name, training in made.items():
        changed = {"sources": (0, 0)} if name == NO_SOURCES else {}
        assert training.settings() == SMALL[training.stage].__class__(**{**vars(SMALL[training.stage]), **changed})
        assert training.framing == "box" and training.seed == 1 and training.output == tmp_path / "seed-1" / name
    assert not made[NO_ROPE].rope and made[PAIR_IN_QUERIES].pair_in_queries and made[NO_ROPE].init == str(tmp_path / "seed-1/base/base")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"side_clips": 99}, "at most 12"),
        ({"frames": 2}, "at least 3 frames"),
        ({"long_frames": 6}, "two windows"),
        ({"grid": 4}, "8 cells"),
    ],
)
def test_budgets_that_cannot_be_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        StudyBudget(**changes)


@pytest.mark.parametrize("seeds", [(1, 1), ()])
def test_seeds_that_repeat_or_are_missing_are_refused(seeds):
    with pytest.raises(ValueError, match="each only once"):
        StudyOptions(seeds=seeds)


# --- read-outs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips():
    return held_out_clips("const", 3, 6, 200, 16, 0)


def test_held_out_clips_are_the_shapes_that_they_say(clips):
    vertices, _, seen = clips.mesh(1)
    assert clips.animal(1).sdf(vertices[None])[0][seen].abs().max() < 2e-3
    assert clips.creatures.sdf(clips.truth[..., :3])[clips.creatures.sdf(clips.truth[..., :3]) > 0].max() < 1e-4
    longer = held_out_clips("const", 3, 11, 200, 16, 0)
    assert torch.equal(longer.creatures.angles[:, :6], clips.creatures.angles)  # the motion goes on
    assert not set(clips.seeds) & set(held_out_clips("const", 3, 6, 50, 16, 1).seeds)
    assert torch.equal(clips.first(2).truth, clips.truth[:2]) and len(clips.first(2).inside) == 2


def test_true_shapes_score_well_and_flipped_frames_only_lose_in_one_pose(clips):
    index = int(clips.creatures.angles.abs()[:, 0].argmax())
    meshes = true_meshes(clips, index, 24)
    protocol = light_protocol(200, 30)
    true = measure_meshes(meshes, clips, index, protocol, tracked=False)
    turn = torch.tensor([1.0, -1.0, -1.0])
    flipped = [Mesh(mesh.vertices * turn, mesh.faces) if k % 2 else mesh for k, mesh in enumerate(meshes)]
    wrong = measure_meshes(flipped, clips, index, protocol, tracked=False)
    assert abs(wrong["cd_3d"] - true["cd_3d"]) < 0.01 and wrong["cd_4d"] > true["cd_4d"] + 0.03
    assert wrong["detour"] > 2 * true["detour"] and true["agree"] == true["counted"] > wrong["agree"]


def test_overlap_forgives_turns_of_single_frames_in_3d_only(clips):
    truth = clips.inside[0]
    cells = truth.unflatten(-1, (16, -1, 16))
    turned = cells.flip(2, 3).flatten(1)
    assert overlaps(truth, truth, 16) == overlaps(turned, truth, 16) == (1.0, 1.0)
    mixed = truth.clone()
    mixed[3] = turned[3]
    each, together = overlaps(mixed, truth, 16)
    assert each == 1 and together < 1
    union, common = (turned[3] | truth[3]).sum(), (turned[3] & truth[3]).sum()
    assert together == pytest.approx((5 + float(common / union)) / 6)
    points = overlap_points(16).unflatten(0, (16, -1, 16))
    assert torch.allclose(points.flip(1, 2) * torch.tensor([1.0, -1.0, -1.0]), points)


def test_sides_are_those_of_the_nearer_tail(clips):
    tail = clips.tail()[0]
    cloud = torch.cat([tail, torch.tensor([[-0.35, 0.0, 0.0]]).expand(6, 1, 3)], 1)
    assert right_sides(cloud, tail).all() and not right_sides(cloud * torch.tensor([1.0, 1.0, -1.0]), tail).any()


def test_side_agreement_is_with_frame_0_where_tails_are_clear():
    angles = torch.tensor([0.6, 0.5, -0.5, 0.1, 0.9])
    right = torch.tensor([False, False, True, True, False])
    assert side_agreement(right, angles) == (2, 3)  # frame 3 is nearly straight; frame 0 being wrong, wrong ones agree
    assert side_agreement(~right, angles) == (2, 3)
    assert side_agreement(right, torch.tensor([0.3, 0.5, 0.5, 0.5, 0.5])) == (0, 0)


def test_motion_errors_of_standing_still_and_of_the_truth():
    truth = torch.zeros(3, 2, 3)
    truth[:, 1, 0] = torch.tensor([1.0, 2.0, 4.0])
    seen = torch.tensor([[True, True], [True, True], [True, False]])
    found = motion_errors(truth[:1].expand(3, -1, -1), truth, seen, 0)
    # frame 1: vertex 1 moved from 1 to 2, and both vertices there, at 0 and 2, are 1 away from 1; frame 2: it is not seen
    assert found["error"] == found["still"] == 0.25 and found["nearest"] in (0.25, 0.5)
    assert motion_errors(truth, truth, seen, 0)["error"] == 0


def test_frames_without_surface_are_measured_as_a_speck():
    assert surface(lambda points: -torch.ones(len(points)), 8) is None
    ball = surface(lambda points: 0.5 - points.norm(dim=-1), 16)
    assert ball is not None and ball.area == pytest.approx(np.pi, rel=0.1) and 0 < nothing().area < 1e-4
    with pytest.raises(ValueError, match="not finite"):
        surface(lambda points: points.sum(-1) * torch.nan, 8)


def test_the_protocol_of_the_defaults_is_the_light_one():
    assert light_protocol(600, 60) == PROTOCOLS["light"]


# --- statistics and rules -----------------------------------------------------------------------------------------------


def made_up(**distances):
    """Results of three seeds: a number a cell for every value, or the defaults of a study in which everything holds."""
    good = {"cd_3d": 0.05, "cd_4d": 0.07, "cd_m": 0.13, "iou_3d": 0.8, "iou_4d": 0.8, "detour": 0.04, "agree": 9, "counted": 10}
    cells = {key: dict(good) for key in CELLS}
    cells["base"] |= {"cd_4d": 0.19, "iou_4d": 0.6, "detour": 0.2, "agree": 5}
    for key, name, value in (
        ("same-noise", "cd_4d", 0.11),
        ("no-rope", "cd_4d", 0.08),
        ("no-sources", "cd_4d", 0.12),
        ("no-normals", "cd_m", 0.15),
        ("pair-in-queries", "cd_m", 0.15),
        ("middle", "cd_4d", 0.074),
        ("last", "cd_4d", 0.079),
        ("long-base", "cd_4d", 0.2),
    ):
        cells[key][name] = value
    moved = {key: {"error": 0.02, "still": 0.1, "nearest": 0.06} for key in MOVED}
    for key, changes in distances.items():
        (cells if key in cells else moved)[key.replace("_", "-")] |= changes
    spread = lambda row: {motion: {name: [value] * 6 for name, value in row.items()} for motion in MOTIONS}
    return [
        {part: {key: spread(row) for key, row in rows.items()} for part, rows in (("cells", cells), ("moved", moved))} for _ in range(3)
    ]


def test_all_claims_hold_where_they_should():
    assert all(claim.held for claim in study_claims(made_up(), StudyBudget()))


@pytest.mark.parametrize(
    ("key", "changes", "fallen"),
    [
        ("one", {"cd_3d": 0.061}, {"single shapes unchanged"}),
        ("one", {"agree": 7}, {"one answer to the ambiguity"}),
        ("base", {"agree": 7}, {"one answer to the ambiguity"}),
        ("one", {"iou_4d": 0.64}, {"overlap"}),
        ("one", {"iou_3d": 0.84}, {"overlap"}),
        ("two", {"cd_4d": 0.081}, {"one mesh without loss"}),
        ("last", {"cd_4d": 0.073}, {"anchor"}),
        ("two", {"cd_m": 0.16}, {"normals", "pair in the tokens"}),
        ("base", {"counted": 0}, {"one answer to the ambiguity"}),
    ],
)
def test_a_claim_falls_by_its_own_rule(key, changes, fallen):
    claims = study_claims(made_up(**{key: changes}), StudyBudget())
    assert {claim.name for claim in claims if not claim.held} == fallen


def test_a_claim_must_hold_in_every_seed():
    results = made_up()
    results[2]["cells"]["one"]["const"]["cd_4d"] = [0.3] * 6
    claims = {claim.name: claim for claim in study_claims(results, StudyBudget())}
    assert not claims["one shape over time"].held and np.mean(claims["one shape over time"].with_graft) < 0.19
    assert seed_values(results, "one", "cd_4d", ("const",)) == pytest.approx((0.07, 0.07, 0.3))


def test_intervals_cover_the_spread_of_seeds_and_of_clips():
    random = np.random.default_rng(1)
    assert interval([np.full(5, 0.3)] * 3) == pytest.approx((0.3, 0.3))
    one = random.normal(size=400)
    low, high = interval([one])
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)
    seeds = [np.full(5, value) for value in (0.0, 1.0, 2.0)]
    low, high = interval(seeds)
    assert low <= 0.34 and high >= 1.66  # although clips do not differ
    with pytest.raises(ValueError, match="clips in every seed"):
        interval([np.array([])])


def test_paired_differences_are_of_the_same_clips():
    results = made_up()
    noise = np.random.default_rng(0).normal(size=(3, 2, 6))
    for row, result in zip(noise, results, strict=True):
        for values, motion in zip(row, MOTIONS, strict=True):
            result["cells"]["base"][motion]["cd_4d"] = list(values)
            result["cells"]["one"][motion]["cd_4d"] = list(values - 0.1)
    assert paired(results, "one", "base", "cd_4d") == pytest.approx((-0.1, -0.1, -0.1))
    assert agreement(results, "one") == pytest.approx((0.9, 0.9, 0.9))


def test_an_animal_by_itself_is_the_one_of_the_clips(clips):
    animal = clips.animal(2)
    assert isinstance(animal, Creatures) and torch.equal(animal.angles[0], clips.creatures.angles[2])
