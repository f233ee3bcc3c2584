"""Rays a second of the ray caster, beside a plain loop over objects and beside the speed at which memory takes the results.

    OMP_NUM_THREADS=2 python benchmarks/worlds.py

A ray counts once, whatever is computed for it: distance, normal, instance number, texture and light; with shadows, each ray that
meets a lit surface sends another one. The plain loop finds distances only. All on the same rays, in one process, in turns.
"""

import argparse
import math
import time

import torch

from visiongraft.geometry.cameras import camera_rays
from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.generation import KINDS, make_scene
from visiongraft.worlds.raycaster import cast
from visiongraft.worlds.scenes import Light, Material, Scene, Sky, Solid, Thing, assemble
from visiongraft.worlds.visibility import pose


def twenty_objects() -> Scene:
    """A ground and 19 boxes, balls, cylinders and capsules around the camera, a third of them with patterns."""
    dice = Dice(0)
    looks = [Material((0.7, 0.3, 0.2)), Material((0.2, 0.5, 0.7)), Material((0.6, 0.6, 0.5), "checker", period=(0.5, 0.5))]
    ground = Material((0.4, 0.4, 0.4), "checker", (0.2, 0.2, 0.2), (2, 2))
    things = [Thing("ground", [Solid("plane", (0, 1.6, 0), (math.inf, 1, math.inf), ground, casts_shadow=False)])]
    for i in range(19):
        angle, away = i * 2.4, dice.between(3, 9)
        shape = ("box", "ellipsoid", "cylinder", "capsule")[i % 4]
        size = dice.between(0.4, 1.0)
        place = (math.sin(angle) * away, 1.6 - size, math.cos(angle) * away)
        things.append(Thing(shape, [Solid(shape, place, (size, size, size), looks[i % 3])]))
    return assemble("benchmark", "twenty objects", (0, 0, 0), things, [Light((0.8, 0.8, 0.7), (0.36, -0.8, 0.48))], Sky())


def plain_loop(scene: Scene, directions: torch.Tensor) -> torch.Tensor:
    """What one would write first: object after object, all rays, distances only."""
    posed = pose(scene)
    rays = directions.reshape(-1, 3)
    best = torch.full((len(rays),), math.inf)
    bounds = [sum(scene.counts[: k + 1]) for k in range(5)]
    for i in range(len(scene.position)):
        o, d = -posed.position[i] @ posed.to_unit[i].T, rays @ posed.to_unit[i].T
        if i < bounds[0]:
            a, b = (-1 - o) / d, (1 - o) / d
            near, far = torch.minimum(a, b).amax(1), torch.maximum(a, b).amin(1)
        elif i >= bounds[3]:
            near = far = -o[1] / d[:, 1]
        else:  # an ellipsoid; the other round shapes take more
            a, b, c = (d * d).sum(1), (d * o).sum(1), (o * o).sum() - 1
            root = (b * b - a * c).sqrt()
            near, far = (-b - root) / a, (-b + root) / a
        best = torch.where((near <= far) & (near > 1e-4) & (near < best), near, best)
    return best


def write_results(directions: torch.Tensor) -> list[torch.Tensor]:
    """As many bytes as a result has: distance, normal, colour, and two numbers."""
    return [directions.clone(), directions.clone(), directions[..., 0].clone(), directions[..., :2].double()]


def fastest(calls: dict, repeats: int) -> dict[str, float]:
    """Best wall time of each, in turns: what else the machine does then hits all of them."""
    times = {name: math.inf for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1024, help="of the panorama in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    height = args.height
    bundles = {
        f"panorama {height}x{2 * height}": (panorama_rays(height, 2 * height), math.pi / height),
        f"perspective {height}x{height}, 90 degrees": (camera_rays(torch.tensor(math.pi / 2), height, height), math.pi / 2 / height),
    }
    scene = twenty_objects()
    print(f"{torch.get_num_threads()} threads, {len(scene.position)} objects")
    for name, (rays, angle) in bundles.items():
        calls = {
            "picture": lambda: cast(scene, scene.viewpoint, rays, footprint=angle, shadows=False),
            "picture with shadows": lambda: cast(scene, scene.viewpoint, rays, footprint=angle),
            "geometry": lambda: cast(scene, scene.viewpoint, rays, color=False),
            "plain loop": lambda: plain_loop(scene, rays),
            "writing": lambda: write_results(rays),
        }
        times = fastest(calls, args.repeats)
        count = rays.numel() // 3
        print(f"{name}:")
        for label in ("picture", "picture with shadows", "geometry"):
            took = times[label]
            print(
                f"  {label}: {count / took / 1e6:.2f} million rays/s, {times['plain loop'] / took:.2f}x a plain loop for distances,"
                f" {took / times['writing']:.0f}x the time of writing the results"
            )
    for kind in KINDS:
        scene = make_scene(kind, 0)
        rays, angle = bundles[f"panorama {height}x{2 * height}"]
        took = fastest({kind: lambda: cast(scene, scene.viewpoint, rays, footprint=angle)}, 2)[kind]
        solids, lights = len(scene.position), len(scene.lights)
        print(f"{kind}: {rays.numel() / 3 / took / 1e6:.2f} million rays/s with {solids} solids and {lights} lights with shadows")


if __name__ == "__main__":
    main()
