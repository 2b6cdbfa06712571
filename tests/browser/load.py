"""`make load`: eight notebooks on one JupyterLab, four of them looked at in four browser tabs, all
asked at once.

It takes minutes and is no part of `make test`.
"""

import json
import time
import urllib.request

import psutil
from fake import QUERIES
from jupyter_client import BlockingKernelClient

LENS = """from fake import FakeLens, make_frame
from qanchor.widgets import QueryLens
lens = QueryLens(make_frame(300), FakeLens(300, seconds=0.02))"""
TABS, UNSEEN, ROUNDS = 4, 4, 25
ROOM = 1.1  # how much of its memory a kernel may gain by being asked on and on


class Kernel:
    """A notebook's kernel that no tab looks at, spoken to as JupyterLab does."""

    def __init__(self, server, name: str):
        told = {
            "path": f"notebooks/{name}",
            "name": name,
            "type": "notebook",
            "kernel": {"name": "python3"},
        }
        head = {"Authorization": f"token {server.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{server.url}/api/sessions", json.dumps(told).encode(), head
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            self.id = json.load(answer)["kernel"]["id"]
        self.client = BlockingKernelClient(
            connection_file=str(server.folder / "runtime" / f"kernel-{self.id}.json")
        )
        self.client.load_connection_file()
        self.client.start_channels()

    def run(self, code: str) -> str:
        """Run code, and give what it prints."""
        said = []
        hear = lambda message: said.append(message["content"].get("text", ""))  # noqa: E731
        reply = self.client.execute_interactive(code, output_hook=hear, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(said)


def memory(server) -> dict[int, float]:
    """Say how much each process of the host holds, in MB; the server itself first."""
    host = psutil.Process(server.process.pid)
    kernels = [
        child for child in host.children() if "ipykernel_launcher" in " ".join(child.cmdline())
    ]
    return {process.pid: process.memory_info().rss / 1e6 for process in (host, *kernels)}


def test_eight_notebooks_and_four_tabs(server, open_notebook):
    began, before = time.monotonic(), set(memory(server))
    unseen = [
        Kernel(server, server.write(f"load-{n}.ipynb", [LENS]).split("/")[1]) for n in range(UNSEEN)
    ]
    books = [
        open_notebook(
            server.write(
                f"tab-{n}.ipynb",
                [f"{LENS}\nlens", f"for n in range({ROUNDS}): lens.ask(f'on {{n}}')"],
            )
        )
        for n in range(TABS)
    ]
    for kernel in unseen:
        kernel.client.wait_for_ready(timeout=120)
        kernel.run(LENS)
    for book in books:
        book.run(0)
    for book in books:
        book.ask(QUERIES[0])
    for kernel in unseen:
        assert "of 300 users stand" in kernel.run(f"print(lens.ask({QUERIES[0]!r}))")
    for book in books:
        assert "of 300 users stand" in book.asked(QUERIES[0])
    first = {
        pid: held
        for pid, held in memory(server).items()
        if pid not in before or pid == server.process.pid
    }
    assert len(first) == 1 + UNSEEN + TABS
    for kernel in unseen:
        kernel.run(f"for n in range({ROUNDS}): lens.ask(f'on {{n}}')")
    for book in books:
        book.run(1)
    for book in books:
        book.ask(QUERIES[1])
        assert "of 300 users stand" in book.asked(QUERIES[1])
    last = memory(server)
    host, *kernels = ((first[pid], last[pid]) for pid in first)
    told = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in kernels)
    print(
        f"\nserver {host[0]:.0f} to {host[1]:.0f} MB, kernels {told} MB, "
        f"{time.monotonic() - began:.0f} s"
    )
    assert all(b < ROOM * a for a, b in (host, *kernels)), "memory grows with every question"
    for book in books:
        book.close()
    for kernel in unseen:
        kernel.client.stop_channels()
