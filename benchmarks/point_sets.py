"""Farthest point sampling beside fpsample and a NumPy loop, and points from a simulator, in one process. Prints; asserts nothing.

python benchmarks/point_sets.py              # one thread
python benchmarks/point_sets.py --threads 2

The peer is for this benchmark only: pip install fpsample==1.0.2
Ratios are a peer's time over ours: above 1, ours is faster. fpsample's bucket versions skip points by a tree; they count the start
in the order of that tree, so that they begin elsewhere and choose other points. The last columns say how many choices are those of the
NumPy loop, and how far the farthest point lies from a chosen one, relative to the loop.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from visiongraft.geometry.point_sets import farthest_points
from visiongraft.robots.environment import View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.points import SimulatorPoints
from visiongraft.robots.scene_clouds import scene_cloud

try:
    import fpsample
except ImportError:
    sys.exit("fpsample is missing; this benchmark compares with it: pip install fpsample==1.0.2")

OURS = "visiongraft"
TASKS = ((1, 1_000, 128, 3), (2, 1_000, 128, 3), (32, 1_000, 128, 3), (1, 16_384, 512, 5), (1, 100_000, 512, 7))
"""Clouds, points of each, points to choose, and the height of fpsample's tree."""


def numpy_loop(points: np.ndarray, num: int) -> np.ndarray:
    nearest, chosen = np.full(len(points), np.inf, points.dtype), np.zeros(num, np.int64)
    for i in range(1, num):
        nearest = np.minimum(nearest, ((points - points[chosen[i - 1]]) ** 2).sum(1))
        chosen[i] = nearest.argmax()
    return chosen


def covering(points: np.ndarray, chosen: np.ndarray) -> float:
    """Largest distance from a point to its nearest chosen one."""
    return float(cKDTree(points[chosen]).query(points)[0].max())


def best_times(calls: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of each call; the calls take turns, so that a busy machine slows them alike."""
    best = dict.fromkeys(calls, math.inf)
    for i in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if i:  # the first is the warm-up
                best[name] = min(best[name], clock() - start)
    return best


def farthest(batch: int, n: int, num: int, height: int, options: argparse.Namespace) -> None:
    clouds = torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(0))
    arrays = list(clouds.numpy())
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: farthest_points(clouds, num),
        "fpsample": lambda: [fpsample.fps_sampling(a, num, start_idx=0) for a in arrays],
        f"fpsample, bucket kd-line ({height})": lambda: [fpsample.bucket_fps_kdline_sampling(a, num, height, start_idx=0) for a in arrays],
        "fpsample, bucket kd-tree": lambda: [fpsample.bucket_fps_kdtree_sampling(a, num, start_idx=0) for a in arrays],
        "NumPy loop": lambda: [numpy_loop(a, num) for a in arrays],
    }
    reference = numpy_loop(arrays[0], num)
    for name, seconds in (times := best_times(calls, options.repeats, options.clock)).items():
        chosen = np.asarray(calls[name]()[0]).astype(np.int64)
        same, cover = (chosen == reference).mean(), covering(arrays[0], chosen) / covering(arrays[0], reference)
        task = f"{batch} x {n:,} -> {num}"
        print(f"{task:22} {name:30} {1e3 * seconds:9.2f} {seconds / times[OURS]:8.2f}x {100 * same:9.1f} % {cover:8.3f}x")
    print()


def simulator(options: argparse.Namespace) -> None:
    view = View(cameras=("left",), modalities=("depth",), size=(128, 128), renderer="raycast")
    environment = make_environment("tabletop/put_on_plate", view=view)
    observation, _ = environment.reset(seed=0)
    depth, camera = observation["depth"]["left"], observation["cameras"]["left"]
    plain, aligned = SimulatorPoints(environment), SimulatorPoints(environment, align_camera="left")
    plain.reset(observation)
    aligned.reset(observation)
    calls: dict[str, Callable[[], object]] = {
        "simulator points, a frame": lambda: plain(observation),
        "the same, aligned to 128x128": lambda: aligned(observation),
        "simulator points, an episode": lambda: plain.reset(observation),
        "scene cloud of 128x128 -> 512": lambda: scene_cloud(depth, camera),
        "ray casting the depth": lambda: environment.render_view("left", ("depth",), (128, 128)),
    }
    times = best_times(calls, max(options.repeats, 20), options.clock)
    frame = times["simulator points, a frame"]
    for name, seconds in times.items():
        print(f"{'2 objects of 128':22} {name:30} {1e3 * seconds:9.3f} {seconds / frame:8.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # with one thread the CPU's time leaves out what other processes take
    options.clock = time.process_time if options.threads == 1 else time.perf_counter
    print(
        f"fpsample {version('fpsample')}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), float32, least of "
        f"{options.repeats} ({'CPU' if options.threads == 1 else 'wall'} time, taking turns)\n"
    )
    print(f"{'task':22} {'by':30} {'ms':>9} {'to ours':>9} {'as NumPy':>11} {'covering':>9}\n")
    for task in TASKS:
        farthest(*task, options)
    print(f"{'task':22} {'what':30} {'ms':>9} {'to a frame':>9}\n")
    simulator(options)


if __name__ == "__main__":
    main()
