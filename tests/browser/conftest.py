"""A real JupyterLab on this machine and a real Chromium in front of it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from tests.programs import find_program

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHOTS = HERE / "shots"
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
FLAGS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
# pages are put together and drawn on the processor: done by SwiftShader, that took most of the time
# of these tests
FLAGS += [
    "--disable-gpu-compositing",
    "--disable-gpu-rasterization",
    "--disable-accelerated-2d-canvas",
]
QUIET = {
    "news_url": None,
    "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
}  # the server asks nobody outside
READY = (
    "document.querySelector('.lens')?.dataset.ready === 'true' && "
    "document.querySelector('.lens').dataset.moving === 'false'"
)
# a lens of an earlier run of its cell, that JupyterLab has still to take away
STALE = ".lens[data-stale]"
STILL = """() => {
    const {x, y, width} = document.querySelector('.lens-canvas').getBoundingClientRect();
    const now = [x, y, width].join(), before = window.wasAt ?? ['', 0];
    window.wasAt = [now, before[0] === now ? before[1] + 1 : 0];
    return window.wasAt[1] >= 30; }"""


class Server:
    """JupyterLab on 127.0.0.1 over a copy of the lessons, so that no test writes into the
    repository.
    """

    def __init__(self, folder: Path):
        self.folder, self.token = folder, secrets.token_hex(16)
        (folder / "work").mkdir()
        shutil.copytree(
            ROOT / "notebooks",
            folder / "work" / "notebooks",
            ignore=shutil.ignore_patterns("out", ".*"),
        )
        if (ROOT / "data").exists():
            (folder / "work" / "data").symlink_to(ROOT / "data")
        for name in ("config", "settings", "workspaces", "runtime"):
            (folder / name).mkdir()
        (folder / "config" / "jupyter_server_config.json").write_text(json.dumps({"LabApp": QUIET}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self) -> None:
        aside = {
            "JUPYTER_CONFIG_DIR": self.folder / "config",
            "JUPYTERLAB_SETTINGS_DIR": self.folder / "settings",
            "JUPYTERLAB_WORKSPACES_DIR": self.folder / "workspaces",
            "JUPYTER_RUNTIME_DIR": self.folder / "runtime",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={self.port}",
        ]
        command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"]
        command += [f"--ServerApp.root_dir={self.folder / 'work'}"]
        self.log = (self.folder / "log.txt").open("w")
        env = {**os.environ, **{name: str(value) for name, value in aside.items()}}
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log)
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=2)
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.25)
        raise RuntimeError(f"JupyterLab did not start:\n{chr(10).join(self.tail())}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def tail(self) -> list[str]:
        return (self.folder / "log.txt").read_text().splitlines()[-12:]

    def theme(self, dark: bool) -> None:
        """Set the theme of pages opened from now on (and ask for no news)."""
        self._set(
            "apputils-extension/themes", theme="JupyterLab Dark" if dark else "JupyterLab Light"
        )
        self._set("apputils-extension/notification", fetchNews="false", checkForUpdates=False)

    def _set(self, plugin: str, **settings) -> None:
        path = self.folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    def write(self, name: str, cells: list[str]) -> str:
        """Make a notebook of code cells; give its path below the root."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(book, self.folder / "work" / "notebooks" / name)
        return f"notebooks/{name}"


class Notebook:
    """One notebook in one browser page."""

    def __init__(self, page, server: Server, path: str):
        self.page, self.server, self.requests, self.complaints = page, server, [], []
        page.set_default_timeout(90_000)  # a busy machine is no failure
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"{server.url}/lab/tree/{path}?token={server.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector(
            '.jp-NotebookPanel [data-status="idle"], '
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        )
        # a cell that is run before the kernel is there makes JupyterLab ask which one to take
        page.wait_for_function(
            "/(?<!No Kernel) \\| Idle/.test(document.querySelector('#jp-main-statusbar').innerText)"
        )

    def cell(self, number: int):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def run(self, number: int, timeout: float = 120) -> str:
        """Run one code cell with Ctrl+Enter, wait for its end, and give what it printed."""
        cell, end, pressed = self.cell(number), time.monotonic() + timeout, 0.0
        if (
            hidden := cell.locator(".jp-Cell-inputWrapper .jp-Placeholder")
        ).count():  # a hidden solution
            hidden.first.click()
        cell.locator(".lens").evaluate_all(
            "lenses => lenses.forEach((lens) => (lens.dataset.stale = true))"
        )
        prompt = cell.locator(".jp-InputArea-prompt").first
        old = prompt.inner_text()
        while (
            "*" in (text := prompt.inner_text()) or text == old or not any(map(str.isdigit, text))
        ):
            assert time.monotonic() < end, f"cell {number} still runs after {timeout} s"
            if (
                "*" not in text and time.monotonic() - pressed > 5
            ):  # a key pressed before the kernel is there is lost
                if (dialog := self.page.locator(".jp-Dialog")).count():
                    pytest.fail(
                        f"JupyterLab asks: {dialog.first.inner_text()}\n"
                        + "\n".join(self.server.tail())
                    )
                cell.locator(".cm-content").click()
                self.page.keyboard.press(
                    "Control+Enter"
                )  # Shift+Enter would scroll to the next cell, at a time of its own
                pressed = time.monotonic()
            self.page.wait_for_timeout(50)
        self.wait(f"!document.querySelector('{STALE}')")
        texts = cell.locator(".jp-OutputArea-output pre")
        return "\n".join(texts.all_inner_texts()).strip()

    def wait(self, condition: str, timeout: float = 90) -> None:
        """Wait until a condition holds in the page; if it never does, keep a screenshot and say
        what the view says.
        """
        from playwright.sync_api import TimeoutError as TooLong

        try:
            self.page.wait_for_function(condition, timeout=timeout * 1000)
        except TooLong:
            path = self.shot("failed")
            view = self.page.evaluate(
                "JSON.stringify({...document.querySelector('.lens')?.dataset})"
            )
            said = [*self.complaints, *self.server.tail()]
            pytest.fail(
                f"never came true: {condition}\nview: {view}\nscreenshot: {path}\n"
                + "\n".join(said)
            )

    def settled(self, timeout: float = 90) -> None:
        """Wait until the map is there and nothing moves, neither on it nor around it: JupyterLab
        scrolls when a cell grows.
        """
        self.wait(READY, timeout)
        self.wait(STILL)

    def state(self) -> dict:
        """What the view itself says of its map: places of the points in pixels, and so on."""
        return self.page.evaluate(
            """() => { const root = document.querySelector('.lens'), s = root.lens.state();
            return {pixels: Array.from(s.pixels), shown: Array.from(s.shown),
                    chosen: Array.from(s.selected), arrows: s.arrows,
                    picked: s.picked, data: {...root.dataset}}; }"""
        )

    def ask(self, query: str) -> None:
        box = self.page.locator(".lens-query")
        box.fill(query)
        box.press("Enter")

    def asked(self, query: str, timeout: float = 90) -> str:
        """Wait for the answer to `query`; give the sentence."""
        self.wait(f"document.querySelector('.lens').dataset.query === {json.dumps(query)}", timeout)
        self.settled()
        return self.page.locator(".lens-sentence").inner_text()

    def check(self) -> None:
        """No script failed in the page, and nothing was asked of another host."""
        assert self.complaints == []
        hosts = {
            urlsplit(url).netloc for url in self.requests if not url.startswith(("data:", "blob:"))
        }
        assert hosts == {urlsplit(self.server.url).netloc}, "something was asked of another host"

    def close(self) -> None:
        """Check the page, and close it."""
        self.check()
        self.page.close()

    def shot(self, name: str) -> Path:
        SHOTS.mkdir(exist_ok=True)
        # on the screen of a workbench the map is above the page that a test looks at
        if (seen := self.page.locator(".lens:visible:not(.bench *)")).count():
            seen.first.scroll_into_view_if_needed()
        path = SHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium or Chrome, headless."""
    path = find_program("chromium")
    if path is None:
        pytest.skip("needs chromium: install the system's package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One JupyterLab for all browser tests."""
    server = Server(tmp_path_factory.mktemp("lab"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def open_notebook(chromium, server):
    """Open a notebook: `open_notebook(path, width=1280, height=900, dark=False)`; close it with
    `.page.close()`.
    """

    def opened(path: str, width: int = 1280, height: int = 900, dark: bool = False) -> Notebook:
        server.theme(dark)
        return Notebook(
            chromium.new_page(viewport={"width": width, "height": height}), server, path
        )

    return opened
