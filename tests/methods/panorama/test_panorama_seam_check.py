import pytest
import torch

from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.methods.panorama.seam_check import check_seam, seam_picture


def textured():
    """A function on the sphere with detail at every column, so that its seam is like any other place."""
    g = torch.Generator().manual_seed(0)
    k, phase = 12 * torch.randn(12, 3, 3, generator=g), 6.28 * torch.rand(12, 3, generator=g)
    waves = torch.cos(torch.einsum("hwd,kcd->hwkc", panorama_rays(64, 128), k) + phase)
    return (0.5 + 0.08 * waves.sum(-2)).clamp(0, 1).movedim(-1, 0)


def test_a_whole_panorama_has_no_seam():
    report = check_seam(textured())
    assert 0.5 < report.ratio < 1.5 and report.full_circle and report.verdict.startswith("No seam")
    assert len(report.interior_scores) == 6


def test_a_cropped_panorama_is_told_from_a_whole_one():
    panorama = textured()
    cropped = torch.nn.functional.interpolate(panorama[None, :, :, 20:80], size=(64, 128), mode="bilinear")[0]
    cropped = 0.8 * cropped + torch.linspace(0, 0.2, 128)
    report = check_seam(cropped)
    assert report.ratio > 3 and not report.full_circle
    assert "left and right borders do not match: not a full 360 ERP, or already cropped" in report.verdict


def test_a_visible_seam_raises_the_score_above_the_baseline():
    panorama = textured()
    panorama[:, :, :4] = (panorama[:, :, :4] + 0.12).clamp(max=1)
    report = check_seam(panorama, columns=8)
    assert 1.5 < report.ratio <= 3 and report.full_circle and "may be visible" in report.verdict
    assert len(report.interior_scores) == 8 and report.score > sum(report.interior_scores) / 8


def test_the_picture_has_the_seam_in_the_middle_of_both_halves():
    panorama = torch.zeros(3, 32, 64)
    panorama[:, :, 0] = 1  # right of the seam
    picture = seam_picture(panorama, zoom=8)
    assert picture.shape == (3, 64, 64)
    assert torch.equal(picture[0, :32].any(0).nonzero().flatten(), torch.tensor([32]))
    assert torch.equal(picture[0, 32:].any(0).nonzero().flatten(), torch.arange(32, 40))


def test_bad_input():
    with pytest.raises(ValueError, match="W = 2H"):
        check_seam(torch.rand(3, 32, 65))
    with pytest.raises(ValueError, match="at least 6 columns"):
        check_seam(textured(), columns=3)
    with pytest.raises(ValueError, match="zoom must be at least 1"):
        seam_picture(torch.rand(3, 32, 64), zoom=0)
