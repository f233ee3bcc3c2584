"""SAM 2 video of Transformers as a stream: objects are followed one frame at a time, in memory that does not grow.

Transformers' SAM 2 processors need torchvision, so frames are prepared here: squares of the model's size without the aspect ratio,
bilinear; logits go back bilinearly, and above 0 is the object.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

SAM2_LARGE = "facebook/sam2.1-hiera-large"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_sam2_video(name: str = SAM2_LARGE, **options: Any) -> Any:
    """``Sam2VideoModel`` from a hub id or folder; ``options`` such as dtype, revision and device_map go to ``from_pretrained``."""
    from transformers import Sam2VideoModel

    return Sam2VideoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options).eval()


class Sam2Stream:
    """One episode: objects are shown in its first frame (:meth:`add_mask`, :meth:`add_clicks`) and followed from there.

    A session of Transformers keeps every frame and every output for ever; here those that the model cannot reach any more are dropped
    after each frame, without a change in its masks.

    Args:
        model: ``transformers.Sam2VideoModel``, on its device and in evaluation mode.
        size: height and width of the frames in pixels.

    Source: Point Bridge brief, 2.4 step 5 and section 3.
    """

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        self.model, self.side, self.count = model, int(model.config.image_size), 0
        self.session: Any = Sam2VideoInferenceSession(
            video=None,
            video_height=size[0],
            video_width=size[1],
            inference_device=model.device,
            video_storage_device=model.device,
            inference_state_device=model.device,
            dtype=model.dtype,
            max_vision_features_cache_size=1,
        )

    @property
    def reach(self) -> int:
        """How many frames back the model looks."""
        return max(int(self.model.config.num_maskmem), int(self.model.config.max_object_pointers_in_encoder))

    def add_mask(self, number: int, mask: Bool[Tensor, "height width"]) -> None:
        """Shows an object by its mask in the first frame.

        Args:
            number: by which :meth:`track` names the object.
            mask: of any size.
        """
        self.session.add_mask_inputs(self._new(number), 0, mask[None, None].float())

    def add_clicks(self, number: int, places: Float[Tensor, "clicks 2"], labels: Sequence[int]) -> None:
        """Shows an object by clicks in the first frame.

        Args:
            number: by which :meth:`track` names the object.
            places: (u, v), to the right and down, as shares of the frame's width and height.
            labels: 1 on the object, 0 beside it.
        """
        prompt = {
            "point_coords": (places * self.side)[None, None].to(self.model.dtype),
            "point_labels": torch.tensor([[list(labels)]], dtype=torch.int32),
        }
        self.session.add_point_inputs(self._new(number), 0, prompt)

    def _new(self, number: int) -> int:
        if number not in self.session.obj_with_new_inputs:
            self.session.obj_with_new_inputs.append(number)
        return self.session.obj_id_to_idx(number)

    @torch.no_grad()
    def track(self, frame: Float[Tensor, "3 height width"]) -> dict[int, Float[Tensor, "rows columns"]]:
        """Mask logits of every object in the next frame, at the model's resolution; see :func:`mask_of`.

        Args:
            frame: in [0, 1].

        Raises:
            ValueError: no object was shown.
        """
        if not self.session.obj_ids:
            raise ValueError("SAM 2 follows objects that it was shown; call add_mask or add_clicks first.")
        pixels = sam2_pixels(frame.to(self.model.device), self.side).to(self.model.dtype)
        output = self.model(inference_session=self.session, frame=pixels, frame_idx=self.count)
        forget(self.session, self.count, self.reach)
        self.count += 1
        return dict(zip(output.object_ids, output.pred_masks[:, 0], strict=True))


def sam2_pixels(frame: Float[Tensor, "*batch 3 height width"], side: int) -> Float[Tensor, "*batch 3 side side"]:
    """Frames in [0, 1] as SAM 2 takes them."""
    if frame.shape[-2:] != (side, side):
        flat = frame.reshape(-1, *frame.shape[-3:])
        resized = F.interpolate(flat, (side, side), mode="bilinear", align_corners=False, antialias=True)
        frame = resized.reshape(*frame.shape[:-2], side, side)
    mean, std = (torch.tensor(values, device=frame.device)[:, None, None] for values in (_MEAN, _STD))
    return (frame - mean) / std


def mask_of(logits: Float[Tensor, "rows columns"], size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The mask that logits give in a picture of a height and a width."""
    return F.interpolate(logits.float()[None, None], size, mode="bilinear", align_corners=False)[0, 0] > 0


def forget(session: Any, frame: int, reach: int) -> None:
    """Drops from a SAM 2 session what a model that looks ``reach`` frames back needs no more after ``frame``; prompted frames stay."""
    for old in [number for number in session.processed_frames if number < frame]:
        del session.processed_frames[old]
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        for old in [number for number in tracked if number <= frame - reach]:
            del tracked[old]
    for tracked in session.frames_tracked_per_obj.values():
        for old in [number for number in tracked if number <= frame - reach]:
            del tracked[old]
