"""Chamfer distances and ICP of ActionMesh's evaluation: the k-d tree beside brute force, in one process. Prints; asserts nothing.

python benchmarks/action_mesh_metrics.py                 # one thread of a CPU, a few minutes
python benchmarks/action_mesh_metrics.py --largest 1000  # only clouds of at most so many points, half a minute
python benchmarks/action_mesh_metrics.py --device cuda   # brute force there against the tree on the CPU; the whole protocol of 16 frames

Brute force is the arithmetic of the released benchmark (pytorch3d's nearest neighbours compare all pairs). Ratios are its time over the
tree's: above 1, the tree is faster. "differ" is the largest difference of what the two give. A step of ICP is timed, since 200 steps by
brute force would take a CPU an hour; "a frame" is 200 times the step.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch

from visiongraft.geometry.surfaces import Ellipsoid, Mesh
from visiongraft.metrics.animated_meshes import score_animation
from visiongraft.metrics.chamfer import chamfer_distance, motion_chamfer_distance
from visiongraft.metrics.registration import LIGHT, RELEASED, IcpOptions, register


def cloud(num: int, seed: int) -> torch.Tensor:
    return Ellipsoid(0.9, 0.6, 0.3).sample(num, torch.Generator().manual_seed(seed)).float()


def seconds(call: Callable[[], object], repeats: int, options: argparse.Namespace) -> float:
    """Least time of a call; the first, which warms up, counts where there is no other."""
    best = math.inf
    for i in range(repeats + (repeats > 1)):
        start = options.clock()
        call()
        if options.device != "cpu":
            torch.cuda.synchronize()
        if i or repeats == 1:
            best = min(best, options.clock() - start)
    return best


def compare(what: str, call: Callable[[str], float], options: argparse.Namespace, repeats: tuple[int, int] = (3, 1)) -> None:
    tree = seconds(lambda: call("tree"), repeats[0], options)
    brute = seconds(lambda: call("brute"), repeats[1], options)
    print(f"{what:58} {1e3 * tree:12.1f} {1e3 * brute:12.1f} {brute / tree:8.1f}x {abs(call('tree') - call('brute')):10.1e}")


def distances(options: argparse.Namespace) -> None:
    for num, asked in ((600, 600), (10_000, 10_000), (100_000, 10_000)):
        if num > options.largest:
            continue
        a, b = cloud(num, 0).to(options.device), cloud(num, 1).to(options.device)
        what = f"chamfer, {num:,} points, {asked:,} queries each way"
        compare(what, lambda search, a=a, b=b, asked=asked: chamfer_distance(a, b, asked, search=search), options)
    for frames, num in ((16, 1_000), (16, 10_000), (16, 30_000)):
        if num > options.largest:
            continue
        a = torch.stack([cloud(num, 0) * (1 + 0.02 * k) for k in range(frames)]).to(options.device)
        b = torch.stack([cloud(num, 1) * (1 + 0.02 * k) for k in range(frames)]).to(options.device)
        what = f"CD-M, {frames} frames, {num:,} points"
        compare(what, lambda search, a=a, b=b: motion_chamfer_distance(a, b, search=search), options)


def alignment(options: argparse.Namespace) -> None:
    for num, steps in ((150, 10), (1_000, 5), (3_000, 1), (10_000, 1)):
        if num > options.largest:
            continue
        a, b = cloud(num, 0)[None].to(options.device), cloud(num, 1)[None].to(options.device)
        icp = IcpOptions(steps=steps)
        what = f"ICP, 24 starts, {num:,} points, {steps} of 200 steps"
        compare(what, lambda search, a=a, b=b, icp=icp: float(register(a, b, icp, search=search).loss), options)


def presets(options: argparse.Namespace) -> None:
    a, b = (torch.stack([cloud(150, k + seed) for k in range(6)]).to(options.device) for seed in (0, 10))
    light = seconds(lambda: register(a, b, LIGHT), 3, options)
    full = seconds(lambda: register(a, b, RELEASED), 1, options)
    print(f"\nICP of 6 frames of 150 points: light preset {light:.2f} s, released {full:.2f} s, ratio {full / light:.1f}x")
    if options.device != "cpu" and options.largest >= 100_000:
        faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
        meshes = [Mesh(torch.tensor([[1.0, 0, 0], [-0.5, 0.8, 0], [-0.5, -0.8, 0], [0, 0, 0.5 + 0.02 * k]]), faces) for k in range(16)]
        truth = torch.stack([cloud(100_000, k) for k in range(16)])
        taken = seconds(lambda: score_animation(truth, meshes, device=options.device), 1, options)
        print(f"the released protocol, 16 frames, 100,000 points: {taken:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest", type=int, default=100_000, help="points of the largest cloud")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # with one thread the CPU's time leaves out what other processes take
    options.clock = time.process_time if options.threads == 1 and options.device == "cpu" else time.perf_counter
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} thread(s), float32\n")
    print(f"{'what':58} {'tree ms':>12} {'brute ms':>12} {'ratio':>9} {'differ':>10}")
    distances(options)
    alignment(options)
    presets(options)


if __name__ == "__main__":
    main()
