"""A headless Chromium that tests can click in, by the WebDriver protocol (W3C), which chromedriver speaks."""

import base64
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
import requests

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element, of the protocol
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PATIENCE = 60  # seconds that something may take to appear, on a busy machine


class Browser:
    """A window of Chromium.

    Args:
        base: Address of the WebDriver session.
    """

    def __init__(self, base):
        self.base = base

    def ask(self, method, path, body=None):
        reply = requests.request(method, f"{self.base}/{path}", json=body, timeout=120)
        value = reply.json()["value"]
        assert reply.ok, value
        return value

    def open(self, address, width, height=900):
        """At a width of the page, as on a phone of that many pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("POST", "goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})
        self.ask("POST", "url", {"url": address})

    def run(self, script, *args):
        """What a function body of JavaScript returns."""
        return self.ask("POST", "execute/sync", {"script": script, "args": list(args)})

    def wait(self, script, *args):
        """Until a script returns something true, which is returned."""
        end = time.monotonic() + PATIENCE
        while not (found := self.run(script, *args)):
            assert time.monotonic() < end, f"{script} stays {found!r}; the page says: {self.text()[:2000]}"
            time.sleep(0.1)
        return found

    def text(self):
        return self.run("return document.body.innerText")

    def element(self, css, number=0):
        found = self.ask("POST", "elements", {"using": "css selector", "value": css})
        return found[number][ELEMENT]

    def upload(self, css, path):
        """Give a file to an input, hidden or not."""
        self.ask("POST", f"element/{self.element(css)}/value", {"text": str(path)})

    def screenshot(self, path):
        """The whole page, as high as it is."""
        size = {"captureBeyondViewport": True, "format": "png"}
        shot = self.ask("POST", "goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": size})
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(folder):
    """A browser with its profile in a folder; skips where there is none."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with chromedriver on this machine: install both to try the page in a browser")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                assert requests.get(f"{base}/status", timeout=10).json()["value"]["ready"]
                break
            except requests.ConnectionError:
                assert time.monotonic() < end, "chromedriver does not answer"
                time.sleep(0.1)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        wanted = {"goog:chromeOptions": {"binary": CHROMIUM, "args": flags}}
        new = requests.post(f"{base}/session", json={"capabilities": {"alwaysMatch": wanted}}, timeout=120).json()
        assert "sessionId" in new["value"], new
        session = f"{base}/session/{new['value']['sessionId']}"
        try:
            yield Browser(session)
        finally:
            requests.delete(session, timeout=60)
    finally:
        driver.terminate()
        driver.wait(30)
