"""Verbs of ``visiongraft point_bridge``. Options are light dataclasses; torch and MuJoCo are imported when a verb runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from visiongraft.methods.point_bridge.study_options import study

PerceptionName = Literal["simulator", "aligned", "random_camera", "segmentation", "stereo", "plane", "scene", "images"]
Engine = Literal["local", "processes", "ray"]


@dataclass(kw_only=True)
class RecordingOptions:
    """What is recorded beside the states, and by whom.

    Args:
        pairs: instance pairs of a tabletop task, each in a file of its own (its number is added to the output's name); default: to
            collect the training pairs 0 to 3, and none for other suites; to generate those of the sources
        perception: points that are stored: simulator, aligned (moved to what the camera sees), random_camera (the same with the camera
            elsewhere in every episode), segmentation, stereo, plane, scene, or
            images for the camera's images alone
        camera: of aligned points, clouds and images
        image_size: height and width of images in pixels; default: 120 160, of a stereo pair 480 640
        points: of every object, or of the scene; default: 128, of a scene 512
        twin: record in the visually shifted twin
        workers: processes
        engine: local, processes or ray; default: local for one worker, processes for more
        seed: fixes the scenes; the data do not depend on the workers
    """

    pairs: list[int] | None = None
    perception: PerceptionName = "aligned"
    camera: str = "left"
    image_size: tuple[int, int] | None = None
    points: int | None = None
    twin: bool = False
    workers: int = 1
    engine: Engine | None = None
    seed: int = 0


@dataclass(kw_only=True)
class CollectOptions(RecordingOptions):
    """Options of ``collect``.

    Args:
        task: suite/task, such as tabletop/put_on_plate or metaworld/reach-v3
        num: demonstrations, of every pair
        output: HDF5 file; default: runs/point_bridge/<task>-source.hdf5
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("task",)
    task: str
    num: int = 5
    output: Path | None = None


def collect(options: CollectOptions) -> int:
    """Record a task's scripted expert into robomimic-style HDF5 files.

    examples:
      visiongraft point_bridge collect tabletop/put_on_plate
      visiongraft point_bridge collect tabletop/stack --pairs '[0, 1]' --num 10 --output demos/stack.hdf5
      visiongraft point_bridge collect metaworld/reach-v3 --camera corner
    """
    from visiongraft.methods.point_bridge.data_files import collect_files

    return collect_files(options)


@dataclass(kw_only=True)
class GenerateOptions(RecordingOptions):
    """Options of ``generate``.

    Args:
        sources: HDF5 files of source demonstrations, one for every pair, as collect wrote them
        num: demonstrations, of every file
        output: folder of the generated files; default: the folder of the sources
        preset: noise and joining of segments as in mimicgen or mimiclabs
        offset: lowest and highest number of steps that are added at random to the end of a subtask; MimicGen's (10, 20) suits long human
            demonstrations, the scripted ones are short
        trim: leave out the free-space approach of source segments, and interpolate to where they come near their object
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("sources",)
    sources: list[Path]
    num: int = 75
    output: Path | None = None
    preset: Literal["mimicgen", "mimiclabs"] = "mimiclabs"
    offset: tuple[int, int] = (2, 5)
    trim: bool = True


def generate(options: GenerateOptions) -> int:
    """Generate many demonstrations from a few, in the manner of MimicGen.

    examples:
      visiongraft point_bridge generate '[runs/point_bridge/tabletop-put_on_plate-0-source.hdf5]'
      visiongraft point_bridge generate '[demos/]' --num 300 --workers 8
      visiongraft point_bridge generate '[demos/]' --num 300 --engine ray --workers 64 --trim false
    """
    from visiongraft.methods.point_bridge.data_files import generate_files

    return generate_files(options)


@dataclass(kw_only=True)
class TrainOptions:
    """Options of ``train``.

    Args:
        data: HDF5 files of demonstrations, or folders of them
        output: folder of checkpoints and of the trained policy (output/policy); an interrupted run continues there
        real: files of real or twin demonstrations for co-training, drawn with probability 1 - sim_share
        sim_share: probability of the simulated files
        size: official, small or tiny
        observed: points of robot and objects, one scene cloud, or images
        tokens: one token for all objects (shared), one for each (per_object), or one with the robot (combined)
        head: deterministic, mixture or diffusion
        action_mode: predict poses, or future robot points
        history: time steps seen
        language: give the instruction; default: where there is more than one task
        text_encoder: hashed (offline), a hub id such as sentence-transformers/all-MiniLM-L6-v2, or a folder
        cameras: whose images an image policy sees
        points_per_object: random subset of points in every sample; default: all
        point_noise: standard deviation of the noise on object points in metres, for simulated files
        range_floor: smallest range of a normalised dimension; 0 as in the paper, which refuses dimensions that never change
        steps: optimiser steps; default: 300000, small and tiny 2000
        batch_size: samples a step; default: 16, small and tiny 96
        learning_rate: of AdamW; default: 1e-4, small and tiny 1.5e-3
        schedule: such as constant or cosine; default: constant, small and tiny cosine
        warmup_steps: of the schedule; default: 0, small and tiny 100
        clip_norm: largest gradient norm; default: none, small and tiny 1
        mixed_precision: bf16 or no
        held_out: episodes of every file that are kept for validation
        checkpoint_every: steps between checkpoints
        logger: tensorboard, wandb or none
        workers: data loading processes
        seed: fixes the first weights, the order and the noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("data",)
    data: list[Path]
    output: Path = Path("runs/point_bridge/train")
    real: list[Path] | None = None
    sim_share: float = 0.8
    size: Literal["official", "small", "tiny"] = "official"
    observed: Literal["points", "scene", "image"] = "points"
    tokens: Literal["shared", "per_object", "combined"] = "shared"
    head: Literal["deterministic", "mixture", "diffusion"] = "deterministic"
    action_mode: Literal["pose", "points"] = "pose"
    history: int = 1
    language: bool | None = None
    text_encoder: str = "hashed"
    cameras: list[str] | None = None
    points_per_object: int | None = None
    point_noise: float = 0.01
    range_floor: float = 0.1
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    warmup_steps: int | None = None
    clip_norm: float | None = None
    mixed_precision: Literal["no", "bf16"] = "no"
    held_out: int = 1
    checkpoint_every: int = 500
    logger: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    workers: int = 0
    seed: int = 0


def train(options: TrainOptions) -> int:
    """Train a policy on demonstrations by behaviour cloning.

    examples:
      visiongraft point_bridge train '[runs/point_bridge]' --size small
      visiongraft point_bridge train '[demos/plate, demos/stack]' --output runs/multi --language true
      visiongraft point_bridge train '[demos/sim]' --real '[demos/real]' --size official --mixed_precision bf16
    """
    from visiongraft.methods.point_bridge.training_run import train_files

    return train_files(options)


@dataclass(kw_only=True)
class EvaluateOptions:
    """Options of ``evaluate``.

    Args:
        weights: small (bundled), the folder of a policy (output/policy of train), or the address of a server (ws://...)
        tasks: suite/task; default: those that the policy was trained on
        pairs: instance pairs of tabletop tasks, 0 to 4; 4 was held out of training; default: 0 to 3, and none for other suites
        twin: roll out in the visually shifted twin
        distractors: other objects on the table; default: as the twin says
        camera_error: metres by which the reported camera is off
        perception: what the policy is shown; default: simulator points, in the twin segmentation; scene and images where the policy sees
            those
        camera: in use
        image_size: height and width of its images in pixels; default: 120 160, of a stereo pair 480 640, and what a policy on images was
            trained with
        points: of every object; default: 128, of a scene 512
        episodes: of every task and pair
        execute: ensemble, or the number of actions of a chunk that are executed before the policy is asked again
        hold: steps at first in which the open gripper holds its pose; the paper's roll-outs have 10
        max_steps: control steps of an episode; default: the environment's
        slots: episodes side by side
        workers: processes for the simulators; 0 runs them in this one
        output: folder of results and videos; a rerun continues there; default: only printed
        video: successes and failures of every task that are filmed; needs output
        device: torch device
        seed: fixes the scenes
    """

    weights: str = "small"
    tasks: list[str] | None = None
    pairs: list[int] | None = None
    twin: bool = False
    distractors: bool | None = None
    camera_error: float = 0.0
    perception: PerceptionName | None = None
    camera: str = "left"
    image_size: tuple[int, int] | None = None
    points: int | None = None
    episodes: int = 10
    execute: str = "ensemble"
    hold: int = 0
    max_steps: int | None = None
    slots: int = 8
    workers: int = 0
    output: Path | None = None
    video: int = 0
    device: str = "cpu"
    seed: int = 0


def evaluate(options: EvaluateOptions) -> int:
    """Roll a policy out and print its success rate with a Wilson interval.

    examples:
      visiongraft point_bridge evaluate --weights small
      visiongraft point_bridge evaluate --weights small --twin true --pairs '[4]' --output runs/twin --video 2
      visiongraft point_bridge evaluate --weights runs/point_bridge/train/policy --tasks '[tabletop/stack]' --episodes 50 --workers 2
    """
    from visiongraft.methods.point_bridge.evaluation import evaluate_policy

    return evaluate_policy(options)


@dataclass(kw_only=True)
class PerceiveOptions:
    """Options of ``perceive``.

    Args:
        image: RGB image
        depth: depth along the optical axis: a 16-bit PNG, a TIFF of floats or an .npy file
        depth_unit: unit of the depth: m or mm
        right: right image of a rectified stereo pair, in place of the depth
        baseline: metres between the two cameras of the pair
        intrinsics: fx, fy, cx, cy in pixels, pixel centres at +0.5
        camera_to_base: 16 numbers of the camera's pose (row by row) or a .npy or .txt file of it; default: identity, points in camera
            axes
        clicks: a pixel in every object, such as '{mug: [412, 230]}'
        names: of the objects, which a grounding detector then finds
        instruction: what the robot has to do; a model behind namer then names the objects
        namer: an OpenAI-compatible endpoint's address, gemini, or a hub id or folder of a vision language model
        namer_model: name of the model behind an endpoint, or of Gemini
        namer_key: environment variable that holds the endpoint's key
        pointer: hub id or folder of a grounding detector of Transformers, or of a Molmo 2
        segmenter: plane (what stands on the table), color, or the hub id or folder of a SAM 2
        points: of every object
        seed: of everything random
        output: PLY file of labelled points; default: beside the image. A picture (.png) is written beside it
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("image",)
    image: Path
    depth: Path | None = None
    depth_unit: Literal["m", "mm"] = "mm"
    right: Path | None = None
    baseline: float | None = None
    intrinsics: tuple[float, float, float, float]
    camera_to_base: list[float] | Path | None = None
    clicks: dict[str, tuple[float, float]] | None = None
    names: list[str] | None = None
    instruction: str = ""
    namer: str | None = None
    namer_model: str = ""
    namer_key: str | None = None
    pointer: str | None = None
    segmenter: str = "plane"
    points: int = 128
    seed: int = 0
    output: Path | None = None


def perceive(options: PerceiveOptions) -> int:
    """Turn an image with depth, or a stereo pair, into labelled points.

    examples:
      visiongraft point_bridge perceive rgb.png --depth depth.png --intrinsics '[610, 610, 320, 240]' --clicks '{mug: [412, 230]}'
      visiongraft point_bridge perceive left.png --right right.png --baseline 0.12 --intrinsics '[532, 532, 626, 345]' \\
          --clicks '{bowl: [600, 400]}'
      visiongraft point_bridge perceive rgb.png --depth depth.png --intrinsics '[610, 610, 320, 240]' --namer gemini \\
          --instruction "put the mug on the plate" --pointer allenai/Molmo2-4B --segmenter facebook/sam2.1-hiera-large
    """
    from visiongraft.methods.point_bridge.perceive_files import perceive_files

    return perceive_files(options)


@dataclass(kw_only=True)
class ServeOptions:
    """Options of ``serve``.

    Args:
        weights: small (bundled) or the folder of a policy
        host: address; the default is reached from this machine only
        port: 0 takes a free one
        device: torch device
    """

    weights: str = "small"
    host: str = "127.0.0.1"
    port: int = 8765
    device: str = "cpu"


def serve(options: ServeOptions) -> int:
    """Serve a policy over WebSocket; visiongraft.robots.client.RemotePolicy is the other end.

    examples:
      visiongraft point_bridge serve --weights small
      visiongraft point_bridge serve --weights runs/point_bridge/train/policy --port 9000 --device cuda
    """
    from visiongraft.methods.point_bridge.evaluation import serve_policy

    return serve_policy(options)


VERBS: dict[str, Callable[..., int]] = {
    "collect": collect,
    "generate": generate,
    "train": train,
    "evaluate": evaluate,
    "perceive": perceive,
    "serve": serve,
    "study": study,
}
