"""Tiny recipes, what their runs leave, and ways to run, launch and kill them.

As a script: ``python small_runs.py RECIPE '{"output": ..., "steps": ...}'``.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from visiongraft.training import Optimizer, Recipe, TrainerConfig, checkpoints, train


class Points(Dataset):
    """Points and their sum; with ``jitter`` each is augmented by torch's global randomness."""

    def __init__(self, count: int = 41, jitter: float = 0.0) -> None:
        self.points = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        point = self.points[index]
        return point + self.jitter * torch.randn(4), point.sum(0, keepdim=True)


class Blocks(nn.Sequential):
    """Each linear layer is sharded by itself."""

    _no_split_modules = ["Linear"]


def network(inputs: int, outputs: int, *middle: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blocks(nn.Linear(inputs, 8), *middle, nn.Tanh(), nn.Linear(8, outputs))


class Smooth(Recipe):
    """Regression without randomness."""

    def __init__(self, **optimizer) -> None:
        self.modules: dict[str, nn.Module] = {"net": network(4, 1)}
        self.optimizers = {"main": Optimizer(modules=("net",), **{"learning_rate": 1e-2, **optimizer})}

    def data(self) -> Dataset:
        return Points()

    def losses(self, modules, batch, generator, optimizer):
        points, targets = batch
        return {"error": F.mse_loss(modules["net"](points), targets)}

    def preview(self, modules):
        name, module = next(iter(modules.items()))
        answers = module.eval()(Points().points[:4]).sigmoid()
        return {name: answers.view(1, 2, 2).expand(3, 2, 2)}

    def validate(self, modules):
        return {"answer": float(next(iter(modules.values()))(Points().points[:4]).sum())}


class Random(Smooth):
    """All kinds of randomness and of state: augmented data, noise of the generator, dropout, batch statistics, a schedule."""

    def __init__(self) -> None:
        super().__init__(schedule="cosine", warmup_steps=3)
        self.modules["net"] = network(4, 1, nn.BatchNorm1d(8), nn.Dropout(0.3))

    def data(self) -> Dataset:
        return Points(jitter=0.1)

    def losses(self, modules, batch, generator, optimizer):
        points, targets = batch
        noise = torch.randn(points.shape, generator=generator)
        return {"error": F.mse_loss(modules["net"](points + 0.1 * noise), targets)}


class Adversarial(Smooth):
    """A generator and a critic, each with its own optimiser; neither's losses may move the other."""

    def __init__(self) -> None:
        self.modules = {"generator": network(4, 1), "critic": network(1, 1)}
        self.optimizers = {
            "critic": Optimizer(modules=("critic",), learning_rate=1e-2),
            "generator": Optimizer(modules=("generator",), learning_rate=5e-3, schedule="linear"),
        }

    def losses(self, modules, batch, generator, optimizer):
        points, targets = batch
        if optimizer == "generator":
            return {"fooling": F.softplus(-modules["critic"](modules["generator"](points))).mean()}
        with torch.no_grad():
            made = modules["generator"](points)
        return {
            "real": F.softplus(-modules["critic"](targets)).mean(),
            "made": F.softplus(modules["critic"](made)).mean(),
        }


class Interrupted(Smooth):
    """Ctrl-C reaches the second of two processes in the fourth step."""

    calls = 0

    def losses(self, modules, batch, generator, optimizer):
        self.calls += 1
        if self.calls == 4 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGINT)
        return super().losses(modules, batch, generator, optimizer)


RECIPES = {"random": Random, "adversarial": Adversarial, "interrupted": Interrupted}


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]


def last_checkpoint(output: Path) -> dict[str, Tensor]:
    folder = max((output / "checkpoints").glob("step-*"))
    return {f"{file.stem}/{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Cut(BaseException):
    """Ends a run within the process where a test wants it."""


def cut_at(recipe: Recipe, call: int) -> Recipe:
    """The recipe, whose ``losses`` raises :class:`Cut` when called for the ``call``-th time."""
    original, calls = recipe.losses, 0

    def losses(*arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Cut
        return original(*arguments)

    recipe.losses = losses
    return recipe


def launch(recipe: str, config: TrainerConfig, *options: str, status: int = 0, seconds: float = 120) -> str:
    """Trains on two processes under ``accelerate launch``; nothing of the process group is left afterwards."""
    shape = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *shape, "--main_process_port", "0", *options]
    command += [__file__, recipe, json.dumps(vars(config), default=str)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told, _ = process.communicate(timeout=seconds)
        assert process.returncode == status, told
        return told
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.wait()


def train_and_be_killed(recipe: str, config: TrainerConfig, moment: str) -> None:
    """Trains in a process that ends itself with SIGKILL.

    Args:
        moment: ``loss 7``: in the seventh call of losses; ``half 2``: in the middle of writing the second checkpoint;
            ``written 2``: it is written under its hidden name and not renamed yet; ``removed 1``: an old checkpoint is renamed
            and not removed yet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "visiongraft.training.trainer"])
    process = context.Process(target=_train_until, args=(recipe, config, moment))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _train_until(name: str, config: TrainerConfig, moment: str) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loading processes
    recipe = RECIPES[name]()
    kind, left = moment.split()[0], int(moment.split()[1])

    def kill_before(owner, function: str, when) -> None:
        original = getattr(owner, function)

        def counted(*arguments, **named):
            nonlocal left
            left -= when(*arguments)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(owner, function, counted)

    if kind == "loss":
        kill_before(recipe, "losses", lambda *batch: True)
    elif kind == "half":
        kill_before(checkpoints, "save_file", lambda tensors, file: file.name.startswith("optimizer"))
    elif kind == "written":
        kill_before(os, "replace", lambda source, target: Path(target).name.startswith("step-"))
    elif kind == "removed":
        kill_before(shutil, "rmtree", lambda path: path.name.endswith("-old"))
    train(recipe, config)


if __name__ == "__main__":
    train(RECIPES[sys.argv[1]](), TrainerConfig(**json.loads(sys.argv[2])))
