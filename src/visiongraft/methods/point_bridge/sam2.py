"""Masks by SAM 2: of an image from a click, and tracked through a stream of frames with bounded memory.

Transformers' SAM 2 processors need torchvision, so images are prepared here: RGB to a square of the model's size without keeping the
aspect ratio, bilinear; points and boxes are scaled alike; logits go back bilinearly, and above 0 is the object.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from visiongraft.methods.point_bridge.frames import Frame, Mask, Point, image_tensor_array, pixel_of
from visiongraft.methods.point_bridge.masks import clean_mask, draw_pixels, shrink_mask

LARGE = "facebook/sam2.1-hiera-large"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_sam2(name: str = LARGE, *, video: bool = False, **options: Any) -> Any:
    """``Sam2Model`` or, with ``video``, ``Sam2VideoModel`` from a hub id or folder; ``options`` such as dtype and device_map go to it."""
    from transformers import Sam2Model, Sam2VideoModel

    kind = Sam2VideoModel if video else Sam2Model
    return kind.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options).eval()


class Sam2Segmenter:
    """The best of SAM 2's three masks for a click, cleaned. The image is encoded once for all clicks on the same frame.

    Args:
        model: ``transformers.Sam2Model``, on its device.
        min_area: pixels below which a piece of a mask is dropped.

    Source: Point Bridge brief, 2.4 step 4.
    """

    def __init__(self, model: Any, *, min_area: int = 100) -> None:
        self.model, self.min_area = model.eval(), min_area
        self._frame: Frame | None = None
        self._embeddings: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, frame: Frame, point: Point) -> Mask:
        """Mask of the object at a pixel.

        Raises:
            ValueError: a point outside the image.
        """
        height, width = frame.image.shape[:2]
        pixel_of(point, (height, width))
        side = int(self.model.config.vision_config.backbone_config.image_size[0])
        if frame is not self._frame:
            self._embeddings = self.model.get_image_embeddings(_pixels(frame.image, side, self.model))
            self._frame = frame
        u, v = point
        clicks = torch.tensor([[[[u * side / width, v * side / height]]]], device=self.model.device, dtype=self.model.dtype)
        labels = torch.ones(1, 1, 1, dtype=torch.int32, device=self.model.device)
        output = self.model(input_points=clicks, input_labels=labels, image_embeddings=self._embeddings, multimask_output=True)
        best = int(output.iou_scores[0, 0].argmax())
        return clean_mask(_upsampled(output.pred_masks[0, 0, best], (height, width)), self.min_area)


class Sam2Tracker:
    """SAM 2 video, one frame at a time.

    A session of Transformers keeps every frame and every output for ever; here those that the model cannot reach any more are dropped
    after each frame, without a change in its masks.

    Args:
        model: ``transformers.Sam2VideoModel``, on its device.
        scale: factor by which images are made smaller before they are tracked.
        prompts: ``mask`` starts from the masks, ``points`` from five random points of each shrunken mask, as the released code does.
        seed: draws the points.
        min_area: pixels below which a piece of a mask is dropped; 0 keeps masks as they are.

    Source: Point Bridge brief, 2.4 step 5.
    """

    def __init__(self, model: Any, *, scale: float = 0.5, prompts: str = "mask", seed: int = 0, min_area: int = 0) -> None:
        if not 0 < scale <= 1:
            raise ValueError(f"Images are tracked at a scale above 0 and of at most 1; got {scale}.")
        if prompts not in ("mask", "points"):
            raise ValueError(f"SAM 2 tracks from prompts 'mask' or 'points', got {prompts!r}.")
        self.model, self.scale, self.prompts, self.seed, self.min_area = model.eval(), scale, prompts, seed, min_area
        self.session: Any = None
        self._names: tuple[str, ...] = ()
        self._size, self._count = (0, 0), 0

    def start(self, frame: Frame, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """Begins an episode with the masks of its first frame.

        Raises:
            ValueError: no masks, or an empty one.
        """
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        empty = [name for name, mask in masks.items() if not mask.any()]
        if empty or not masks:
            raise ValueError(f"Tracking needs a mask of every object in the first frame; {', '.join(empty) or 'all objects'} has none.")
        self._names, self._size, self._count = tuple(masks), frame.image.shape[:2], 0
        device = self.model.device
        self.session = Sam2VideoInferenceSession(
            video=None,
            video_height=self._small[0],
            video_width=self._small[1],
            inference_device=device,
            video_storage_device=device,
            inference_state_device=device,
            dtype=self.model.dtype,
            max_vision_features_cache_size=1,
        )
        rng = np.random.default_rng(self.seed)
        for number, mask in enumerate(masks.values()):
            index = self.session.obj_id_to_idx(number)
            if self.prompts == "mask":
                self.session.add_mask_inputs(index, 0, torch.from_numpy(mask)[None, None].float())
            else:
                self.session.add_point_inputs(index, 0, self._clicks(mask, rng))
        self.session.obj_with_new_inputs = list(range(len(masks)))
        return self.track(frame)

    @property
    def _small(self) -> tuple[int, int]:
        return max(1, round(self._size[0] * self.scale)), max(1, round(self._size[1] * self.scale))

    @property
    def _side(self) -> int:
        return int(self.model.config.image_size)

    def _clicks(self, mask: Mask, rng: np.random.Generator) -> dict[str, Tensor]:
        places = draw_pixels(shrink_mask(mask), 5, rng)[:, ::-1] + 0.5
        scaled = places * self._side / np.array(self._size[::-1])
        return {
            "point_coords": torch.from_numpy(scaled)[None, None].to(self.model.dtype),
            "point_labels": torch.ones(1, 1, len(places), dtype=torch.int32),
        }

    @torch.no_grad()
    def track(self, frame: Frame) -> dict[str, Mask]:
        """Masks of the next frame by name.

        Raises:
            ValueError: before :meth:`start`, or a frame of another size.
        """
        if self.session is None:
            raise ValueError("The tracker has not been started; call start with the first frame and its masks.")
        if frame.image.shape[:2] != self._size:
            raise ValueError(f"The tracker was started on {self._size} pixels (height, width) and got {frame.image.shape[:2]}.")
        pixels = _pixels(frame.image, self._side, self.model, self._small)[0]
        output = self.model(inference_session=self.session, frame=pixels, frame_idx=self._count)
        forget(self.session, self._count, self._reach())
        self._count += 1
        masks = {}
        for number, logits in zip(output.object_ids, output.pred_masks, strict=True):
            mask = _upsampled(logits[0], self._size)
            masks[self._names[number]] = clean_mask(mask, self.min_area) if self.min_area else mask
        return masks

    def _reach(self) -> int:
        """How many frames back the model looks."""
        return max(int(self.model.config.num_maskmem), int(self.model.config.max_object_pointers_in_encoder))


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


def _pixels(
    image: UInt8[np.ndarray, "height width 3"], side: int, model: Any, small: tuple[int, int] | None = None
) -> Float[Tensor, "1 3 side side"]:
    pixels = torch.from_numpy(image_tensor_array(image))[None].to(model.device)
    for size in (small, (side, side)):
        if size is not None and pixels.shape[-2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values, device=model.device)[:, None, None] for values in (_MEAN, _STD))
    return ((pixels - mean) / std).to(model.dtype)


def _upsampled(logits: Float[Tensor, "rows columns"], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    large = functional.interpolate(logits.float()[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return (large > 0).cpu().numpy()
