"""Mattings by networks that are passed in: RMBG-1.4, one frame at a time, and SAM 2, which follows a click through the clip."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional as F

from visiongraft.methods.action_mesh.matting import drop_small
from visiongraft.nn.sam2_video import SAM2_LARGE, Sam2Stream, load_sam2_video, mask_of

__all__ = ["SAM2_LARGE", "Click", "RmbgMatting", "Sam2Matting", "first_tensor", "load_sam2_video"]

Click = tuple[float, float]
"""A place in a picture: (u, v), to the right and down, in pixels."""


class RmbgMatting:
    """RMBG-1.4 (or a network with the same call) as ActionMesh uses it: binary masks.

    The network is passed in: its code comes from its hub page and is not run by this library. Its weights are for non-commercial use.

    Args:
        model: maps (1, 3, side, side) in [-0.5, 0.5] to a map (1, 1, rows, columns), or to nested lists that begin with one.
        side: pixels to which frames are resized, without their aspect ratio.
        min_area: pixels below which a piece of the mask is dropped.

    Source: ActionMesh brief, 2.9.
    """

    def __init__(self, model: Callable[..., Any], *, side: int = 1024, min_area: int = 200) -> None:
        self.model, self.side, self.min_area = model, side, min_area

    @torch.no_grad()
    def __call__(self, frames: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames height width"]:
        """Alpha of 0 or 1.

        Raises:
            ValueError: a network that gives no map of one channel.
        """
        return torch.stack([self._mask(frame[None]) for frame in frames])

    def _mask(self, frame: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "height width"]:
        parameter = next(getattr(self.model, "parameters", lambda: iter(()))(), frame)
        pixels = F.interpolate(frame, (self.side, self.side), mode="bilinear", align_corners=False) - 0.5
        output = first_tensor(self.model(pixels.to(parameter.device, parameter.dtype)))
        if output.ndim != 4 or output.shape[:2] != (1, 1):
            raise ValueError(f"A network like RMBG-1.4 gives a map of shape (1, 1, rows, columns); got {tuple(output.shape)}.")
        resized = F.interpolate(output.float(), frame.shape[-2:], mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
        low, high = float(resized.min()), float(resized.max())
        if not high > low:  # a constant map shows no object
            return torch.zeros_like(frame[0, 0])
        scaled = (resized - low) / (high - low)
        mask = drop_small(scaled > threshold_otsu(scaled), self.min_area)
        return torch.from_numpy(mask.astype(np.float32)).to(frame)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of nested lists and tuples.

    Raises:
        ValueError: there is none.
    """
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"A matting network gives a tensor or nested lists of tensors; got {type(output).__name__}.")
    return output


class Sam2Matting:
    """SAM 2: the object under a click in one frame, followed to both ends of the clip; binary masks.

    The model's memory does not grow with the clip; see :class:`visiongraft.nn.sam2_video.Sam2Stream`.

    Args:
        model: ``transformers.Sam2VideoModel``, on its device; :func:`visiongraft.nn.sam2_video.load_sam2_video` reads one.
        click: on the object: (u, v) in pixels, or several.
        background: places that are not the object's, such as a table that was taken along.
        frame: number of the frame that was clicked on.
        min_area: pixels below which a piece of the mask is dropped.

    Source: our choice (ActionMesh brief, 3; streaming as in the Point Bridge brief, 3).
    """

    def __init__(
        self,
        model: Any,
        click: Click | Sequence[Click],
        *,
        background: Sequence[Click] = (),
        frame: int = 0,
        min_area: int = 0,
    ) -> None:
        places = np.atleast_2d(np.asarray(click, np.float32))
        if places.ndim != 2 or places.shape[-1] != 2 or not len(places):
            raise ValueError(f"A click is (u, v) in pixels, or a list of such; got {click!r}.")
        self.model, self.frame, self.min_area = model.eval(), frame, min_area
        self.places = np.concatenate([places, np.asarray(background, np.float32).reshape(-1, 2)])
        self.labels = [1] * len(places) + [0] * len(background)

    def __call__(self, frames: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames height width"]:
        """Alpha of 0 or 1.

        Raises:
            ValueError: a click outside the picture.
            IndexError: a clicked frame that the clip does not have.
        """
        height, width = frames.shape[-2:]
        if not 0 <= self.frame < len(frames):
            raise IndexError(f"The click is on frame {self.frame}; the clip has frames 0 to {len(frames) - 1}.")
        for u, v in self.places.tolist():
            if not (0 <= u < width and 0 <= v < height):
                raise ValueError(f"The click (u={u:g}, v={v:g}) lies outside the frames of {width}x{height} pixels; u counts to the right.")
        forwards = self._follow(frames[self.frame :])
        backwards = self._follow(frames[: self.frame + 1].flip(0)).flip(0)[:-1] if self.frame else forwards[:0]
        return torch.cat([backwards, forwards])

    def _follow(self, frames: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames height width"]:
        height, width = frames.shape[-2:]
        stream = Sam2Stream(self.model, (height, width))
        stream.add_clicks(0, torch.from_numpy(self.places / np.array([width, height], np.float32)), self.labels)
        masks = []
        for frame in frames:
            mask = mask_of(stream.track(frame)[0], (height, width)).cpu().numpy()
            masks.append(torch.from_numpy(drop_small(mask, self.min_area).astype(np.float32)))
        return torch.stack(masks).to(frames)
