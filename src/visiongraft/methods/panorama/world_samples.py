"""Panoramas of procedural worlds with what an unknown camera sees of them: the data of the small models and of the study.

Both pictures are rendered from the scene, so that no resampling comes between them. The middle of the panorama lies at the camera's
yaw; the panorama is upright whatever the camera's pitch and roll (canonical targets).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.media.files import atomic_write
from visiongraft.worlds.generation import KINDS, make_scene
from visiongraft.worlds.rendering import render_panorama, render_perspective

HFOV_DEG, PITCH_DEG, ROLL_DEG = (50.0, 110.0), (-30.0, 30.0), (-15.0, 15.0)


@dataclass(frozen=True)
class WorldSamples:
    """Pairs in memory; videos have frames after the first axis.

    ``cameras`` holds (hfov, yaw, pitch, roll) in radians of the input; for videos, of its first frame.
    """

    panoramas: UInt8[Tensor, "count *frames 3 height width"]
    inputs: UInt8[Tensor, "count *frames 3 size size"]
    cameras: Float[Tensor, "count 4"]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, start: int, stop: int) -> "WorldSamples":
        """Samples ``start`` to ``stop``."""
        chosen = slice(start, stop)
        return WorldSamples(self.panoramas[chosen], self.inputs[chosen], self.cameras[chosen], self.captions[chosen])


def world_samples(
    scenes: int, seed: int, *, height: int, size: int, draws: int = 1, frames: int = 1, cache: Path | None = None, progress: bool = True
) -> WorldSamples:
    """Renders scenes of all kinds in turn, each from one place with several cameras.

    A panorama is rendered once and rolled to each camera's yaw, which is a whole number of columns: that is exact. Surfaces cast no
    shadows, which halves the time.

    Args:
        scenes: how many; sample i of the result is draw ``i % draws`` of scene ``i // draws``.
        seed: fixes scenes and cameras; a scene depends on the seed and its number alone.
        height: of the panoramas in pixels.
        size: side of the inputs in pixels.
        draws: cameras of each scene.
        frames: 1 for images; more for clips with a camera that walks and turns.
        cache: folder that keeps what was rendered.
        progress: show a progress bar.
    """
    file = None if cache is None else cache / f"worlds-{seed}-{scenes}x{draws}x{frames}-{height}-{size}.safetensors"
    if file is not None and file.is_file():
        kept = load_file(file)
        captions = bytes(kept.pop("captions").numpy()).decode().split("\n")
        return WorldSamples(captions=captions, **kept)
    made = []
    for number in tqdm(range(scenes), desc="worlds", unit="scene", disable=not progress):
        made += _scene_samples(KINDS[number % len(KINDS)], seed * 1_000_003 + number, height, size, draws, frames)
    panoramas, inputs, cameras = (torch.stack([sample[k] for sample in made]) for k in range(3))
    captions = [sample[3] for sample in made]
    if file is not None:
        text = torch.frombuffer(bytearray("\n".join(captions).encode()), dtype=torch.uint8)
        with atomic_write(file) as temporary:
            save_file({"panoramas": panoramas, "inputs": inputs, "cameras": cameras, "captions": text}, temporary)
    return WorldSamples(panoramas, inputs, cameras, captions)


def _scene_samples(kind: str, seed: int, height: int, size: int, draws: int, frames: int) -> list[tuple[Tensor, Tensor, Tensor, str]]:
    """All draws of one scene. The camera of a clip walks along one direction while it turns; panoramas keep the first frame's yaw."""
    scene, generator = make_scene(kind, seed), torch.Generator().manual_seed(seed)
    along = torch.linspace(0, 1, frames)
    heading = _uniform(generator, (-math.pi, math.pi))
    step = torch.tensor([math.sin(heading), 0.0, math.cos(heading)]) * _uniform(generator, (0.0, 0.6))
    positions = scene.viewpoint + along[:, None] * (step if frames > 1 else 0 * step)
    times = torch.arange(frames) / 16
    panorama = _bytes(render_panorama(scene, positions, height, None, times, shadows=False).color)
    samples = []
    for _ in range(draws):
        columns = int(_uniform(generator, (0.0, 2.0 * height)))
        hfov, pitch, roll = (math.radians(_uniform(generator, r)) for r in (HFOV_DEG, PITCH_DEG, ROLL_DEG))
        start = torch.tensor([columns * math.pi / height, pitch, roll])
        turn = torch.tensor([_uniform(generator, (-a, a)) for a in (0.8, 0.25, 0.1)])
        angles = start[:, None] + turn[:, None] * along
        view = render_perspective(scene, positions, rotation_from_angles(*angles), hfov, (size, size), times, shadows=False)
        parts = (panorama.roll(-columns, -1), _bytes(view.color))
        pictures = parts if frames > 1 else tuple(part[0] for part in parts)
        samples.append((*pictures, torch.tensor([hfov, 0.0, pitch, roll]), short_caption(scene.caption)))
    return samples


def short_caption(caption: str, words: int = 16) -> str:
    """The first parts of a caption that are at most so many words together; small text encoders take no more."""
    kept = ""
    for part in caption.rstrip(".").split(", "):
        longer = f"{kept}, {part}" if kept else part
        if kept and len(longer.split()) > words:
            break
        kept = longer
    return kept[:1].lower() + kept[1:]


def _uniform(generator: torch.Generator, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(torch.rand((), generator=generator))


def _bytes(color: Tensor) -> Tensor:
    return (color * 255).round().byte()
