"""Crops, clusters and transport against their definitions; the three attacks against their published steps."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.attacks import score_and_gradient
from visiongraft.methods.feature_smoothing.crops import crop_boxes, random_resized_crop, resized_crop
from visiongraft.methods.feature_smoothing.encoders import Encoder
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig
from visiongraft.methods.feature_smoothing.transfer_attacks import (
    Surrogate,
    TransferConfig,
    attack_vlm,
    dynamic_weights,
    foa,
    local_alignment,
    m_attack,
)
from visiongraft.methods.feature_smoothing.transport import kmeans, transport_plan

ATTACKS = [attack_vlm, m_attack, foa]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair_of_images(batch=2, size=16):
    """Smooth images, as crops of white noise have nothing in common."""
    corners = torch.rand(2 * batch, 3, 3, 3, generator=seeded(1))
    return F.interpolate(corners, size, mode="bilinear").unflatten(0, (2, batch))


class Patches(nn.Module):
    """A class token (the mean of the patches) and 16 patch tokens of a 16x16 image."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(3, 12, 4, 4, bias=False)
        self.mix, self.pool = nn.Linear(12, 12, bias=False), nn.Linear(12, 8, bias=False)

    def forward(self, images):
        patches = self.mix(torch.tanh(self.embed(4 * images - 2).flatten(2).mT))
        return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)


def surrogate(seed=0):
    model = Patches(seed).eval()
    return Encoder(model, num_prefix_tokens=1, readout=lambda tokens: model.pool(tokens[:, 0]))


class Smoothed:
    """A smoothed encoder seen as a surrogate: smoothed tokens, the encoder's own read-out."""

    def __init__(self, encoder, n0):
        self.smoothed = SmoothedEncoder(encoder, SmoothingConfig(sigma=0.1, n0=n0))
        self.num_prefix_tokens = encoder.num_prefix_tokens

    def __call__(self, images):
        return self.smoothed(images)

    def readout(self, tokens):
        return self.smoothed.encoder.readout(tokens)


def cosine_to_target(encoder, images, targets):
    with torch.no_grad():
        return F.cosine_similarity(encoder.readout(encoder(images)), encoder.readout(encoder(targets)), dim=-1)


def run(attack, surrogates, images, targets, config, seed=0):
    keywords = {} if attack is attack_vlm else {"generator": seeded(seed)}
    return attack(surrogates, images, targets, config, **keywords)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_moves_embeddings_towards_the_target_within_budget(attack):
    images, targets = pair_of_images()
    surrogates = [surrogate(0), surrogate(1)]
    config = TransferConfig(eps=16 / 255, steps=30)
    result = run(attack, surrogates, images, targets, config)
    before = torch.stack([cosine_to_target(encoder, images, targets) for encoder in surrogates]).mean(0)
    after = torch.stack([cosine_to_target(encoder, result.images, targets) for encoder in surrogates]).mean(0)
    assert (1 - after < 0.8 * (1 - before)).all()
    torch.testing.assert_close(result.scores, after)
    change = (result.images.double() - images.double()).abs()
    assert float(change.max()) <= 16 / 255 * (1 + 1e-6)
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert result.history.shape == (1, 30, 2)
    assert all(parameter.grad is None for encoder in surrogates for parameter in encoder.parameters())


@pytest.mark.parametrize("attack", [m_attack, foa])
def test_same_seed_gives_the_same_crops_and_clusters(attack):
    images, targets = pair_of_images()
    config = TransferConfig(steps=4)
    first, again, other = (run(attack, [surrogate()], images, targets, config, seed).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_attack_vlm_first_step_is_the_sign_of_the_cosine_gradient_from_the_clean_image():
    images, targets = pair_of_images()
    images = images * 0.9 + 0.05
    encoder = surrogate()
    reference = encoder.readout(encoder(targets)).detach()
    _, gradient = score_and_gradient(lambda x: F.cosine_similarity(encoder.readout(encoder(x)), reference, dim=-1), images)
    result = attack_vlm([encoder], images, targets, TransferConfig(steps=1))
    torch.testing.assert_close(result.images, images + gradient.sign() / 255)
    torch.testing.assert_close(result.history[0, 0], cosine_to_target(encoder, images, targets))


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_iterate_is_clamped_to_the_pixel_range(attack):
    images, targets = pair_of_images()
    seen = []

    class Watching(Smoothed):
        def __call__(self, images):
            seen.append((images.min().item(), images.max().item()))
            return encoder(images)

    encoder = surrogate()
    run(attack, [Watching(encoder, 1)], images.round(), targets, TransferConfig(steps=5))
    assert len(seen) > 5 and min(low for low, _ in seen) >= 0 and max(high for _, high in seen) <= 1 + 1e-6


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_smoothed_encoder_can_be_the_only_surrogate(attack):
    images, targets = pair_of_images()
    victim = Smoothed(surrogate(), n0=4)
    assert isinstance(victim, Surrogate) and isinstance(surrogate(), Surrogate)
    result = run(attack, [victim], images, targets, TransferConfig(steps=20))
    wide = Smoothed(surrogate(), n0=64)
    assert (cosine_to_target(wide, result.images, targets) > cosine_to_target(wide, images, targets)).all()


def test_m_attack_scores_are_the_mean_cosine_of_the_crops_that_the_generator_draws():
    images, targets = pair_of_images()
    surrogates, generator = [surrogate(0), surrogate(1)], seeded(5)
    crops = random_resized_crop(images, generator), random_resized_crop(targets, generator)
    expected = torch.stack([cosine_to_target(encoder, *crops) for encoder in surrogates]).mean(0)
    result = m_attack(surrogates, images, targets, TransferConfig(steps=1), seeded(5))
    torch.testing.assert_close(result.history[0, 0], expected)


def test_foa_scores_are_global_plus_a_fifth_of_local_alignment_weighted_after_the_first_step():
    images, targets = pair_of_images()
    surrogates, generator = [surrogate(0), surrogate(1)], seeded(5)
    config = TransferConfig(steps=2)
    first_iterate = foa(surrogates, images, targets, TransferConfig(steps=1), generator=seeded(5)).images

    def losses(adversarial):
        crops = random_resized_crop(adversarial, generator), random_resized_crop(targets, generator)
        found = []
        for encoder in surrogates:
            source, target = (encoder(crop)[:, 1:] for crop in crops)
            found.append(cosine_to_target(encoder, *crops) + 0.2 * local_alignment(source, target, 10, generator))
        return torch.stack(found).detach()

    before = losses(images)
    now = losses(first_iterate)
    history = foa(surrogates, images, targets, config, generator=seeded(5)).history[0]
    torch.testing.assert_close(history[0], before.sum(0))
    torch.testing.assert_close(history[1], (2 * torch.softmax(now / (before + 1e-8), 0) * now).sum(0))


def test_dynamic_weights_have_their_closed_form_and_sum_to_the_number_of_surrogates():
    before, now = torch.tensor([[1.0, 0.5], [1.0, 0.5]]), torch.tensor([[1.0, 0.5], [1.0 + math.log(3), 0.5]])
    weights = dynamic_weights(now, before)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.0], [1.5, 1.0]]))
    torch.testing.assert_close(dynamic_weights(now, None), torch.ones(2, 2))


def test_crop_boxes_cover_the_range_of_areas_and_ratios_and_stay_inside():
    boxes = crop_boxes(5000, 224, 224, seeded())
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    assert torch.equal(boxes, boxes.round())
    area, log_ratio = height * width / 224**2, torch.log(width / height)
    # Rounding to whole pixels moves a side of at least 137 pixels by half a pixel.
    assert 0.495 < float(area.min()) < 0.505 and 0.88 < float(area.max()) < 0.905
    assert -0.295 < float(log_ratio.min()) < -0.28 and 0.28 < float(log_ratio.max()) < 0.295
    assert abs(float(log_ratio.mean())) < 0.01
    assert torch.unique(top).numel() > 60 and torch.unique(left).numel() > 60


def test_crop_of_an_image_too_narrow_for_any_box_is_the_largest_centred_one():
    boxes = crop_boxes(8, 20, 400, seeded())
    assert boxes.tolist() == [[0, 186, 20, 27]] * 8
    assert crop_boxes(3, 400, 20, seeded()).tolist() == [[186, 0, 27, 20]] * 3


def test_resized_crop_equals_cutting_out_and_interpolating_each_box():
    images = torch.rand(4, 3, 24, 32, generator=seeded(), dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 24, 32], [3, 5, 17, 20], [9, 12, 15, 20], [0, 11, 20, 21]], dtype=torch.float64)
    found = resized_crop(images, boxes)
    for image, crop, (top, left, height, width) in zip(images, found, boxes.int().tolist(), strict=True):
        cut = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(cut, size=(24, 32), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(crop, expected)


def test_crops_pass_gradients_to_the_pixels_in_the_box_only():
    images = torch.rand(1, 1, 8, 8, generator=seeded(), requires_grad=True)
    resized_crop(images, torch.tensor([[2.0, 1.0, 4.0, 6.0]])).sum().backward()
    touched = images.grad[0, 0] != 0
    assert touched[2:6, 1:7].all() and int(touched.sum()) == 24


def inertia(points, centres):
    return torch.cdist(points, centres).amin(-1).square().sum(-1)


def test_kmeans_never_raises_the_inertia_with_more_rounds():
    points = torch.randn(6, 80, 5, generator=seeded())
    by_rounds = torch.stack([inertia(points, kmeans(points, 10, seeded(1), rounds)) for rounds in range(8)])
    assert (by_rounds.diff(dim=0) <= 1e-4).all()
    assert (by_rounds[-1] < by_rounds[0]).all()


def test_kmeans_recovers_separated_clusters_in_each_batch_entry():
    means = 100 * torch.randn(3, 7, 4, generator=seeded())
    points = (means.repeat_interleave(9, dim=1) + 0.01 * torch.randn(3, 63, 4, generator=seeded(1)))[
        :, torch.randperm(63, generator=seeded(2))
    ]
    distance = torch.cdist(kmeans(points, 7, seeded(3)), means)
    assert (distance.amin(1) < 0.05).all() and (distance.amin(2) < 0.05).all()


def test_kmeans_with_fewer_distinct_points_than_clusters_stays_finite_and_on_the_points():
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(1, 6, 1)
    centres = kmeans(points, 5, seeded())
    assert inertia(centres, points[:, :2]).item() == pytest.approx(0, abs=1e-10)


def test_kmeans_centres_pass_the_gradient_of_a_mean():
    points = torch.tensor([[[0.0], [1.0], [10.0]]], requires_grad=True)
    kmeans(points, 2, seeded()).sum().backward()
    torch.testing.assert_close(points.grad, torch.tensor([[[0.5], [0.5], [1.0]]]))


def test_transport_plan_has_uniform_marginals_and_total_one():
    similarity = torch.rand(5, 10, 7, generator=seeded(), dtype=torch.float64) * 2 - 1
    plan = transport_plan(similarity, iterations=2000, tolerance=0.0)
    torch.testing.assert_close(plan.sum(2), torch.full((5, 10), 1 / 10, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((5, 7), 1 / 7, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (plan >= 0).all()


def test_transport_plan_is_a_scaled_kernel_as_the_optimality_condition_asks():
    similarity = torch.rand(1, 6, 6, generator=seeded(), dtype=torch.float64)
    scaling = (transport_plan(similarity, 0.1, 2000, 0.0) / torch.exp((similarity - 1) / 0.1))[0]
    # diag(r) K diag(c) divided by K has rank one.
    torch.testing.assert_close(scaling * scaling[0, 0], scaling[:, :1] * scaling[:1, :])


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 7)])
def test_transport_at_a_small_temperature_is_the_linear_programme(rows, columns):
    similarity = torch.rand(1, rows, columns, generator=seeded(rows), dtype=torch.float64)
    marginals = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    totals = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    optimum = -linprog(-similarity.numpy().ravel(), A_eq=marginals, b_eq=totals).fun
    plan = transport_plan(similarity, temperature=2e-3, iterations=20_000, tolerance=0.0)
    assert float((plan * similarity).sum()) == pytest.approx(optimum, abs=1e-3)


def test_transport_stops_each_entry_on_its_own():
    similarity = torch.rand(3, 10, 10, generator=seeded())
    together = transport_plan(similarity)
    alone = torch.cat([transport_plan(entry[None]) for entry in similarity])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, transport_plan(similarity, tolerance=0.0), atol=1e-9)


def test_local_alignment_of_tokens_with_themselves_permuted_is_nearly_perfect():
    tokens = torch.eye(10).repeat(1, 2, 1)
    permuted = tokens[:, torch.randperm(20, generator=seeded())]
    aligned = local_alignment(tokens, permuted, 10, seeded(1))
    assert float(aligned) > 0.99 and float(local_alignment(tokens, -tokens, 10, seeded(1))) < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: attack_vlm([], x, t), "at least one surrogate encoder; got none"),
        (lambda x, t: m_attack([surrogate()], 255 * x, t), r"images must be finite and in \[0, 1\]"),
        (lambda x, t: m_attack([surrogate()], x, t * math.nan), r"targets must be finite and in \[0, 1\]"),
        (lambda x, t: foa([surrogate()], x, t[:1]), r"images \(2, 3, 16, 16\), targets \(1, 3, 16, 16\)"),
        (lambda x, t: foa([surrogate()], x, t, clusters=17), "got 17 for 16 points"),
        (lambda x, t: TransferConfig(steps=0), "steps must be at least 1; got 0"),
        (lambda x, t: TransferConfig(eps=-1 / 255), "eps must be a finite, non-negative radius"),
        (lambda x, t: transport_plan(torch.ones(1, 2, 2), temperature=0.0), "temperature must be positive; got 0.0"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the type checker
    with pytest.raises(ValueError, match=message):
        call(*pair_of_images())
