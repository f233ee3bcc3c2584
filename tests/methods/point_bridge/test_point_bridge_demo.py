"""The gallery section of Point Bridge, with an untrained policy and few steps."""

import base64
import io
import re
from functools import partial

import av
import numpy as np
import pytest
import torch

from visiongraft.methods.point_bridge import demo as demo_module
from visiongraft.methods.point_bridge.dataset import TaskEpisodes, policy_statistics
from visiongraft.methods.point_bridge.episodes import Episode
from visiongraft.methods.point_bridge.language import HashedWords
from visiongraft.methods.point_bridge.model import create_model
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard
from visiongraft.methods.point_bridge.study_options import TABLETOP, StudyBudget
from visiongraft.robots.rollouts import evaluate
from visiongraft.studies import Claim, Report, write_gallery


@pytest.fixture
def section(tmp_path, monkeypatch):
    """The demo of an untrained policy, three steps an episode, beside a made-up study."""
    torch.manual_seed(0)
    model, rng = create_model("tiny", tokens="per_object", use_language=True), np.random.default_rng(0)
    shapes = {"proprioception": (4, 10), "robot_points": (4, 8, 3), "object_points": (4, 2, 16, 3)}
    episode = Episode(instruction="stack it", **{name: rng.random(shape, np.float32) for name, shape in shapes.items()})
    statistics = policy_statistics([TaskEpisodes(task=TABLETOP[0], episodes=[episode])], model, 0.1)
    policy = PointBridgePolicy(model, statistics, PolicyCard(tasks=TABLETOP, object_counts=(2,)), text_encoder=HashedWords())
    claim = Claim(name="c", sentence="It works.", source="s", quantity="q", without=(0.1,), with_graft=(0.2,), held=True, rule="more")
    Report(method="point_bridge", title="study", claims=[claim], notes=["a note"]).write(tmp_path / "weights" / "study")
    monkeypatch.setattr(demo_module, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(demo_module, "load_policy", lambda name, tasks: policy)
    monkeypatch.setattr(demo_module, "evaluate", partial(evaluate, max_steps=3))
    monkeypatch.setattr(demo_module, "StudyBudget", lambda: StudyBudget(max_steps=3))
    monkeypatch.setattr(demo_module, "_EPISODES", 1)
    return demo_module.demo(tmp_path / "demo")


def test_the_section_has_a_film_of_every_task_in_simulation_and_in_the_twin(section, tmp_path):
    films = re.findall(r'aria-label="([^"]+)" src="data:video/mp4;base64,([^"]+)"', section.html)
    places = [(place, task.partition("/")[2].replace("_", " ")) for place in ("simulation", "twin") for task in TABLETOP]
    assert [said for said, _ in films] == [f"{task}, {place}: failure after 3 steps" for place, task in places]
    for _, film in films:
        with av.open(io.BytesIO(base64.b64decode(film))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) > 3 and frames[0].shape == (180, 240, 3) and np.std(frames[0]) > 10
        red, green, _ = frames[-1][0].mean(0)
        assert red > green + 50  # the border of a failure
    assert section.tables[0].rows == [[task.partition("/")[2].replace("_", " "), "0 of 1", "0 of 1"] for task in TABLETOP]
    page = write_gallery([section], tmp_path / "gallery").read_text()
    assert page.count("<video") == 6 and "It works." in page and "a note" in page and "This episode failed" in page
