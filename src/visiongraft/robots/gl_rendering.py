"""MuJoCo's OpenGL renderer on EGL or OSMesa, whatever ``MUJOCO_GL`` was when MuJoCo was imported."""

import atexit
import importlib
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float32, Int32

from visiongraft.robots.environment import Modality

_contexts = threading.local()
_renderers: "weakref.WeakSet[GLRenderer]" = weakref.WeakSet()
_MOST_GEOMS = 5000
_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)


def gl_platform() -> str | None:
    """The OpenGL platform that this process is bound to, None while it is free: PyOpenGL takes only one."""
    return (os.environ.get("PYOPENGL_PLATFORM") or "").lower() or None


def _current_context(name: str) -> Any:
    """This thread's OpenGL context, made at the first call and shared by all renderers.

    Raises:
        RuntimeError: the process is bound to another platform.
    """
    platform = gl_platform()
    if platform not in (None, name):
        raise RuntimeError(
            f"This process renders with {platform!r} already, and OpenGL takes one platform a process; "
            f"use renderer {platform!r} or 'raycast', or start a new process for {name!r}."
        )
    if not hasattr(_contexts, "context"):
        _contexts.context = importlib.import_module(f"mujoco.{name}").GLContext(64, 64)
        atexit.register(_free, _contexts.context)
    _contexts.context.make_current()
    return _contexts.context


def _free(context: Any) -> None:
    """Frees everything while OpenGL is still there; at the interpreter's end MuJoCo's own destructors come too late."""
    context.make_current()
    for renderer in list(_renderers):
        renderer.close()
    context.free()


class GLRenderer:
    """Renders with OpenGL; shadows, reflections and multisampling are off (they cost a software driver a hundredfold)."""

    def __init__(self, name: str, groups: tuple[int, ...] = (0, 1, 2)) -> None:
        self.name, self._groups = name, groups
        self._model: mujoco.MjModel | None = None
        self._context: mujoco.MjrContext | None = None
        _renderers.add(self)

    def _prepare(self, model: mujoco.MjModel, size: tuple[int, int]) -> None:
        """Uploads the model's meshes and textures, and makes room for the picture."""
        height, width = size
        if self._model is not model:
            self.close()
            quality, frame = model.vis.quality, model.vis.global_
            kept = quality.shadowsize, quality.offsamples, frame.offwidth, frame.offheight
            quality.shadowsize, quality.offsamples, frame.offwidth, frame.offheight = 0, 0, width, height
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
            quality.shadowsize, quality.offsamples, frame.offwidth, frame.offheight = kept
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
            context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR.value
            self._scene = mujoco.MjvScene(model, _MOST_GEOMS)
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
                self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
            self._option = mujoco.MjvOption()
            self._option.sitegroup[:] = 0
            self._option.geomgroup[:] = [int(group in self._groups) for group in range(6)]
            self._model, self._context = model, context
        assert self._context is not None
        if self._context.offWidth < width or self._context.offHeight < height:
            mujoco.mjr_resizeOffscreen(max(width, self._context.offWidth), max(height, self._context.offHeight), self._context)

    def render(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: int,
        modalities: Sequence[Modality],
        size: tuple[int, int],
        owners: Int32[np.ndarray, "geoms"],
    ) -> dict[str, np.ndarray]:
        """See :class:`visiongraft.robots.rendering.Renderer`."""
        _current_context(self.name)
        self._prepare(model, size)
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, camera
        mujoco.mjv_updateScene(model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        rendered: dict[str, np.ndarray] = {}
        if "images" in modalities:
            rendered["images"] = self._draw(size)[0]
        if "depth" in modalities or "segmentation" in modalities:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
            colours, buffer = self._draw(size)
            if "depth" in modalities:
                rendered["depth"] = _metres(model, buffer)
            if "segmentation" in modalities:
                rendered["segmentation"] = self._objects(colours, owners)
        return rendered

    def _draw(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Colours and depth buffer, first row on top."""
        height, width = size
        viewport = mujoco.MjrRect(0, 0, width, height)
        colours, buffer = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(colours, buffer, viewport, self._context)
        return np.ascontiguousarray(colours[::-1]), np.ascontiguousarray(buffer[::-1])

    def _objects(self, colours: np.ndarray, owners: Int32[np.ndarray, "geoms"]) -> Int32[np.ndarray, "height width"]:
        """Object numbers from the colours that stand for parts of the scene; 0 is the background."""
        codes = colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        table = np.full(self._scene.ngeom + 1, -1, np.int32)
        for part in self._scene.geoms[: self._scene.ngeom]:
            if part.segid >= 0 and part.objtype == _GEOM:
                table[part.segid + 1] = owners[part.objid]
        return table[codes]

    def close(self) -> None:
        """Frees the model's buffers."""
        if self._context is not None:
            _current_context(self.name)
            self._context.free()
        self._context = self._model = None


def _metres(model: mujoco.MjModel, buffer: Float32[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Distance along the axis from a reversed depth buffer (1 at the near plane, 0 at the far one); infinite where nothing was drawn."""
    near, far = model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent
    depth = near * far / (near + buffer.astype(np.float64) * (far - near))
    return np.where(buffer > 0, depth, np.inf).astype(np.float32)


def try_out(name: str) -> None:
    """Renders a ball and raises where that does not work."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="eye" pos="0 0 1"/><geom type="sphere" size="0.2"/></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    rendered = GLRenderer(name).render(model, data, 0, ("images", "depth", "segmentation"), (8, 8), np.zeros(1, np.int32))
    if rendered["segmentation"][4, 4] != 0 or not 0.75 < rendered["depth"][4, 4] < 0.85 or not rendered["images"][4, 4].any():
        raise RuntimeError(f"The renderer {name!r} draws nothing.")
