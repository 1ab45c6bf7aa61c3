"""Chromium without a window, driven through its debugging pipe: opens pages with the network cut."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next((found for found in map(shutil.which, NAMES) if found), None)
OPTIONS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-extensions", "--remote-debugging-pipe", "--window-size=1400,1000", "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")
SECONDS, DRAWN_SECONDS = 120.0, 30.0


@dataclass
class Browser:
    """One tab; `faults` are the errors of the console and the requests of the page that were seen so far."""

    process: subprocess.Popen[bytes]
    commands: int
    answers: int
    session: str = ""
    number: int = 0
    pending: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self.commands, text) :]
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer."
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium has ended."
            self.pending += part
        text, _, self.pending = self.pending.partition(b"\0")
        return json.loads(text)

    def open(self, path: Path) -> float:
        """Open a page; returns the seconds until its load event."""
        self.events.clear()
        start = time.monotonic()
        self.send("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        return time.monotonic() - start

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression holds in the page."""
        end = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.faults()}"
            time.sleep(0.05)

    def key(self, key: str, code: int, text: str = "") -> None:
        """Press a key where the focus is."""
        own = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **own, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **own)

    def faults(self) -> list[str]:
        """Return what the page logged as an error and what it asked for beyond itself."""
        self.run("0")
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"].get("exception", parameters)))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
                found.append(str(parameters["args"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith(("data:", "blob:", "file:")):
                    found.append(f"asked for {url}")
        return found

    def choose(self, root: str, label: str, value: str) -> None:
        """Set the control with a label inside the first element of a selector, as a reader does."""
        self.run(
            f"""(() => {{
            const labels = [...document.querySelector({root!r}).querySelectorAll("label")];
            const control = document.getElementById(labels.find((one) => one.textContent === {label!r}).htmlFor);
            control.value = {value!r};
            if (control.value !== {value!r}) throw new Error("no choice " + {value!r});
            ["input", "change"].forEach((name) => control.dispatchEvent(new Event(name, {{ bubbles: true }})));
            }})()"""
        )

    def pixels_with(self, selector: str, holds: Callable[[Any], bool]) -> Any:
        """Return what is seen of an element once something holds of it, since drawing takes its time."""
        end = time.monotonic() + DRAWN_SECONDS
        while True:
            seen = self.pixels(selector)
            if holds(seen):
                return seen
            assert time.monotonic() < end, f"{selector} never looks as it should"

    def pixels(self, selector: str) -> Any:
        """Return what is seen of an element, shape (height, width, 3), in parts of 255."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView()")
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")
        box = self.run(
            f"""(() => {{
            const {{ x, y, width, height }} = document.querySelector({selector!r}).getBoundingClientRect();
            return {{ x: x + scrollX, y: y + scrollY, width, height, scale: 1 }}; }})()"""
        )
        picture = base64.b64decode(self.send("Page.captureScreenshot", format="png", clip=box)["data"])
        return np.round(255 * imread(io.BytesIO(picture))[..., :3]).astype(int)


@contextmanager
def browser(profile: Path, *, webgl: bool = True) -> Iterator[Browser]:
    """Start Chromium with a profile folder of its own."""
    assert PROGRAM is not None
    its_in, commands = os.pipe()
    answers, its_out = os.pipe()
    shell = 'exec "$@" 3<&"$IN" 4>&"$OUT"'
    options = [*OPTIONS, *(WEBGL if webgl else NO_WEBGL), f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", PROGRAM, *options],
        env=os.environ | {"IN": str(its_in), "OUT": str(its_out), "HOME": str(profile)},
        pass_fds=(its_in, its_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_in)
    os.close(its_out)
    one = Browser(process, commands, answers)
    try:
        targets = one.send("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in targets if info["type"] == "page")
        one.session = one.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            one.send(f"{domain}.enable")
        yield one
    finally:
        os.close(commands)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers)
