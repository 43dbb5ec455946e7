"""Our pages in a headless browser: no error, every picture loaded, readable on a phone and in the dark."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from flows.cli.folder import validate_folder

from .conftest import draw, write_image_folder
from .corpus import seeds

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
LOOK = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.body), [a, b] = [light(style.color), light(style.backgroundColor)];
  return {
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
    pictures: document.images.length,
    too_wide: document.documentElement.scrollWidth - innerWidth,
    contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
    is_dark: b < a,
  };
})()"""  # noqa: E501


class Browser:
    """A page of a browser, by its debugging protocol."""

    def __init__(self, port: int) -> None:
        from websockets.sync.client import connect

        pages = json.load(urlopen(f"http://127.0.0.1:{port}/json"))
        [address] = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
        self._socket = connect(address, max_size=None, proxy=None)
        self._number = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(60))
            self._note(message)
            if message.get("id") == self._number:
                return dict(message["result"])

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)
        while self._note(json.loads(self._socket.recv(60))) != "Page.loadEventFired":
            pass

    def look(self) -> dict[str, Any]:
        return dict(self.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"])

    def _note(self, message: dict[str, Any]) -> str:
        method = str(message.get("method", ""))
        if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.errors.append(json.dumps(message["params"]))
        return method


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    home = tmp_path_factory.mktemp("browser")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--remote-debugging-port=0", f"--user-data-dir={home}")  # fmt: skip
    with subprocess.Popen(
        ["chromium", *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not (home / "DevToolsActivePort").exists() or not (home / "DevToolsActivePort").read_text():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.1)
            yield Browser(int((home / "DevToolsActivePort").read_text().split()[0]))
        finally:
            process.kill()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", ["comparison", "evaluation", "label_suspects", "validation"])
def test_a_page_on_a_phone(finished: Path, browser: Browser, page: str, theme: str) -> None:
    browser.errors.clear()
    browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open((finished / "reports" / f"{page}.html").as_uri())
    seen = browser.look()
    assert browser.errors == []
    assert seen["broken"] == []
    assert seen["pictures"] > 0 or page != "evaluation"
    assert seen["too_wide"] <= 0
    assert seen["is_dark"] == (theme == "dark")
    assert seen["contrast"] >= 7


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports on a folder of the corpus, some of which has changed since the first time."""
    home = tmp_path_factory.mktemp("judged")
    folder = write_image_folder(home / "photos", per_class=8)
    for number, (name, (content, _)) in enumerate(seeds().items()):
        (folder / ("cat", "dog")[number % 2] / name).write_bytes(content)
    shutil.copy(folder / "cat/001.png", folder / "dog/other.png")
    (folder / "dog /").mkdir()
    draw(77).save(folder / "dog /x.png")
    validate_folder(folder, None, home / "reports")
    for number in range(4):
        shutil.move(folder / f"cat/00{number}.png", folder / f"dog/moved {number}.png")
        (folder / f"dog/00{number}.png").unlink()
    validate_folder(folder, None, home / "reports")
    return home / "reports"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", ["validation", "changes"])
def test_what_was_found_on_a_phone(judged: Path, browser: Browser, page: str, theme: str) -> None:
    browser.errors.clear()
    browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open((judged / f"{page}.html").as_uri())
    seen = browser.look()
    assert browser.errors == []
    assert seen["broken"] == []
    assert seen["pictures"] > 3
    assert seen["too_wide"] <= 0
    assert seen["is_dark"] == (theme == "dark")
