"""Options of ``visiongraft action_mesh train``, and what each stage is trained with by default. Imports no torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

Stage = Literal["vae", "base", "denoiser", "autoencoder"]
Size = Literal["tiny", "small", "released"]


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How one stage is trained.

    Args:
        steps: optimiser steps.
        batch_size: clips a step; single frames for the VAE and the base.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW.
        betas: of AdamW.
        schedule: constant_with_warmup, or cosine: linear warm-up, then half a cosine to zero.
        warmup: steps of it.
        clip_norm: largest gradient norm.
        ema_decay: of averaged weights, which are the ones saved; none: the last weights.
        mixed_precision: bf16 or no.
        surface_points: of the cloud that is encoded.
        tokens: latent tokens of a frame.
        frames: of a clip.
        query_points: where the VAE's field, or stage II's motion, is asked for.
        sources: fewest and most source frames of stage I.
        context_dropout: share of samples that learn without their pictures.
        mask_dropout: share of clips that learn with nothing known; for guidance of three terms only.
        shift: of the training times towards noise.
        kl_weight: of the VAE.
        l1_weight, l2_weight: of the VAE's signed distance.
        near_share: share of the VAE's query points that lie near the surface, the others are uniform in the box.
        near_deviation: standard deviation of their distance to it.
        truncation: distance at which the VAE's field saturates.
        latent_noise: standard deviation of noise on stage II's latents.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: str = "constant_with_warmup"
    warmup: int = 1000
    clip_norm: float = 1.0
    ema_decay: float | None = 0.9999
    mixed_precision: Literal["no", "bf16"] = "bf16"
    surface_points: int = 16_384
    tokens: int = 1024
    frames: int = 16
    query_points: int = 4096
    sources: tuple[int, int] = (1, 3)
    context_dropout: float = 0.1
    mask_dropout: float = 0.0
    shift: float = 3.0
    kl_weight: float = 1e-3
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    near_share: float = 2 / 3
    near_deviation: float = 0.06
    truncation: float = 0.1
    latent_noise: float = 0.0


_OFFICIAL = StageSettings(steps=170_000, batch_size=96, learning_rate=1e-4)
OFFICIAL: dict[Stage, StageSettings] = {
    "vae": replace(_OFFICIAL, ema_decay=None, query_points=8192, frames=1),
    "base": replace(_OFFICIAL, shift=1.0, frames=1),
    "denoiser": _OFFICIAL,
    "autoencoder": replace(_OFFICIAL, ema_decay=None),
}
"""Of the released size. Steps, batch, rate, decay, precision, frames, tokens and sources of stages I and II are the authors'; their
schedule, betas, clipping, averages and dropout are not published (our choice), nor is anything of the VAE's and the base's training.

Source: ActionMesh brief, 5."""

_SMALL = StageSettings(
    steps=1000,
    batch_size=16,
    learning_rate=1e-3,
    schedule="cosine",
    warmup=100,
    ema_decay=None,
    mixed_precision="no",
    surface_points=128,
    tokens=16,
    frames=6,
    shift=1.0,
    l1_weight=0.0,
)
SMALL: dict[Stage, StageSettings] = {
    "vae": replace(_SMALL, steps=900, batch_size=32, learning_rate=3e-3, warmup=90, query_points=96, frames=1),
    "base": replace(_SMALL, steps=1200, batch_size=64, learning_rate=2e-3, warmup=120, ema_decay=0.995, frames=1),
    "denoiser": replace(_SMALL, ema_decay=0.995),
    "autoencoder": replace(_SMALL, steps=1500, batch_size=32, learning_rate=2.5e-3, warmup=150, query_points=64),
}
"""Of the small and tiny sizes: minutes on one core. Source: ActionMesh brief, 9 (one-cycle there, warm-up and cosine here)."""


@dataclass(kw_only=True)
class TrainOptions:
    """Options of ``train``. What is not given is the stage's own, see ``OFFICIAL`` and ``SMALL``.

    Args:
        data: procedural (made-up shapes), or a folder of clips: .npz files with tracked points (T, P, 6) and frames (T, 3 or 4, H, W),
            or folders of ActionBench
        stage: vae (shape autoencoder), base (single frames to shapes), denoiser (stage I) or autoencoder (stage II), in this order
        output: folder of checkpoints and the trained module (output/<stage>); an interrupted run continues there;
            default: runs/action_mesh/<stage>
        size: released, small or tiny; sizes the module where no init is given, and chooses the settings
        vae: folder of the trained VAE, of a TripoSG checkpoint, or its hub id; all stages but vae need one
        init: what the module starts from: for the denoiser a base or an earlier denoiser, for the autoencoder an earlier one (else the VAE
            itself), for the others an earlier one of the kind; default: random weights, the VAE's for the autoencoder
        image_encoder: toy (16 patches of a 16x16 silhouette), or a folder or hub id of DINOv2; default: toy for small and tiny,
            facebook/dinov2-large for released
        kinds: of procedural shapes: creature, bend, twist, walk, cloth, blob
        framing: of procedural pictures seen from the front: the square around the clip (box), as clips are cropped when they are
            animated, or the whole box [-1, 1] (world)
        random_view: random cameras for procedural shapes, as in the paper; else they are seen from the front
        clips: procedural clips
        draws: stretches and subsets of points drawn from each file
        held_out: clips or files kept from training for validation
        grouped: encode the same point indices in every frame of a clip; false makes stage I unstable
        rope: rotary frame numbers in stage I
        sources: fewest and most known frames of a clip in stage I; 0 0 trains without masked generation
        mask_dropout: share of clips that learn with nothing known, for guidance of three terms
        context_dropout: share of samples that learn without pictures
        shift: of the training times towards noise
        prediction_mode: stage II predicts positions (direct) or displacements (residual)
        normals: stage II's query points have normals
        pair_in_queries: stage II's (source, target) pair goes to the queries instead of the tokens
        latent_noise: standard deviation of noise on stage II's latents
        frames: of a clip; the vae and base stages take single ones of it
        tokens: latent tokens of a frame
        surface_points: of the cloud that is encoded
        query_points: of a sample
        steps: optimiser steps
        batch_size: samples a step
        accumulate: micro-batches of a step, for batches that do not fit
        learning_rate: of AdamW
        warmup: steps
        ema_decay: of averaged weights that are saved; 0 switches it off
        mixed_precision: bf16 or no
        gradient_checkpointing: recompute activations, for less memory
        checkpoint_every: steps between checkpoints
        preview_every: steps between validations; default: only at the end
        logger: tensorboard, wandb or none
        workers: data loading processes
        seed: fixes data, first weights, order and noise

    Raises:
        ValueError: an unknown stage or size, a value out of range, or an option of another stage.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("data",)
    data: str
    stage: Stage = "denoiser"
    output: Path | None = None
    size: Size = "released"
    vae: str | None = None
    init: str | None = None
    image_encoder: str | None = None
    kinds: list[str] = field(default_factory=lambda: ["creature"])
    framing: Literal["box", "world"] = "box"
    random_view: bool = False
    clips: int = 1_000_000
    draws: int = 64
    held_out: int = 16
    grouped: bool = True
    rope: bool = True
    sources: tuple[int, int] | None = None
    mask_dropout: float | None = None
    context_dropout: float | None = None
    shift: float | None = None
    prediction_mode: Literal["direct", "residual"] = "direct"
    normals: bool = True
    pair_in_queries: bool = False
    latent_noise: float | None = None
    frames: int | None = None
    tokens: int | None = None
    surface_points: int | None = None
    query_points: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    learning_rate: float | None = None
    warmup: int | None = None
    ema_decay: float | None = None
    mixed_precision: Literal["no", "bf16"] | None = None
    gradient_checkpointing: bool | None = None
    checkpoint_every: int = 500
    preview_every: int | None = None
    logger: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in (("stage", get_args(Stage)), ("size", get_args(Size))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {getattr(self, name)!r}.")
        if self.vae is None and self.stage != "vae":
            raise ValueError(
                f"The {self.stage} stage learns on latents and needs a trained VAE: --vae with a folder of one "
                "(train it with --stage vae) or VAST-AI/TripoSG."
            )
        if min(self.clips, self.draws) < 1 or self.held_out < 0:
            raise ValueError(
                f"clips and draws must be at least 1 and held_out at least 0; got {self.clips}, {self.draws} and {self.held_out}."
            )
        self._require_stage("denoiser", "rope", "sources", "mask_dropout")
        self._require_stage("autoencoder", "prediction_mode", "normals", "pair_in_queries", "latent_noise")

    def settings(self) -> StageSettings:
        """The stage's settings with what the options change."""
        given: dict[str, Any] = {
            name: value for name in StageSettings.__dataclass_fields__ if (value := getattr(self, name, None)) is not None
        }
        if self.stage in ("vae", "base"):
            given.pop("frames", None)
        if given.get("ema_decay") == 0:
            given["ema_decay"] = None
        return replace(self._own(self.stage), **given)

    @property
    def clip_frames(self) -> int:
        """Frames of a procedural clip."""
        return self.frames if self.frames is not None else self._own("denoiser").frames

    def _own(self, stage: Stage) -> StageSettings:
        """A stage's settings at the size."""
        own = (OFFICIAL if self.size == "released" else SMALL)[stage]
        return replace(own, tokens=8, frames=min(own.frames, 4)) if self.size == "tiny" else own

    def _require_stage(self, stage: Stage, *names: str) -> None:
        """Refuses options that would have no effect."""
        given = [name for name in names if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if given and self.stage != stage:
            raise ValueError(f"{', '.join(given)} belong to the {stage} stage; this one is {self.stage}. Leave them out.")
