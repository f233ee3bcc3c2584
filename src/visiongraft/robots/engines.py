"""Numbered attempts on one or many workers, in this process, in others, or on Ray; the results always come in order.

An attempt is a function of its number alone, so that who makes it does not matter. Workers run ahead of the order; what they did
beyond the last attempt that anyone asked for is thrown away.
"""

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from visiongraft.robots.extras import require

Result = TypeVar("Result")
Attempt = Callable[[int], Result]
MakeAttempt = Callable[[], Attempt[Result]]

ENGINES: tuple[str, ...] = ("local", "processes", "ray")


def run_attempts(
    make_attempt: MakeAttempt[Result], start: int = 0, *, workers: int = 1, engine: str | None = None
) -> Generator[tuple[int, Result], None, None]:
    """Makes attempts ``start``, ``start + 1``, … without end; close the generator to stop (a ``for`` that breaks should be within
    :func:`contextlib.closing`).

    Args:
        make_attempt: called once in every worker, gives the function of an attempt's number. Picklable for other processes.
        start: number of the first attempt.
        workers: how many work at once.
        engine: ``local``, ``processes`` or ``ray``; ``local`` for one worker and ``processes`` for more by default.

    Yields:
        Number and result, in the order of the numbers.

    Raises:
        ValueError: an unknown engine, or workers that it cannot have.
        ImportError: Ray is asked for and not installed.
        RuntimeError: a worker died.
    """
    engine = engine or ("local" if workers == 1 else "processes")
    if engine not in ENGINES:
        raise ValueError(f"Unknown engine {engine!r}; there are {', '.join(ENGINES)}.")
    if workers < 1:
        raise ValueError(f"The number of workers must be at least 1, got {workers}.")
    if engine == "local":
        if workers > 1:
            raise ValueError(f"The engine 'local' works in this process alone; for {workers} workers use 'processes' or 'ray'.")
        return _local(make_attempt, start)
    return _in_order((_processes if engine == "processes" else _ray)(make_attempt, start, workers), start)


def _local(make_attempt: MakeAttempt[Result], start: int) -> Generator[tuple[int, Result], None, None]:
    attempt = make_attempt()
    for number in itertools.count(start):
        yield number, attempt(number)


def _in_order(results: Generator[tuple[int, Result], None, None], start: int) -> Generator[tuple[int, Result], None, None]:
    early: dict[int, Result] = {}
    due = start
    with closing(results):
        for number, result in results:
            early[number] = result
            while due in early:
                yield due, early.pop(due)
                due += 1


def _processes(make_attempt: MakeAttempt[Result], start: int, workers: int) -> Generator[tuple[int, Result], None, None]:
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[SpawnProcess, int]] = {}
    numbers = itertools.count(start)
    try:
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(make_attempt, there), daemon=True)
            process.start()
            there.close()
            running[here] = process, _ask(here, numbers)
        while True:
            for connection in wait(list(running)):
                process, number = running[connection]  # type: ignore[index]
                result = _receive(connection, process, number)  # type: ignore[arg-type]
                running[connection] = process, _ask(connection, numbers)  # type: ignore[index, arg-type]
                yield number, result
    finally:
        for process, _ in running.values():
            process.terminate()
        for connection, (process, _) in running.items():
            process.join()
            connection.close()


def _ask(connection: Connection, numbers: Iterator[int]) -> int:
    number = next(numbers)
    try:
        connection.send(number)
    except OSError:
        return number  # the worker is dead; receiving says so with its exit code
    return number


def _receive(connection: Connection, process: SpawnProcess, number: int) -> Any:
    try:
        result, error = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise RuntimeError(
            f"A worker ended with code {process.exitcode} during attempt {number}; it may have run out of memory, use fewer workers."
        ) from None
    if error is not None:
        raise error
    return result


def _serve(make_attempt: MakeAttempt[Any], connection: Connection) -> None:
    """A worker: answers every number with its attempt's result, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        attempt = make_attempt()
        while True:
            number = connection.recv()
            connection.send((attempt(number), None))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        connection.send((None, _picklable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


class _RayWorker:
    """An actor's inside."""

    def __init__(self, make_attempt: MakeAttempt[Any]) -> None:
        self.attempt = make_attempt()

    def run(self, number: int) -> Any:
        return self.attempt(number)


def _ray(make_attempt: MakeAttempt[Result], start: int, workers: int) -> Generator[tuple[int, Result], None, None]:
    """Actors on Ray: on the cluster that this process is connected to or that RAY_ADDRESS names, else on this machine."""
    ray = require("ray")
    started = not ray.is_initialized()
    if started and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    elif started:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actors = []
    numbers = itertools.count(start)
    try:
        maker = ray.put(make_attempt)
        actors = [ray.remote(num_cpus=1)(_RayWorker).remote(maker) for _ in range(workers)]
        pending = {}
        for actor in actors:
            number = next(numbers)
            pending[actor.run.remote(number)] = actor, number
        while True:
            done, _ = ray.wait(list(pending), num_returns=1)
            actor, number = pending.pop(done[0])
            result = _ray_result(ray, done[0], number)
            following = next(numbers)
            pending[actor.run.remote(following)] = actor, following
            yield number, result
    finally:
        for actor in actors:
            ray.kill(actor)
        if started:
            ray.shutdown()


def _ray_result(ray: Any, reference: Any, number: int) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(getattr(error, "cause", None), Exception) else error from None
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(f"A Ray worker died during attempt {number} ({error}); see Ray's logs, or use fewer workers.") from error
