"""Speed of the robot floor's renderers and simulators, side by side in one process. Prints ratios; asserts nothing.

python benchmarks/robots_rendering.py
"""

import statistics
import time

import mujoco
import numpy as np

from visiongraft.robots.environment import RobotEnvironment, View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.raycasting import cast_camera
from visiongraft.robots.rendering import backend_works

MODALITIES = {"depth": ("depth",), "images": ("images",), "all three": ("images", "depth", "segmentation")}


def seconds(call, repeats: int = 15) -> float:
    """Median wall time after one warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rendering(task: str, camera: str, side: int, **options) -> None:
    """Frames a second of ray casting against OpenGL through the same interface."""
    size = (side, side)
    names = [name for name in ("egl", "osmesa", "raycast") if backend_works(name)]
    environments = {name: make_environment(task, view=View(renderer=name), **options) for name in names}
    for environment in environments.values():
        environment.reset(seed=0)
    for label, modalities in MODALITIES.items():
        spent = {name: seconds(lambda: environment.render_view(camera, modalities, size)) for name, environment in environments.items()}
        rates = ", ".join(f"{name} {1 / value:.0f}/s" for name, value in spent.items())
        ratios = ", ".join(f"ray casting is {spent[name] / spent['raycast']:.2f}x as fast as {name}" for name in names if name != "raycast")
        print(f"{task} {side} px, {label}: {rates}" + (f"; {ratios}" if ratios else "; no OpenGL renderer works here"))
    for environment in environments.values():
        environment.close()


def one_call(side: int) -> None:
    """All rays in one call of MuJoCo against one call a ray."""
    environment = make_environment("tabletop/put_on_plate", twin=True)
    environment.reset(seed=0)
    model, data = environment.model, environment.data
    ray, geom = np.array([0.2, -0.1, -1.0]), np.zeros(1, np.int32)

    def loop() -> None:
        for _ in range(side * side):
            mujoco.mj_ray(model, data, data.cam_xpos[0], ray, None, 1, -1, geom)

    ratio = seconds(loop, 3) / seconds(lambda: cast_camera(model, data, 0, (side, side)))
    print(f"tabletop {side} px: one call for all rays is {ratio:.1f}x as fast as a call a ray")


def stepping(task: str, **options) -> None:
    """Control steps a second without pictures, and how much of one is not MuJoCo's own."""
    environment: RobotEnvironment = make_environment(task, **options)
    environment.reset(seed=0)
    action = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
    physics_steps = round(1 / (environment.control_frequency * environment.model.opt.timestep))
    physics = seconds(lambda: mujoco.mj_step(environment.model, environment.data, physics_steps), 60)
    step = seconds(lambda: environment.step(action), 60)
    observe = seconds(environment.observe, 60)
    print(
        f"{task}: {1 / step:.0f} control steps/s, {step / physics:.2f}x the bare physics ({physics_steps} steps of MuJoCo); "
        f"an observation without pictures takes {observe * 1e3:.2f} ms"
    )


def main() -> None:
    for side in (64, 128):
        rendering("tabletop/put_on_plate", "left", side, twin=True)
    rendering("metaworld/pick-place-v3", "corner", 64)
    one_call(64)
    for task in ("tabletop/put_on_plate", "metaworld/pick-place-v3"):
        stepping(task)


if __name__ == "__main__":
    main()
