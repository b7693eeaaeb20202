"""A headless Chromium for tests, driven over its DevTools protocol. Owns the process, its profile and what it was told."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.sync.client import connect

from tests.patience import PATIENCE_S

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank"),
)
START_LIMIT_S = 60.0


class Browser:
    """One page. `requests` are the URLs it asked for, `errors` what its console complained of."""

    def __init__(self) -> None:
        assert CHROMIUM is not None, "no chromium: apt-get install chromium"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS[:-1], f"--user-data-dir={self._profile.name}", FLAGS[-1]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._number = 0
        with ExitStack() as stack:
            stack.callback(self._end)
            page = connect(self._page_address(), max_size=1 << 26, proxy=None)
            self._socket = stack.enter_context(page)
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.tell(f"{domain}.enable")
            self._stack = stack.pop_all()

    def _page_address(self) -> str:
        """The first tab's WebSocket: the profile's DevToolsActivePort names the port."""
        file = Path(self._profile.name) / "DevToolsActivePort"
        until_s, pause = time.monotonic() + START_LIMIT_S, threading.Event()
        while time.monotonic() < until_s:
            if file.exists() and (lines := file.read_text().splitlines()):
                for tab in _tabs(f"http://127.0.0.1:{lines[0]}"):
                    if tab["type"] == "page":
                        return str(tab["webSocketDebuggerUrl"])
            pause.wait(0.05)
        raise AssertionError(f"chromium did not start within {START_LIMIT_S:g} s")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result; events that come before it are taken note of."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._take(message)

    def _take(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                self.errors.append(json.dumps(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(json.dumps(parameters["entry"]))

    def open(self, url: str) -> None:
        """Go there; what was noted of the page before is forgotten."""
        self.requests.clear()
        self.errors.clear()
        self.tell("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        told = self.tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_for(self, expression: str, seconds: float = PATIENCE_S) -> float:
        """Wait until an expression is true; how long it took in seconds."""
        started_s, pause = time.monotonic(), threading.Event()
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() - started_s < seconds, f"never true: {expression}"
            pause.wait(0.02)
        return time.monotonic() - started_s

    def text(self, selector: str) -> str:
        """What an element shows."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def press(self, key: str) -> None:
        """One key, as a keyboard sends it."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27}
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.tell("Input.dispatchKeyEvent", type="keyDown", **fields, **text)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **fields)

    def write(self, text: str) -> None:
        """Text into the element that has the focus."""
        self.tell("Input.insertText", text=text)

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """The size of the page in CSS pixels."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.tell("Emulation.setEmulatedMedia", features=[feature])

    def photograph(self, path: Path) -> None:
        """A PNG of the whole page."""
        shot = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End it and remove its profile."""
        self._stack.close()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _tabs(url: str) -> list[dict[str, Any]]:
    """What is open; nothing while the port is not listened on yet."""
    try:
        found: list[dict[str, Any]] = httpx.get(f"{url}/json/list", trust_env=False).json()
    except httpx.ConnectError:
        return []
    return found
