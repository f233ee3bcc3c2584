"""The verb ``study`` of ``visiongraft point_bridge``, and how much it trains and measures. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TABLETOP = ("tabletop/put_on_plate", "tabletop/stack", "tabletop/put_in_bin")


@dataclass(kw_only=True)
class StudyBudget:
    """How much the study trains and measures. Results of another budget are computed anew; they need another output.

    Args:
        pairs: instance pairs that are trained on; pair 4 is never
        sources: scripted demonstrations of every pair
        demonstrations: generated ones of every pair
        twin_demonstrations: of every task, for co-training
        scene_points: of the unfiltered cloud; as many as two objects have
        camera_size: height and width of the camera that points are lifted from
        image_size: side of the image policy's pictures
        stereo_size: height and width of the stereo pair
        size: of the policies: small or tiny
        steps: of training for every task
        image_steps: the same for image policies, which learn more slowly
        batch_size: samples a step
        points_per_object: random points of every object in a sample of training
        image_shift: largest random shift of pictures in training, pixels
        episodes: of a task and seed in the cells that policies are compared in, spread over the pairs
        side_episodes: the same for the cells that vary the points, the camera and the perception
        max_steps: control steps of an episode; default: the environment's
        bundle_steps: of the bundled policy
        slots: episodes side by side, which the policy sees in one batch
    """

    pairs: tuple[int, ...] = (0, 1, 2, 3)
    sources: int = 5
    demonstrations: int = 60
    twin_demonstrations: int = 10
    scene_points: int = 256
    camera_size: tuple[int, int] = (120, 160)
    image_size: int = 64
    stereo_size: tuple[int, int] = (240, 320)
    size: Literal["small", "tiny"] = "small"
    steps: int = 1500
    image_steps: int = 2000
    batch_size: int = 96
    points_per_object: int = 32
    image_shift: int = 4
    episodes: int = 17
    side_episodes: int = 8
    max_steps: int | None = None
    bundle_steps: int = 9000
    slots: int = 13

    def __post_init__(self) -> None:
        if not self.pairs or any(pair not in range(4) for pair in self.pairs):
            raise ValueError(f"pairs must be some of 0, 1, 2 and 3 (pair 4 is held out); got {self.pairs}.")
        for name in ("sources", "demonstrations", "twin_demonstrations", "steps", "image_steps", "episodes", "side_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


@dataclass(kw_only=True)
class StudyOptions:
    """Options of ``study``.

    Args:
        output: folder of report.json, report.md, figures, demonstrations and policies; an interrupted study continues there
        seeds: independent repetitions, each with its own demonstrations, training and roll-outs
        tasks: of the tabletop; policies for single tasks are trained beside those for all where there is more than one
        bundle: train the bundled policy too, on the demonstrations of all seeds, into output/weights/policy
        budget: how much is trained and measured
    """

    output: Path = Path("runs/point_bridge/study")
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = TABLETOP
    bundle: bool = False
    budget: StudyBudget = field(default_factory=StudyBudget)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("The study needs at least one seed.")
        unknown = [task for task in self.tasks if task not in TABLETOP]
        if unknown or not self.tasks:
            raise ValueError(f"The study's tasks are some of {', '.join(TABLETOP)}; got {', '.join(self.tasks) or 'none'}.")


def study(options: StudyOptions) -> int:
    """Measure the paper's claims at small scale: points against images and clouds, in simulation and in the twin, over several seeds.

    It takes hours of CPU time. Processes may share it on one output: each with seeds of its own, and a last call with all of them, which
    reports. Set OMP_NUM_THREADS=1 for each.

    examples:
      visiongraft point_bridge study
      visiongraft point_bridge study --seeds '[2]'      # beside others, on the same output
      visiongraft point_bridge study --seeds '[0]' --tasks '[tabletop/stack]' --budget.steps 200 --budget.episodes 8 --output /tmp/study
    """
    from visiongraft.methods.point_bridge.study import run_study
    from visiongraft.robots.extras import require

    require("mujoco")
    require("h5py")
    run_study(options)
    print(options.output / "report.md")
    return 0
