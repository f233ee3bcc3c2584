import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
from rollout_cell import PointCell, Reacher, Sleepy, make_cell
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from visiongraft.robots.cameras import Camera
from visiongraft.robots.client import RemoteError, RemotePolicy, ServerConnection, remote_function
from visiongraft.robots.hosting import InProcessTransport, function_backend, policy_backend
from visiongraft.robots.rollouts import evaluate
from visiongraft.robots.server import ServerConfig, background_server, serve
from visiongraft.robots.wire import SCHEMA, WireError, decode, encode

SMALL = ServerConfig(port=0, max_bytes=100_000, max_clients=3, open_timeout=0.4, send_timeout=0.4, ping_interval=0.4)


@pytest.fixture
def policy():
    return Reacher()


@pytest.fixture
def address(policy):
    with background_server(
        policy_backend(policy, chunk=4, tasks=["fake/reach"], observation_keys=("gripper_pose", "object_poses")), SMALL
    ) as url:
        yield url


@pytest.fixture
def observation():
    return PointCell().reset(seed=3)[0]


def get(url, path):
    with urllib.request.urlopen(url.replace("ws:", "http:") + path, timeout=5) as reply:
        return reply.status, reply.read().decode()


def raw_socket(url):
    host, port = re.fullmatch(r"ws://(.*):(\d+)", url).groups()
    return socket.create_connection((host, int(port)), timeout=5)


def upgraded(url):
    """A socket after a WebSocket handshake of our own, with the server's first message read."""
    stream = raw_socket(url)
    stream.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert stream.recv(65536).startswith(b"HTTP/1.1 101")
    return stream


def closed_by_server(stream, seconds=5):
    """Reads until the server ends the connection."""
    stream.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        while stream.recv(65536):
            continue
    return True


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def num_clients(url):
    return json.loads(get(url, "/healthz")[1])["clients"]


def assert_still_serves(url, observation):
    with RemotePolicy(url) as client:
        np.testing.assert_array_equal(client.act(observation), Reacher().plan(observation))


def test_remote_policy_acts_as_the_policy_does(address, policy, observation):
    with RemotePolicy(address) as client:
        other = PointCell().reset(seed=4)[0]
        chunks = client.act_batch([observation, other], [0, 1])
        assert (client.convention, client.fingerprint) == ("absolute", "reacher")
        assert client.metadata["chunk"] == 4 and client.metadata["tasks"] == ("fake/reach",) and client.metadata["schema"] == SCHEMA
        np.testing.assert_array_equal(chunks, policy.act_batch([observation, other], [0, 1]))
        np.testing.assert_array_equal(client.act(other, 1), policy.plan(other))
        assert client._transport.call("describe")["convention"] == "absolute"


def test_evaluation_is_the_same_over_the_wire(address, policy):
    options = {"episodes": 3, "environment_factory": make_cell, "progress": False}
    with RemotePolicy(address) as client:
        assert evaluate(["fake/reach"], client, **options) == evaluate(["fake/reach"], policy, **options)


def test_in_process_transport_takes_the_same_bytes(policy, observation):
    client = RemotePolicy(InProcessTransport(policy_backend(policy, observation_keys=["gripper_pose", "object_poses"])))
    client.reset(5)
    np.testing.assert_array_equal(client.act(observation, 5), policy.plan(observation))
    with pytest.raises(RemoteError, match="A slot is a number from 0 to 255; got 900"):
        client.reset(900)
    with pytest.raises(WireError, match="cannot be sent"):
        client.act({"gripper_pose": object(), "object_poses": {}})


def test_only_what_the_policy_asks_for_is_sent(address, observation):
    with RemotePolicy(address) as client:
        client.act(observation | {"images": {"left": np.zeros((900, 900, 3), np.uint8)}})  # over the limit
        with pytest.raises(ValueError, match="asks for object_poses, and the observation has gripper_pose"):
            client.act({"gripper_pose": np.eye(4)})


def test_clients_have_slots_of_their_own_that_are_free_again_when_they_go(address, policy, observation):
    first, second = RemotePolicy(address), RemotePolicy(address)
    for _ in range(3):
        first.act(observation, 0)
    second.act(observation, 0)
    first.act(observation, 7)
    assert policy.seen == {0: 3, 1: 1, 2: 1}
    first.close()
    wait_until(lambda: policy.seen[0] == 0 and policy.seen[2] == 0)
    with RemotePolicy(address) as third:
        third.act(observation, 200)
        second.act(observation, 0)
    assert policy.seen[1] == 2
    second.close()
    wait_until(lambda: num_clients(address) == 0)
    wait_until(lambda: policy.seen == {0: 0, 1: 0, 2: 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"observations": [], "slots": []}, "as many slots, at least one"),
        ({"observations": [{}], "slots": [0, 1]}, "as many slots"),
        ({"observations": [{}, {}], "slots": [1, 1]}, r"one episode at a time; got slots \(1, 1\)"),
        ({"observations": [{}], "slots": [-1]}, "from 0 to 255; got -1"),
        ({"observations": [{}], "slots": [True]}, "from 0 to 255; got True"),
        ({"observations": [5], "slots": [0]}, "An observation is a dictionary; got int"),
        ({"observations": [{"cameras": {"left": np.eye(3)}}], "slots": [0]}, "cameras of an observation are dictionaries of intrinsics"),
        (
            {"observations": [{"cameras": {"l": {"intrinsics": -np.eye(3), "camera_to_base": np.eye(4), "size": [4, 4]}}}], "slots": [0]},
            "with positive focal lengths in pixels",
        ),
        ({"observations": [{}], "slots": [0]}, r"The server failed \(KeyError: 'gripper_pose'\); its log has more"),
        ({"observation": {}}, "The arguments of 'act' do not fit: missing a required argument: 'observations'"),
    ],
)
def test_bad_calls_get_a_sentence_and_the_session_goes_on(address, observation, call, message):
    with ServerConnection(address) as connection:
        with pytest.raises(RemoteError, match=message):
            connection.call("act", **call)
        assert connection.call("act", observations=[observation], slots=[0]).shape == (1, 4, 10)


def test_a_reason_fits_into_a_message_whatever_it_quotes():
    transport = InProcessTransport(function_backend({"fail": _fail_unreadably}))
    with pytest.raises(RemoteError, match="Unknown call") as refused:
        transport.call("\x00" * (12 * 2**20))  # four times as long when it is quoted
    assert len(str(refused.value)) < 3000
    with pytest.raises(RemoteError, match="no text"):
        transport.call("fail")


def _fail_unreadably():
    raise ValueError("no text: \udcff")


def test_unknown_calls_are_told_what_there_is(address):
    with (
        ServerConnection(address) as connection,
        pytest.raises(RemoteError, match="Unknown call '__class__'; this server has act, describe, reset"),
    ):
        connection.call("__class__")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xc1\xff", "no msgpack message"),
        (b"", "no msgpack message"),
        ("text", "binary msgpack; got str"),
        (b"\x91" * 9000, "no msgpack message"),
        (b"\x80\x04\x95.", "no msgpack message"),  # a pickle
        (msgpack.packb({"schema": 9, "call": "act"}), "schema 9, and this side speaks schema 1"),
        (msgpack.packb({"schema": SCHEMA, "call": 5}), "Unknown call 5"),
        (msgpack.packb({"schema": SCHEMA, "call": "act", "arguments": [1]}), "must be a dictionary with names"),
        (
            msgpack.packb({"schema": SCHEMA, "call": "act", "arguments": {"observations": {"dtype": "O", "shape": [1], "bytes": b""}}}),
            "dtype 'O'",
        ),
    ],
)
def test_malformed_messages_get_a_sentence_and_the_session_goes_on(address, observation, data, message):
    with connect(address, compression=None) as client:
        client.recv(5)
        client.send(data)
        assert re.search(message, decode(client.recv(5))["error"])
        client.send(encode({"call": "act", "arguments": {"observations": [observation], "slots": [0]}}))
        assert "result" in decode(client.recv(5))


def test_oversized_messages_are_cut_off_and_others_go_on(address, observation):
    with RemotePolicy(address) as bystander:
        with connect(address, compression=None) as client:
            client.recv(5)
            with pytest.raises(ConnectionClosed) as closed:
                client.send(bytes(1_000_000))
                client.recv(5)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        with connect(address, compression=None) as client, pytest.raises(ConnectionClosed):
            client.recv(5)
            client.send(bytes(60_000) for _ in range(50))  # in fragments, each small enough
            client.recv(5)
        # a frame that claims to be an exabyte
        with upgraded(address) as stream:
            stream.sendall(b"\x82\xff" + struct.pack(">Q", 2**60) + b"mask")
            assert closed_by_server(stream)
        bystander.act(observation)
    wait_until(lambda: num_clients(address) == 0)


def test_client_tells_an_oversized_observation_before_sending(address):
    with ServerConnection(address) as connection:
        with pytest.raises(WireError, match=r"has 0.2 MiB, and at most 0.1 MiB are taken"):
            connection.call("act", observations=[{"image": np.zeros(200_000, np.uint8)}], slots=[0])
        connection.call("reset")


def test_oversized_answer_is_told():
    big = {"big": lambda: np.zeros(200_000, np.uint8)}
    with (
        background_server(big, SMALL) as url,
        ServerConnection(url) as connection,
        pytest.raises(RemoteError, match=r"0.2 MiB, and at most"),
    ):
        connection.call("big")


@pytest.mark.parametrize(
    "words",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(200), b"SSH-2.0-x\r\n" * 3, b"GET /" + b"x" * 20000],
)
def test_clients_that_do_not_shake_hands_are_dropped(address, observation, words):
    with raw_socket(address) as stream:
        stream.sendall(words)
        assert closed_by_server(stream)
    assert_still_serves(address, observation)


def test_client_that_stops_in_the_middle_of_a_message_is_dropped(address, observation):
    with upgraded(address) as stream:
        stream.sendall(b"\x82\xfe" + struct.pack(">H", 5000) + b"mask" + bytes(100))
        assert_still_serves(address, observation)
        assert closed_by_server(stream)
    wait_until(lambda: num_clients(address) == 0)


def test_client_that_does_not_take_its_answers_is_dropped():
    answers = []

    def big():
        answers.append(1)
        return np.zeros(4_000_000, np.uint8)

    config = ServerConfig(port=0, send_timeout=0.4, ping_interval=30.0)
    with background_server({"big": big}, config) as url, upgraded(url) as stream:
        request = encode({"call": "big", "arguments": {}})
        frame = b"\x82" + bytes([0x80 | len(request)]) + bytes(4) + request
        stream.sendall(frame * 40)
        wait_until(lambda: num_clients(url) == 0)
        assert len(answers) < 10
        with ServerConnection(url) as connection:
            assert connection.call("big").shape == (4_000_000,)


def test_client_that_vanishes_during_its_call_costs_nothing(observation):
    policy = Sleepy(0.3)
    with background_server(policy_backend(policy), SMALL) as url:
        client = ServerConnection(url)
        client._socket.send(encode({"call": "act", "arguments": {"observations": [observation], "slots": [3]}}))
        wait_until(lambda: 0 in policy.seen)
        # no goodbye: a reset, as from a robot whose plug was pulled
        client._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client._socket.socket.close()
        wait_until(lambda: policy.batches and policy.seen == {0: 0})
        with RemotePolicy(url) as other:
            other.act(observation)
        assert list(policy.seen) == [0]  # the slot was free again


class Held(Reacher):
    """Answers when it is let go."""

    def __init__(self):
        super().__init__()
        self.asked, self.let_go = threading.Event(), threading.Event()

    def act_batch(self, observations, slots):
        self.asked.set()
        assert self.let_go.wait(60)
        return super().act_batch(observations, slots)


def test_health_and_pings_go_on_while_the_model_thinks(observation):
    policy = Held()
    with background_server(policy_backend(policy), SMALL) as url, RemotePolicy(url) as client:
        thread = threading.Thread(target=client.act, args=(observation,))
        thread.start()
        assert policy.asked.wait(60)
        for _ in range(5):
            assert get(url, "/healthz")[0] == 200
        time.sleep(2.5 * SMALL.ping_interval)
        policy.let_go.set()
        thread.join()  # though it took longer than two ping intervals
        assert client.act(observation).shape == (4, 10)


def test_late_answers_close_the_connection(observation):
    with background_server(policy_backend(Sleepy(0.5)), SMALL) as url:
        client = RemotePolicy(url, timeout=0.1)
        with pytest.raises(TimeoutError, match=r"did not answer 'act' within 0.1 s"):
            client.act(observation)
        with pytest.raises(ConnectionError, match=r"is closed .*; connect again for a new session"):
            client.act(observation)


def test_full_house_is_told(address, observation):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(RemotePolicy(address))
        with pytest.raises(ConnectionError, match=r"refuses \(503: All 3 places are taken"):
            RemotePolicy(address)
        assert num_clients(address) == 3
    wait_until(lambda: num_clients(address) == 0)
    assert_still_serves(address, observation)


def test_http_is_for_health_only(address):
    assert json.loads(get(address, "/healthz")[1]) == {"status": "ok", "schema": SCHEMA, "clients": 0}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(address, "/etc/passwd")


def test_pages_in_a_browser_are_refused(address):
    with pytest.raises(Exception, match="403"), connect(address, origin="https://evil.example"):
        raise AssertionError


def test_taken_port_is_one_sentence(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(OSError, match=rf"^Port {port} of 127.0.0.1 is taken; stop the other server, or choose another port"):
        serve({"f": lambda: 1}, ServerConfig(port=port))
    with pytest.raises(OSError, match="is taken"), background_server({"f": lambda: 1}, ServerConfig(port=port)):
        raise AssertionError


def test_foreign_address_is_one_sentence():
    with pytest.raises(OSError, match=r"cannot listen on 192.0.2.1:0"):
        serve({"f": lambda: 1}, ServerConfig(host="192.0.2.1", port=0))


def test_any_function_is_hosted_with_arrays_and_cameras():
    def lift(depth, camera):
        return {"points": depth[..., None] * np.ones(3), "focal": camera["intrinsics"][0, 0]}

    with background_server({"lift": lift, "name": lambda instruction: instruction.split()}) as url, ServerConnection(url) as connection:
        camera = Camera(np.diag([50.0, 50.0, 1.0]), np.eye(4), (2, 3))
        found = remote_function(connection, "lift")(depth=np.full((2, 3), 2.0, np.float32), camera=camera)
        assert found["points"].shape == (2, 3, 3) and found["focal"] == 50
        assert connection.call("name", instruction="put the bowl") == ("put", "the", "bowl")
        with pytest.raises(ValueError, match="hosts no policy; its calls are lift, name"):
            RemotePolicy(connection)


def test_result_that_cannot_be_sent_is_told():
    with (
        background_server({"f": lambda: {1, 2}}) as url,
        ServerConnection(url) as connection,
        pytest.raises(RemoteError, match="A set cannot"),
    ):
        connection.call("f")


def test_server_of_another_schema_is_told():
    from websockets.sync.server import serve as serve_bytes

    for first, error, message in (
        (msgpack.packb({"schema": 2, "metadata": {}}), ValueError, "schema 2, and this side speaks schema 1"),
        (encode({"news": 1}), ConnectionError, "its first message has no metadata"),
    ):
        with serve_bytes(lambda connection: connection.send(first), "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(error, match=message):
                ServerConnection(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
            server.shutdown()


def test_wrong_addresses_are_told():
    with pytest.raises(ValueError, match="'localhost:1' is not the address of a server"):
        ServerConnection("localhost:1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"did not answer within 0.2 s"):
            ServerConnection(url, connect_timeout=0.2)
    with pytest.raises(ConnectionError, match="No server answers at"):
        ServerConnection(url)


def test_server_that_goes_is_told(policy, observation):
    with background_server(policy_backend(policy), SMALL) as url:
        client = RemotePolicy(url)
    with pytest.raises(ConnectionError, match="is closed"):
        client.act(observation)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_in_peace(number):
    program = (
        "from visiongraft.robots.server import *\n"
        "serve({'f': lambda: 1}, ServerConfig(port=0), on_ready=lambda url: print(url, flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as process:
        url = process.stdout.readline().strip()
        assert url.startswith("ws://127.0.0.1:")
        with ServerConnection(url) as connection:
            assert connection.call("f") == 1
            process.send_signal(number)
            assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ServerConfig(port=70000), "port must be 0 .any free one. to 65535; got 70000"),
        (lambda: ServerConfig(max_bytes=0), "max_bytes of a server must be positive; got 0"),
        (lambda: background_server({}).__enter__(), "at least one function to host"),
    ],
)
def test_bad_configuration_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
