"""Verbs of ``visiongraft panorama``. Options are light dataclasses; torch is imported when a verb runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from visiongraft.methods.panorama.train_options import TrainOptions


@dataclass(kw_only=True)
class Weights:
    """Weights and how they run.

    Args:
        weights: small (bundled), a folder with graft_config.json, a folder of a pipeline, or a hub id of a base
        lora: folder or file of a LoRA to add
        dtype: dtype of the weights
        device: torch device, such as cpu or cuda
        offload: move parts to the GPU only while they work (model), or layer by layer (sequential)
    """

    weights: str = "small"
    lora: Path | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    offload: Literal["none", "model", "sequential"] = "none"


@dataclass(kw_only=True)
class LiftOptions(Weights):
    """Options of ``lift``.

    Args:
        input: a photo or a video
        output: panorama to write: .jpg or .png for a photo, .mp4 for a video; default: beside the input. A viewer (.html) is written too
        prompt: what the scene is; may be empty
        height: of the panorama in pixels, which is twice as wide; default: what the weights were trained for
        steps: sampling steps
        guidance_scale: of the text; default: 3.0 for FLUX, whose weights take it as an input; 1.0, which is none, for other image
            weights and for the small ones; 5.0 for Wan
        cfg: what classifier-free guidance leaves out: joint (text and input), text, or two (each with its own scale). For photos it
            needs a guidance_scale
        condition_scale: guidance of the input; with cfg two only
        fit: crop the middle square, or keep the sides (out of the training distribution)
        alpha: colour behind transparent pixels; refused without it
        composite: paste the middle square of the photo back in, at the panorama's resolution, where the estimated camera sees it
        fps: frames a second a video is resampled to
        frames: frames of a video, 4k+1; default: what the weights were trained for. Longer videos go through overlapping windows
        long: lift all of a longer video, window by window
        viewer: write the viewer
        camera: estimate the camera of a photo from its panorama
        seed: fixes the noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("input",)
    input: Path
    output: Path | None = None
    prompt: str = ""
    height: int | None = None
    steps: int = 50
    guidance_scale: float | None = None
    cfg: Literal["joint", "text", "two"] = "joint"
    condition_scale: float = 1.0
    fit: Literal["crop", "keep"] = "crop"
    alpha: Literal["white", "black"] | None = None
    composite: bool = False
    fps: float = 16.0
    frames: int | None = None
    long: bool = False
    viewer: bool = True
    camera: bool = True
    seed: int = 0


def lift(options: LiftOptions) -> int:
    """Lift a photo or a video to a 360 degree panorama, without knowing its camera.

    examples:
      visiongraft panorama lift photo.jpg
      visiongraft panorama lift photo.jpg -o pano.jpg --prompt "a street at noon" --seed 3
      visiongraft panorama lift clip.mp4 -o pano.mp4
      visiongraft panorama lift photo.jpg --weights runs/panorama/train/graft --device cuda --dtype bfloat16 --offload model
    """
    from visiongraft.methods.panorama.lift import lift_file

    return lift_file(options)


@dataclass(kw_only=True)
class CameraOptions(Weights):
    """Options of ``camera``.

    Args:
        images: a photo or a folder of photos
        panorama: panorama that shows the same place, in place of a generated one
        output: JSON Lines file to write, one row a photo; a rerun with the same options continues there
        samples: panoramas to generate and take the median of
        yaw_deg: half the range of yaws to search; 180 for any
        steps: sampling steps
        alpha: colour behind transparent pixels
        seed: fixes the noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("images",)
    images: Path
    panorama: Path | None = None
    output: Path | None = None
    samples: int = 3
    yaw_deg: float = 10.0
    steps: int = 50
    alpha: Literal["white", "black"] | None = None
    seed: int = 0


def camera(options: CameraOptions) -> int:
    """Estimate field of view, pitch and roll of whole photos through their panoramas.

    examples:
      visiongraft panorama camera photo.jpg
      visiongraft panorama camera crop.png --panorama pano.jpg --yaw_deg 180
      visiongraft panorama camera photos/ --output cameras.jsonl --samples 5
    """
    from visiongraft.methods.panorama.lift import estimate_files

    return estimate_files(options)


@dataclass(kw_only=True)
class SeamCheckOptions:
    """Options of ``seam-check``.

    Args:
        panoramas: an equirectangular image or a folder of them
        output: folder for seams.jsonl and a picture of each seam; default: only printed
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("panoramas",)
    panoramas: Path
    output: Path | None = None


def seam_check(options: SeamCheckOptions) -> int:
    """Tell whether the left and right borders of panoramas meet.

    examples:
      visiongraft panorama seam-check pano.png
      visiongraft panorama seam-check panos/ --output seams
    """
    from visiongraft.methods.panorama.panorama_files import check_files

    return check_files(options)


@dataclass(kw_only=True)
class CropsOptions:
    """Options of ``crops``.

    Args:
        panorama: an equirectangular image or video
        output: folder for images/, the COLMAP text model and transforms.json
        layout: ring (views evenly around, at one pitch) or cube (front, right, back, left, up, down)
        views: of a ring
        hfov_deg: horizontal field of view; a cube has 90
        pitch_deg: of a ring
        size: side of the views in pixels
        every: every n-th frame of a video
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("panorama",)
    panorama: Path
    output: Path = Path("crops")
    layout: Literal["ring", "cube"] = "ring"
    views: int = 8
    hfov_deg: float = 90.0
    pitch_deg: float = 0.0
    size: int = 512
    every: int = 8


def crops(options: CropsOptions) -> int:
    """Write perspective views of a panorama with their cameras, for COLMAP and Gaussian splatting.

    examples:
      visiongraft panorama crops pano.jpg --output crops
      visiongraft panorama crops pano.mp4 --every 8 --views 6 --size 768
    """
    from visiongraft.methods.panorama.panorama_files import export_file

    return export_file(options)


@dataclass(kw_only=True)
class EvaluateOptions:
    """Options of ``evaluate``.

    Args:
        generated: folder of generated panoramas
        reference: folder of real panoramas
        protocol: named preset of views, sizes and metrics
        encoder: folder or hub id of a Transformers vision model whose features FID and KID compare; without it they are left out
        output: JSON file of the result
        device: torch device
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("generated", "reference")
    generated: Path
    reference: Path
    protocol: str = "small"
    encoder: str | None = None
    output: Path = Path("evaluation.json")
    device: str = "cpu"


def evaluate(options: EvaluateOptions) -> int:
    """Compare generated panoramas with real ones under a named protocol.

    examples:
      visiongraft panorama evaluate generated/ real/ --protocol laval --encoder openai/clip-vit-base-patch32
    """
    from visiongraft.methods.panorama.evaluation import evaluate_folders

    return evaluate_folders(options)


@dataclass(kw_only=True)
class CanonicaliseOptions:
    """Options of ``canonicalise``.

    Args:
        video: equirectangular video whose camera turns
        output: video to write; default: beside the input
        stabilise: undo the camera's turns, estimated from frame to frame
        pitch_deg: pitch of the first frame's camera, to level it
        roll_deg: roll of the first frame's camera, to level it
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("video",)
    video: Path
    output: Path | None = None
    stabilise: bool = True
    pitch_deg: float = 0.0
    roll_deg: float = 0.0


def canonicalise(options: CanonicaliseOptions) -> int:
    """Stabilise and level a panorama video, for training.

    examples:
      visiongraft panorama canonicalise walk.mp4 -o level.mp4
      visiongraft panorama canonicalise walk.mp4 --pitch_deg 4 --roll_deg -2
    """
    from visiongraft.methods.panorama.panorama_files import canonicalise_file

    return canonicalise_file(options)


def train(options: TrainOptions) -> int:
    """Train the graft on a folder of panoramas, as a LoRA or whole.

    examples:
      visiongraft panorama train panoramas/ --base black-forest-labs/FLUX.1-dev --height 512 --condition_size 256
      visiongraft panorama train videos/ --base Wan-AI/Wan2.1-T2V-1.3B-Diffusers --height 256 --frames 17
      visiongraft panorama train panoramas/ --base small --rank 0 --steps 500
      accelerate launch --num_processes 8 -m visiongraft.cli panorama train panoramas/ --rank 0
    """
    from visiongraft.methods.panorama.training import train_panorama

    return train_panorama(options)


@dataclass(kw_only=True)
class StudyOptions:
    """Options of ``study``.

    Args:
        output: folder of report.json, report.md, figures and trained weights; an interrupted study continues there
        seeds: independent repetitions, each with its own training
        bundle: train the bundled small weights too, into output/weights
        quick: a minute instead of many, to see that everything runs
    """

    output: Path = Path("runs/panorama/study")
    seeds: tuple[int, ...] = (0, 1, 2)
    bundle: bool = True
    quick: bool = False


def study(options: StudyOptions) -> int:
    """Measure the paper's claims at small scale, with and without the graft, over several seeds.

    examples:
      visiongraft panorama study
      visiongraft panorama study --quick true --seeds '[0]' --output /tmp/study
      visiongraft panorama study --seeds '[1, 2]' --bundle false    # beside another process with seed 0, on the same output
    """
    from dataclasses import asdict

    from visiongraft.methods.panorama.study import StudyConfig, run_study

    run_study(StudyConfig(**asdict(options)))
    print(options.output / "report.md")
    return 0


VERBS: dict[str, Callable[..., int]] = {
    "lift": lift,
    "camera": camera,
    "seam-check": seam_check,
    "crops": crops,
    "canonicalise": canonicalise,
    "train": train,
    "evaluate": evaluate,
    "study": study,
}
