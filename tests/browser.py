"""A headless Chromium driven over a pipe by its DevTools protocol: no port, no driver beside it."""

import json
import os
import select
import shutil
import subprocess
from itertools import count

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 120  # seconds without a word from the browser
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars".split()


class Browser:
    """`with Browser(folder) as browser: browser.open(url)`; folder: for the browser's own files.

    said: messages of the console and of uncaught errors; asked: addresses requested since `open`.
    """

    def __init__(self, folder):
        self.said, self.asked, self.loaded, self.numbers = [], [], set(), count(1)
        (theirs_in, self.send), (self.receive, theirs_out) = os.pipe(), os.pipe()
        call = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        own = ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", call, CHROMIUM, *FLAGS, *own],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self.session, self.rest = None, b""
        targets = self.call("Target.getTargets")["targetInfos"]
        (page,) = [target for target in targets if target["type"] == "page"]
        how = dict(targetId=page["targetId"], flatten=True)
        self.session = self.call("Target.attachToTarget", **how)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.send), os.close(self.receive)
        self.process.wait(timeout=30)

    def call(self, method: str, **parameters) -> dict:
        """The answer to one command; RuntimeError if it is refused."""
        message = dict(id=next(self.numbers), method=method, params=parameters)
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != message["id"]:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url: str, *, width=1280, height=900, scripts=True, dark=False, media="") -> None:
        """Load a page in a window of that many CSS pixels, and wait until it is there."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._load("about:blank")  # else another "#..." alone would load nothing
        self.said, self.asked = [], []
        self._load(url)

    def run(self, script: str):
        """The value of an expression on the page; a promise is waited for."""
        how = dict(expression=script, returnByValue=True, awaitPromise=True)
        result = self.call("Runtime.evaluate", **how)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def _load(self, url):
        loader = self.call("Page.navigate", url=url)["loaderId"]
        while loader not in self.loaded:
            self._note(self._next())

    def _next(self):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.receive], [], [], PATIENCE)
            data = os.read(self.receive, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError(f"the browser has ended, or said nothing for {PATIENCE} s")
            self.rest += data
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        method, of = event.get("method"), event.get("params", {})
        if method == "Page.lifecycleEvent" and of["name"] == "load":
            self.loaded.add(of["loaderId"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(of["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(of["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.said.append(str(of["args"]))
        elif method == "Log.entryAdded":
            self.said.append(f"{of['entry']['level']}: {of['entry']['text']}")
