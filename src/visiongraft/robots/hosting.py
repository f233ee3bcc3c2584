"""What a server hosts: named functions, with a session for every client. No sockets here; tests and one process use it directly."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from visiongraft.robots.cameras import Camera
from visiongraft.robots.client import RemoteError
from visiongraft.robots.policy import Observation, Policy
from visiongraft.robots.wire import CAMERA_KEYS, MAX_MESSAGE_BYTES, SCHEMA, WireError, decode, encode

_LOG = logging.getLogger(__name__)
MAX_SLOTS = 256
_MAX_SENTENCE = 2000
"""Characters of a reason; an error may quote what came, and that may be as large as a message."""
Handlers = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Session:
    """A client's own view of a backend.

    Args:
        handlers: functions by the name they are called by; they take keyword arguments and return what a message can hold.
        close: called when the client has gone.
    """

    handlers: Handlers
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Backend:
    """What a server hosts.

    Args:
        open_session: called for every client.
        metadata: sent to every client at first.
    """

    open_session: Callable[[], Session]
    metadata: dict[str, Any] = field(default_factory=dict)


def function_backend(handlers: Handlers, **metadata: Any) -> Backend:
    """Functions that keep nothing between calls: a namer, a pointer, a segmenter, a depth estimator.

    Raises:
        ValueError: no functions.
    """
    if not handlers:
        raise ValueError("A server needs at least one function to host.")
    return Backend(lambda: Session(handlers), {"calls": sorted(handlers), **metadata})


def policy_backend(
    policy: Policy,
    *,
    chunk: int | None = None,
    tasks: Sequence[str] = (),
    observation_keys: Sequence[str] | None = None,
    fingerprint: str | None = None,
) -> Backend:
    """A policy as the calls ``reset``, ``act`` and ``describe``. Every client numbers its slots itself, from 0; they are given up when
    it goes.

    Args:
        policy: shared by all clients; called from one thread.
        chunk: actions that it predicts at a time.
        tasks: names of tasks it was trained on.
        observation_keys: what it looks at, so that clients send no more; ``None`` takes everything.
        fingerprint: tells it from other policies; default its attribute ``fingerprint``.
    """
    metadata = {
        "calls": ["act", "describe", "reset"],
        "convention": policy.convention,
        "chunk": chunk,
        "tasks": list(tasks),
        "observation_keys": None if observation_keys is None else list(observation_keys),
        "fingerprint": getattr(policy, "fingerprint", None) if fingerprint is None else fingerprint,
    }
    taken: set[int] = set()
    return Backend(lambda: _policy_session(policy, taken, metadata), metadata)


def _policy_session(policy: Policy, taken: set[int], metadata: dict[str, Any]) -> Session:
    """One client's slots, mapped to slots of the policy that nobody else has."""
    own: dict[int, int] = {}

    def global_slot(slot: Any) -> int:
        if type(slot) is not int or not 0 <= slot < MAX_SLOTS:
            raise ValueError(f"A slot is a number from 0 to {MAX_SLOTS - 1}; got {slot!r}.")
        if slot not in own:
            own[slot] = next(number for number in range(len(taken) + 1) if number not in taken)
            taken.add(own[slot])
            policy.reset(own[slot])  # whoever had the number before leaves nothing to this client
        return own[slot]

    def reset(slot: Any = 0) -> None:
        policy.reset(global_slot(slot))

    def act(observations: Any, slots: Any) -> Any:
        if not isinstance(observations, tuple) or not isinstance(slots, tuple) or len(observations) != len(slots) or not slots:
            raise ValueError("act takes a list of observations and a list of as many slots, at least one.")
        if len(set(slots)) != len(slots):
            raise ValueError(f"A slot has one episode at a time; got slots {slots}.")
        numbers = [global_slot(slot) for slot in slots]
        return policy.act_batch([with_cameras(observation) for observation in observations], numbers)

    def close() -> None:
        for number in own.values():
            policy.reset(number)
        taken.difference_update(own.values())
        own.clear()

    return Session({"reset": reset, "act": act, "describe": lambda: metadata}, close)


def with_cameras(observation: Any) -> Observation:
    """An observation from the wire with its cameras as :class:`visiongraft.robots.cameras.Camera`.

    Raises:
        ValueError: no observation, or cameras that are none.
    """
    if not isinstance(observation, dict):
        raise ValueError(f"An observation is a dictionary; got {type(observation).__name__}.")
    cameras = observation.get("cameras")
    if cameras is None:
        return observation
    cameras = cameras if isinstance(cameras, dict) else {"": cameras}
    if not all(isinstance(camera, dict) and camera.keys() == set(CAMERA_KEYS) for camera in cameras.values()):
        raise ValueError(f"cameras of an observation are dictionaries of {', '.join(CAMERA_KEYS)} by name.")
    return {**observation, "cameras": {name: Camera(**camera) for name, camera in cameras.items()}}


def answer(session: Session, data: bytes | str, max_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    """Reply to the bytes of a request: a result, or a sentence saying why there is none. Never raises an ``Exception``."""
    try:
        request = decode(data, max_bytes)
        name, arguments = request.get("call"), request.get("arguments", {})
        if not isinstance(name, str) or name not in session.handlers:
            raise WireError(f"Unknown call {name!r}; this server has {', '.join(sorted(session.handlers))}.")
        if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
            raise WireError(f"arguments of {name!r} must be a dictionary with names as keys.")
        handler = session.handlers[name]
        try:
            inspect.signature(handler).bind(**arguments)
        except TypeError as error:
            raise WireError(f"The arguments of {name!r} do not fit: {error}.") from error
        return encode({"result": handler(**arguments)}, max_bytes)
    except ValueError as error:
        return _refusal(str(error))
    except Exception as error:
        _LOG.exception("a handler failed")
        return _refusal(f"The server failed ({type(error).__name__}: {error}); its log has more.")


def _refusal(sentence: str) -> bytes:
    """A reason that always fits into a message."""
    readable = sentence.encode(errors="replace").decode()
    return encode({"error": readable if len(readable) <= _MAX_SENTENCE else readable[:_MAX_SENTENCE] + "…"})


class InProcessTransport:
    """A client's way to a backend in the same process, through the same bytes as over a socket.

    Args:
        backend: what is hosted.
        max_bytes: size of the largest message.
    """

    def __init__(self, backend: Backend, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._session, self._max_bytes = backend.open_session(), max_bytes
        self.metadata: dict[str, Any] = decode(hello(backend, max_bytes))["metadata"]

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Result of a handler.

        Raises:
            ValueError: the server's reason why not.
        """
        reply = decode(answer(self._session, encode({"call": name, "arguments": arguments}, self._max_bytes), self._max_bytes))
        if "error" in reply:
            raise RemoteError(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Ends the session."""
        self._session.close()


def hello(backend: Backend, max_bytes: int) -> bytes:
    """First message of a server."""
    return encode({"metadata": {**backend.metadata, "schema": SCHEMA, "max_bytes": max_bytes}})
