import copy
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image
from small_runs import Adversarial, Cut, Points, Random, Smooth, cut_at, last_checkpoint, network, rows, same_tensors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from visiongraft.training import Optimizer, TrainerConfig, train
from visiongraft.training.order import StepBatches


def batches(steps, batch_size=8, seed=0):
    data = Points()
    for share in StepBatches(length=len(data), batch_size=batch_size, seed=seed, steps=steps):
        items = [data[index] for index in share.indices]
        yield torch.stack([point for point, _ in items]), torch.stack([target for _, target in items])


def test_training_is_the_loop_written_out(config):
    """AdamW, linear schedule with warm-up, clipping and average against their formulas in float64."""
    rate, decay, warmup, steps, largest, average_decay = 1e-2, 0.1, 3, 12, 0.5, 0.3
    net = network(4, 1).double()
    mean, square = ([torch.zeros_like(p) for p in net.parameters()] for _ in range(2))
    average = [p.detach().clone() for p in net.parameters()]
    curve = []
    for step, (points, targets) in enumerate(batches(steps), 1):
        loss = F.mse_loss(net(points.double()), targets.double())
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        done = step - 1
        factor = done / warmup if done < warmup else (steps - done) / (steps - warmup)
        for i, (p, g) in enumerate(zip(net.parameters(), gradients, strict=True)):
            g = g * min(1, largest / (norm + 1e-6))
            mean[i] = 0.8 * mean[i] + 0.2 * g
            square[i] = 0.95 * square[i] + 0.05 * g**2
            with torch.no_grad():
                p *= 1 - rate * factor * decay
                p -= rate * factor * (mean[i] / (1 - 0.8**step)) / ((square[i] / (1 - 0.95**step)).sqrt() + 1e-8)
            kept = min(average_decay, step / (step + 9)) if step > 1 else 0.0  # the average's own warm-up
            average[i] = kept * average[i] + (1 - kept) * p.detach()
        curve.append(float(loss.detach()))

    recipe = Smooth(learning_rate=rate, betas=(0.8, 0.95), weight_decay=decay, schedule="linear", warmup_steps=warmup)
    trained = train(recipe, config(clip_norm=largest, ema_decay=average_decay))["net"]

    assert [row["error"] for row in rows(config().output)] == pytest.approx(curve, rel=1e-5)
    for mine, wanted in zip(trained.parameters(), average, strict=True):
        assert torch.allclose(mine.double(), wanted, atol=1e-6)


def test_each_optimizer_moves_its_own_modules_with_its_own_losses(config):
    wanted = Adversarial()
    critic, generator = wanted.modules["critic"], wanted.modules["generator"]
    optimizers = {name: torch.optim.AdamW(wanted.modules[name].parameters(), lr=1e-2, weight_decay=0) for name in ("critic", "generator")}
    for step, (points, targets) in enumerate(batches(12)):
        optimizers["generator"].param_groups[0]["lr"] = 5e-3 * (12 - step) / 12
        for name in ("critic", "generator"):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            if name == "critic":
                loss = F.softplus(-critic(targets)).mean() + F.softplus(critic(generator(points))).mean()
            else:
                loss = F.softplus(-critic(generator(points))).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(wanted.modules[name].parameters(), 1.0)
            optimizers[name].step()

    trained = train(Adversarial(), config())

    for name, module in wanted.modules.items():
        for mine, theirs in zip(trained[name].parameters(), module.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6)
    assert rows(config().output)[0].keys() == {"step", "critic/real", "critic/made", "generator/fooling"}


def test_accumulated_micro_batches_give_the_step_of_the_whole_batch(tmp_path, config):
    for parts in (1, 4):
        train(Smooth(), config(output=tmp_path / str(parts), accumulate=parts))

    whole, accumulated = (rows(tmp_path / name) for name in ("1", "4"))
    assert [row["error"] for row in accumulated] == pytest.approx([row["error"] for row in whole], rel=1e-5)


def test_run_is_a_function_of_its_seed(tmp_path, config):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(ord(name))  # which must not matter
        train(Random(), config(output=tmp_path / name, seed=seed))

    assert same_tensors(last_checkpoint(tmp_path / "a"), last_checkpoint(tmp_path / "b"))
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


def test_logging_loading_and_looking_do_not_change_the_run(tmp_path, config):
    train(Random(), config(output=tmp_path / "plain"))
    watched = {"logger": "tensorboard", "preview_every": 2, "log_every": 1, "workers": 1, "checkpoint_every": 1, "progress": True}
    train(Random(), config(output=tmp_path / "watched", **watched))

    assert same_tensors(last_checkpoint(tmp_path / "plain"), last_checkpoint(tmp_path / "watched"))


def test_global_randomness_is_left_as_it_was(config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(Random(), config(logger="tensorboard", workers=1))

    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_and_the_generator_draw_different_numbers(config):
    drawn = []

    class Drawing(Smooth):
        def losses(self, modules, batch, generator, optimizer):
            drawn.append((torch.rand(4, generator=generator), torch.rand(4)))
            return super().losses(modules, batch, generator, optimizer)

    train(Drawing(), config(steps=3))

    numbers = torch.stack([value for pair in drawn for value in pair])
    assert len(numbers.unique(dim=0)) == 6


def test_frozen_parameters_stay(config):
    recipe = Smooth(weight_decay=0.5)
    first = recipe.modules["net"][0].requires_grad_(False)
    before = copy.deepcopy(first)
    trained = train(recipe, config(ema_decay=0.9))["net"]

    assert same_tensors(trained[0].state_dict(), before.state_dict())
    assert not same_tensors(trained[2].state_dict(), network(4, 1)[2].state_dict())


class Poisoned(Smooth):
    """A loss or a gradient that is not a number in the sixth step."""

    def __init__(self, what):
        super().__init__()
        self.what, self.step = what, 0

    def losses(self, modules, batch, generator, optimizer):
        terms, self.step = super().losses(modules, batch, generator, optimizer), self.step + 1
        if self.step == 6 and self.what == "loss":
            terms["poison"] = terms["error"] * torch.inf
        elif self.step == 6:  # the root of zero has no finite slope
            terms["poison"] = (terms["error"] * 0).sqrt()
        return terms


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", r"The loss is not finite at step 6 \(error [\d.]+, poison inf\); the last good checkpoint is .*step-00000003\. Lower"),
        ("gradient", r"The gradient is not finite at step 6 \(error [\d.]+, poison 0\); the last good checkpoint is .*step-00000003\."),
    ],
)
def test_loss_or_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(what, message, config):
    recipe = Poisoned(what)
    with pytest.raises(FloatingPointError, match=message):
        train(recipe, config(clip_norm=None))

    assert all(p.isfinite().all() for p in recipe.modules["net"].parameters())


def test_loss_that_is_not_finite_before_any_checkpoint_says_so(config):
    with pytest.raises(FloatingPointError, match="the last good checkpoint is none yet"):
        train(Poisoned("loss"), config(checkpoint_every=100))


def test_bf16_follows_the_curve_of_float32_and_leaves_modules_plain(tmp_path, config):
    train(Smooth(), config(output=tmp_path / "no"))
    forwards = set()

    class Watched(Smooth):
        def losses(self, modules, batch, generator, optimizer):
            forwards.add(modules["net"][0](batch[0]).dtype)
            return super().losses(modules, batch, generator, optimizer)

    trained = train(Watched(), config(output=tmp_path / "bf16", mixed_precision="bf16"))["net"]

    assert forwards == {torch.bfloat16}
    full, half = ([row["error"] for row in rows(tmp_path / name)] for name in ("no", "bf16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.03)
    assert trained(torch.zeros(1, 4)).dtype == torch.float32
    assert "forward" not in vars(trained)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is refused on a CPU only")
def test_fp16_on_a_cpu_is_refused(config):
    with pytest.raises(ValueError, match="mixed_precision fp16 needs a GPU; on a CPU choose bf16 or no"):
        train(Smooth(), config(mixed_precision="fp16"))


class Scale(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, points):
        return (points * self.scale).sum(-1, keepdim=True)


def test_diffusers_models_are_saved_in_their_own_format(config):
    recipe = Smooth()
    recipe.modules = {"net": Scale(width=4)}
    trained = train(recipe, config())["net"]
    loaded = Scale.from_pretrained(config().output / "net")

    assert loaded.config["width"] == 4
    assert torch.equal(loaded.scale, trained.scale)
    assert not trained.training


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("unused", torch.ones(2))

    def forward(self, points):
        return self.decode(self.encode(points).tanh()).sum(-1, keepdim=True)


def test_tied_weights_stay_tied_through_checkpoint_and_saving(tmp_path, config):
    def recipe():
        made = Smooth()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made.modules = {"net": Tied()}
        return made

    whole = train(recipe(), config(output=tmp_path / "whole"))["net"]
    train(recipe(), config(steps=6))
    resumed = train(recipe(), config())["net"]

    assert resumed.decode.weight is resumed.encode.weight
    assert same_tensors(resumed.state_dict(), whole.state_dict())


def test_previews_show_the_average_and_are_written_as_pictures(config):
    class Seen(Smooth):
        def preview(self, modules):
            self.seen = copy.deepcopy(modules["net"])
            return {"picture": torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1).expand(3, 2, 5)}

    recipe = Seen()
    trained = train(recipe, config(ema_decay=0.9, preview_every=5))["net"]

    pictures = sorted((config().output / "previews").iterdir())
    assert [path.name for path in pictures] == ["picture-00000005.png", "picture-00000010.png", "picture-00000012.png"]
    assert np.array_equal(np.asarray(Image.open(pictures[0])), np.broadcast_to(np.array([0, 128, 255], np.uint8), (2, 5, 3)))
    assert same_tensors(recipe.seen.state_dict(), trained.state_dict())


def test_tensorboard_holds_one_curve_after_a_resume(config):
    with pytest.raises(Cut):  # two rows past the checkpoint
        train(cut_at(Random(), 9), config(logger="tensorboard"))
    train(Random(), config(logger="tensorboard"))
    events = EventAccumulator(str(config().output / "logs" / "visiongraft"), size_guidance={"images": 0}).Reload()

    error = [(event.step, event.value) for event in events.Scalars("loss/error")]
    assert error == [(row["step"], pytest.approx(row["error"])) for row in rows(config().output)]
    assert events.Scalars("learning_rate/main")[0].value == pytest.approx(1e-2 / 3)
    assert {"gradient_norm/main", "validation/answer"} <= set(events.Tags()["scalars"])
    assert events.Images("net")[0].height == 2


def test_wandb_that_is_not_installed_is_said_to_be_missing(config, monkeypatch):
    monkeypatch.setattr("visiongraft.training.recording.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="logger wandb needs the package wandb; install it, or choose tensorboard or none"):
        train(Smooth(), config(logger="wandb"))


def test_output_that_cannot_be_written_is_refused(tmp_path, config):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(PermissionError, match=r"run cannot be written .* choose another output folder"):
        train(Smooth(), config())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"preview_every": 0}, "preview_every must be at least 1, or none; got 0"),
        ({"workers": -1}, "workers must be 0 or more; got -1"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \(0, 1\), or be none; got 1.0"),
        ({"clip_norm": float("nan")}, "clip_norm must be positive, or none; got nan"),
        ({"mixed_precision": "bfloat16"}, "mixed_precision must be one of no, bf16, fp16; got 'bfloat16'"),
        ({"logger": "mlflow"}, "logger must be one of tensorboard, wandb, none; got 'mlflow'"),
    ],
)
def test_configuration_out_of_range_is_refused(changed, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which would refuse some of them first
    with pytest.raises(ValueError, match=message):
        TrainerConfig(output=Path("run"), **changed)


def owning(**optimizers):
    return {name: Optimizer(modules=modules) for name, modules in optimizers.items()}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"optimizers": {}}, "Smooth needs at least one module and one optimizer; set self.modules and self.optimizers"),
        ({"modules": {"logs": network(4, 1)}}, "has a module named 'logs', a folder the Trainer writes itself; rename it"),
        ({"optimizers": owning(main=("nett",))}, "Optimizer 'main' names the module 'nett'; Smooth has net"),
        ({"optimizers": owning(a=("net",), b=("net",))}, "Module 'net' belongs to optimizers 'a' and 'b'; it can have one only"),
        ({"modules": {"net": network(4, 1).requires_grad_(False)}}, "Optimizer 'main' has no parameter that requires a gradient; unfreeze"),
        ({"optimizers": {"main": Optimizer(modules=("net",), schedule="cosin")}}, "Schedule 'cosin' .* is unknown; choose one of linear,"),
        ({"losses": lambda *arguments: {}}, r"Smooth.losses must return a dict of named scalars for 'main'; got \{\}"),
        ({"losses": lambda *arguments: {"all": torch.ones(3)}}, r"Loss 'all' of Smooth must be a scalar tensor; got shape \(3,\). Average"),
        ({"losses": lambda *arguments: {"all": 1.0}}, "Loss 'all' of Smooth must be a scalar tensor; got float"),
        ({"data": lambda: Points(0)}, "The data set is empty"),
        ({"data": lambda: iter([1])}, r"Smooth.data must give a map-style data set, .* got list_iterator"),
    ],
)
def test_mistake_in_a_recipe_is_named(attributes, message, config):
    recipe = Smooth()
    for name, value in attributes.items():
        setattr(recipe, name, value)
    with pytest.raises(ValueError, match=message):
        train(recipe, config())


def test_configuration_is_there_without_torch():
    code = "import sys; from visiongraft.training import TrainerConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
