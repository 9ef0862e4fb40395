"""A headless Chromium, driven over its DevTools protocol: as little of it as the page's tests need."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
START, ANSWER = 60, 30  # seconds
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def program() -> str | None:
    """Chromium's path, if there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class PageError(AssertionError):
    """The page did not do what a test waited for, or the browser refused a command."""


class Tab:
    """One page: commands go in, and what the browser tells meanwhile is kept in ``events``."""

    def __init__(self, socket: Any):
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Send a command, return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER))
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                raise PageError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def open(self, url: str) -> None:
        """Load a page, and wait for it."""
        if failed := self.call("Page.navigate", url=url).get("errorText"):
            raise PageError(f"{url}: {failed}")
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            thrown = result["exceptionDetails"]
            raise PageError(thrown.get("exception", {}).get("description", thrown["text"]))
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Until a JavaScript condition holds."""
        deadline = time.monotonic() + seconds
        while not self.value(condition):
            if time.monotonic() > deadline:
                said = self.value("document.body.innerText")
                raise PageError(f"not within {seconds} s: {condition}; the page says: {said[:600]}")
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, as a person does."""
        place = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def key(self, key: str, code: int = 0, text: str = "") -> None:
        """Press a key."""
        said = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **said)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def drop(self, selector: str, path: Path) -> None:
        """Drag a file from outside onto an element and let it go there."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, data=data, **self._middle(selector))

    def choose(self, selector: str, path: Path) -> None:
        """Give a file to a file field, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def view(
        self, width: int, height: int, dark: bool = False, scale: float = 1, phone: bool = False
    ) -> None:
        """The size of the window, and whether the system is dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> bytes:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        data = base64.b64decode(shot["data"])
        path.write_bytes(data)
        return data

    def told(self, method: str) -> list[dict[str, Any]]:
        """What the browser told of one kind."""
        self.value("0")  # what came until now is read with the answer
        return [event["params"] for event in self.events if event.get("method") == method]

    def problems(self) -> list[str]:
        """Exceptions, errors on the console, and what the browser blocked or did not find."""
        thrown = [
            event["exceptionDetails"]
            .get("exception", {})
            .get("description", event["exceptionDetails"]["text"])
            for event in self.told("Runtime.exceptionThrown")
        ]
        logged = [event["entry"] for event in self.told("Log.entryAdded")]
        return thrown + [
            f"{e['text']} {e.get('url', '')}" for e in logged if e["level"] in ("error", "warning")
        ]

    def addresses(self) -> set[str]:
        """Every address that the page asked for."""
        asked = {event["request"]["url"] for event in self.told("Network.requestWillBeSent")}
        return asked | {event["url"] for event in self.told("Network.webSocketCreated")}

    def _middle(self, selector: str) -> dict[str, float]:
        found = self.value(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'nearest'}); const box = element.getBoundingClientRect();"
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
        )
        return dict(found)


@contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Tab]:
    """A browser of its own with one empty tab; ``folder`` takes its files."""
    from websockets.sync.client import connect

    path = program()
    assert path is not None
    with (folder / "chromium.log").open("wb") as log:
        arguments = [path, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, "about:blank"]
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        with connect(_endpoint(process, folder), max_size=None) as socket:
            yield Tab(socket)
            socket.send(json.dumps({"id": 0, "method": "Browser.close"}))
    finally:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _endpoint(process: subprocess.Popen[bytes], folder: Path) -> str:
    """The address that the browser writes down when it listens."""
    noted = folder / "profile" / "DevToolsActivePort"
    deadline = time.monotonic() + START
    while not noted.exists() or len(noted.read_text().split()) < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            said = (folder / "chromium.log").read_text(errors="replace")[-2000:]
            raise PageError(f"Chromium did not start:\n{said}")
        time.sleep(0.03)
    port, path = noted.read_text().split()
    return f"ws://127.0.0.1:{port}{path}"
