"""Round trip of the policy server beyond the model, on this machine, beside a bare echo of the same bytes. Prints; asserts nothing.

python benchmarks/robots_serving.py
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np
from websockets.asyncio.server import serve as serve_websocket
from websockets.sync.client import connect

from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.client import RemotePolicy
from visiongraft.robots.hosting import policy_backend
from visiongraft.robots.policy import Policy
from visiongraft.robots.server import ServerConfig, serve
from visiongraft.robots.wire import encode


class Constant(Policy):
    """A model that costs nothing: 40 absolute actions, Point Bridge's chunk."""

    convention = "absolute"

    def act_batch(self, observations, slots):
        return np.zeros((len(slots), 40, 10), np.float32)


def policy_server(pipe: Connection) -> None:
    serve(policy_backend(Constant()), ServerConfig(port=0), on_ready=pipe.send)


def echo_server(pipe: Connection, reply: bytes) -> None:
    """Takes a message and answers with as many bytes as the policy's server does."""

    async def answer(connection) -> None:
        async for _ in connection:
            await connection.send(reply)

    async def main() -> None:
        async with serve_websocket(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
            pipe.send(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await server.serve_forever()

    asyncio.run(main())


def observations() -> dict[str, dict]:
    rng = np.random.default_rng(0)
    points = {
        "instruction": "put the bowl on the plate",
        "proprioception": rng.normal(size=10).astype(np.float32),
        "gripper_pose": np.eye(4),
        "robot_points": rng.normal(size=(8, 3)).astype(np.float32),
        "object_points": rng.normal(size=(2, 128, 3)).astype(np.float32),
        "stale": (),
    }
    images = {
        "instruction": points["instruction"],
        "proprioception": points["proprioception"],
        "images": {name: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for name in ("left", "wrist")},
        "cameras": {name: Camera(intrinsics_from_fovy(0.9, (128, 128)), np.eye(4), (128, 128)) for name in ("left", "wrist")},
    }
    return {"points of two objects": points, "two 128x128 images": images}


def milliseconds(call, repeats: int) -> list[float]:
    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def start(target, *arguments) -> tuple[multiprocessing.Process, str]:
    """A server in a process of its own, and its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    return process, ours.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    reply = encode({"result": Constant().act_batch([], [0])})
    server, address = start(policy_server)
    echo, echo_address = start(echo_server, reply)
    with RemotePolicy(address) as policy, connect(echo_address, compression=None) as bare:
        for name, observation in observations().items():
            request = encode({"call": "act", "arguments": {"observations": [observation], "slots": [0]}})

            def round_trip() -> None:
                bare.send(request)
                bare.recv()

            ours, theirs = milliseconds(lambda: policy.act(observation), repeats), milliseconds(round_trip, repeats)
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(
                f"{name} ({len(request) / 1024:.1f} KiB): {statistics.median(ours):.2f} ms median "
                f"({np.percentile(ours, 95):.2f} ms at 95 %), {ratio:.2f}x a bare echo ({statistics.median(theirs):.2f} ms); target 5 ms"
            )
    for process in (server, echo):
        process.terminate()


if __name__ == "__main__":
    main()
