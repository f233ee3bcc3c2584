import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from visiongraft.methods.feature_smoothing.certification import (
    DISCLAIMER,
    CertificateConfig,
    certify,
    image_generator,
    image_sha256,
)
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig


class HalfSpace(nn.Module):
    """+u on one side of a plane, -u on the other: the encoder for which the plain bound is attained."""

    def __init__(self, normal, offset):
        super().__init__()
        self.register_buffer("normal", normal / normal.norm())
        self.offset = offset

    def forward(self, images):
        side = torch.where(images.flatten(1) @ self.normal > self.offset, 1.0, -1.0)
        return side[:, None] * torch.tensor([0.6, 0.8])


class RandomFeatures(nn.Module):
    """A pseudo-random unit feature for every image: the mean feature is nearly zero."""

    def forward(self, images):
        wild = (images.flatten(1) * 1e4).sin()
        return nn.functional.normalize(wild[:, :64] - wild[:, 64:128], dim=1)


SIGMA = 0.25


@pytest.fixture
def image():
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def half_space(image, distance):
    normal = torch.randn(192, generator=torch.Generator().manual_seed(1))
    offset = float(image.flatten() @ (normal / normal.norm())) - distance
    return SmoothedEncoder(HalfSpace(normal, offset), SmoothingConfig(sigma=SIGMA, chunk_size=500))


def test_scores_and_bounds_of_a_half_space_are_just_below_the_truth(image):
    distance = 0.4
    certificate = certify(half_space(image, distance), image, CertificateConfig(n=20_000, eps=(0.1, 0.3)))
    truth = norm.cdf(distance / SIGMA)
    assert certificate.reference.mean == pytest.approx(truth, abs=0.01)
    assert truth - 0.02 < certificate.reference.lower < truth
    for eps in (0.1, 0.3):
        attained = 2 * norm.cdf((distance - eps) / SIGMA) - 1
        assert attained - 0.06 < certificate.bounds[eps]["fcsb"] <= attained
    assert certificate.radii["fcsb"] <= distance - SIGMA * norm.ppf(0.75)


def test_the_error_rate_of_the_whole_certificate_is_within_alpha(image):
    smoothed, truth = half_space(image, 0.3), norm.cdf(0.3 / SIGMA)
    config = CertificateConfig(n=60, n_ref=16, alpha=0.1, eps=(0.1,))
    wrong = [certify(smoothed, image, config, seed=seed).reference.lower > truth for seed in range(120)]
    assert np.mean(wrong) <= 0.1


def test_reference_and_score_samples_are_separate(image):
    # with the same 8 samples for both, random features would look aligned with their own mean (0.68 instead of 0.5)
    smoothed = SmoothedEncoder(RandomFeatures(), SmoothingConfig(sigma=SIGMA, chunk_size=500))
    certificate = certify(smoothed, image, CertificateConfig(n=2000, n_ref=8))
    assert certificate.smoothed.mean == pytest.approx(0.5, abs=0.01)


def test_certificates_are_reproducible_and_differ_with_the_seed(image):
    smoothed = half_space(image, 0.2)
    config = CertificateConfig(n=100, n_ref=10)
    first, again, other = (certify(smoothed, image, config, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.reference.mean != other.reference.mean


def test_generators_depend_on_image_purpose_and_seed(image):
    draws = {
        torch.randn(1, generator=image_generator(i, p, s)).item()
        for i in (image, 1 - image)
        for p in ("reference", "score")
        for s in (0, 1)
    }
    assert len(draws) == 8
    assert image_sha256(image) != image_sha256(image.flip(-1))


@pytest.mark.parametrize("distance", [0.6, 0.05])
def test_sequential_certification_stops_early_with_a_valid_bound(image, distance):
    smoothed = half_space(image, distance)
    smoothed.config.chunk_size = 50
    config = CertificateConfig(n=4000, eps=(0.1,), stop_radius=0.1)
    certificate = certify(smoothed, image, config)
    assert certificate.stopped_early and certificate.n < 4000
    assert (certificate.radii["fcsb"] >= 0.1) is (distance == 0.6)
    assert certificate.reference.lower < norm.cdf(distance / SIGMA)


def test_per_token_mode_reports_the_worst_token_at_a_bonferroni_level(image):
    class TwoTokens(nn.Module):
        def forward(self, images):
            noisy = images.flatten(1).mean(1, keepdim=True) * 60
            return torch.stack([torch.cat([noisy.cos(), noisy.sin()], 1), torch.tensor([[1.0, 0.0]]).expand(len(images), 2)], 1)

    smoothed = SmoothedEncoder(TwoTokens(), SmoothingConfig(sigma=SIGMA, token_mode="per_token", chunk_size=500))
    certificate = certify(smoothed, image, CertificateConfig(n=2000))
    assert certificate.parts == 2
    expected = (1 + math.exp(-((60 * SIGMA / math.sqrt(192)) ** 2) / 2)) / 2
    assert certificate.reference.mean == pytest.approx(expected, abs=0.02)


def test_prediction_radius_of_a_half_space_is_the_distance_to_the_plane(image):
    distance = 0.3
    smoothed = half_space(image, distance)
    smoothed.config.token_mode = "pooled"
    classes = torch.tensor([[0.6, 0.8], [-0.6, -0.8]])
    prediction = certify(smoothed, image, CertificateConfig(n=20_000), classes=classes).prediction
    assert prediction.label == 0
    for radius in (prediction.margin_radius, prediction.vote_radius):
        assert distance - 0.02 < radius <= distance
    assert 0 < prediction.fcsb_radius <= prediction.reference_radius <= distance


def test_an_undecided_prediction_is_an_abstention(image):
    smoothed = half_space(image, 0.0)
    smoothed.config.token_mode = "pooled"
    prediction = certify(smoothed, image, CertificateConfig(n=300), classes=torch.tensor([[0.6, 0.8], [-0.6, -0.8]])).prediction
    assert prediction.margin_radius == prediction.vote_radius == prediction.fcsb_radius == 0


def test_bonferroni_over_images_lowers_every_bound(image):
    smoothed = half_space(image, 0.4)
    alone, together = (certify(smoothed, image, CertificateConfig(n=500, simultaneous=k)) for k in (1, 1000))
    assert together.reference.lower < alone.reference.lower
    assert together.reference.mean == alone.reference.mean


def test_the_statement_says_what_is_not_certified(image):
    certificate = certify(half_space(image, 0.6), image, CertificateConfig(n=500))
    assert "l2 <=" in certificate.statement() and DISCLAIMER in certificate.statement()
    nothing = certify(half_space(image, -0.6), image, CertificateConfig(n=500, tau=0.9, alpha=0.01))
    assert "l-infinity" in nothing.statement()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 8}, r"n=8 .* need n>=10"),
        ({"alpha": 1.0}, r"alpha .* \(0, 1\)"),
        ({"n": 15, "simultaneous": 1000}, "need n>=20"),
        ({"eps": (-0.1,)}, "non-negative"),
        ({"tau": 1.0}, "tau"),
        ({"beta": 0.0}, "beta"),
        ({"n_ref": 0}, "n_ref"),
        ({"method": "kl", "stop_radius": 0.1}, "stop_radius needs method=betting"),
    ],
)
def test_bad_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CertificateConfig(**change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * 255, "divide by 255"),
        (lambda x: x * 4 - 2, "normalisation"),
        (lambda x: x / 0, "NaN or infinite"),
        (lambda x: (x * 255).byte(), "floating point"),
    ],
)
def test_images_that_are_not_pixels_in_the_unit_range_are_refused(image, spoil, message):
    with pytest.raises(ValueError, match=message):
        certify(half_space(image, 0.3), spoil(image), CertificateConfig())
