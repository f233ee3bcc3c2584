"""The study in its short version: everything runs, is kept, and says what was measured; and its figures against closed forms."""

import json

import numpy as np
import pytest
import torch

from visiongraft.cli import main
from visiongraft.methods.panorama import placement, seam_origin
from visiongraft.methods.panorama.released import load
from visiongraft.methods.panorama.study import StudyConfig, run_study
from visiongraft.methods.panorama.study_figures import enlarged, outlined
from visiongraft.methods.panorama.study_tables import paired_interval
from visiongraft.studies import Report


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(StudyConfig(output=folder, seeds=(0,), quick=True))


def test_the_quick_study_writes_a_report_with_every_claim_table_and_figure(quick):
    folder, report = quick
    assert Report.read(folder).claims == report.claims
    assert len(report.claims) == 13 and all(len(claim.with_graft) == 1 for claim in report.claims)
    assert [len(table.rows) for table in report.tables] == [6, 4, 8, 2, 2]
    assert len(report.figures) == 4 and all((folder / figure.path).stat().st_size > 5000 for figure in report.figures)
    text = (folder / "report.md").read_text()
    assert "circular encoder, plain decoder (mismatch)" in text and "channels, assumed camera" in text


def test_a_second_run_computes_nothing_anew(quick, monkeypatch):
    folder, report = quick
    monkeypatch.setattr(placement, "train_variant", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr(seam_origin, "generated_latents", lambda *a: pytest.fail("sampled again"))
    again = run_study(StudyConfig(output=folder, seeds=(0,), quick=True))
    assert again.claims == report.claims and again.tables == report.tables


def test_the_study_leaves_pipelines_that_load_and_are_small(quick):
    folder, _ = quick
    for mode in ("image", "video"):
        pipeline = load(folder / "weights" / mode)
        assert pipeline.graft.mode == mode
        assert next(pipeline.transformer.parameters()).dtype == torch.float32  # kept in half precision, run in full
    size = sum(file.stat().st_size for file in (folder / "weights").rglob("*") if file.is_file())
    assert size < 8 * 2**20


def test_a_study_without_seeds_is_refused(capsys, tmp_path):
    assert main(["panorama", "study", "--seeds", "[]", "--output", str(tmp_path)]) == 2
    assert "at least one seed" in capsys.readouterr().err


def test_report_json_is_strict(quick):
    folder, _ = quick
    json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# --- pieces --------------------------------------------------------------------------------------------------------------


def test_interval_of_a_constant_difference_is_a_point_and_it_covers_a_known_mean():
    assert paired_interval(np.full(20, 0.3)) == pytest.approx((0.3, 0.3))
    hits = 0
    for seed in range(40):
        low, high = paired_interval(np.random.default_rng(seed).normal(1.0, 1.0, 50), draws=300)
        hits += low <= 1.0 <= high
    assert 34 <= hits <= 40


def test_border_bias_is_the_offset_of_the_border_columns_in_standard_deviations():
    latents = torch.randn(64, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    assert seam_origin.border_bias(latents) < 0.05
    latents[..., 0] += 2.0
    latents[..., -1] += 2.0
    expected = float((2.0 / latents.std((0, 2, 3))).mean())
    assert seam_origin.border_bias(latents) == pytest.approx(expected, abs=0.06)


def test_pairs_of_wave_worlds_agree_where_the_input_sees_the_panorama():
    truth = placement.pairs(32, placement.ALL_CAMERAS, torch.Generator().manual_seed(0))
    warped, mask = placement.warped(truth.image, truth.camera)
    error = ((warped - truth.panorama).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    assert error.max() < 0.06 and error.mean() < 0.02


def test_targets_that_are_not_canonical_have_the_input_at_their_centre():
    truth = placement.pairs(16, placement.ALL_CAMERAS, torch.Generator().manual_seed(0), canonical=False)
    level = truth.camera * torch.tensor([1.0, 0.0, 0.0, 0.0])
    warped, mask = placement.warped(truth.image, level)
    error = ((warped - truth.panorama).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    assert error.max() < 0.06


@pytest.mark.parametrize("name", list(placement.VARIANTS))
def test_velocity_of_every_variant_has_the_panoramas_shape_and_depends_on_the_input(name):
    variant = placement.VARIANTS[name]
    transformer = placement.transformer_for(variant, 0)
    truth = placement.pairs(2, placement.ALL_CAMERAS, torch.Generator().manual_seed(0))
    noisy, t = torch.randn(truth.panorama.shape, generator=torch.Generator().manual_seed(1)), torch.full((2,), 0.5)
    with torch.no_grad():
        velocity, other = (
            placement.predicted_velocity(transformer, variant, noisy, t, x, truth.camera) for x in (truth.image, 1 - truth.image)
        )
    assert velocity.shape == noisy.shape
    assert not torch.allclose(velocity, other)


def test_channels_with_an_assumed_camera_do_not_look_at_the_true_one():
    variant = placement.VARIANTS["channels, assumed camera"]
    transformer = placement.transformer_for(variant, 0)
    truth = placement.pairs(2, placement.ALL_CAMERAS, torch.Generator().manual_seed(0))
    noisy, t = torch.zeros_like(truth.panorama), torch.full((2,), 0.5)
    with torch.no_grad():
        made = [placement.predicted_velocity(transformer, variant, noisy, t, truth.image, c) for c in (truth.camera, truth.camera.flip(0))]
    assert torch.equal(*made)


def test_an_outline_runs_around_the_mask_and_leaves_the_rest():
    picture, mask = torch.full((3, 4, 8), 0.5), torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[0, 1:3, 2:5] = True
    drawn = outlined(picture, mask, factor=4, color=(1.0, 0.0, 0.0))
    assert torch.equal(enlarged(picture, 4)[:, 5:11, 9:19], drawn[:, 5:11, 9:19])  # inside
    assert torch.equal(drawn[:, 3, 8:20], torch.tensor([1.0, 0.0, 0.0])[:, None].expand(3, 12))
