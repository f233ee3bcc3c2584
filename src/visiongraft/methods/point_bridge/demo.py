"""The gallery section: the bundled policy rolled out on the spot, filmed, beside the study's numbers."""

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

from visiongraft.methods.point_bridge.observing import Eyes
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.small import WEIGHTS, load_policy
from visiongraft.methods.point_bridge.study_options import TABLETOP, StudyBudget
from visiongraft.methods.point_bridge.study_pictures import episode_sheet
from visiongraft.robots.extras import require
from visiongraft.robots.results import EvaluationResult
from visiongraft.robots.rollout_episode import Recording
from visiongraft.robots.rollouts import EvaluationTask, evaluate
from visiongraft.studies import Figure, Report, Section, Table
from visiongraft.studies.report import Cell

_SEED = 20_260_125  # of starts that no study has seen
_EPISODES = 6
_PAIR = 0
_RECORDING = Recording(first=1, size=(180, 240))


@dataclass(frozen=True)
class _Place:
    """Where the policy is rolled out, and how it sees there."""

    name: str
    options: dict[str, bool]
    eyes: Eyes


_PLACES = (
    _Place("simulation", {}, Eyes("aligned", size=(120, 160), seed=_SEED)),
    _Place("twin", {"twin": True}, Eyes("segmentation", size=(120, 160), seed=_SEED)),
)


def demo(output: Path) -> Section:
    """Rolls the bundled policy out on three tasks, in simulation and in the twin.

    Args:
        output: folder for videos and pictures.

    Returns:
        The method's section of the gallery.
    """
    require("mujoco")
    policy = load_policy("small", tasks=TABLETOP)
    results = {place.name: _roll_out(policy, place, output / place.name) for place in _PLACES}
    study_folder = WEIGHTS / "study"
    study = Report.read(study_folder)
    for figure in study.figures:
        figure.path = str(study_folder / figure.path)
    return Section(
        method="point_bridge",
        title="Policies on points, from simulation to reality",
        arxiv="2601.16212",
        lead=(
            "The policy never sees an image: simulation and reality are both reduced to a few 3D points, on the gripper and on every "
            "object that matters. It learned from simulated demonstrations alone, and is rolled out below in simulation and in the twin, "
            "where colours, textures, light, friction and camera are others, three more objects stand on the table, and points are lifted "
            "from noisy depth. The first figure, the videos and the first table were computed just now, by a policy of 3 MB."
        ),
        figures=[_episode(policy, results["twin"], output / "episode.png"), *study.figures],
        tables=[_table(results), *study.tables],
        claims=list(study.claims),
        notes=list(study.notes),
        commands=[
            "visiongraft point_bridge evaluate --weights small",
            "visiongraft point_bridge evaluate --weights small --twin true --output runs/twin --video 2",
            "visiongraft point_bridge collect tabletop/stack",
            "visiongraft point_bridge perceive rgb.png --depth depth.png --intrinsics '[610, 610, 320, 240]' --clicks '{mug: [412, 230]}'",
            "visiongraft point_bridge study",
        ],
        html=video_cards({place.name: output / place.name for place in _PLACES}),
    )


def _roll_out(policy: PointBridgePolicy, place: _Place, folder: Path) -> EvaluationResult:
    return evaluate(
        [EvaluationTask(task, place.options | {"pair": _PAIR}) for task in TABLETOP],
        policy,
        episodes=_EPISODES,
        seed=_SEED,
        observer_factory=place.eyes.observer_factory,
        view=place.eyes.view,
        output=folder,
        identity={"policy": policy.fingerprint, "perception": place.eyes.perception},
        video=_RECORDING,
        progress=False,
    )


def _episode(policy: PointBridgePolicy, twin: EvaluationResult, path: Path) -> Figure:
    """Frames of an episode in the twin with what the policy sees: the first success, or the first start where there is none."""
    shown = next((episode for episode in twin.episodes if episode.success), twin.episodes[0])
    success = episode_sheet(policy, shown.task, _PAIR, shown.seed, StudyBudget(), _SEED, path)
    return Figure(
        title=f"{_words(shown.task).capitalize()}, in the twin, just now",
        path=str(path),
        alt="Eight moments of an episode, with the points that the policy sees drawn over the camera's image",
        caption="The policy sees the dots and the gripper's pose, nothing else: red and blue points are lifted from noisy depth, white "
        f"ones belong to the gripper. This episode {'succeeded' if success else 'failed'}.",
    )


def _table(results: dict[str, EvaluationResult]) -> Table:
    rows: list[list[Cell]] = []
    for task in TABLETOP:
        rates = [EvaluationResult(tuple(e for e in result.episodes if e.task == task)) for result in results.values()]
        rows.append([_words(task), *(f"{rate.num_successes} of {len(rate.episodes)}" for rate in rates)])
    return Table(
        title="Rolled out just now",
        columns=["task", *results],
        rows=rows,
        note=f"{_EPISODES} starts of one object pair. So few say little; the study's table of the bundled policy has more, with intervals.",
    )


def video_cards(folders: dict[str, Path]) -> str:
    """Markup of the films that evaluations kept: of every task the first success and the first failure.

    Args:
        folders: of evaluations, by place.
    """
    cards: list[str] = []
    for place, folder in folders.items():
        rows = [json.loads(line) for line in (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]
        filmed = [row for row in rows if row["video"]]
        for row in sorted(filmed, key=lambda row: (TABLETOP.index(row["task"]), not row["success"])):
            said = f"{_words(row['task'])}, {place}: {'success' if row['success'] else 'failure'} after {row['steps']} steps"
            cards.append(_card(folder / "videos" / row["video"], said))
    return (
        '<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:1rem">' + "".join(cards) + "</div>"
        '<p class="small soft">A green frame at the end is a success, a red one a failure; of each the first that ended was kept.</p>'
    )


def _card(path: Path, said: str) -> str:
    film = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure class="card" style="margin:0"><video controls muted loop playsinline autoplay style="width:100%;display:block" '
        f'aria-label="{escape(said)}" src="data:video/mp4;base64,{film}"></video><figcaption>{escape(said)}</figcaption></figure>'
    )


def _words(task: str) -> str:
    return task.partition("/")[2].replace("_", " ")
