import json
from functools import partial

import av
import pytest
from rollout_cell import Reacher, make_cell

from visiongraft.robots.rollout_episode import Recording
from visiongraft.robots.rollouts import EvaluationTask, evaluate

run = partial(evaluate, environment_factory=make_cell, progress=False)
TASKS = ["fake/reach", EvaluationTask("fake/reach", {"far": True})]


def rows(folder):
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_first_successes_and_failures_are_filmed(tmp_path):
    recording = Recording(first=2, size=(32, 48))
    run(TASKS[:2], Reacher(), episodes=4, slots=3, output=tmp_path, video=recording)

    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert len(names) == 4
    assert sum(name.startswith("fake_reach-") and name.endswith("-success.mp4") for name in names) == 2
    assert sum(name.startswith("fake_reach_far=True-") and name.endswith("-failure.mp4") for name in names) == 2
    filmed = [row for row in rows(tmp_path) if row["video"]]
    assert sorted(row["video"] for row in filmed) == names
    for row in filmed:
        with av.open(str(tmp_path / "videos" / row["video"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 1 + row["steps"] + 14  # 0.7 s of a still at 20 Hz
        first, last = frames[0][1, -2].astype(int), frames[-1][1, -2].astype(int)
        assert first.max() < 20
        assert last[1 if row["success"] else 0] > 120 and last[0 if row["success"] else 1] < 90


def test_stopped_evaluation_leaves_no_half_videos(tmp_path):
    class Interrupted(Reacher):
        def act_batch(self, observations, slots):
            if len(self.batches) == 5:
                raise KeyboardInterrupt
            return super().act_batch(observations, slots)

    with pytest.raises(KeyboardInterrupt):
        run(["fake/reach"], Interrupted(), episodes=2, output=tmp_path, video=Recording(size=(32, 32)))
    assert list((tmp_path / "videos").iterdir()) == []
