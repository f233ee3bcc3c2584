import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rollout_cell import BlindObserver, CountingObserver, Reacher, make_cell

from visiongraft.robots.rollouts import EvaluationTask, evaluate

run = partial(evaluate, environment_factory=make_cell, progress=False)
TASKS = ["fake/reach", EvaluationTask("fake/reach", {"far": True})]


def rows(folder):
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_results_do_not_depend_on_worker_processes():
    alone = run(TASKS[:2], Reacher(), episodes=3, observer_factory=CountingObserver)
    spread = run(TASKS[:2], Reacher(), episodes=3, observer_factory=CountingObserver, workers=2, slots=4)
    assert alone == spread


def living(group):
    """Processes of a group that still run; zombies have ended and wait for somebody to notice."""
    entries = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            entries.append(path.read_text().rpartition(")")[2].split())
    return [entry for entry in entries if int(entry[2]) == group and entry[0] not in "ZX"]


def test_ctrl_c_keeps_what_is_done_and_leaves_no_processes(tmp_path):
    program = f"""
import signal
from rollout_cell import Sleepy, make_cell
from visiongraft.robots.rollouts import evaluate
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    evaluate(["fake/reach"], Sleepy(), episodes=500, slots=2, workers=2, environment_factory=make_cell, output={str(tmp_path)!r})
"""
    script = tmp_path / "evaluation.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "episodes.jsonl").exists():
            assert time.monotonic() < end and process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert told.rstrip().endswith("KeyboardInterrupt") and told.count("Traceback") == 1
    end = time.monotonic() + 20  # multiprocessing's own helper ends when it notices
    while living(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    kept = rows(tmp_path)
    assert 0 < len(kept) < 500
    whole = run(["fake/reach"], Reacher(), episodes=len(kept) + 2, output=tmp_path, identity={"policy": "sleepy"})
    assert whole == run(["fake/reach"], Reacher(), episodes=len(kept) + 2)


def test_dead_worker_process_is_told():
    with pytest.raises(RuntimeError, match=r"A simulator process died \(exit code 7\)"):
        run([EvaluationTask("fake/reach", {"crash_at": 3})], Reacher(), episodes=2, workers=1)


def test_errors_come_back_from_worker_processes_as_they_are():
    with pytest.raises(ValueError, match="17 of 1000 points"):
        run(["fake/reach"], Reacher(), episodes=3, observer_factory=BlindObserver, workers=1)
    with pytest.raises(TypeError, match="colour"):
        run([EvaluationTask("fake/reach", {"colour": 1})], Reacher(), episodes=2, workers=1)
