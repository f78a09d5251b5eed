"""A real Chromium, driven by its DevTools protocol over two pipes: no port, no further dependency."""

import base64
import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes answers to 4; a pipe's own numbers are whatever was free.
LAUNCHER = """
import os, sys
read, write = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
while read < 5: read = os.dup(read)
while write < 5: write = os.dup(write)
os.dup2(read, 3); os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
LIMIT_S = 60


def find_chromium():
    """The path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One browser process. Every event it reports is kept in ``events`` until it is taken."""

    def __init__(self, binary, profile):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._log = (profile / "stderr.txt").open("wb")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", LAUNCHER, str(commands), str(answers)),
                *(binary, *FLAGS, f"--user-data-dir={profile}"),
            ],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)
        self._buffer = b""
        self._arrived = deque()
        self._next_id = 0
        self.events = []

    def send(self, method, session=None, **params):
        """One command and its result; events that arrive meanwhile are kept."""
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        deadline = time.monotonic() + LIMIT_S
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == self._next_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method, session):
        """The next event ``method`` of ``session``; those before it stay in ``events``."""
        deadline = time.monotonic() + LIMIT_S
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event.get("method") == method and event.get("sessionId") == session:
                    self.events.remove(event)
                    return event["params"]
            seen = len(self.events)
            self.events.append(self._receive(deadline, method))

    def _receive(self, deadline, waiting_for):
        while not self._arrived:
            if not self._selector.select(max(0, deadline - time.monotonic())):
                raise TimeoutError(f"Chromium did not answer {waiting_for} within {LIMIT_S} s")
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise RuntimeError(f"Chromium ended while {waiting_for} was awaited")
            *complete, self._buffer = (self._buffer + data).split(b"\0")
            self._arrived.extend(json.loads(message) for message in complete)
        return self._arrived.popleft()

    def close(self):
        """End the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=LIMIT_S)
        self._selector.close()
        os.close(self._commands)
        os.close(self._answers)
        self._log.close()


class Tab:
    """One page of the browser, in a context of its own. Problems it reports are gathered by kind."""

    def __init__(self, browser, *, width=1280, height=900, dark=False):
        self._browser = browser
        self._context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])

    def send(self, method, **params):
        return self._browser.send(method, self._session, **params)

    def open(self, path):
        """Load a file and wait until it is complete."""
        self.send("Page.navigate", url=path.as_uri())
        self._browser.wait_for("Page.loadEventFired", self._session)

    def evaluate(self, expression):
        """The JSON value of an expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def click(self, selector):
        """A real click of the mouse in the middle of an element."""
        x, y = self.evaluate(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{ block: "center" }});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector, text):
        """Type text into a field."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send("Input.insertText", text=text)

    def screenshot(self, *, whole=False):
        """PNG bytes of what is visible, or of the whole page."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def complaints(self):
        """Console messages, log entries (violated policies are among them) and exceptions."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self._mine() if event["method"] in kinds]

    def requests(self):
        """URLs the page asked for."""
        return [e["params"]["request"]["url"] for e in self._mine() if e["method"] == "Network.requestWillBeSent"]

    def dialogs(self):
        """Texts of alert and the like."""
        return [e["params"]["message"] for e in self._mine() if e["method"] == "Page.javascriptDialogOpening"]

    def _mine(self):
        self.evaluate("1")  # what was reported before this answer is here now
        return [event for event in self._browser.events if event.get("sessionId") == self._session]

    def close(self):
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)
