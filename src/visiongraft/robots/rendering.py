"""Pictures of a MuJoCo scene without a display: EGL, OSMesa or ray casting behind one interface.

All backends show the same: geoms of the chosen groups (0 to 2 by default) with an opacity above 0, lit without shadows, before black. Pixel
centres lie at +0.5, the first row is on top, and depth is measured along the optical axis.
"""

import ctypes.util
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import mujoco
import numpy as np
from jaxtyping import Int32

from visiongraft.robots.environment import Modality, View
from visiongraft.robots.gl_rendering import GLRenderer, gl_platform
from visiongraft.robots.raycasting import RaycastRenderer

BACKENDS = ("egl", "osmesa", "raycast")
MODALITIES: tuple[Modality, ...] = ("images", "depth", "segmentation")
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_PROBED = "VISIONGRAFT_RENDERERS"
"""Environment variable with what was found out, such as ``egl=1,osmesa=0``, so that worker processes need not probe again."""
_MOST_PIXELS = 4096


@runtime_checkable
class Renderer(Protocol):
    """Renders cameras of a model; remembers what is costly to set up for it."""

    name: str

    def render(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: int,
        modalities: Sequence[Modality],
        size: tuple[int, int],
        owners: Int32[np.ndarray, "geoms"],
    ) -> dict[str, np.ndarray]:
        """Arrays by modality, as in :data:`visiongraft.robots.policy.Observation`.

        Args:
            model: the scene.
            data: its present moment, with poses up to date.
            camera: index.
            modalities: any of images, depth, segmentation.
            size: height and width in pixels.
            owners: for every geom the number that segmentation shows.
        """
        ...

    def close(self) -> None:
        """Frees buffers."""
        ...


def make_renderer(name: str = "auto", groups: tuple[int, ...] = (0, 1, 2)) -> Renderer:
    """A renderer by name; ``auto`` is the first of egl, osmesa and raycast that works here.

    Args:
        name: ``egl``, ``osmesa``, ``raycast`` or ``auto``.
        groups: MuJoCo's groups of geoms that are seen.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a backend that does not work on this machine, or not in this process.
    """
    _check_renderer(name)
    if name == "auto":
        name = next(each for each in BACKENDS if backend_works(each) and (each == "raycast" or gl_platform() in (None, each)))
    if name == "raycast":
        return RaycastRenderer(groups)
    if not backend_works(name):
        raise RuntimeError(
            f"The renderer {name!r} does not work on this machine (no lib{_LIBRARIES[name]}, or a test picture failed); "
            "use renderer 'raycast' or 'auto'."
        )
    return GLRenderer(name, groups)


def backend_works(name: str) -> bool:
    """Whether a backend works here. OpenGL is tried in a process of its own, since a broken driver ends it; the answer is kept.

    Raises:
        ValueError: an unknown name.
    """
    _check_renderer(name)
    if name == "auto" or name == "raycast":
        return True
    known = dict(entry.split("=", 1) for entry in os.environ.get(_PROBED, "").split(",") if "=" in entry)
    if name not in known:
        known[name] = str(int(_probe(name)))
        os.environ[_PROBED] = ",".join(f"{key}={value}" for key, value in known.items())
    return known[name] == "1"


@functools.cache
def _probe(name: str) -> bool:
    """Renders a ball in another process."""
    if sys.platform != "linux" or ctypes.util.find_library(_LIBRARIES[name]) is None:
        return False
    program = f"from visiongraft.robots.gl_rendering import try_out; try_out({name!r})"
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def check_view(view: View, camera_names: Sequence[str]) -> None:
    """Refuses a view that cannot be rendered.

    Raises:
        ValueError: an unknown camera, modality or renderer, or a size that is not two positive integers.
    """
    for names, what, known in (
        (view.cameras, "camera", camera_names),
        (view.modalities, "modality", MODALITIES),
    ):
        if isinstance(names, str):
            raise ValueError(f"View takes a tuple of names for {what}, got the text {names!r}; write ({names!r},).")
        for name in names:
            if name not in known:
                raise ValueError(f"There is no {what} {name!r}; there are {', '.join(known)}.")
    size = view.size
    whole = len(size) == 2 and all(isinstance(pixels, (int, np.integer)) and 0 < pixels <= _MOST_PIXELS for pixels in size)
    if not whole:
        raise ValueError(f"The size of a view is (height, width) in pixels, integers from 1 to {_MOST_PIXELS}, got {size!r}.")
    _check_renderer(view.renderer)


def _check_renderer(name: str) -> None:
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"There is no renderer {name!r}; there are {', '.join(BACKENDS)} and auto.")
