import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from kinematic_cell import KinematicCell

from visiongraft.robots.engines import run_attempts


def squares(fail_at: int = -1, die_at: int = -1, pid_file: str = ""):
    if pid_file:
        with Path(pid_file).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def attempt_number(number: int) -> int:
        if number == fail_at:
            raise ValueError("Attempt four is cursed.")
        if number == die_at:
            os._exit(9)
        time.sleep(0.02 if number % 3 == 0 else 0)  # the third ones come late
        return number**2

    return attempt_number


def first(results, count: int) -> list[tuple[int, int]]:
    with closing(results):
        return [next(results) for _ in range(count)]


@pytest.mark.parametrize(("engine", "workers"), [("local", 1), ("processes", 1), ("processes", 3)])
def test_results_come_in_order(engine, workers):
    assert first(run_attempts(squares, 5, workers=workers, engine=engine), 12) == [(n, n**2) for n in range(5, 17)]
    assert not multiprocessing.active_children()


def test_errors_of_workers_reach_the_caller():
    with pytest.raises(ValueError, match="Attempt four is cursed"):
        first(run_attempts(partial(squares, fail_at=4), workers=2), 10)
    with pytest.raises(RuntimeError, match="A worker ended with code 9 during attempt 3"):
        first(run_attempts(partial(squares, die_at=3), workers=2), 10)
    with pytest.raises(ValueError, match="This cell is broken"):
        first(run_attempts(partial(KinematicCell, broken=True), workers=2), 1)
    assert not multiprocessing.active_children()


def test_engines_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="Unknown engine 'dask'; there are local, processes, ray"):
        run_attempts(squares, engine="dask")
    with pytest.raises(ValueError, match="The engine 'local' works in this process alone; for 2 workers use"):
        run_attempts(squares, engine="local", workers=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run_attempts(squares, workers=0)


PARENT = """
import sys
sys.path.insert(0, {folder!r})
from functools import partial
from test_engines import squares
from visiongraft.robots.engines import run_attempts
if __name__ == "__main__":
    for number, _ in run_attempts(partial(squares, pid_file={pids!r}), workers=2):
        print(number, flush=True)
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, blow):
    script, pids = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT.format(folder=str(Path(__file__).parent), pids=str(pids)))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None and parent.stdout.readline()
    while len(pids.read_text().split()) < 2:
        time.sleep(0.01)
    parent.send_signal(blow)
    parent.communicate(timeout=30)
    workers = [int(line) for line in pids.read_text().split()]
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_ray_keeps_the_order_and_hands_errors_over(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'visiongraft[distributed]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert first(run_attempts(squares, 2, engine="ray"), 5) == [(n, n**2) for n in range(2, 7)]
        with pytest.raises(ValueError, match="Attempt four is cursed"):
            first(run_attempts(partial(squares, fail_at=4), engine="ray"), 10)
        assert ray.is_initialized(), "a connection that was there before stays"
    finally:
        ray.shutdown()


def test_ray_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'visiongraft\[distributed\]'"):
        first(run_attempts(squares, engine="ray"), 1)
