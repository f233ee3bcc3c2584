import math

import jaxtyping
import pytest
import torch

from visiongraft.metrics.seams import discontinuity_score, edge_error, interior_discontinuity, seam_ratio, step_error


def gray(rows):
    """A picture with equal channels, so that its grey values are the rows."""
    return torch.tensor(rows, dtype=torch.float64).expand(1, 3, -1, -1)


def seamless(height=16, width=48, seed=0):
    """Smooth and periodic in longitude: no seam anywhere."""
    lon = torch.arange(width, dtype=torch.float64) / width * 2 * math.pi
    phase = torch.rand(height, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 + 0.2 * torch.sin(lon + 6 * phase) + 0.2 * torch.sin(5 * lon + phase)).expand(1, 3, -1, -1)


def test_a_constant_image_has_no_discontinuity():
    image = torch.full((2, 3, 8, 16), 0.6, dtype=torch.float64)
    assert discontinuity_score(image).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert seam_ratio(image).tolist() == [1, 1]


def test_discontinuity_of_a_picture_worked_out_by_hand():
    # equal rows; the strip is the last three columns, then the first three: 2 4 6 | 3 5 8, with scale 1
    picture = gray([[0.3, 0.5, 0.8, 0.2, 0.4, 0.6]] * 4)
    # differences over two columns: 6-2, 3-4, 5-6, 8-3 = .4, -.1, -.1, .5; times 16, or 13 at the zero rows above and below
    rows = []
    for weight in (13, 16, 16, 13):
        e0, e1, e2, e3 = (weight * d for d in (0.4, 0.1, 0.1, 0.5))
        rows.append(0.5 * (e1 / (e0 + 0.1) + e2 / (e3 + 0.1)))
    assert float(discontinuity_score(picture, scale=1.0)) == pytest.approx(sum(rows) / 4, rel=1e-12)
    # at scale 255 the constant hardly counts
    assert float(discontinuity_score(picture)) == pytest.approx(0.5 * (1 / 4 + 1 / 5), rel=1e-3)


def test_grey_is_the_luma_of_the_channels():
    picture = gray([[0.3, 0.5, 0.8, 0.2, 0.4, 0.6]] * 4)
    green = torch.zeros_like(picture).index_copy(1, torch.tensor([1]), picture[:, 1:2])
    assert float(discontinuity_score(green, scale=1.0)) == pytest.approx(float(discontinuity_score(0.587 * picture, scale=1.0)))


def test_rolling_moves_the_seam_and_nothing_else():
    step = (torch.arange(48, dtype=torch.float64) % 24 / 24).expand(1, 3, 16, -1)  # even slopes, steps at column 24 and at the border
    scores = torch.stack([discontinuity_score(step.roll(-k, -1))[0] for k in range(48)])
    assert set(scores.topk(2).indices.tolist()) == {0, 24}
    assert torch.allclose(scores[24], discontinuity_score(step.roll(24, -1))[0])
    ratios = torch.stack([seam_ratio(step.roll(-k, -1))[0] for k in range(48)])
    assert set(ratios.topk(2).indices.tolist()) == {0, 24}


def test_the_interior_baseline_scores_rolled_pictures():
    picture = seamless()
    baseline = interior_discontinuity(picture, 7)
    expected = torch.stack([discontinuity_score(picture.roll(-6 * k, -1)) for k in range(1, 8)], -1)
    assert torch.equal(baseline, expected)


def test_a_seam_stands_out_of_its_baseline_and_a_seamless_picture_does_not():
    ramp = torch.linspace(0, 1, 48, dtype=torch.float64).expand(1, 3, 16, -1)
    noisy = (0.8 * ramp + 0.02 * torch.rand(1, 3, 16, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).clamp(0, 1)
    assert float(discontinuity_score(noisy)) > 5 * float(interior_discontinuity(noisy).mean())
    assert float(seam_ratio(noisy)) > 20
    assert float(seam_ratio(seamless())) == pytest.approx(1, abs=0.5)


def test_seam_ratio_of_a_picture_worked_out_by_hand():
    # steps across the seam: .5 and .3, mean .4; inside: .1 .4 .1 .2 .2 .1, mean 1.1 / 6
    assert float(seam_ratio(gray([[0.1, 0.2, 0.6, 0.6], [0.5, 0.3, 0.1, 0.2]]))) == pytest.approx(
        ((0.5 + 0.3) / 2) / ((0.1 + 0.4 + 0.0 + 0.2 + 0.2 + 0.1) / 6)
    )
    assert float(seam_ratio(gray([[1.0, 1.0, 0.0, 0.0]]).roll(1, -1))) == 0


def test_errors_at_the_seam_and_inside_are_told_apart():
    truth = torch.full((1, 3, 4, 20), 0.5, dtype=torch.float64)
    wrong = truth.clone()
    wrong[..., :2] += 0.2
    wrong[..., -2:] -= 0.1
    errors = edge_error(wrong, truth)
    assert float(errors.seam) == pytest.approx((2 * 0.2 + 2 * 0.1) / 8) and float(errors.interior) == 0
    steps = step_error(wrong, truth)
    assert float(steps.seam) == pytest.approx(0.3) and float(steps.interior) == pytest.approx((0.2 + 0.1) / 19)


def test_a_step_that_the_truth_has_is_no_error():
    truth = torch.linspace(0, 1, 20, dtype=torch.float64).expand(1, 3, 4, -1)
    assert float(step_error(truth.clone(), truth).seam) == 0 and float(step_error(truth * 0.5 + 0.2, truth).seam) == pytest.approx(0.5)


def test_half_precision_pictures_are_measured_in_float32():
    picture = seamless()
    assert discontinuity_score(picture.half()).dtype == torch.float32
    assert float(seam_ratio(picture.half())) == pytest.approx(float(seam_ratio(picture)), rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: discontinuity_score(p * float("nan")), "must be in .0, 1. without NaN"),
        (lambda p: seam_ratio(p * 255), "without NaN; got values from .* to"),
        (lambda p: discontinuity_score(p[..., :5]), "at least 6 columns; got 5"),
        (lambda p: interior_discontinuity(p, 5), "at least 6 columns, one alone says little; got 5"),
        (lambda p: interior_discontinuity(p, 16), "need a panorama of at least 51 columns; got 48"),
        (lambda p: edge_error(p, p, 24), "below half of the 48 columns; got 24"),
    ],
)
def test_unusable_pictures_are_refused(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the type checker
    with pytest.raises(ValueError, match=message):
        call(seamless())
