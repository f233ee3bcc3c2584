"""Where the episodes of an evaluation live: in this process, or in processes of their own. Both take a round of commands at a time."""

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import Shaped

from visiongraft.robots.rollout_episode import EpisodeSlot, EpisodeSpec, Finished, Waiting, describe_error

Command = EpisodeSpec | Shaped[np.ndarray, "length size"] | Exception
"""To a slot: an episode to begin, the policy's chunk, or what the policy raised."""
Event = Waiting | Finished


class LocalSimulators:
    """Slots in this process, made when they are first used.

    Args:
        make_slot: an empty slot.
    """

    def __init__(self, make_slot: Callable[[], EpisodeSlot]) -> None:
        self._make_slot = make_slot
        self._slots: dict[int, EpisodeSlot] = {}

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, Event]:
        """Runs the slots one after the other."""
        events: dict[int, Event] = {}
        for number, command in commands.items():
            if number not in self._slots:
                self._slots[number] = self._make_slot()
            events[number] = _run(self._slots[number], command)
        return events

    def close(self) -> None:
        """Closes the environments."""
        for slot in self._slots.values():
            slot.close()


class SimulatorProcesses:
    """Slots spread over processes, started afresh (spawn), so that everything they are given must be importable.

    Args:
        make_slot: an empty slot; must pickle: functions of modules, not lambdas.
        workers: processes.

    Raises:
        ValueError: what does not pickle.
    """

    def __init__(self, make_slot: Callable[[], EpisodeSlot], workers: int) -> None:
        try:
            pickle.dumps(make_slot)
        except Exception as error:
            raise ValueError(
                f"Worker processes are given the environment and observer factories by name, and one cannot be: {error}. "
                "Use a function of a module (or functools.partial of one), or workers=0."
            ) from error
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve_slots, args=(theirs, make_slot), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is an end of file here
            self._pipes.append(ours)
            self._processes.append(process)

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, Event]:
        """Runs the slots of different processes at the same time.

        Raises:
            RuntimeError: a process died.
            Exception: what a slot raised.
        """
        shares: dict[int, dict[int, Command]] = {}
        for slot, command in commands.items():
            shares.setdefault(slot % len(self._pipes), {})[slot] = command
        events: dict[int, Event] = {}
        try:
            for worker, share in shares.items():
                self._pipes[worker].send(share)
            for worker in shares:
                answer = self._pipes[worker].recv()
                if isinstance(answer, Exception):
                    raise answer
                events.update(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._processes[worker].join(1)
            raise RuntimeError(
                f"A simulator process died (exit code {self._processes[worker].exitcode}); its own message, if any, stands above. "
                "Finished episodes are kept; fewer workers or slots need less memory."
            ) from None
        return events

    def close(self) -> None:
        """Lets the processes end, after the round that they are in."""
        for pipe in self._pipes:
            pipe.close()  # the process sees the end and cleans up
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()


def _run(slot: EpisodeSlot, command: Command) -> Event:
    if isinstance(command, EpisodeSpec):
        return slot.start(command)
    if isinstance(command, Exception):
        return slot.fail(command)
    return slot.advance(command)


def _serve_slots(pipe: Connection, make_slot: Callable[[], EpisodeSlot]) -> None:
    """Main function of a process: rounds of commands until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with closing(LocalSimulators(make_slot)) as simulators:
        while True:
            try:
                commands = pipe.recv()
            except (EOFError, OSError):  # closed, maybe in the middle of a message or with an answer unread
                return
            try:
                answer = {slot: _portable(event) for slot, event in simulators.exchange(commands).items()}
            except Exception as error:
                answer = _picklable(error)
            try:
                pipe.send(answer)
            except OSError:
                return


def _portable(event: Event) -> Event:
    if isinstance(event, Finished) and event.error is not None:
        return Finished(event.result, _picklable(event.error), event.video)
    return event


def _picklable(error: Exception) -> Exception:
    """The exception itself where it survives the way between processes."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(describe_error(error))
