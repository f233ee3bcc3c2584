"""Masks by SAM 2: of an image from a click, and tracked through a stream of frames with bounded memory.

Transformers' SAM 2 processors need torchvision, so images are prepared by :mod:`visiongraft.nn.sam2_video`; points are scaled alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from visiongraft.methods.point_bridge.frames import Frame, Mask, Point, image_tensor_array, pixel_of
from visiongraft.methods.point_bridge.masks import clean_mask, draw_pixels, shrink_mask
from visiongraft.nn.sam2_video import SAM2_LARGE, Sam2Stream, load_sam2_video, mask_of, sam2_pixels


def load_sam2(name: str = SAM2_LARGE, *, video: bool = False, **options: Any) -> Any:
    """``Sam2Model`` or, with ``video``, ``Sam2VideoModel`` from a hub id or folder; ``options`` such as dtype and device_map go to it."""
    from transformers import Sam2Model

    if video:
        return load_sam2_video(name, **options)
    return Sam2Model.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options).eval()


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
        return clean_mask(mask_of(output.pred_masks[0, 0, best], (height, width)).cpu().numpy(), self.min_area)


class Sam2Tracker:
    """SAM 2 video, one frame at a time, in memory that does not grow; see :class:`visiongraft.nn.sam2_video.Sam2Stream`.

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
        self.stream: Sam2Stream | None = None
        self._names: tuple[str, ...] = ()
        self._size = (0, 0)

    def start(self, frame: Frame, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """Begins an episode with the masks of its first frame.

        Raises:
            ValueError: no masks, or an empty one.
        """
        empty = [name for name, mask in masks.items() if not mask.any()]
        if empty or not masks:
            raise ValueError(f"Tracking needs a mask of every object in the first frame; {', '.join(empty) or 'all objects'} has none.")
        self._names, self._size = tuple(masks), frame.image.shape[:2]
        self.stream = Sam2Stream(self.model, self._small)
        rng = np.random.default_rng(self.seed)
        for number, mask in enumerate(masks.values()):
            if self.prompts == "mask":
                self.stream.add_mask(number, torch.from_numpy(mask))
            else:
                places = draw_pixels(shrink_mask(mask), 5, rng)[:, ::-1] + 0.5
                self.stream.add_clicks(number, torch.from_numpy(places / np.array(self._size[::-1])), [1] * len(places))
        return self.track(frame)

    @property
    def _small(self) -> tuple[int, int]:
        return max(1, round(self._size[0] * self.scale)), max(1, round(self._size[1] * self.scale))

    def track(self, frame: Frame) -> dict[str, Mask]:
        """Masks of the next frame by name.

        Raises:
            ValueError: before :meth:`start`, or a frame of another size.
        """
        if self.stream is None:
            raise ValueError("The tracker has not been started; call start with the first frame and its masks.")
        if frame.image.shape[:2] != self._size:
            raise ValueError(f"The tracker was started on {self._size} pixels (height, width) and got {frame.image.shape[:2]}.")
        image = torch.from_numpy(image_tensor_array(frame.image)).to(self.model.device)
        if self.scale < 1:
            image = functional.interpolate(image[None], self._small, mode="bilinear", align_corners=False, antialias=True)[0]
        masks = {}
        for number, logits in self.stream.track(image).items():
            mask = mask_of(logits, self._size).cpu().numpy()
            masks[self._names[number]] = clean_mask(mask, self.min_area) if self.min_area else mask
        return masks


def _pixels(image: UInt8[np.ndarray, "height width 3"], side: int, model: Any) -> Float[Tensor, "1 3 side side"]:
    return sam2_pixels(torch.from_numpy(image_tensor_array(image))[None].to(model.device), side).to(model.dtype)
