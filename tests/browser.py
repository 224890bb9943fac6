"""A headless Chromium, driven through Chrome's DevTools protocol over its two pipes; nothing is installed for it."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
MISSING = "no Chromium is installed (apt-get install chromium)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--enable-precise-memory-info", "--remote-debugging-pipe",
)  # fmt: skip
# The program reads from descriptor 3 and writes to 4, whatever the ones are called that lead there.
_START = """
import os, sys
read, write = (os.dup(int(name)) for name in sys.argv[1:3])
write = os.dup(write) if write in (3, 4) else write
os.dup2(read, 3)
os.dup2(write, 4)
for number in (3, 4):
    os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One browser with one page. Everything that the page says on its console, and every error, is in `said`."""

    def __init__(self, folder: Path) -> None:
        """`folder` is new and empty, for what the browser keeps. Raises `OSError` where the browser does not start."""
        assert PROGRAM is not None
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        arguments = [PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(read_commands), str(write_answers), *arguments],
            pass_fds=(read_commands, write_answers), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_answers)
        self._buffer = b""
        self._number = 0
        self.said: list[str] = []
        self.requests: list[str] = []
        self._session: str | None = None
        try:
            target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
            self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
        except OSError:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def _call(self, method: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values or {}}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._notice(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._answers, 1 << 20)
            if not more:
                raise ConnectionError("the browser has ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _notice(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in values["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(values["exceptionDetails"].get("exception", values["exceptionDetails"])))
        elif event.get("method") == "Log.entryAdded":
            self.said.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event.get("method") == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {values['message']}")

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """How large the page is, and whether the system prefers dark colours."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", values)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # pictures show no colour on its way to another
        ]
        self._call("Emulation.setEmulatedMedia", {"features": features})

    def open(self, address: str) -> None:
        """Opens an address, and waits until rows are shown, or that there are none."""
        self._call("Page.navigate", {"url": "about:blank"})
        self._call("Page.navigate", {"url": address})
        self.until("typeof llavaMini === 'object' && llavaMini.state.found !== null")
        self.settle()

    def run(self, script: str) -> Any:
        """What an expression of JavaScript is; a promise is waited for."""
        values = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self._call("Runtime.evaluate", values)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 15.0) -> Any:
        """Waits until an expression is true, and returns it."""
        return wait_for(lambda: self.run(script), seconds, script)

    def settle(self) -> None:
        """Waits until what was asked for is shown."""
        is_filled = "[...document.querySelectorAll('.card')].every(card => card.dataset.n)"
        self.until(f"!document.body.hasAttribute('aria-busy') && {is_filled}")

    def press(self, key: str) -> None:
        """A key pressed and let go."""
        codes = {
            "ArrowRight": 39,
            "ArrowLeft": 37,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "Enter": 13,
            "Escape": 27,
            "Home": 36,
            "End": 35,
            "Tab": 9,
        }
        values: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        if len(key) == 1:
            values["text"] = key
        self._call("Input.dispatchKeyEvent", {"type": "keyDown", **values})
        self._call("Input.dispatchKeyEvent", {"type": "keyUp", **values})

    def type(self, text: str) -> None:
        """Text typed into whatever has the focus."""
        self._call("Input.insertText", {"text": text})

    def click(self, selector: str, *, number: int = 0) -> None:
        """A click with the mouse into the middle of an element."""
        script = f"""(element => {{
            element.scrollIntoView({{block: "nearest"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})(document.querySelectorAll({json.dumps(selector)})[{number}])"""
        x, y = self.run(script)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1})

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a selector."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def picture(self) -> bytes:
        """A screenshot, PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", {"format": "png"})["data"])

    def call(self, method: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """A command of the protocol."""
        return self._call(method, values)


def wait_for(question: Callable[[], Any], seconds: float, words: str) -> Any:
    """Asks until the answer is true. Raises `AssertionError` after some seconds."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, f"never true: {words}"
        time.sleep(0.02)
    return answer
