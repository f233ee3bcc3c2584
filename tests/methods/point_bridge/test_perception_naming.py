"""Names of objects: rules over words, strict parsing of models' replies, and endpoints that misbehave."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visiongraft.methods.point_bridge.chat import Asking, GeminiChat, OpenAiChat
from visiongraft.methods.point_bridge.naming import chat_namer, given_names, parse_objects, rule_namer

IMAGE = np.zeros((4, 6, 3), np.uint8)
KEY = "sk-very-secret-0123456789"


def test_given_names_are_kept_in_order() -> None:
    assert given_names(["plate", "mug"])(IMAGE, "anything") == ["plate", "mug"]


@pytest.mark.parametrize(("names", "message"), [([], "must be given"), (["a", " "], "none may be empty"), (["a", "a"], "must differ")])
def test_given_names_refuses(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given_names(names)


@pytest.mark.parametrize(
    ("vocabulary", "instruction", "names"),
    [
        (["white_plate", "red_box"], "put the red box on the white plate", ["red_box", "white_plate"]),
        (["white_plate", "red_box"], "Onto the WHITE plate, place the red cube.", ["white_plate", "red_box"]),
        (["white_plate", "red_box"], "put the box on the plate", ["red_box", "white_plate"]),
        (["red_box", "blue_box"], "stack the blue box on the red box", ["blue_box", "red_box"]),
        (["mug", "plate"], "the cups go on the dish", ["mug", "plate"]),
        (["mug", "plate", "bowl"], "lift the mug", ["mug"]),
        (["red_box", "grey_block"], "put the red box on the block", ["red_box", "grey_block"]),
    ],
)
def test_rules_name_objects_in_order_of_appearance(vocabulary: list[str], instruction: str, names: list[str]) -> None:
    assert rule_namer(vocabulary)(IMAGE, instruction) == names


def test_rules_do_not_find_names_inside_words() -> None:
    with pytest.raises(ValueError, match="names nothing that is in the scene; the scene holds bin, mug"):
        rule_namer(["bin", "mug"])(IMAGE, "open the cabinet")


def test_rules_ask_which_of_two() -> None:
    with pytest.raises(ValueError, match="'box' in 'take the box' may be any of red_box, blue_box; say which"):
        rule_namer(["red_box", "blue_box"])(IMAGE, "take the box")


def test_rules_need_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="needs a vocabulary"):
        rule_namer([])


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ("<objects>[mug, plate]</objects>", ["mug", "plate"]),
        ("I think …\n<objects> [ Red Mug ,\n plate ] </objects> done", ["red mug", "plate"]),
        ("<objects>[mug]</objects> or <objects>[plate, mug]</objects>", ["mug", "plate"]),
        ("<objects>['mug', \"plate\",]</objects>", ["mug", "plate"]),
    ],
)
def test_replies_are_parsed(reply: str, names: list[str]) -> None:
    assert parse_objects(reply) == names


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("mug, plate", "holds no <objects>"),
        ("<objects>[]</objects>", "named no objects"),
        ("<objects>[__import__('os')]</objects>", "is no name"),
        ("<objects>[" + ", ".join(f"thing {i}" for i in range(17)) + "]</objects>", "named 17 objects"),
        ("<objects>[" + "a" * 90 + "]</objects>", "is no name"),
    ],
)
def test_replies_are_parsed_strictly(reply: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objects(reply)


@given(st.text(max_size=200))
def test_any_reply_is_names_or_a_sentence(reply: str) -> None:
    try:
        assert parse_objects(f"<objects>[{reply}]</objects>")
    except ValueError as error:
        assert str(error).endswith((".", "yourself."))


def test_chat_namer_asks_twice_and_shows_the_image_once() -> None:
    asked: list[tuple[str, bool]] = []

    def chat(prompt: str, image: np.ndarray | None = None) -> str:
        asked.append((prompt, image is not None))
        return "<objects>[cabinet, cabinet drawer]</objects>" if image is not None else "<objects>[cabinet drawer]</objects>"

    assert chat_namer(chat)(IMAGE, 'open the "drawer"\nnow') == ["cabinet drawer"]
    assert [shown for _, shown in asked] == [True, False]
    assert "open the 'drawer' now" in asked[0][0] and "cabinet, cabinet drawer" in asked[1][0]


class Endpoint(ThreadingHTTPServer):
    """Answers with what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, bytes, float]] = []
        self.requests: list[tuple[str, dict[str, str], dict]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients that time out hang up before the answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        status, content, wait = self.server.answers.pop(0)
        time.sleep(wait)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def openai_reply(text: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


QUICK = Asking(timeout=0.3, attempts=3, pause=0.0)


def test_openai_endpoint_gets_image_sampling_and_key(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    endpoint.answers = [(200, openai_reply("yes"), 0)]
    chat = OpenAiChat(url=endpoint.url, model="m", key_variable="TEST_KEY", asking=QUICK)
    assert chat("what?", IMAGE) == "yes"
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["temperature"] == 0 and body["top_p"] == 0.95
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert KEY not in repr(chat)


def test_gemini_endpoint_gets_the_key_in_a_header_and_not_in_the_address(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    endpoint.answers = [(200, json.dumps({"candidates": [{"content": {"parts": [{"text": "a"}, {"text": "b"}]}}]}).encode(), 0)]
    assert GeminiChat(url=endpoint.url, asking=QUICK)("what?", IMAGE) == "ab"
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/models/gemini-2.5-flash:generateContent" and KEY not in path
    assert {name.lower(): value for name, value in headers.items()}["x-goog-api-key"] == KEY
    assert body["generationConfig"] == {"temperature": 0.0, "topP": 0.95}


def test_busy_endpoints_are_asked_again(endpoint: Endpoint) -> None:
    endpoint.answers = [(503, b"", 0), (429, b"", 0), (200, openai_reply("third"), 0)]
    assert OpenAiChat(url=endpoint.url, model="m", asking=QUICK)("what?") == "third"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(500, b"", 0)] * 3, r"answered with status 500; it was asked 3 times"),
        ([(401, KEY.encode(), 0)], r"answered with status 401; check the key"),
        ([(404, b"", 0)], r"answered with status 404; check address and model"),
        ([(302, b"", 0)], r"answered with status 302\."),
        ([(200, b"<html>", 0)], "something that is not JSON"),
        ([(200, openai_reply(None), 0)], "holds no text"),
        ([(200, b"[]", 0)], "holds no text"),
        ([(200, b"", 0.6)] * 3, "did not answer within 0.3 s; it was asked 3 times"),
    ],
)
def test_failing_endpoints_are_told_without_the_key(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int, bytes, float]], message: str
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    endpoint.answers = list(answers)
    with pytest.raises(ConnectionError, match=message) as error:
        OpenAiChat(url=endpoint.url, model="m", key_variable="TEST_KEY", asking=QUICK)("what?")
    assert KEY not in str(error.value) and error.value.__cause__ is None


def test_unreachable_endpoints_are_told() -> None:
    with pytest.raises(ConnectionError, match=r"endpoint at 127\.0\.0\.1 cannot be reached \(ConnectionRefusedError\); it was asked once"):
        OpenAiChat(url="http://127.0.0.1:9/v1", model="m", asking=Asking(attempts=1))("what?")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:80", f"http://user:{KEY}@host/v1"])
def test_addresses_are_checked_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError, match="starts with http:// or https://") as error:
        OpenAiChat(url=url, model="m")("what?")
    assert KEY not in str(error.value)


def test_missing_and_broken_keys_are_named_by_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="GEMINI_API_KEY holds no key"):
        GeminiChat()("what?")
    monkeypatch.setenv("GEMINI_API_KEY", f"{KEY}\r\nX-Evil: 1")
    with pytest.raises(ValueError, match="holds characters that no key has") as error:
        GeminiChat()("what?")
    assert KEY not in str(error.value)


def test_asking_is_checked() -> None:
    with pytest.raises(ValueError, match="at least one attempt"):
        Asking(attempts=0)
