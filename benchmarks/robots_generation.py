"""Demonstrations a minute of the generator on one and on two workers, and what of that is simulation.

    OMP_NUM_THREADS=1 python benchmarks/robots_generation.py                    # 60 demonstrations of one task
    OMP_NUM_THREADS=1 python benchmarks/robots_generation.py --num 200 --task tabletop/stack

Times include what a user waits for: starting the workers, and writing each demonstration so that no kill takes it away. The limit is
the same attempts in a bare loop that keeps nothing. Prints what, on what, against what, and the ratio; asserts nothing.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from visiongraft.robots.attempts import attempt, prepare_sources
from visiongraft.robots.demonstrations import read_demonstrations
from visiongraft.robots.environments import make_environment
from visiongraft.robots.gathering import Gathered
from visiongraft.robots.generation import collect, generate
from visiongraft.robots.subtasks import Settings, default_subtasks

OFFSETS = (2, 5)
SETTINGS = Settings(trim_approach=True)


def bare_loop(task: str, sources: Path, attempts: int) -> float:
    """Seconds for as many attempts as the generator needed, without files, order or other processes."""
    environment = make_environment(task)
    environment.reset(seed=0)
    subtasks = default_subtasks(environment, offset_range=OFFSETS)
    prepared = prepare_sources(list(read_demonstrations(sources)), subtasks)
    started = time.perf_counter()
    for number in range(attempts):
        attempt(environment, prepared, subtasks, SETTINGS, np.random.default_rng([1, 0, number]))
    return time.perf_counter() - started


def generated(task: str, sources: Path, output: Path, num: int, workers: int) -> tuple[float, Gathered]:
    """Seconds for a file of demonstrations."""
    output.unlink(missing_ok=True)
    started = time.perf_counter()
    engine = "processes" if workers > 1 else "local"
    options = {"offset_range": OFFSETS, "settings": SETTINGS, "workers": workers, "engine": engine, "progress": False}
    made = generate(task, sources, output, num=num, **options)
    return time.perf_counter() - started, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="tabletop/put_on_plate")
    parser.add_argument("--num", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "sources.hdf5"
        collect(arguments.task, sources, num=5, progress=False)
        best: dict[str, float] = {}
        for _ in range(2):  # in turns, the fastest of each: other work on the machine hits all alike
            for workers in (1, 2):
                took, made = generated(arguments.task, sources, Path(folder) / "out.hdf5", arguments.num, workers)
                name = f"{workers} worker{'s' * (workers > 1)}"
                best[name] = min(took, best.get(name, took))
            took = bare_loop(arguments.task, sources, made.attempts)
            best["bare loop"] = min(took, best.get("bare loop", took))
    for name, took in best.items():
        print(f"{arguments.task}, {name}: {60 * arguments.num / took:.0f} demonstrations a minute")
    print(f"{made.success_rate:.0%} of attempts succeed")
    print(f"2 workers against 1: {best['1 worker'] / best['2 workers']:.2f}x on {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f})")
    print(f"1 worker against a bare loop that keeps nothing: {best['bare loop'] / best['1 worker']:.2f}x of its speed")


if __name__ == "__main__":
    main()
