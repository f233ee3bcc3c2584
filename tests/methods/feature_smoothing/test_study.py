import json

import numpy as np
import pytest
import torch

from visiongraft.methods.feature_smoothing import measurements as measure
from visiongraft.methods.feature_smoothing.pipeline import WEIGHTS, EncoderConfig, ZeroShot, load_smoothed
from visiongraft.methods.feature_smoothing.smoothing import SmoothingConfig
from visiongraft.methods.feature_smoothing.study import load_parts, run_study
from visiongraft.methods.feature_smoothing.study_report import StudyConfig
from visiongraft.studies import Report
from visiongraft.worlds.captioned import CLASS_PROMPTS, held_out_images


def test_bundled_encoder_reads_held_out_digits_and_shapes():
    assert measure.clean_accuracy(load_parts(WEIGHTS), held_out_images(3, digits=100, shapes=100)) > 0.95


def test_bundled_purifier_makes_features_steadier_than_smoothing_alone():
    parts, data = load_parts(WEIGHTS), held_out_images(4, digits=40, shapes=40)
    seen = {c: measure.under_noise(parts, data, c, 0.5, seed=0) for c in measure.CONDITIONS}
    plain, purified = seen["smoothing"], seen["+ purifier"]
    assert purified["score_pooled"] > plain["score_pooled"] + 0.05
    assert purified["accuracy"] > plain["accuracy"] + 0.2


def test_bundled_weights_are_at_most_eight_mebibytes():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors")) <= 8 * 2**20


def test_a_quick_study_runs_reports_and_continues(tmp_path):
    config = StudyConfig(output=tmp_path, seeds=(0,), bundled=True, quick=True)
    first = run_study(config)
    assert Report.read(tmp_path).claims == first.claims
    for name in ("bounds.png", "certified_accuracy.png", "confidence.png", "attacks.png", "report.md"):
        assert (tmp_path / name).stat().st_size > 1000
    units = {path: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()}
    again = run_study(StudyConfig(output=tmp_path, seeds=(0,), bundled=True, quick=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()} == units
    assert again.claims == first.claims and [t.rows for t in again.tables] == [t.rows for t in first.tables]
    violation = next(claim for claim in first.claims if claim.name == "no-violation")
    assert violation.held and min(violation.with_graft) >= -0.01


@pytest.mark.slow
def test_a_quick_study_trains_every_seed(tmp_path):
    report = run_study(StudyConfig(output=tmp_path, seeds=(0, 1), quick=True))
    assert report.seeds == (0, 1)
    assert json.loads((tmp_path / "seed-1" / "purifier" / "config.json").read_text())["_class_name"] == "UNetPurifier"


def test_slack_is_the_smallest_distance_and_ignores_uncertified_images():
    rows = [{"bounds": {"0.1": {"fcsb": b, "reference": b, "smoothed": b}}} for b in (0.5, -1.0)]
    attacked = {k: [0.62, -0.9] for k in ("to_clean", "to_clean_targeted", "to_smoothed", "to_smoothed_targeted")}
    assert measure.slack(rows, attacked, 0.1)["fcsb"] == pytest.approx(0.12)


def test_garbled_formula_is_reported_as_violated_where_it_exceeds_the_attack():
    rows = [{"reference": {"lower": 0.95}}, {"reference": {"lower": 0.6}}]
    told = measure.garbled_formula(rows, {"to_clean": [0.9, 0.9]}, 0.1)
    assert told == {"above_one": 0.5, "violated": 0.5}


def test_certified_accuracy_falls_with_the_radius_and_counts_only_right_predictions():
    rows = [{"prediction": {"label": label, "margin_radius": radius}} for label, radius in ((1, 0.3), (2, 0.5), (0, 0.1))]
    assert measure.certified_accuracy(rows, [1, 0, 0], "margin", np.array([0.0, 0.2, 0.4])) == pytest.approx([2 / 3, 1 / 3, 0])


def test_zero_shot_head_agrees_with_the_model_and_names_prompts():
    head = ZeroShot("small", list(CLASS_PROMPTS))
    parts, data = load_parts(WEIGHTS), held_out_images(5, digits=4, shapes=0)
    with torch.inference_mode():
        embedding = parts.encoder.readout(parts.encoder(data.images()))
    assert head.predict(embedding) == [CLASS_PROMPTS[i] for i in measure.predictions(parts.classes, embedding).tolist()]


def test_the_bundled_part_is_refused_for_another_encoder(tmp_path):
    folder = tmp_path / "mine"
    folder.symlink_to(WEIGHTS / "clip")
    with pytest.raises(ValueError, match="fits the small encoder only"):
        load_smoothed(EncoderConfig(encoder=str(folder), purifier="bundled"), SmoothingConfig())
