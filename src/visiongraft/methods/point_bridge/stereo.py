"""Depth from a rectified pair of images: semi-global matching by OpenCV, or a stereo network behind a callable (FoundationStereo)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from visiongraft.geometry.lifting import depth_from_disparity
from visiongraft.methods.point_bridge.frames import Frame, resize_camera
from visiongraft.robots.cameras import Camera
from visiongraft.robots.extras import require

NEAREST = 0.25
"""Metres from which on :meth:`SemiGlobalMatcher.reaching` finds things."""

StereoMatcher = Callable[[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width 3"]], Float[np.ndarray, "height width"]]
"""Maps (left, right) to the disparity in pixels of every left pixel; NaN, infinity or a number <= 0 where it found none."""


@dataclass(frozen=True)
class StereoDepth:
    """Depth of the left image of a rectified pair.

    Args:
        matcher: gives disparity.
        size: height and width that the matcher gets, such as (448, 672) for FoundationStereo's released plan; the intrinsics are
            scaled with it. ``None`` leaves the images as they are.

    Source: Point Bridge brief, 2.5.
    """

    matcher: StereoMatcher
    size: tuple[int, int] | None = None

    def __call__(self, frame: Frame) -> Float[np.ndarray, "height width"]:
        """Metres; infinity where no match is found, or where the point lies left of the right image.

        Raises:
            ValueError: a frame without a second view, a pair that is not rectified, or a matcher's answer of another size.
        """
        if frame.right_image is None or frame.right_camera is None:
            raise ValueError("Stereo depth needs a second view with its camera; name it with frame_of(…, right_camera='right').")
        baseline = stereo_baseline(frame.camera, frame.right_camera)
        left, right, camera = frame.image, frame.right_image, frame.camera
        if self.size is not None:
            cv2 = require("cv2")
            camera = resize_camera(camera, self.size)
            left, right = (cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA) for image in (left, right))
        disparity = np.asarray(self.matcher(left, right), np.float32)
        if disparity.shape != tuple(camera.size):
            raise ValueError(f"The stereo matcher gave {disparity.shape} for images of {tuple(camera.size)} (height, width).")
        depth = depth_from_disparity(torch.from_numpy(disparity), float(camera.intrinsics[0, 0]), baseline).numpy()
        if self.size is None:
            return depth
        # nearest: a mean of two depths at an edge is a point in the air
        rows = ((np.arange(frame.image.shape[0]) + 0.5) * self.size[0] / frame.image.shape[0]).astype(int)
        columns = ((np.arange(frame.image.shape[1]) + 0.5) * self.size[1] / frame.image.shape[1]).astype(int)
        return depth[rows[:, None], columns]


def stereo_baseline(left: Camera, right: Camera) -> float:
    """Metres from the left to the right camera of a rectified pair.

    Raises:
        ValueError: the right camera is turned against the left one, not beside it, or has other intrinsics.
    """
    right_to_left = left.base_to_camera @ right.camera_to_base
    x, y, z = right_to_left[:3, 3]
    turn = np.degrees(np.arccos(np.clip((np.trace(right_to_left[:3, :3]) - 1) / 2, -1, 1)))
    if turn > 0.1 or x <= 0 or max(abs(y), abs(z)) > 0.01 * x:
        raise ValueError(
            f"The pair is not rectified: the right camera is turned by {turn:.2f} degrees against the left one and lies at "
            f"({x:.4f}, {y:.4f}, {z:.4f}) m of it; it must be parallel and to the right (+x) only. Rectify the images first."
        )
    if not np.allclose(left.intrinsics, right.intrinsics, rtol=1e-4, atol=0.05):
        raise ValueError("The pair is not rectified: the two cameras have different intrinsics. Rectify the images first.")
    return float(x)


@dataclass(frozen=True, kw_only=True)
class SemiGlobalMatcher:
    """OpenCV's StereoSGBM with a left-right check.

    Args:
        disparities: largest disparity in pixels, a multiple of 16: focal length x baseline / nearest depth must be below it, and what is
            nearer is not found; :meth:`reaching` computes it.
        block: side of the windows that are compared, odd.
        consistency: pixels by which the disparities of the two views may differ.
        enlarge: factor by which images are enlarged first; small images have disparities of a few pixels, of which OpenCV resolves
            sixteenths.

    Source: Hirschmueller 2008; Point Bridge brief, section 3 (offline fallbacks).
    """

    disparities: int = 64
    block: int = 5
    consistency: float = 1.0
    enlarge: int = 1

    def __post_init__(self) -> None:
        if self.disparities < 16 or self.disparities % 16 or self.block < 1 or self.block % 2 == 0 or self.enlarge < 1:
            raise ValueError(
                f"StereoSGBM takes disparities that are a multiple of 16, an odd block and a factor of at least 1; got {self.disparities}, "
                f"{self.block} and {self.enlarge}."
            )

    @classmethod
    def reaching(cls, camera: Camera, baseline: float, nearest: float = NEAREST, **options: Any) -> "SemiGlobalMatcher":
        """A matcher that searches far enough for things as near as ``nearest`` metres, at the camera's resolution.

        Args:
            camera: left one of the pair.
            baseline: metres between the two.
            nearest: metres; twice as near takes twice as long. The search never goes beyond the image's width.
            options: other arguments of the class.

        Raises:
            ValueError: a baseline or a distance that is not positive.
        """
        if not (baseline > 0 and nearest > 0):
            raise ValueError(f"baseline and nearest must be positive, in metres; got {baseline} and {nearest}.")
        largest = min(camera.intrinsics[0, 0] * baseline / nearest, camera.size[1]) * options.get("enlarge", 1)
        return cls(disparities=max(1, math.ceil(largest / 16)) * 16, **options)

    def __call__(
        self, left: UInt8[np.ndarray, "height width 3"], right: UInt8[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "height width"]:
        """Disparity in pixels of the left image, NaN where there is none."""
        cv2 = require("cv2")
        height, width = left.shape[:2]
        size = (width * self.enlarge, height * self.enlarge)
        left, right = (cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in (left, right))
        forward = self._match(cv2, left, right)
        # the right view's disparity is the left one's of the mirrored, exchanged pair
        backward = self._match(cv2, right[:, ::-1], left[:, ::-1])[:, ::-1]
        columns = np.arange(size[0])[None] - np.nan_to_num(forward)
        there = np.clip(np.rint(columns).astype(int), 0, size[0] - 1)
        other = np.take_along_axis(backward, there, axis=1)
        forward[~(np.abs(forward - other) <= self.consistency)] = np.nan
        middle = self.enlarge // 2
        return (forward[middle :: self.enlarge, middle :: self.enlarge] / self.enlarge).astype(np.float32)

    def _match(
        self, cv2: Any, left: UInt8[np.ndarray, "height width 3"], right: UInt8[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "height width"]:
        # OpenCV gives no disparity to the columns that the search range does not fit in: padding on the left gives them one
        pad = ((0, 0), (self.disparities, 0), (0, 0))
        left, right = (np.ascontiguousarray(np.pad(image, pad, mode="edge")) for image in (left, right))
        matcher = cv2.StereoSGBM_create(
            minDisparity=0,
            numDisparities=self.disparities,
            blockSize=self.block,
            P1=8 * 3 * self.block**2,
            P2=32 * 3 * self.block**2,
            uniquenessRatio=5,
            mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
        )
        disparity = matcher.compute(left, right).astype(np.float32)[:, self.disparities :] / 16
        return np.where(disparity > 0, disparity, np.nan)


class NetworkMatcher:
    """A stereo network as an ONNX file, with inputs (left, right) of 1 x 3 x height x width and the disparity as its output.

    FoundationStereo's exports take RGB in [0, 255]; NVIDIA's licence covers them, so none comes with this package.

    Args:
        path: ``.onnx`` file.
        size: height and width of its inputs; give the same to :class:`StereoDepth`.
        providers: of onnxruntime, such as ``CUDAExecutionProvider``.

    Raises:
        FileNotFoundError: no such file.
        ImportError: onnxruntime is not installed.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int] = (448, 672), providers: tuple[str, ...] = ("CPUExecutionProvider",)
    ) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no stereo network {path}; export one to ONNX, or use SemiGlobalMatcher.")
        try:
            onnxruntime = import_module("onnxruntime")
        except ModuleNotFoundError:
            raise ImportError("onnxruntime is not installed; install it with: pip install onnxruntime") from None
        self.size = size
        self._session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        if len(self._inputs) != 2:
            raise ValueError(f"A stereo network has two inputs, left and right; {path} has {', '.join(self._inputs) or 'none'}.")

    def __call__(
        self, left: UInt8[np.ndarray, "height width 3"], right: UInt8[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "height width"]:
        """Disparity in pixels."""
        if left.shape[:2] != self.size:
            raise ValueError(f"The stereo network takes {self.size} (height, width), got {left.shape[:2]}; give StereoDepth the size.")
        pair = (image.transpose(2, 0, 1)[None].astype(np.float32) for image in (left, right))
        return np.asarray(self._session.run(None, dict(zip(self._inputs, pair, strict=True)))[0], np.float32).reshape(self.size)


StereoService = Callable[
    [UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width 3"], Float[np.ndarray, "3 3"], float],
    Float[np.ndarray, "height width"],
]
"""Maps (left, right, intrinsics, baseline in metres) to metric depth: a stereo network on another machine."""


@dataclass(frozen=True)
class RemoteStereoDepth:
    """Depth from a service that answers with metres, such as a FoundationStereo server.

    Args:
        service: called with images of ``size`` and intrinsics scaled to it.
        size: height and width that the service takes.
    """

    service: StereoService
    size: tuple[int, int] = (448, 672)

    def __call__(self, frame: Frame) -> Float[np.ndarray, "height width"]:
        """Metres; points that the right image cannot show are masked here, whatever the service says of them."""
        camera = resize_camera(frame.camera, self.size)

        def disparity(left: UInt8[np.ndarray, "height width 3"], right: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
            baseline = stereo_baseline(frame.camera, frame.right_camera)  # type: ignore[arg-type]
            depth = np.asarray(self.service(left, right, camera.intrinsics, baseline), np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):
                return (camera.intrinsics[0, 0] * baseline / depth).astype(np.float32)

        return StereoDepth(disparity, self.size)(frame)
