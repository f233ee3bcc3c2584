"""PGD and APGD against closed forms, their ball, their step rule, and the independence of the final choice."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.attacks import (
    AttackConfig,
    apgd,
    apgd_checkpoints,
    ascend,
    eot_cosine_objective,
    must_halve,
    pgd,
    score_and_gradient,
)
from visiongraft.methods.feature_smoothing.bounds import cosine_bound
from visiongraft.methods.feature_smoothing.perturbations import ascent_direction, random_start
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig

ATTACKS = [pgd, apgd]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weights):
    return lambda images: (weights * images).flatten(1).sum(1)


def grey_images(batch=3, size=6):
    return 0.4 + 0.2 * torch.rand(batch, 3, size, size, generator=seeded(1))


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Conv2d(8, 16, 3, 2), nn.Flatten()).eval()


def best_linear_change(weights, image, eps):
    """max <w, d> over ||d|| <= eps and image + d in [0, 1], in float64: d = clamp(s w), s by bisection on the norm."""
    w, x = weights.double().numpy().ravel(), image.double().numpy().ravel()
    at = lambda log_scale: np.clip(np.exp(log_scale) * w, -x, 1 - x)
    return w @ at(brentq(lambda log_scale: np.linalg.norm(at(log_scale)) - eps, -40, 40))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.2), ("linf", 0.05)])
def test_linear_score_reaches_the_dual_norm_where_the_box_is_inactive(attack, norm, eps):
    images, weights = grey_images(), torch.randn(3, 3, 6, 6, generator=seeded(2))
    dual = weights.flatten(1).norm(dim=1) if norm == "l2" else weights.flatten(1).abs().sum(1)
    config = AttackConfig(norm=norm, eps=eps, steps=30, step_size=eps)
    result = attack(linear(weights), images, config, seeded())
    torch.testing.assert_close(linear(weights)(result.images - images), eps * dual, atol=1e-3, rtol=0)
    torch.testing.assert_close(result.scores, linear(weights)(result.images))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("eps", [1.0, 3.0])
def test_linear_score_in_l2_reaches_the_bisection_solution_where_the_box_is_active(attack, eps):
    images, weights = torch.rand(3, 3, 6, 6, generator=seeded(3)), torch.randn(3, 3, 6, 6, generator=seeded(4))
    result = attack(linear(weights), images, AttackConfig(eps=eps, steps=60, step_size=eps), seeded())
    expected = torch.tensor([best_linear_change(w, x, eps) for w, x in zip(weights, images, strict=True)])
    assert ((result.images == 0) | (result.images == 1)).any()
    torch.testing.assert_close(linear(weights)(result.images - images).double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_linear_score_in_linf_reaches_the_corner_where_the_box_is_active(attack):
    images, weights = torch.rand(3, 3, 6, 6, generator=seeded(3)), torch.randn(3, 3, 6, 6, generator=seeded(4))
    result = attack(linear(weights), images, AttackConfig(norm="linf", eps=0.3), seeded())
    expected = (images + 0.3 * weights.sign()).clamp(0, 1)
    torch.testing.assert_close(linear(weights)(result.images), linear(weights)(expected), atol=1e-3, rtol=0)


def test_apgd_with_default_step_beats_pgd_with_default_step_on_a_linear_score():
    images, weights = grey_images(), torch.randn(3, 3, 6, 6, generator=seeded(2))
    by_pgd, by_apgd = (attack(linear(weights), images, AttackConfig(eps=0.2), seeded()).scores for attack in ATTACKS)
    assert (by_apgd > by_pgd).all()
    best = linear(weights)(images) + 0.2 * weights.flatten(1).norm(dim=1)
    torch.testing.assert_close(by_apgd, best, atol=1e-3, rtol=0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("distance", "reached"), [(0.1, 0.0), (0.5, 0.2)])
def test_quadratic_score_ends_at_the_projection_of_its_optimum(attack, distance, reached):
    images = grey_images()
    away = distance * ascent_direction(torch.randn(images.shape, generator=seeded(5)), "l2")
    result = attack(lambda x: -(x - images - away).flatten(1).norm(dim=1), images, AttackConfig(eps=0.3, steps=80), seeded())
    step_size = 2.5 * 0.3 / 80  # the resolution of a fixed step
    tolerance = step_size if attack is pgd else 2e-3
    torch.testing.assert_close(-result.scores, torch.full((3,), reached), atol=tolerance, rtol=0)


def test_apgd_resolves_an_optimum_far_finer_than_its_first_step():
    images = grey_images()
    objective = lambda x: -(x - images - 0.02).abs().flatten(1).sum(1)
    start = random_start(images, 0.1, "linf", seeded())
    config = AttackConfig(norm="linf", eps=0.1, steps=100, restarts=1, step_size=0.07)
    best, _, _ = ascend(objective, images, start, config)
    adaptive = apgd(objective, images, config, seeded())
    assert (adaptive.scores > objective(best) / 10).all()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_same_seed_gives_the_same_attack_and_other_seeds_do_not(attack, norm):
    images, net = grey_images(2, 12), encoder()
    objective = eot_cosine_objective(lambda x, samples: net(x), net(images))
    config = AttackConfig(norm=norm, eps=0.1, steps=4, restarts=1)
    first, again, other = (attack(objective, images, config, seeded(seed)).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("targeted", [False, True])
def test_attack_raises_the_objective_of_a_convolutional_encoder_within_budget(attack, targeted):
    images, net = torch.rand(3, 3, 12, 12, generator=seeded(9)), encoder()
    reference = net(torch.rand(3, 3, 12, 12, generator=seeded(10))) if targeted else net(images)
    objective = eot_cosine_objective(lambda x, samples: net(x), reference, targeted=targeted)
    result = attack(objective, images, AttackConfig(eps=1.0), seeded())
    assert (result.scores > objective(images) + 0.05).all()
    assert ((result.images - images).flatten(1).norm(dim=1) <= 1.0 + 1e-6).all()
    assert result.history.shape[0] == 2 and (result.history.amax((0, 1)) <= result.scores + 1e-4).all()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_of_an_image_does_not_depend_on_its_batch_mates(attack):
    images, net = torch.rand(3, 3, 12, 12, generator=seeded(9), dtype=torch.float64), encoder().double()
    weights = torch.randn(64, generator=seeded(11), dtype=torch.float64)
    config = AttackConfig(norm="linf", eps=0.1, steps=12, restarts=1)
    # The generator's first numbers, hence the same random start, go to the first image in both batches.
    together, alone = (attack(lambda x: torch.tanh(net(x)) @ weights, batch, config, seeded()) for batch in (images, images[:1]))
    torch.testing.assert_close(together.history[:, :, :1], alone.history)
    torch.testing.assert_close(together.images[:1], alone.images)


def noisy_linear(weights, clean, generator, scale=3.0):
    """A random score with a linear mean: its gradient is drowned in noise unless many draws are averaged."""

    def objective(images):
        noise = scale * torch.randn(images.shape, generator=generator)
        return ((weights + noise) * (images - clean)).flatten(1).sum(1)

    return objective


@pytest.mark.parametrize("attack", ATTACKS)
def test_averaging_fresh_draws_converges_to_the_optimum_of_the_mean(attack):
    images, weights = grey_images(), torch.randn(3, 3, 6, 6, generator=seeded(2))
    gain = {}
    for repeats in (1, 100):
        config = AttackConfig(eps=0.2, steps=40, eot_repeats=repeats, restarts=1)
        result = attack(noisy_linear(weights, images, seeded(3)), images, config, seeded(), evaluate=linear(weights))
        gain[repeats] = linear(weights)(result.images - images) / (0.2 * weights.flatten(1).norm(dim=1))
    assert (gain[100] > gain[1]).all()
    assert (gain[100] > 0.97).all()


def test_objective_is_called_afresh_for_every_repeat_and_its_gradients_are_averaged():
    factors = iter([1.0, 2.0, 6.0])
    weights = torch.randn(1, 3, 6, 6, generator=seeded(2))
    score, gradient = score_and_gradient(lambda x: next(factors) * linear(weights)(x), grey_images(1), repeats=3)
    torch.testing.assert_close(score, 3 * linear(weights)(grey_images(1)))
    torch.testing.assert_close(gradient, 3 * weights)


@pytest.mark.parametrize("attack", ATTACKS)
def test_restarts_are_chosen_by_the_independent_evaluation_not_by_the_optimised_score(attack):
    images, weights = grey_images(), torch.randn(3, 3, 6, 6, generator=seeded(2))
    steps, calls = 10, []

    def flattering_first_restart(x):
        calls.append(1)
        first = len(calls) <= steps
        return linear(-weights)(x) + 100 if first else linear(weights)(x)

    config = AttackConfig(eps=0.2, steps=steps, restarts=2)
    result = attack(flattering_first_restart, images, config, seeded(), evaluate=linear(weights))
    assert (result.history[0].amax(0) > result.history[1].amax(0) + 50).all()
    assert (linear(weights)(result.images - images) > 0.15 * weights.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_never_returns_less_than_the_clean_image_scores(attack):
    images = grey_images()
    result = attack(lambda x: -(x - images).flatten(1).norm(dim=1), images, AttackConfig(eps=0.3, steps=3), seeded())
    assert torch.equal(result.images, images)


def test_reported_scores_are_drawn_after_the_choice():
    images, generator = torch.full((2000, 1, 1, 1), 0.5), seeded()
    pure_noise = lambda x: torch.randn(len(x), generator=generator) + 0 * x.sum((1, 2, 3))
    result = pgd(pure_noise, images, AttackConfig(steps=2, restarts=5), seeded(1), evaluate=pure_noise)
    assert abs(float(result.scores.mean())) < 0.1  # a maximum over 11 draws would be 1.6


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_constant_score_gives_finite_images_inside_the_ball(attack, norm):
    images = grey_images()
    result = attack(lambda x: 0 * x.sum((1, 2, 3)) + 1, images, AttackConfig(norm=norm, eps=0.1), seeded())
    assert torch.isfinite(result.images).all()
    assert torch.equal(result.scores, torch.ones(3))


@pytest.mark.parametrize("attack", ATTACKS)
def test_zero_radius_returns_the_clean_images(attack):
    images = grey_images()
    weights = torch.randn(images.shape, generator=seeded())
    assert torch.equal(attack(linear(weights), images, AttackConfig(eps=0.0), seeded()).images, images)


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 100, 173])
def test_checkpoints_follow_the_recurrence(steps):
    fractions = [0.0, 0.22]
    while fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06) < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    expected = sorted({math.ceil(round(fraction * steps, 6)) for fraction in fractions})
    assert apgd_checkpoints(steps) == expected


def test_checkpoints_of_a_hundred_steps():
    assert apgd_checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_step_is_halved_for_too_few_improvements_or_for_a_stalled_best():
    improved = torch.tensor([5, 6, 6, 6])
    best_rose = torch.tensor([True, True, False, False])
    halved_last_time = torch.tensor([False, False, False, True])
    assert must_halve(improved, 8, best_rose, halved_last_time).tolist() == [True, False, True, False]


def apgd_by_the_book(objective, image, start, eps, steps):
    """Algorithm 1 of arXiv 2003.01690 for one image in l-infinity, as it is printed; the scores of its iterates."""
    clip = lambda moved: torch.minimum(torch.maximum(moved, image - eps), image + eps).clamp(0, 1)
    gradient = lambda at: score_and_gradient(objective, at)[1]
    x, eta, checkpoints = [start], 2 * eps, apgd_checkpoints(steps)
    scores, risen, halved = [float(objective(start))], [], False
    best, best_score = start, scores[0]
    best_at, last = best_score, 0
    for k in range(steps - 1):
        z = clip(x[k] + eta * gradient(x[k]).sign())
        x.append(z if k == 0 else clip(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])))
        scores.append(float(objective(x[k + 1])))
        risen.append(scores[k + 1] > float(objective(x[k])))
        if scores[k + 1] > best_score:
            best, best_score = x[k + 1], scores[k + 1]
        if k + 1 in checkpoints:
            halved = sum(risen[last:]) < 0.75 * (k + 1 - last) or (not halved and best_score == best_at)
            if halved:
                eta, x[k + 1] = eta / 2, best
            best_at, last = best_score, k + 1
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_apgd_takes_the_steps_of_the_published_algorithm(seed):
    images = torch.rand(3, 3, 4, 4, generator=seeded(seed), dtype=torch.float64)
    weights = torch.randn(48, 5, generator=seeded(seed + 1), dtype=torch.float64)
    objective = lambda x: torch.sin(4 * x.flatten(1) @ weights).sum(1)
    config = AttackConfig(norm="linf", eps=0.2, steps=40, restarts=1)
    history = apgd(objective, images, config, seeded(seed)).history[0]
    starts = random_start(images, 0.2, "linf", seeded(seed))
    for i in range(3):
        expected = apgd_by_the_book(objective, images[i : i + 1], starts[i : i + 1], 0.2, 40)
        torch.testing.assert_close(history[:, i], expected)


def test_cosine_objective_is_signed_averages_parts_and_asks_for_samples():
    reference = torch.eye(2).repeat(3, 1, 1)
    asked = []

    def features(images, samples):
        asked.append(samples)
        return torch.stack([images.new_tensor([2.0, 0.0]), images.new_tensor([1.0, 1.0])]).repeat(3, 1, 1)

    expected = torch.full((3,), (1 + 0.5**0.5) / 2)
    torch.testing.assert_close(eot_cosine_objective(features, reference, 5, targeted=True)(grey_images()), expected)
    torch.testing.assert_close(eot_cosine_objective(features, reference, 5)(grey_images()), -expected)
    assert asked == [5, 5]


def test_attack_on_a_smoothed_feature_beats_a_random_perturbation_of_the_same_budget():
    images, net, generator = torch.rand(2, 3, 12, 12, generator=seeded(9)), encoder(), seeded(12)

    def features(x, samples):
        noisy = x.repeat_interleave(samples, 0)
        noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=generator)
        return F.normalize(net(noisy), dim=-1).unflatten(0, (len(x), samples)).mean(1)

    reference = net(images)
    objective = eot_cosine_objective(features, reference, samples=4)
    evaluate = eot_cosine_objective(features, reference, samples=256)
    result = pgd(objective, images, AttackConfig(eps=1.0, steps=10), seeded(), evaluate)
    at_random = evaluate(random_start(images, 1.0, "l2", seeded(13)))
    assert (1 + result.scores > 10 * (1 + at_random)).all()  # one minus the cosine


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"norm": "l1"}, "norm must be l2 or linf; got 'l1'"),
        ({"eps": -0.1}, "eps must be a finite, non-negative radius"),
        ({"eps": math.inf}, "eps must be a finite, non-negative radius"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"restarts": 0}, "restarts must be at least 1; got 0"),
        ({"eot_repeats": 0}, "eot_repeats must be at least 1; got 0"),
        ({"step_size": 0.0}, "step_size must be positive"),
    ],
)
def test_bad_settings_are_refused_with_the_accepted_range(setting, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the type checker
    with pytest.raises(ValueError, match=message):
        AttackConfig(**setting)


@pytest.mark.parametrize("value", [-0.5, 200.0, math.nan])
def test_images_outside_the_pixel_range_are_refused(value):
    images = grey_images()
    images[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"images must be finite and in \[0, 1\].*Divide 8-bit pixels by 255"):
        pgd(linear(torch.ones(1)), images, AttackConfig())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda x: x.sum((1, 2, 3)) * math.nan, "NaN or infinite score"),
        (lambda x: (0 * x).sum((1, 2, 3)).sqrt(), "NaN or infinite gradient"),
        (lambda x: x.sum(), r"one score an image, shape \(3,\); got \(\)"),
        (lambda x: x.detach().sum((1, 2, 3)), "no gradient with respect to the images"),
        (lambda x: torch.ones(3, requires_grad=True) * 2, "no gradient with respect to the images"),
    ],
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_objectives_that_cannot_be_attacked_are_refused(attack, objective, message):
    with pytest.raises(ValueError, match=message):
        attack(objective, grey_images(), AttackConfig(), seeded())


def test_no_images_and_no_samples_are_refused():
    with pytest.raises(ValueError, match="images must hold at least one image"):
        pgd(linear(torch.ones(1)), torch.zeros(0, 3, 4, 4), AttackConfig())
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        eot_cosine_objective(lambda x, samples: x, torch.ones(1, 2), samples=0)
    objective = eot_cosine_objective(lambda x, samples: torch.ones(3, 5), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"reference's shape \(3, 4\); got \(3, 5\)"):
        objective(grey_images())


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_reaches_the_known_worst_case_of_a_smoothed_feature_and_no_further_than_its_certificate(attack):
    """f(x) = (cos <w,x>, sin <w,x>), ||w|| = 1: cos(g(x), g(x')) = cos <w, x' - x>, hence cos(eps) at worst."""
    sigma, eps = 0.5, 0.25
    weights = ascent_direction(torch.randn(1, 1, 3, 3, generator=seeded(2)), "l2")

    class Circle(nn.Module):
        def forward(self, images):
            angle = (weights * images).sum((1, 2, 3))
            return torch.stack([angle.cos(), angle.sin()], dim=1)

    smoothed = SmoothedEncoder(Circle().eval(), SmoothingConfig(sigma=sigma, chunk_size=4096))
    images = torch.full((2, 1, 3, 3), 0.5)
    noise = seeded(3)

    def features(x, samples):
        return smoothed.mean_feature(x, samples, noise)

    reference = smoothed.mean_feature(images, 100_000, noise)
    objective = eot_cosine_objective(features, reference, samples=256)
    evaluate = eot_cosine_objective(features, reference, samples=100_000)
    reached = -attack(objective, images, AttackConfig(eps=eps, steps=20), seeded(), evaluate).scores
    torch.testing.assert_close(reached, torch.full((2,), math.cos(eps)), atol=2e-3, rtol=0)
    score = (1 + math.exp(-(sigma**2) / 2)) / 2
    assert float(reached.min()) > float(cosine_bound(score, eps / sigma, "smoothed")) > 0.96
