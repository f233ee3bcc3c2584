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

SAM2_LARGE = "facebook/sam2.1-hiera-large"
Click = tuple[float, float]
"""A place in a picture: (u, v), to the right and down, in pixels."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def load_sam2_video(name: str = SAM2_LARGE, **options: Any) -> Any:
    """``Sam2VideoModel`` from a hub id or folder; ``options`` such as dtype, revision and device_map go to ``from_pretrained``."""
    from transformers import Sam2VideoModel

    return Sam2VideoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options).eval()


class Sam2Matting:
    """SAM 2: the object under a click in one frame, followed to both ends of the clip; binary masks.

    Transformers' SAM 2 processors need torchvision, so frames are prepared here: squares of the model's size without the aspect ratio,
    bilinear. Memory does not grow with the clip: what the model cannot reach any more is dropped after each frame.

    Args:
        model: ``transformers.Sam2VideoModel``, on its device.
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

    @torch.no_grad()
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
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        (height, width), device = frames.shape[-2:], self.model.device
        side = int(self.model.config.image_size)
        session = Sam2VideoInferenceSession(
            video=None,
            video_height=height,
            video_width=width,
            inference_device=device,
            video_storage_device=device,
            inference_state_device=device,
            dtype=self.model.dtype,
            max_vision_features_cache_size=1,
        )
        clicks = torch.from_numpy(self.places * np.array([side / width, side / height], np.float32))
        prompt = {"point_coords": clicks[None, None].to(self.model.dtype), "point_labels": torch.tensor([[self.labels]], dtype=torch.int32)}
        session.add_point_inputs(session.obj_id_to_idx(0), 0, prompt)
        session.obj_with_new_inputs = [0]
        reach = max(int(self.model.config.num_maskmem), int(self.model.config.max_object_pointers_in_encoder))
        masks = []
        for number, frame in enumerate(frames):
            output = self.model(inference_session=session, frame=sam2_pixels(frame, side).to(device, self.model.dtype), frame_idx=number)
            _forget(session, number, reach)
            logits = F.interpolate(output.pred_masks.float()[:1], (height, width), mode="bilinear", align_corners=False)[0, 0]
            masks.append(torch.from_numpy(drop_small((logits > 0).cpu().numpy(), self.min_area).astype(np.float32)))
        return torch.stack(masks).to(frames)


def sam2_pixels(frame: Float[Tensor, "3 height width"], side: int) -> Float[Tensor, "3 side side"]:
    """A frame in [0, 1] as SAM 2 takes it."""
    pixels = F.interpolate(frame[None], (side, side), mode="bilinear", align_corners=False, antialias=True)[0]
    mean, std = (torch.tensor(values, device=frame.device)[:, None, None] for values in (_MEAN, _STD))
    return (pixels - mean) / std


def _forget(session: Any, frame: int, reach: int) -> None:
    """Drops what a model that looks ``reach`` frames back needs no more after ``frame``; the clicked frame stays."""
    for old in [number for number in session.processed_frames if number < frame]:
        del session.processed_frames[old]
    for outputs in (entry["non_cond_frame_outputs"] for entry in session.output_dict_per_obj.values()):
        for old in [number for number in outputs if number <= frame - reach]:
            del outputs[old]
    for tracked in session.frames_tracked_per_obj.values():
        for old in [number for number in tracked if number <= frame - reach]:
            del tracked[old]
