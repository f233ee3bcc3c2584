"""Sampling of panoramas beside py360convert and pyequilib in one process: time ratios and errors. Prints; asserts nothing.

python benchmarks/panorama_geometry.py              # one thread
python benchmarks/panorama_geometry.py --threads 2

The peers are for this benchmark only: pip install py360convert==1.0.4 pyequilib==0.6.0
The error is the largest one against a smooth function on the sphere that is evaluated exactly at every output pixel.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch

from visiongraft.geometry.cameras import rotation_from_angles, view_directions
from visiongraft.geometry.panoramas import (
    cubemap_from_panorama,
    panorama_from_cubemap,
    panorama_from_perspective,
    panorama_rays,
    perspective_from_panorama,
)

try:
    import equilib
    import py360convert
except ImportError as error:
    sys.exit(f"{error.name} is missing; this benchmark compares with it: pip install py360convert==1.0.4 pyequilib==0.6.0")

OURS = "visiongraft"
Camera = tuple[float, float, float]  # yaw, pitch, roll in degrees
Call = Callable[[Camera], np.ndarray]
CAMERAS = [(20.0 + 3 * i, 25.0 - 2 * i, 5.0 + i) for i in range(40)]


def sphere(directions: torch.Tensor) -> torch.Tensor:
    """Three channels in [0, 1] of directions (..., 3)."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    return torch.stack([0.5 + 0.5 * (2 * x + y).sin(), 0.5 + 0.5 * x * z, 0.5 + 0.5 * (2 * y - z).cos()], -3)


def turn(camera: Camera) -> torch.Tensor:
    return rotation_from_angles(*torch.tensor([camera]).deg2rad().T)


def peer_angles(camera: Camera, sign: int) -> dict[str, float]:
    """equilib's angles with z_down=False: yaw and pitch have our sign in pers2equi and the opposite one in equi2pers."""
    yaw, pitch, roll = (math.radians(a) for a in camera)
    return {"yaw": sign * yaw, "pitch": sign * pitch, "roll": roll}


def best_times(calls: dict[str, Call], repeats: int, clock: Callable[[], float], new_camera: bool) -> dict[str, float]:
    """Least seconds of each call; the calls take turns, so that a busy machine slows them alike."""
    best = dict.fromkeys(calls, math.inf)
    for i in range(repeats + 1):
        for name, call in calls.items():
            camera = CAMERAS[i % len(CAMERAS)] if new_camera else CAMERAS[0]
            start = clock()
            call(camera)
            if i:  # the first is the warm-up
                best[name] = min(best[name], clock() - start)
    return best


def compare(title: str, calls: dict[str, Call], error: Callable[[np.ndarray], float], options: argparse.Namespace) -> None:
    errors = {name: error(call(CAMERAS[0])) for name, call in calls.items()}
    times = best_times(calls, options.repeats, options.clock, new_camera=True)
    again = best_times(calls, options.repeats, options.clock, new_camera=False)
    for name in calls:
        print(
            f"{title:38} {name:26} {1e3 * times[name]:9.2f} {times[name] / times[OURS]:7.2f}x {1e3 * again[name]:9.2f}"
            f" {again[name] / again[OURS]:7.2f}x {errors[name]:11.1e}"
        )
    print()


def panorama(height: int) -> tuple[torch.Tensor, np.ndarray]:
    image = sphere(panorama_rays(height, 2 * height, torch.float64)).float()
    return image, np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def view(height: int, size: int, hfov_deg: float, options: argparse.Namespace) -> None:
    image, array = panorama(height)
    hfov = torch.tensor([math.radians(hfov_deg)])
    truth = sphere(view_directions(hfov.double(), turn(CAMERAS[0]).double(), size, size).movedim(1, -1))[0].numpy()

    def ours(antialias: bool) -> Call:
        return lambda camera: perspective_from_panorama(image[None], hfov, turn(camera), (size, size), antialias)[0].numpy()

    calls: dict[str, Call] = {
        OURS: ours(antialias=False),
        f"{OURS}, anti-aliased": ours(antialias=True),
        "py360convert": lambda camera: py360convert.e2p(array, hfov_deg, camera[0], camera[1], (size, size), camera[2]).transpose(2, 0, 1),
        "pyequilib": lambda camera: equilib.equi2pers(image, peer_angles(camera, -1), size, size, hfov_deg).numpy(),
    }
    title = f"view {size}x{size}, {hfov_deg:g} deg, of {height}x{2 * height}"
    compare(title, calls, lambda found: float(np.abs(found - truth).max()), options)


def back(size: int, height: int, options: argparse.Namespace) -> None:
    hfov_deg = 90.0
    hfov = torch.tensor([math.radians(hfov_deg)])
    image = sphere(view_directions(hfov.double(), turn(CAMERAS[0]).double(), size, size).movedim(1, -1))[0].float()
    truth = sphere(panorama_rays(height, 2 * height, torch.float64)).numpy()
    mask = panorama_from_perspective(image[None], hfov, turn(CAMERAS[0]), height)[1][0, 0]
    # eight pixels off the border, where the peer has none of the image
    inside = ~torch.nn.functional.max_pool2d((~mask).float()[None], 17, 1, 8)[0].bool().numpy()
    calls: dict[str, Call] = {
        OURS: lambda camera: panorama_from_perspective(image[None], hfov, turn(camera), height)[0][0].numpy(),
        "pyequilib": lambda camera: equilib.pers2equi(image, peer_angles(camera, 1), height, 2 * height, hfov_deg).numpy(),
    }
    title = f"{height}x{2 * height} from view {size}x{size}"
    compare(title, calls, lambda found: float((np.abs(found - truth).max(0) * inside).max()), options)


def cubemap(height: int, size: int, options: argparse.Namespace) -> None:
    image, array = panorama(height)
    level = torch.eye(3, dtype=torch.float64)[None]
    front = sphere(view_directions(torch.tensor([math.pi / 2], dtype=torch.float64), level, size, size).movedim(1, -1))[0].numpy()
    calls: dict[str, Call] = {
        OURS: lambda _: cubemap_from_panorama(image[None], size, antialias=False)[0, 0].numpy(),
        "py360convert": lambda _: next(iter(py360convert.e2c(array, size, cube_format="list"))).transpose(2, 0, 1),
        "pyequilib": lambda _: equilib.equi2cube(image, {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}, size, "list")[0].numpy(),  # pyright: ignore[reportArgumentType]
    }
    compare(f"cubemap 6x{size}x{size} of {height}x{2 * height}", calls, lambda found: float(np.abs(found - front).max()), options)

    faces = cubemap_from_panorama(image[None], size)
    arrays = py360convert.e2c(array, size, cube_format="list")
    tensors = equilib.equi2cube(image, {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}, size, "list")
    # each library on its own faces: a round trip
    calls = {
        OURS: lambda _: panorama_from_cubemap(faces, height)[0].numpy(),
        "py360convert": lambda _: py360convert.c2e(arrays, height, 2 * height, cube_format="list").transpose(2, 0, 1),
        "pyequilib": lambda _: equilib.cube2equi(tensors, "list", height, 2 * height).numpy(),
    }
    compare(f"{height}x{2 * height} from that cubemap", calls, lambda found: float(np.abs(found - image.numpy()).max()), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--large", action="store_true", help="also 1024x1024 views of 2048x4096")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # with one thread the CPU's time leaves out what other processes take
    options.clock = time.process_time if options.threads == 1 else time.perf_counter
    clock = "CPU" if options.threads == 1 else "wall"
    print(
        f"py360convert {version('py360convert')} (OpenCV {'in use' if py360convert.utils.cv2 else 'not installed'}), pyequilib "
        f"{version('pyequilib')}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), float32, least of {options.repeats} "
        f"({clock} time, taking turns)\n"
    )
    print(f"{'':38} {'':26} {'a new camera each':>18} {'the same camera':>18} {'largest':>11}")
    print(f"{'task':38} {'library':26} {'ms':>9} {'ratio':>8} {'ms':>9} {'ratio':>8} {'error':>11}\n")
    view(256, 64, 90.0, options)
    view(1024, 512, 90.0, options)
    view(1024, 512, 60.0, options)
    if options.large:
        view(2048, 1024, 90.0, options)
    back(512, 1024, options)
    cubemap(1024, 512, options)


if __name__ == "__main__":
    main()
