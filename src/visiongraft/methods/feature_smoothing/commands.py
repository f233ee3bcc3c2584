"""Verbs of ``visiongraft feature_smoothing``. Options are light dataclasses; torch is imported when a verb runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(kw_only=True)
class Protection:
    """Encoder, defence and noise level.

    Args:
        encoder: small (bundled), a folder with config.json and safetensors, or a hub id such as openai/clip-vit-base-patch32
        purifier: folder or safetensors file of a purifier, bundled, or none; default: bundled for the small encoder, else none
        mapper: folder of a mapper, bundled, or none; default: bundled for the small encoder, else none
        sigma: noise level in pixel units of [0, 1]; 0.25 is 64 grey levels of 255
        n0: noise samples averaged at inference
        token_mode: certified feature: flat (all tokens), per_token, or pooled (the model's image embedding)
        chunk_size: noisy images in one pass
        dtype: dtype of the weights
        device: torch device, such as cpu or cuda
    """

    encoder: str = "small"
    purifier: str | None = None
    mapper: str | None = None
    sigma: float = 0.25
    n0: int = 8
    token_mode: Literal["flat", "per_token", "pooled"] = "flat"
    chunk_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


@dataclass(kw_only=True)
class CertifyOptions(Protection):
    """Options of ``certify``.

    Args:
        images: an image or a folder of images
        output: folder for report.jsonl, summary.md and radius.png; a rerun continues where it stopped
        n: noise samples an image
        n_ref: separate samples for the smoothed reference
        alpha: probability that one image's certificate is wrong
        method: confidence bound
        eps: l2 radii, in pixel units, at which bounds are reported
        tau: cosine that a certified radius keeps
        simultaneous: make all certificates of this run hold at once with probability 1 - alpha
        stop_radius: stop sampling an image once this radius is certified, or cannot be any more
        classes: text prompts of a zero-shot head; its predictions are certified too
        seed: fixes the noise, image by image
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("images",)
    images: Path
    output: Path = Path("certificates")
    n: int = 1000
    n_ref: int = 128
    alpha: float = 1e-3
    method: Literal["betting", "kl", "empirical_bernstein", "hoeffding"] = "betting"
    eps: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    tau: float = 0.5
    simultaneous: bool = False
    stop_radius: float | None = None
    classes: list[str] | None = None
    seed: int = 0


def certify(options: CertifyOptions) -> int:
    """Certify the features of images against every l2-bounded change.

    examples:
      visiongraft feature_smoothing certify photo.jpg
      visiongraft feature_smoothing certify photos/ --n 2000 --sigma 0.12 --output report
      visiongraft feature_smoothing certify photos/ --encoder openai/clip-vit-base-patch32 --classes '["a cat", "a dog"]'

    The certificate is about features in an l2 ball; it says nothing about l-infinity budgets or about text.
    """
    from visiongraft.methods.feature_smoothing.report import certify_folder

    return certify_folder(options)


@dataclass(kw_only=True)
class AttackOptions(Protection):
    """Options of ``attack``.

    Args:
        images: an image or a folder of images
        target: image that targeted attacks imitate; needed by attack-vlm, m-attack and foa
        output: folder for the attacked images (PNG) and attacks.jsonl
        attack: pgd and apgd average the gradient over fresh noise; attack-vlm, m-attack and foa are l-infinity attacks
        norm: ball of pgd and apgd
        eps: radius in pixel units; default 0.5 in l2, 8/255 in l-infinity and for attack-vlm, 16/255 for m-attack and foa
        steps: gradient steps; default 20 for pgd and apgd, 300 for the others
        restarts: random restarts of pgd and apgd
        samples: fresh noise samples of one gradient
        defended: attack the smoothed encoder; false attacks the bare one
        seed: fixes the attack
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("images",)
    images: Path
    target: Path | None = None
    output: Path = Path("attacks")
    attack: Literal["pgd", "apgd", "attack-vlm", "m-attack", "foa"] = "apgd"
    norm: Literal["l2", "linf"] = "l2"
    eps: float | None = None
    steps: int | None = None
    restarts: int = 1
    samples: int = 8
    defended: bool = True
    seed: int = 0


def attack(options: AttackOptions) -> int:
    """Attack an encoder, bare or defended, and say how far its features moved.

    examples:
      visiongraft feature_smoothing attack photo.jpg --defended false
      visiongraft feature_smoothing attack photos/ --attack m-attack --target other.jpg

    Attacks are for checking a defence that you run. l-infinity results are never covered by a certificate.
    """
    from visiongraft.methods.feature_smoothing.report import attack_folder

    return attack_folder(options)


@dataclass(kw_only=True)
class TrainPurifierOptions:
    """Options of ``train-purifier``.

    Args:
        images: folder of training images; no labels are needed
        output: folder of checkpoints and of the trained purifier
        encoder: small, a folder or a hub id; frozen
        start: purifier to fine-tune: a folder, a safetensors file of the guided-diffusion U-Net, or nothing for a new light U-Net
        widths: channels by level of a new light U-Net
        patch_size: pixels a side that a new light U-Net folds into channels first
        sigma_min: smallest noise level of training, in pixel units
        sigma_max: largest noise level of training
        steps: optimiser steps
        batch_size: images a step
        learning_rate: of AdamW; default 2e-4 for the light U-Net, 1e-5 for the diffusion U-Net
        ema_decay: of the averaged weights that are saved; 0 switches it off
        mixed_precision: no, bf16 or fp16
        seed: fixes initial weights, crops and noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("images",)
    images: Path
    output: Path = Path("runs/feature_smoothing/purifier")
    encoder: str = "small"
    start: Path | None = None
    widths: tuple[int, ...] = (64, 128, 256, 256)
    patch_size: int = 1
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    steps: int = 20_000
    batch_size: int = 32
    learning_rate: float | None = None
    ema_decay: float = 0.9999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0


def train_purifier(options: TrainPurifierOptions) -> int:
    """Train the purifier on a folder of images (stage 1).

    examples:
      visiongraft feature_smoothing train-purifier photos/ --encoder openai/clip-vit-base-patch32
      visiongraft feature_smoothing train-purifier photos/ --start 256x256_diffusion_uncond.safetensors
    """
    from visiongraft.methods.feature_smoothing.stages import train_purifier_stage

    return train_purifier_stage(options)


@dataclass(kw_only=True)
class TrainMapperOptions:
    """Options of ``train-mapper``.

    Args:
        images: folder of training images; no labels are needed
        purifier: trained purifier that stays in front: a folder or file, bundled (small encoder), or none
        output: folder of checkpoints and of the trained mapper
        encoder: small, a folder or a hub id; frozen
        sigma_max: noise levels of training are uniform between 0 and this
        steps: optimiser steps
        batch_size: images a step
        learning_rate: of AdamW
        mixed_precision: no, bf16 or fp16
        seed: fixes initial weights, crops and noise
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("images",)
    images: Path
    purifier: str | None = None
    output: Path = Path("runs/feature_smoothing/mapper")
    encoder: str = "small"
    sigma_max: float = 0.5
    steps: int = 20_000
    batch_size: int = 16
    learning_rate: float = 2e-4
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0


def train_mapper(options: TrainMapperOptions) -> int:
    """Train the mapper behind a frozen encoder and purifier (stage 2).

    examples:
      visiongraft feature_smoothing train-mapper photos/ --purifier runs/feature_smoothing/purifier/purifier
    """
    from visiongraft.methods.feature_smoothing.stages import train_mapper_stage

    return train_mapper_stage(options)


@dataclass(kw_only=True)
class TrainOptions:
    """Options of ``train``.

    Args:
        purifier: options of stage 1; its images are used in both stages
        mapper_steps: optimiser steps of stage 2
        mapper_batch_size: images a step of stage 2
    """

    purifier: TrainPurifierOptions
    mapper_steps: int = 20_000
    mapper_batch_size: int = 16


def train(options: TrainOptions) -> int:
    """Train purifier and mapper one after the other (both stages).

    examples:
      visiongraft feature_smoothing train --purifier.images photos/ --purifier.steps 5000 --mapper_steps 2000
    """
    from visiongraft.methods.feature_smoothing.stages import train_both_stages

    return train_both_stages(options)


@dataclass(kw_only=True)
class StudyOptions:
    """Options of ``study``.

    Args:
        output: folder of report.json, report.md, figures and trained weights; an interrupted study continues there
        seeds: independent repetitions, each with its own training
        sigma: noise level of certificates and attacks
        images: attacked and certified images a seed
        n: noise samples of a certificate
        bundled: use the bundled weights for every seed instead of training
        quick: a minute instead of many, to see that everything runs
    """

    output: Path = Path("runs/feature_smoothing/study")
    seeds: tuple[int, ...] = (0, 1, 2)
    sigma: float = 0.5
    images: int = 16
    n: int = 512
    bundled: bool = False
    quick: bool = False


def study(options: StudyOptions) -> int:
    """Measure the paper's claims at small scale, with and without the graft, over several seeds.

    examples:
      visiongraft feature_smoothing study
      visiongraft feature_smoothing study --bundled true --seeds '[0]'
      visiongraft feature_smoothing study --quick true --output /tmp/study
    """
    from dataclasses import asdict

    from visiongraft.methods.feature_smoothing.study import StudyConfig, run_study

    run_study(StudyConfig(**asdict(options)))
    print(options.output / "report.md")
    return 0


VERBS: dict[str, Callable[..., int]] = {
    "certify": certify,
    "attack": attack,
    "train": train,
    "train-purifier": train_purifier,
    "train-mapper": train_mapper,
    "study": study,
}
