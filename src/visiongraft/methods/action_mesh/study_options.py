"""The verb ``study`` of ``visiongraft action_mesh``, and how much it trains and measures. Imports no torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

Scale = Literal["small", "smoke"]
_SMOKE_SHARE = 30


@dataclass(frozen=True, kw_only=True)
class StudyBudget:
    """How much the study trains and measures. Results of another budget are computed anew; trainings of one need another output.

    Args:
        size: of the models: small or tiny
        vae_steps: of the autoencoder of single shapes
        base_steps: of the transformer of single frames
        denoiser_steps: of stage I, and of each of its ablations
        autoencoder_steps: of stage II, and of each of its ablations
        batch_size: of every stage; default: the stage's own
        clips: held-out clips of each motion in the cells that the headline compares
        side_clips: the same for ablations and anchors: the first of those clips
        long_clips: the same for two windows
        frames: of a clip, and of the window
        long_frames: of the clips that need two windows
        steps: of sampling, for the base and for stage I
        guidance: towards the picture
        resolution: cells a side of the grid that meshes are extracted from
        grid: points a side of the grid that overlap is counted on
        points: tracked ones of the truth, and of every mesh that is scored
        icp_steps: of the alignment of scored meshes
    """

    size: Literal["small", "tiny"] = "small"
    vae_steps: int = 900
    base_steps: int = 1200
    denoiser_steps: int = 1000
    autoencoder_steps: int = 1500
    batch_size: int | None = None
    clips: int = 12
    side_clips: int = 6
    long_clips: int = 4
    frames: int = 6
    long_frames: int = 11
    steps: int = 20
    guidance: float = 2.0
    resolution: int = 32
    grid: int = 24
    points: int = 600
    icp_steps: int = 60

    def __post_init__(self) -> None:
        counts = ("vae_steps", "base_steps", "denoiser_steps", "autoencoder_steps", "side_clips", "long_clips", "steps", "points")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.icp_steps < 5:
            raise ValueError(f"icp_steps must be at least 5; got {self.icp_steps}.")
        if self.frames < 3 or not self.frames < self.long_frames < 2 * self.frames:
            raise ValueError(
                "Clips have at least 3 frames, for flicker, and long ones more than those but fewer than twice as many, so that they "
                f"are two windows; got frames={self.frames}, long_frames={self.long_frames}."
            )
        if self.side_clips > self.clips:
            raise ValueError(f"side_clips are some of the clips, at most {self.clips}; got {self.side_clips}.")
        if min(self.resolution, self.grid) < 8 or self.resolution % 2:
            raise ValueError(
                f"The grids need at least 8 cells a side, and resolution is even; got resolution={self.resolution}, grid={self.grid}."
            )

    def smoke(self) -> "StudyBudget":
        """A thirtieth of the training, one clip and coarse measures: whether everything runs, and nothing about the claims."""
        names = ("vae_steps", "base_steps", "denoiser_steps", "autoencoder_steps")
        fewer = {name: max(1, getattr(self, name) // _SMOKE_SHARE) for name in names}
        fewer |= {"clips": 1, "side_clips": 1, "long_clips": 1}
        coarser = {"steps": 4, "resolution": 16, "grid": 12, "points": 100, "icp_steps": 5, "batch_size": 8}
        given = {name: value if getattr(self, name) is None else min(value, getattr(self, name)) for name, value in coarser.items()}
        return replace(self, **fewer, **given)


@dataclass(kw_only=True)
class StudyOptions:
    """Options of ``study``.

    Args:
        output: folder of report.json, report.md, figures and trained models; an interrupted study continues there
        seeds: independent repetitions, each with its own trainings, clips and noise
        scale: small, or smoke: a thirtieth of the training on one clip, which only checks that everything runs
        bundle: also write the package's models, those of the first seed, into output/weights/small
        budget: how much is trained and measured
    """

    output: Path = Path("runs/action_mesh/study")
    seeds: tuple[int, ...] = (0, 1, 2)
    scale: Scale = "small"
    bundle: bool = False
    budget: StudyBudget = field(default_factory=StudyBudget)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"The study needs at least one seed, and each only once; got {', '.join(map(str, self.seeds)) or 'none'}.")
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}; got {self.scale!r}.")

    @property
    def plan(self) -> StudyBudget:
        """The budget at the scale."""
        return self.budget.smoke() if self.scale == "smoke" else self.budget


def study(options: StudyOptions) -> int:
    """Measure the paper's claims at small scale: single frames against stage I and stage I + II on held-out clips, over several seeds.

    It takes about half an hour of CPU time a seed. Processes may share it on one output: each with seeds of its own, and a last call with
    all of them, which reports. Set OMP_NUM_THREADS=1 for each.

    examples:
      visiongraft action_mesh study
      visiongraft action_mesh study --seeds '[2]'      # beside others, on the same output
      visiongraft action_mesh study --scale smoke --seeds '[0]' --output /tmp/study
    """
    from visiongraft.methods.action_mesh.study import run_study

    run_study(options)
    print(options.output / "report.md")
    return 0
