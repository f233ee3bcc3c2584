"""Metric depth: the camera's own, or estimated from one image by a Transformers model. Pairs of images have modules of their own.

A depth source maps a frame to (height, width) float32 metres along the optical axis, infinity where it is not known.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch.nn import functional

from visiongraft.methods.point_bridge.frames import Frame, image_tensor_array

_UNITS: dict[str, float] = {"m": 1.0, "mm": 1000.0}


def read_depth(depth: Shaped[np.ndarray, "..."], unit: str) -> Float[np.ndarray, "height width"]:
    """Depth in metres, infinity where the camera gave NaN, zero or a negative number.

    Args:
        depth: along the optical axis.
        unit: ``m``, or ``mm`` as RealSense and most 16-bit depth images have it; never guessed.

    Raises:
        ValueError: another shape, an unknown unit, no pixel with depth, or numbers that belong to the other unit.
    """
    if unit not in _UNITS:
        raise ValueError(f"The unit of depth is 'm' or 'mm', got {unit!r}.")
    if depth.ndim != 2:
        raise ValueError(f"Depth is one number a pixel, height x width; got shape {depth.shape}.")
    metres = depth.astype(np.float64) / _UNITS[unit]
    known = np.isfinite(metres) & (metres > 0)
    if not known.any():
        raise ValueError(f"The depth map has no known pixel: all {depth.size} are NaN, infinite, zero or negative; check the camera.")
    median = float(np.median(metres[known]))
    if median > 100:
        raise ValueError(f"The median depth is {median:.0f} m with the unit {unit!r}; these are millimetres: give the unit 'mm'.")
    if median < 0.01 and unit == "mm":
        raise ValueError(f"The median depth is {median * 1000:.2g} mm with the unit 'mm'; these are metres: give the unit 'm'.")
    return np.where(known, metres, np.inf).astype(np.float32)


@dataclass(frozen=True)
class CameraDepth:
    """The depth map that came with the image (RGB-D camera or renderer).

    Args:
        unit: of the map.
    """

    unit: str = "m"

    def __call__(self, frame: Frame) -> Float[np.ndarray, "height width"]:
        """Metres; infinity everywhere in a frame that the camera dropped (no pixel is known), which is for the filter to bridge.

        Raises:
            ValueError: a camera without depth, or what else :func:`read_depth` refuses.
        """
        if frame.depth is None:
            raise ValueError(
                "This camera has no depth; ask for it with View(modalities=(…, 'depth')), or use StereoDepth with a second camera."
            )
        if not (np.isfinite(frame.depth) & (frame.depth > 0)).any():
            return np.full(frame.depth.shape, np.inf, np.float32)
        return read_depth(frame.depth, self.unit)


class MonoDepth:
    """Depth from one image by a Transformers depth estimator: degraded, for pictures without any other depth.

    DepthPro predicts inverse metres for a unit focal length; here the calibrated focal length is used in place of its estimate.
    "Metric" variants of Depth Anything predict metres. Relative ones predict inverse depth up to scale and shift and are refused, since a
    robot would reach for somewhere else.

    Args:
        model: ``DepthProForDepthEstimation``, or a metric ``DepthAnythingForDepthEstimation``, on its device.
        size: height and width that the model gets; multiples of its patch. DepthPro's is square.
        mean, std: normalisation of its pixels.
    """

    def __init__(
        self,
        model: Any,
        size: tuple[int, int],
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        self._inverse = model.config.model_type == "depth_pro"
        if not self._inverse and getattr(model.config, "depth_estimation_type", None) != "metric":
            raise ValueError(
                f"{type(model).__name__} predicts depth up to an unknown scale; take DepthPro or a metric Depth Anything "
                "(its configuration says depth_estimation_type='metric')."
            )
        self.model, self.size = model.eval(), size
        self._mean, self._std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    @classmethod
    def from_pretrained(cls, name: str = "apple/DepthPro-hf", **options: Any) -> "MonoDepth":
        """Loads DepthPro or a metric Depth Anything from a hub id or folder; ``options`` go to the model."""
        from transformers import AutoModelForDepthEstimation

        model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
        if model.config.model_type == "depth_pro":
            side = model.config.patch_size * 4  # DepthPro looks at patches of a quarter of its image
            return cls(model, (side, side))
        return cls(model, (518, 518), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Float[np.ndarray, "height width"]:
        """Metres."""
        pixels = functional.interpolate(
            torch.from_numpy(image_tensor_array(frame.image))[None], self.size, mode="bilinear", antialias=True, align_corners=False
        )
        pixels = ((pixels - self._mean) / self._std).to(self.model.device, self.model.dtype)
        predicted = self.model(pixel_values=pixels).predicted_depth.float().cpu()
        depth = functional.interpolate(predicted[:, None], frame.image.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
        if self._inverse:
            # canonical inverse depth times width over focal length is inverse metres
            depth = depth * frame.image.shape[1] / frame.camera.intrinsics[0, 0]
            return (1.0 / np.clip(depth, 1e-4, 1e4)).astype(np.float32)
        return np.where(depth > 0, depth, np.inf).astype(np.float32)
