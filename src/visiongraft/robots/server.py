"""A server for policies and perception over WebSocket, that no client can take down.

    serve(policy_backend(policy))                               # until Ctrl-C, on 127.0.0.1:8765
    serve({"segment": segment, "depth": estimate_depth})        # any functions of keyword arguments

``GET /healthz`` answers 200 even while the model thinks. There is no encryption and no password: to reach another machine, bind to
an address of a network that you trust, or go through an SSH tunnel.
"""

import asyncio
import errno
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from visiongraft.robots.extras import require
from visiongraft.robots.hosting import Backend, Handlers, answer, function_backend, hello
from visiongraft.robots.wire import MAX_MESSAGE_BYTES, SCHEMA

websockets_server = require("websockets.asyncio.server")
websockets_exceptions = require("websockets.exceptions")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where a server listens, and what it puts up with.

    Args:
        host: address; the default is reached from this machine only.
        port: 0 takes a free one.
        max_bytes: size of the largest message.
        max_clients: at a time; further ones are refused with 503.
        open_timeout: seconds for a client's handshake.
        send_timeout: seconds in which a client must take an answer.
        ping_interval: seconds between signs of life; a client that does not answer within as many is dropped, be it gone or stuck in
            the middle of a message.

    Raises:
        ValueError: numbers that cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    max_bytes: int = MAX_MESSAGE_BYTES
    max_clients: int = 32
    open_timeout: float = 10.0
    send_timeout: float = 10.0
    ping_interval: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be 0 (any free one) to 65535; got {self.port}.")
        for name in ("max_bytes", "max_clients", "open_timeout", "send_timeout", "ping_interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a server must be positive; got {getattr(self, name)}.")


def serve(backend: Backend | Handlers, config: ServerConfig = ServerConfig(), *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        backend: of :func:`visiongraft.robots.hosting.policy_backend`, or functions by name.
        config: address and limits.
        on_ready: called with the address, such as ``ws://127.0.0.1:8765``, as soon as clients may come.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await _run(_as_backend(backend), config, on_ready or (lambda address: None), stop)

    asyncio.run(main())


@contextmanager
def background_server(backend: Backend | Handlers, config: ServerConfig = ServerConfig(port=0)) -> Iterator[str]:
    """A server in a thread of this process, for notebooks and tests; yields its address.

    Raises:
        OSError: as :func:`serve`.
    """
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    found: dict[str, Any] = {}

    def on_ready(address: str) -> None:
        found["address"] = address
        ready.set()

    def main() -> None:
        try:
            loop.run_until_complete(_run(_as_backend(backend), config, on_ready, stop))
        except Exception as error:
            found["error"] = error
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=main, daemon=True, name="visiongraft-server")
    thread.start()
    ready.wait()
    if "error" in found:
        raise found["error"]
    try:
        yield found["address"]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _as_backend(backend: Backend | Handlers) -> Backend:
    return backend if isinstance(backend, Backend) else function_backend(backend)


async def _run(backend: Backend, config: ServerConfig, on_ready: Callable[[str], None], stop: asyncio.Event) -> None:
    # one thread for the model: the loop stays free for health checks, pings and new clients
    executor = ThreadPoolExecutor(1, "visiongraft-model")
    clients = _Clients(backend, config, executor)
    try:
        server = await websockets_server.serve(
            clients.handle,
            config.host,
            config.port,
            process_request=clients.gate,
            origins=[None],  # programs send no Origin; pages in a browser do, and any page may try 127.0.0.1
            compression=None,
            max_size=config.max_bytes,
            max_queue=1,
            open_timeout=config.open_timeout,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_interval,
            close_timeout=2,
            logger=_quiet_logger(),
        )
    except OSError as error:
        executor.shutdown()
        raise _explained(error, config) from error
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        on_ready(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
        await stop.wait()
    executor.shutdown(cancel_futures=True)


class _Clients:
    """The connections of a server."""

    def __init__(self, backend: Backend, config: ServerConfig, executor: ThreadPoolExecutor) -> None:
        self._backend, self._config, self._executor = backend, config, executor
        self._num = 0

    def gate(self, connection: Any, request: Any) -> Any:
        """HTTP before the handshake: health checks, wrong paths, a full house; ``None`` lets a client in."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, json.dumps({"status": "ok", "schema": SCHEMA, "clients": self._num}) + "\n")
        if request.path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "WebSockets connect to /; /healthz tells whether the server lives.\n")
        if self._num >= self._config.max_clients:
            text = f"All {self._config.max_clients} places are taken; come back later.\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def handle(self, connection: Any) -> None:
        """One client, from its first message to its end; its requests are answered in order."""
        self._num += 1
        session = None
        try:
            session = await self._in_model_thread(self._backend.open_session)
            await self._send(connection, hello(self._backend, self._config.max_bytes))
            async for data in connection:
                await self._send(connection, await self._in_model_thread(answer, session, data, self._config.max_bytes))
        except websockets_exceptions.ConnectionClosed as error:
            _LOG.info("client %s: %s", connection.id, error)
        except TimeoutError:
            _LOG.warning("client %s does not take its answer within %g s and is dropped", connection.id, self._config.send_timeout)
            connection.transport.abort()
        finally:
            self._num -= 1
            if session is not None:
                # in the model's thread, after whatever call of this client still runs there
                with suppress(RuntimeError):  # the executor has been shut down, and the policy goes with it
                    self._executor.submit(_close, session.close)

    async def _in_model_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def _send(self, connection: Any, data: bytes) -> None:
        async with asyncio.timeout(self._config.send_timeout):
            await connection.send(data)


def _close(close: Callable[[], None]) -> None:
    try:
        close()
    except Exception:
        _LOG.exception("a session did not close")


def _quiet_logger() -> logging.Logger:
    """Port scanners and clients that hang up are no errors of ours; websockets would print their tracebacks."""
    logger = logging.getLogger(f"{__name__}.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger


def _explained(error: OSError, config: ServerConfig) -> OSError:
    if error.errno == errno.EADDRINUSE:
        return OSError(f"Port {config.port} of {config.host} is taken; stop the other server, or choose another port (0 takes a free one).")
    return OSError(f"The server cannot listen on {config.host}:{config.port} ({error.strerror or error}).")
