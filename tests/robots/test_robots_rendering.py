"""One picture from every renderer, and what is said where one cannot be made."""

import os
import subprocess
import sys

import numpy as np
import pytest

from visiongraft.robots import rendering
from visiongraft.robots.environment import View
from visiongraft.robots.environments import make_environment
from visiongraft.robots.rendering import BACKENDS, backend_works, check_view, make_renderer

GL = next((name for name in ("egl", "osmesa") if backend_works(name)), None)


def test_auto_takes_the_first_renderer_that_works():
    assert make_renderer("auto").name == next(name for name in BACKENDS if backend_works(name))


@pytest.mark.skipif(GL is None, reason="no OpenGL renderer works on this machine")
@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("camera", ["left", "cam_8_left", "overview"])
def test_opengl_and_ray_casting_show_the_same(twin, camera):
    size = (96, 128)
    pictures = []
    for renderer in (GL, "raycast"):
        environment = make_environment("tabletop/put_on_plate", pair=2, twin=twin, view=View(renderer=renderer))
        environment.reset(seed=4)
        pictures.append(environment.render_view(camera, ("images", "depth", "segmentation"), size))
        environment.close()
    drawn, cast = pictures
    assert (drawn["segmentation"] == cast["segmentation"]).mean() > 0.999
    difference = np.abs(drawn["depth"] - cast["depth"]) / cast["depth"]
    assert np.quantile(difference, 0.98) < 2e-3  # the rest lies on edges
    assert np.abs(drawn["images"].astype(float) - cast["images"]).mean() < 3
    for modality, kind in (("images", np.uint8), ("depth", np.float32), ("segmentation", np.int32)):
        assert drawn[modality].dtype == cast[modality].dtype == kind
        assert drawn[modality].shape == cast[modality].shape


@pytest.mark.skipif(GL is None, reason="no OpenGL renderer works on this machine")
def test_an_opengl_renderer_follows_a_new_model_and_a_larger_size():
    environment = make_environment("tabletop/stack", twin=True, view=View(cameras=("left",), size=(16, 16), renderer=GL))
    first = environment.reset(seed=0)[0]["images"]["left"]
    second = environment.reset(seed=1)[0]["images"]["left"]
    assert not np.array_equal(first, second)
    assert environment.render_view("left", ("images",), (700, 900))["images"].shape == (700, 900, 3)
    np.testing.assert_array_equal(environment.reset(seed=0)[0]["images"]["left"], first)
    environment.close()


@pytest.mark.skipif(GL is None, reason="no OpenGL renderer works on this machine")
def test_a_process_that_rendered_with_opengl_ends_quietly():
    program = (
        "from visiongraft.robots.environment import View\nfrom visiongraft.robots.environments import make_environment\n"
        f"e = make_environment('tabletop/stack', view=View(cameras=('left',), size=(8, 8), renderer={GL!r}))\n"
        "print(e.reset(seed=0)[0]['images']['left'].shape)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0
    assert done.stdout == "(8, 8, 3)\n"
    assert "Traceback" not in done.stderr


def test_a_driver_that_crashes_is_found_out_in_another_process(monkeypatch):
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: "somewhere")
    monkeypatch.setattr(rendering.subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, returncode=-11))
    rendering._probe.cache_clear()
    monkeypatch.setenv("VISIONGRAFT_RENDERERS", "")
    try:
        assert not backend_works("egl")
        assert os.environ["VISIONGRAFT_RENDERERS"] == "egl=0"  # worker processes need not try again
        with pytest.raises(RuntimeError, match=r"'egl' does not work on this machine.*use renderer 'raycast'"):
            make_renderer("egl")
        assert make_renderer("auto").name == "raycast"
    finally:
        rendering._probe.cache_clear()


def test_opengl_of_another_platform_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setenv("VISIONGRAFT_RENDERERS", "egl=1,osmesa=1")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert make_renderer("auto").name == "osmesa"
    environment = make_environment("tabletop/stack", view=View(renderer="egl"))
    environment.reset(seed=0)
    with pytest.raises(RuntimeError, match="renders with 'osmesa' already"):
        environment.render_view("left", ("images",), (8, 8))


def unchecked(**fields) -> View:
    """A view whose fields are of types that the tests' type checker would refuse, as they reach users who do not run one."""
    view = View()
    for name, value in fields.items():
        object.__setattr__(view, name, value)
    return view


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(cameras=("front",)), "no camera 'front'; there are left"),
        (dict(cameras="left"), "got the text 'left'"),
        (dict(cameras=("left",), modalities=("infrared",)), "no modality 'infrared'; there are images, depth, segmentation"),
        (dict(cameras=("left",), renderer="vulkan"), "no renderer 'vulkan'; there are egl, osmesa, raycast and auto"),
        (dict(cameras=("left",), size=(0, 64)), r"\(height, width\) in pixels, integers from 1 to 4096, got \(0, 64\)"),
        (dict(cameras=("left",), size=(64.0, 64)), "integers from 1"),
        (dict(cameras=("left",), size=(64, 64, 3)), "integers from 1"),
    ],
)
def test_views_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        check_view(unchecked(**fields), ("left", "right"))
