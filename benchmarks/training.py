"""Overhead of the Trainer over a bare PyTorch loop: the same model, data, batches, optimiser and clipping, in one process.

    python benchmarks/training.py

Prints microseconds a step of both and their ratio, for a network so small that the Trainer is most of the work and for one that
takes as long as a small vision model. Both losses are printed, since a faster loop that trains something else is none.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from visiongraft.training import Optimizer, Recipe, TrainerConfig, train
from visiongraft.training.order import StepBatches

BATCH = 32


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(32 if i else 3, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(512, 3, 16, 16, generator=generator), torch.randint(10, (512,), generator=generator))


class Classify(Recipe):
    def __init__(self, module: nn.Module) -> None:
        self.modules = {"net": module}
        self.optimizers = {"main": Optimizer(modules=("net",), learning_rate=1e-3)}

    def data(self) -> TensorDataset:
        return samples()

    def losses(self, modules, batch, generator, optimizer):
        return {"class": F.cross_entropy(modules["net"](batch[0]), batch[1])}


def bare(module: nn.Module, steps: int) -> float:
    """The loop as one would write it, with a loss read each step; returns the last loss."""
    data, last = samples(), 0.0
    order = [batch.indices for batch in StepBatches(length=len(data), batch_size=BATCH, seed=0, steps=steps)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    for images, labels in DataLoader(data, batch_sampler=order):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
    return last


def trained(module: nn.Module, steps: int, **options) -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        settings = {"logger": "none", "progress": False, "checkpoint_every": steps, **options}
        train(Classify(module), TrainerConfig(output=output, steps=steps, batch_size=BATCH, **settings))
        return float((output / "losses.jsonl").read_text().splitlines()[-1].split()[-1].rstrip("}"))


def seconds_per_step(run, make, few: int, many: int) -> tuple[float, float]:
    """Time of the steps between ``few`` and ``many``, which leaves out what is done once; and the last loss."""
    torch.manual_seed(0)
    short, long = make(), make()
    long.load_state_dict(short.state_dict())
    started = time.perf_counter()
    run(short, few)
    between = time.perf_counter()
    loss = run(long, many)
    return (time.perf_counter() - between - (between - started)) / (many - few), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the fastest counts")
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH} images of 3 x 16 x 16")
    runs = {
        "bare loop": bare,
        "Trainer": trained,
        "Trainer, average and TensorBoard": lambda module, steps: trained(module, steps, ema_decay=0.99, logger="tensorboard"),
    }
    for make, few, many in ((perceptron, 50, 550), (convolutions, 20, 120)):
        print(f"\n{make.__name__}: {sum(p.numel() for p in make().parameters())} parameters")
        measured: dict[str, list] = {name: [] for name in runs}
        for _ in range(repeats):  # in turn, so that a busy moment hits all
            for name, run in runs.items():
                measured[name].append(seconds_per_step(run, make, few, many))
        base = min(seconds for seconds, _ in measured["bare loop"])
        for name, values in measured.items():
            seconds = min(seconds for seconds, _ in values)
            print(f"  {name:33} {seconds * 1e6:9.0f} us a step   x {seconds / base:5.2f}   last loss {values[-1][1]:.6f}")


if __name__ == "__main__":
    main()
