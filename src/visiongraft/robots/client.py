"""The other end of a policy server, for a robot's computer: needs NumPy, msgpack and websockets, and nothing else.

    with RemotePolicy("ws://gpu-machine:8765") as policy:
        policy.reset()
        chunk = policy.act(observation)

Any backend (a segmenter, a namer) is called by name: ``ServerConnection(url).call("segment", image=image)``.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from visiongraft.robots.extras import require
from visiongraft.robots.wire import MAX_MESSAGE_BYTES, WireError, decode, encode

websockets_client = require("websockets.sync.client")
websockets_exceptions = require("websockets.exceptions")


class RemoteError(ValueError):
    """The server understood the call and could not do it; the message is the server's sentence."""


@runtime_checkable
class Transport(Protocol):
    """A way to call a server's handlers: a socket, or the server in this process.

    Attributes:
        metadata: what the server says of itself.
    """

    metadata: dict[str, Any]

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Result of a handler."""

    def close(self) -> None:
        """Ends the session; the server forgets what it kept for it."""


class ServerConnection:
    """One session with a server.

    Args:
        url: such as ``ws://127.0.0.1:8765``.
        timeout: seconds that an answer may take.
        connect_timeout: seconds that the handshake may take.
        max_bytes: size of the largest message to take.

    Raises:
        ConnectionError: nobody answers there, it is another kind of server, or it is full.
        ValueError: an address that is none, or a server of another schema.
    """

    metadata: dict[str, Any]

    def __init__(self, url: str, *, timeout: float = 30.0, connect_timeout: float = 10.0, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._url, self._timeout = url, timeout
        self._max_sent = self._max_taken = max_bytes
        self._stack = ExitStack()
        # compression would cost more than a local network; a proxy for the web is none for robots
        options = {"compression": None, "proxy": None, "open_timeout": connect_timeout, "close_timeout": 2, "max_size": max_bytes}
        try:
            self._socket = self._stack.enter_context(websockets_client.connect(url, **options))
        except websockets_exceptions.InvalidURI as error:
            raise ValueError(f"{url!r} is not the address of a server; write one such as ws://127.0.0.1:8765.") from error
        except websockets_exceptions.InvalidStatus as error:
            body = (error.response.body or b"").decode(errors="replace").strip()
            raise ConnectionError(f"The server at {url} refuses ({error.response.status_code}: {body}).") from error
        except websockets_exceptions.WebSocketException as error:
            raise ConnectionError(f"What answers at {url} is not a visiongraft server ({error}).") from error
        except TimeoutError as error:
            raise ConnectionError(f"The server at {url} did not answer within {connect_timeout:g} s.") from error
        except OSError as error:
            raise ConnectionError(f"No server answers at {url} ({error}); start one, or check address and port.") from error
        try:
            hello = self._receive(connect_timeout)
            if not isinstance(hello.get("metadata"), dict):
                raise ConnectionError(f"What answers at {url} is not a visiongraft server: its first message has no metadata.")
        except BaseException:
            self.close()
            raise
        self.metadata = hello["metadata"]
        self._max_sent = min(self._max_sent, int(self.metadata.get("max_bytes", self._max_sent)))

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Result of a handler.

        Raises:
            RemoteError: the server's reason why not.
            WireError: arguments that cannot be sent, or an answer that is none.
            ConnectionError: the server is gone; a new connection is a new session.
            TimeoutError: no answer in time; the connection is closed, because a late answer would be taken for the next one.
        """
        request = encode({"call": name, "arguments": arguments}, self._max_sent)
        try:
            self._socket.send(request)
            reply = self._receive(self._timeout)
        except websockets_exceptions.ConnectionClosed as error:
            raise self._closed(error) from error
        except TimeoutError as error:
            self.close()
            raise TimeoutError(f"The server at {self._url} did not answer {name!r} within {self._timeout:g} s.") from error
        if "error" in reply:
            raise RemoteError(str(reply["error"]))
        if "result" not in reply:
            raise WireError(f"The server's answer to {name!r} has neither result nor error.")
        return reply["result"]

    def close(self) -> None:
        """Ends the session; more than once does no harm."""
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            return decode(self._socket.recv(timeout), self._max_taken)
        except websockets_exceptions.ConnectionClosed as error:
            raise self._closed(error) from error

    def _closed(self, error: Exception) -> ConnectionError:
        return ConnectionError(f"The connection to {self._url} is closed ({error}); connect again for a new session.")


class RemotePolicy:
    """A policy on another machine, used as :class:`visiongraft.robots.policy.Policy` (which would bring more packages) is.

    Observations are cut down to what the server's policy asks for. Slots are this client's own; other clients do not share them.

    Args:
        server: its address, or a transport.
        options: of :class:`ServerConnection`, with an address.

    Raises:
        ConnectionError, ValueError: as :class:`ServerConnection`; also a server that hosts no policy.

    Attributes:
        convention: of its actions.
        fingerprint: tells its policy from others.
        metadata: all that the server says of itself.
    """

    def __init__(self, server: str | Transport, **options: Any) -> None:
        self._transport = ServerConnection(server, **options) if isinstance(server, str) else server
        self.metadata = self._transport.metadata
        if "convention" not in self.metadata:
            self.close()
            raise ValueError(f"The server hosts no policy; its calls are {', '.join(self.metadata.get('calls', ()))}.")
        self.convention: str = self.metadata["convention"]
        self.fingerprint: str | None = self.metadata.get("fingerprint")
        self._keys: Sequence[str] | None = self.metadata.get("observation_keys")

    def reset(self, slot: int = 0) -> None:
        """Forgets what a slot remembers; called when its episode begins."""
        self._transport.call("reset", slot=slot)

    def act(self, observation: dict[str, Any], slot: int = 0) -> np.ndarray:
        """Chunk of actions (steps, numbers) from now on."""
        return self.act_batch([observation], [slot])[0]

    def act_batch(self, observations: Sequence[dict[str, Any]], slots: Sequence[int]) -> np.ndarray:
        """Chunks (episodes, steps, numbers) for several episodes."""
        wanted = [self._wanted(observation) for observation in observations]
        return self._transport.call("act", observations=wanted, slots=list(slots))

    def close(self) -> None:
        """Ends the session."""
        self._transport.close()

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _wanted(self, observation: dict[str, Any]) -> dict[str, Any]:
        if self._keys is None:
            return observation
        missing = [key for key in self._keys if key not in observation]
        if missing:
            raise ValueError(f"The policy asks for {', '.join(missing)}, and the observation has {', '.join(observation)}.")
        return {key: observation[key] for key in self._keys}


def remote_function(transport: Transport, name: str) -> Callable[..., Any]:
    """A server's handler as a function with keyword arguments, to be used in place of a local perception part."""

    def call(**arguments: Any) -> Any:
        return transport.call(name, **arguments)

    return call
