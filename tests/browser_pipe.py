"""Headless Chromium driven through the DevTools protocol over a pipe: real mouse, touch and keys, without further packages."""

import base64
import io
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless=new --no-sandbox --enable-unsafe-swiftshader --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --force-device-scale-factor=1 --remote-debugging-pipe "
    "--autoplay-policy=no-user-gesture-required"
)


class Browser:
    """One Chromium with one page."""

    def __init__(self, profile: Path) -> None:
        there_read, self.write_end = os.pipe()
        self.read_end, there_write = os.pipe()
        command = f"exec {CHROMIUM} {FLAGS} --user-data-dir={shlex.quote(str(profile))} 3<&{there_read} 4>&{there_write}"
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(there_read, there_write), stdout=quiet, stderr=quiet)
        os.close(there_read)
        os.close(there_write)
        self.number, self.buffer, self.session, self.problems, self.events = 0, b"", None, [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.number:
                assert "error" not in reply, (method, reply["error"])
                return reply["result"]

    def receive(self) -> dict:
        end = time.monotonic() + 60
        while b"\0" not in self.buffer:
            assert select.select([self.read_end], [], [], max(0, end - time.monotonic()))[0], "Chromium does not answer"
            block = os.read(self.read_end, 1 << 16)
            assert block, "Chromium has ended"
            self.buffer += block
        message, _, self.buffer = self.buffer.partition(b"\0")
        event = json.loads(message)
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["exception"].get("description", "exception"))
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        # what software drawing says of its own speed is no fault of the page
        if method == "Log.entryAdded" and "GL Driver Message" not in params["entry"]["text"]:
            self.problems.append(params["entry"]["text"])
        if method:
            self.events.append(method)
        return event

    def open(self, page: Path, width: int, height: int, **features: str) -> None:
        """Loads a page; ``features`` are media features such as prefers_color_scheme="dark"."""
        self.problems.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=media)
        self.events.clear()
        self.send("Page.navigate", url=page.as_uri())
        while "Page.loadEventFired" not in self.events:
            self.receive()

    def run(self, expression: str) -> Any:
        """The value of JavaScript, awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start: tuple[float, float], by: tuple[float, float]) -> None:
        x, y = start
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("mouseMoved", x + by[0] / 2, y + by[1] / 2, button="left", buttons=1)
        self.mouse("mouseMoved", x + by[0], y + by[1], button="left", buttons=1)
        self.mouse("mouseReleased", x + by[0], y + by[1], button="left", clickCount=1)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)])

    def key(self, key: str, times: int = 1) -> None:
        text = {"text": key} if len(key) == 1 else {}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def shot(self) -> np.ndarray:
        """What the page looks like: height x width x 3, uint8."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def close(self) -> None:
        self.session = None
        self.send("Browser.close")
        self.process.wait(30)
        os.close(self.write_end)
        os.close(self.read_end)
