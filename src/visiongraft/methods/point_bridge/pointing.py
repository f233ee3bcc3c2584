"""Where a named object is in an image: vision-language models that point, detectors, and stand-ins for tests.

Models write coordinates in dialects that differ in scale and order. The dialect is an argument, never guessed: 50 may be the middle of
the image, or its left edge.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from visiongraft.methods.point_bridge.chat import Chat, TransformersChat
from visiongraft.methods.point_bridge.frames import Frame, Point

PROMPTS: dict[str, str] = {
    "molmo": "Mark a point on the {name}.",
    "molmo2": "Point to the {name}.",
    "gemini": 'Point to the {name}. Answer with JSON only: [{{"point": [y, x], "label": "{name}"}}], both from 0 to 1000.',
}
_SCALES: dict[str, float] = {"molmo": 100.0, "molmo2": 1000.0, "gemini": 1000.0}
_NUMBER = r"(\d{1,4}(?:\.\d{1,6})?)"
_POINT_TAG = re.compile(r"<points?\b([^>]*)>")
_ATTRIBUTE = re.compile(rf"""\b([xy])(\d{{0,3}})\s*=\s*["']\s*{_NUMBER}\s*["']""")
_BARE = re.compile(rf"\(?\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)?\.?")
_COORDS = re.compile(r"""\bcoords\s*=\s*["']([\d.\s:;,]*)["']""")
_TRIPLE_NUMBER = re.compile(r"\d{3,4}")
_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)


def parse_points(reply: str, dialect: str, size: tuple[int, int]) -> list[Point]:
    """Points of a model's reply, in its order, as pixels of the image.

    Args:
        reply: what the model wrote.
        dialect: ``molmo``: ``<point x="61.5" y="40.2">``, ``<points x1=… y1=… x2=…>`` or bare ``12.5, 33``, in percent of width and
            height. ``molmo2``: ``coords="1 1 034 567"``, an image's number and then triples (index, x, y) of three- or four-digit
            integers, in thousandths. ``gemini``: a JSON list of ``{"point": [y, x]}``, in thousandths, y first.
        size: height and width of the image.

    Returns:
        (u, v) in pixels; empty where the model says that there is none.

    Raises:
        ValueError: an unknown dialect, coordinates beyond its scale, or JSON that is none.

    Source: Point Bridge brief, 2.4 step 3.
    """
    if dialect not in _SCALES:
        raise ValueError(f"Unknown dialect of points {dialect!r}; there are {', '.join(_SCALES)}.")
    found = {"molmo": _molmo, "molmo2": _molmo2, "gemini": _gemini}[dialect](reply)
    scale = _SCALES[dialect]
    for x, y in found:
        if not (0 <= x <= scale and 0 <= y <= scale):
            raise ValueError(
                f"The model points at ({x:g}, {y:g}), but the dialect {dialect!r} counts from 0 to {scale:g}; choose another dialect."
            )
    height, width = size
    # the far edge belongs to the last pixel
    return [(min(x / scale * width, math.nextafter(width, 0)), min(y / scale * height, math.nextafter(height, 0))) for x, y in found]


def _molmo(reply: str) -> list[Point]:
    points: list[Point] = []
    for tag in _POINT_TAG.findall(reply):
        values: dict[int, dict[str, float]] = {}
        for axis, number, value in _ATTRIBUTE.findall(tag):
            values.setdefault(int(number or 1), {})[axis] = float(value)
        points += [(pair["x"], pair["y"]) for _, pair in sorted(values.items()) if len(pair) == 2]
    if not points and (bare := _BARE.fullmatch(reply.strip())):
        points = [(float(bare[1]), float(bare[2]))]
    return points


def _molmo2(reply: str) -> list[Point]:
    points: list[Point] = []
    for coords in _COORDS.findall(reply):
        for group in re.split(r"[\t:;,]", coords):
            numbers = group.split()[1:]  # the first is the image's number
            triples = [numbers[start : start + 3] for start in range(0, len(numbers), 3)]
            for triple in triples:
                if len(triple) != 3 or not all(_TRIPLE_NUMBER.fullmatch(number) for number in triple[1:]):
                    raise ValueError(f"The model's coords {coords[:60]!r} are not triples of index, x and y with three or four digits.")
                points.append((float(triple[1]), float(triple[2])))
    return points


def _gemini(reply: str) -> list[Point]:
    fenced = _FENCE.match(reply)
    try:
        entries = json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        raise ValueError(f"The model's reply is not a JSON list of points; it begins with {reply[:80]!r}.") from None
    if not isinstance(entries, list):
        raise ValueError(f"The model's reply is not a JSON list of points; it begins with {reply[:80]!r}.")
    points: list[Point] = []
    for entry in entries:
        pair = entry.get("point") if isinstance(entry, dict) else None
        match pair:
            case [int() | float() as y, int() | float() as x] if not isinstance(y, bool) and not isinstance(x, bool):
                points.append((float(x), float(y)))
            case _:
                raise ValueError(f"An entry of the model's list is not {{'point': [y, x]}}: {str(entry)[:80]}.")
    return points


class ChatPointer:
    """A vision-language model that is asked to point; the first of its points is taken.

    Args:
        chat: such as ``GeminiChat()`` or ``TransformersChat.from_pretrained("allenai/Molmo2-4B")``.
        dialect: how it writes points.
        prompt: with ``{name}``; the dialect's own by default.
    """

    def __init__(self, chat: Chat, dialect: str, prompt: str | None = None) -> None:
        if dialect not in PROMPTS:
            raise ValueError(f"Unknown dialect of points {dialect!r}; there are {', '.join(PROMPTS)}.")
        self.chat, self.dialect, self.prompt = chat, dialect, prompt or PROMPTS[dialect]

    @classmethod
    def molmo2(cls, name: str = "allenai/Molmo2-4B", **options: Any) -> "ChatPointer":
        """Molmo 2 from a hub id or folder; ``options`` such as dtype and device_map go to the model.

        The paper's Molmo-7B-D has no class in Transformers; its dialect is kept for servers that run it.
        """
        from transformers import AutoProcessor, Molmo2ForConditionalGeneration

        model = Molmo2ForConditionalGeneration.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
        return cls(TransformersChat(model, AutoProcessor.from_pretrained(name, trust_remote_code=False)), "molmo2")

    def __call__(self, frame: Frame, name: str) -> Point | None:
        """Pixel of the named object, ``None`` where the model points at nothing.

        Raises:
            ValueError: a reply that is not of the dialect.
            ConnectionError: an endpoint that does not answer.
        """
        points = parse_points(self.chat(self.prompt.format(name=name), frame.image), self.dialect, frame.image.shape[:2])
        return points[0] if points else None


class DetectorPointer:
    """The centre of the best box of a detector that takes words: Grounding DINO, OWLv2.

    Args:
        model: ``GroundingDinoForObjectDetection`` or ``Owlv2ForObjectDetection``, on its device.
        processor: its processor.
        threshold: score below which a box is not an object.
    """

    def __init__(self, model: Any, processor: Any, threshold: float = 0.25) -> None:
        self.model, self.processor, self.threshold = model.eval(), processor, threshold

    @classmethod
    def from_pretrained(cls, name: str = "IDEA-Research/grounding-dino-tiny", threshold: float = 0.25, **options: Any) -> "DetectorPointer":
        """Loads a zero-shot detector from a hub id or folder; ``options`` go to the model."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        model = AutoModelForZeroShotObjectDetection.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
        return cls(model, AutoProcessor.from_pretrained(name, trust_remote_code=False), threshold)

    @torch.no_grad()
    def __call__(self, frame: Frame, name: str) -> Point | None:
        """Centre of the best box, ``None`` where no box scores enough."""
        height, width = frame.image.shape[:2]
        grounding = self.model.config.model_type.endswith("grounding-dino")
        text: Any = f"{name.lower().strip('. ')}." if grounding else [[f"a photo of a {name}"]]
        inputs = self.processor(images=Image.fromarray(frame.image), text=text, return_tensors="pt").to(self.model.device)
        options = {"text_threshold": self.threshold, "input_ids": inputs["input_ids"]} if grounding else {}
        found = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=[(height, width)], **options
        )[0]
        if not len(found["scores"]):
            return None
        left, top, right, bottom = found["boxes"][int(found["scores"].argmax())].float().tolist()
        u, v = 0.5 * (left + right), 0.5 * (top + bottom)
        return float(np.clip(u, 0, math.nextafter(width, 0))), float(np.clip(v, 0, math.nextafter(height, 0)))


class GivenPoints:
    """Clicks of a person.

    Args:
        clicks: (u, v) in pixels by name.
    """

    def __init__(self, clicks: Mapping[str, Point]) -> None:
        self.clicks = dict(clicks)

    def __call__(self, frame: Frame, name: str) -> Point | None:
        """The click on an object.

        Raises:
            ValueError: a name without a click.
        """
        if name not in self.clicks:
            raise ValueError(f"There is no click on {name!r}; there are clicks on {', '.join(self.clicks) or 'nothing'}.")
        return self.clicks[name]
