"""Verbs of ``visiongraft action_mesh``. Options are light dataclasses; torch is imported when a verb runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from visiongraft.methods.action_mesh.animate_options import AnimateOptions, MattingOptions, Weights
from visiongraft.methods.action_mesh.study_options import study
from visiongraft.methods.action_mesh.train_options import TrainOptions


def animate(options: AnimateOptions) -> int:
    """Turn a video, a mesh with a video, or a text into an animated mesh of one topology.

    examples:
      visiongraft action_mesh animate clip.mp4
      visiongraft action_mesh animate frames/ -o dragon.glb --formats '[glb, html, turntable]' --anchor 4
      visiongraft action_mesh animate clip.mp4 --mesh dragon.glb --fit_scale 0.8 --mesh_yaw auto
      visiongraft action_mesh animate bird.mp4 --mesh dragon.glb --mode motion-transfer
      visiongraft action_mesh animate long.mp4 --mesh_sequence first.glb
      visiongraft action_mesh animate dragon.glb --text "it flaps its wings" --video_generator Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
      visiongraft action_mesh animate dragon.png --text "it flaps its wings" --video_generator Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
      visiongraft action_mesh animate "a dragon flaps its wings" --mode text --text_video_generator Wan-AI/Wan2.1-T2V-14B-Diffusers
      visiongraft action_mesh animate clip.mp4 --weights facebook/ActionMesh --device cuda --low_memory true --preset fast
      visiongraft action_mesh animate clip.mp4 --matting sam2 --click '[320, 200]'
    """
    from visiongraft.methods.action_mesh.animate_files import animate_files

    return animate_files(options)


@dataclass(kw_only=True)
class ImageTo3DOptions(Weights, MattingOptions):
    """Options of ``image-to-3d``.

    Args:
        weights: small (bundled), a folder of a trained vae and dit, or VAST-AI/TripoSG or a folder of it
        base: takes the place of the weights; default where those are ActionMesh's, without a vae: VAST-AI/TripoSG
        masks: a picture, white where the object is
        image: picture of one object
        output: .glb, .obj or .ply; default: <image>-3d.glb. A contact sheet (.png) is written beside it
        steps: of the sampler; default: 100, small weights 20
        guidance: of the picture; default: 7.5, small weights 2
        num_tokens: of the latents; default: 2048, small weights 16
        resolution: cells of the extraction along an axis; default: 256, small weights 64
        faces: at most so many; default: 40000
        seed: fixes the noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("image",)
    image: Path
    output: Path | None = None
    steps: int | None = None
    guidance: float | None = None
    num_tokens: int | None = None
    resolution: int | None = None
    faces: int | None = None
    seed: int = 44


def image_to_3d(options: ImageTo3DOptions) -> int:
    """Turn one picture into a mesh (stage 0, TripoSG).

    examples:
      visiongraft action_mesh image-to-3d dragon.png
      visiongraft action_mesh image-to-3d dragon.png -o dragon.ply --weights VAST-AI/TripoSG --device cuda --faces 10000
    """
    from visiongraft.methods.action_mesh.image_to_3d_files import image_to_3d_files

    return image_to_3d_files(options)


@dataclass(kw_only=True)
class ViewOptions:
    """Options of ``view``.

    Args:
        input: a .glb or .npz, a folder of meshes of one topology, or another mesh file
        output: .html, .mp4 or .png; default: <input>.html
        formats: html (a page without network), turntable (.mp4) and png (a strip of frames), beside the output; default: what its name says
        title: heading of the page; default: the input's name
        fps: frames a second; default: the file's own, 8 for folders
        colors: place (every vertex by where it is in the first frame) or clay, of the page
        yaw_deg: where the page's camera stands at first, to the right of the front
        pitch_deg: and above the middle
        turns: of the turntable
        size: side of the turntable in pixels
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("input",)
    input: Path
    output: Path | None = None
    formats: list[Literal["html", "turntable", "png"]] | None = None
    title: str | None = None
    fps: float | None = None
    colors: Literal["place", "clay"] = "place"
    yaw_deg: float = 30.0
    pitch_deg: float = 15.0
    turns: float = 1.0
    size: int = 384


def view(options: ViewOptions) -> int:
    """Make a page, a turntable or pictures of an animated mesh.

    examples:
      visiongraft action_mesh view dragon.glb
      visiongraft action_mesh view dragon.glb -o dragon.html --formats '[html, turntable, png]'
      visiongraft action_mesh view meshes/ -o meshes.mp4 --turns 2 --size 512
    """
    from visiongraft.methods.action_mesh.view_files import view_files

    return view_files(options)


@dataclass(kw_only=True)
class EvaluateOptions:
    """Options of ``evaluate``.

    Args:
        ground_truth: folder of <name>/surfaces.npy: tracked points with normals, (frames, points, 6)
        predictions: folder of <name>/mesh_00.glb and so on, or of one animated .glb or .npz each
        output: CSV file, one row a sample; a rerun continues there. A summary (.summary.json) stands beside it
        variant: of the metrics: released (ActionBench's code), paper (its text) or light
        motion: measure CD-M; leave it out for meshes that were made frame by frame
        pattern: which files of a prediction are frames
        recompute: start over
        device: torch device
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("ground_truth", "predictions")
    ground_truth: Path
    predictions: Path
    output: Path = Path("evaluation.csv")
    variant: str = "released"
    motion: bool = True
    pattern: str = "mesh_*"
    recompute: bool = False
    device: str = "cpu"


def evaluate(options: EvaluateOptions) -> int:
    """Measure CD-3D, CD-4D and CD-M of predicted animations (ActionBench).

    examples:
      visiongraft action_mesh evaluate actionbench/data predictions/
      visiongraft action_mesh evaluate truth/ predictions/ --output scores.csv --variant paper --motion false
    """
    from visiongraft.methods.action_mesh.evaluation import evaluate_files

    return evaluate_files(options)


def train(options: TrainOptions) -> int:
    """Train the VAE, the base, stage I or stage II, on procedural clips or your own.

    examples:
      visiongraft action_mesh train procedural --stage vae --size small --output runs/action_mesh/vae
      visiongraft action_mesh train procedural --stage base --size small --vae runs/action_mesh/vae
      visiongraft action_mesh train procedural --size small --vae runs/action_mesh/vae --init runs/action_mesh/base
      visiongraft action_mesh train procedural --stage autoencoder --size small --vae runs/action_mesh/vae
      visiongraft action_mesh train clips/ --vae VAST-AI/TripoSG --init VAST-AI/TripoSG
    """
    from visiongraft.methods.action_mesh.training_run import train_files

    return train_files(options)


VERBS: dict[str, Callable[..., int]] = {
    "animate": animate,
    "image-to-3d": image_to_3d,
    "evaluate": evaluate,
    "train": train,
    "study": study,
    "view": view,
}
