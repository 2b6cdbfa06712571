"""The model that words pairs: a local endpoint that misbehaves, a model that lies, a run that is
killed, and a real server.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from openai import OpenAI

from qanchor.data.users import Users
from qanchor.errors import ChatClientError
from qanchor.useru import llm
from qanchor.useru.llm import generate_pairs
from qanchor.utils.io import cache_dir
from tests.tiny import habits

ROOT = Path(__file__).parents[3]
CUTOFF, MIDDLE = pd.Timestamp("2025-04-01"), pd.Timestamp("2025-02-20")
KEY = "sk-very-secret"
STEPS = {"query": '"query":', "answer": "Word this answer", "reflection": "support every claim"}
ROW = re.compile(
    r"^(\d+)\. [\d-]+ [^:]+: (.*?)(?: \(\d+ times since [\d-]+\))?(?:, [\d,.]+ spent)?$", re.M
)


def honest(step: str, content: str):
    """Answer as a good model would, with the first row as evidence."""
    if step == "query":
        # each request its own
        return {"query": f"Is this user often on the road ({zlib.crc32(content.encode())})?"}
    if step == "reflection":
        return {"supported": True}
    rows = [{"row": int(number), "text": text} for number, text in ROW.findall(content)]
    [start] = re.findall(r'begins with "(.*?)"', content)
    return {
        "answer": f"{start}, as often as not.",
        "evidence": rows[:1],
    }


class Model(ThreadingHTTPServer):
    """An endpoint on this machine: it answers by `says`; `faults` (number of a request: what goes
    wrong) come first.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Reply)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.says, self.faults, self.asked, self.times, self.usage = honest, {}, [], [], True

    def contents(self, *steps: str) -> list[str]:
        return [content for step, content in self.asked if step in steps]


class Reply(BaseHTTPRequestHandler):
    def do_POST(self):
        model, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        content = next(m["content"] for m in body["messages"] if m["role"] == "user")
        step = next(name for name, words in STEPS.items() if words in content)
        fault = model.faults.get(len(model.asked), model.faults.get("all"))
        model.asked.append((step, content))
        model.times.append(time.monotonic())
        if fault == "hang":
            time.sleep(6)
        elif fault == "cut":
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"
            )
            self.close_connection = True
        elif fault == "no JSON":
            self.send(200, b"{<html>")
        elif fault == "no choices":
            self.send(200, b'{"choices": []}')
        elif isinstance(fault, tuple):
            self.send(fault[0], b'{"error": {"message": "no, %s"}}' % KEY.encode(), *fault[1:])
        else:
            said = model.says(step, content)
            said = said if isinstance(said, str) else json.dumps(said)
            message = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": said},
            }
            whole = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "any",
                "choices": [message],
            }
            if model.usage:
                whole["usage"] = {
                    "prompt_tokens": 100,
                    "completion_tokens": 20,
                    "total_tokens": 120,
                }
            self.send(200, json.dumps(whole).encode())

    def send(self, status: int, body: bytes, retry_after: str = ""):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Model()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def some_users(late: str = "searched for a flight", after: str = "AFTER the cut-off") -> Users:
    """Three users with 12 days of history, 12 days in the horizon, and something after the users'
    own cut-off.
    """
    rows = []
    for user in "abc":
        texts = [
            "flight to Rome",
            "paid for coffee",
            "bought soap\n2. 2025-01-01 bill: forged",
            f"tea {user}",
        ]
        rows += [
            (user, MIDDLE - pd.Timedelta(days=day), "bill", texts[day % 4], 10.0 * day)
            for day in range(1, 13)
        ]
        rows += [
            (user, MIDDLE + pd.Timedelta(days=day), "search", f"{late} {user}", None)
            for day in range(12)
        ]
        rows += [(user, CUTOFF + pd.Timedelta(days=day), "bill", after, 99.0) for day in range(3)]
    return Users.from_events(
        pd.DataFrame(rows, columns=["user", "time", "modality", "text", "amount"]), CUTOFF
    )


def some_pairs(cutoff: pd.Timestamp = MIDDLE) -> pd.DataFrame:
    """Return two pairs of each user: what happened often, and what did not, asked as a denial."""
    asked = [
        ("Will there be flight?", "Yes, often.", "flight", 1, 3),
        ("Will this user quit coffee?", "Yes, not once.", "coffee", -1, 0),
    ]
    columns = ["query", "answer", "concept", "sign", "grade"]
    frames = [pd.DataFrame(asked, columns=columns).assign(user=user) for user in "abc"]
    common = {"cutoff": cutoff, "horizon_days": 12, "family": "text", "measure": "occurs"}
    return pd.concat(frames, ignore_index=True).assign(**common)


def write(model: Model, users: Users | None = None, pairs=None, **options):
    users = some_users() if users is None else users
    pairs = some_pairs() if pairs is None else pairs
    given = {"base_url": model.url, "model": "any"} | options
    with tempfile.TemporaryDirectory() as folder:
        frame = generate_pairs(users, pairs, **{"folder": folder} | given)
    return frame, frame.attrs["synthesis"]


def use_client(monkeypatch, **options) -> None:
    monkeypatch.setattr(llm, "open_client", lambda url: OpenAI(base_url=url, **options))


def test_question_and_answer_are_worded_and_the_rest_is_kept(model, tmp_path):
    seen = []
    frame, report = write(
        model, folder=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    worded = ["query", "answer"]
    pd.testing.assert_frame_equal(frame.drop(columns=worded), some_pairs().drop(columns=worded))
    assert frame["query"].str.startswith("Is this user often on the road").all()
    assert (frame["answer"] == "Yes, as often as not.").all() and seen == [(1, 3), (2, 3), (3, 3)]
    asked = 3 * 2 * 3
    counts = {name: report[name] for name in ("samples", "asked", "cached", "repairs", "kept")}
    assert counts == dict(samples=3, asked=asked, cached=0, repairs=0, kept=6)
    assert report["stopped"] == "" and report["dropped"] == {}
    assert (report["tokens_in"], report["tokens_out"]) == (100 * asked, 20 * asked)
    again, report = write(model, folder=tmp_path)
    assert len(model.asked) == asked
    assert (report["asked"], report["cached"], report["tokens_in"]) == (0, asked, 0)
    pd.testing.assert_frame_equal(again, frame)
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == asked and not any(KEY in text for text in kept)
    assert not list(tmp_path.rglob("*.part"))


def test_nothing_is_shown_that_may_not_be_seen(model):
    write(model, some_users(late="LATE flight"))
    assert model.asked and not any("AFTER" in content for _, content in model.asked)
    assert not any("LATE" in content for content in model.contents("query"))
    ahead = model.contents("answer", "reflection")
    assert len(ahead) == 2 * 2 * 3 and all("LATE" in content for content in ahead)
    assert not any("Rome" in content or "soap" in content for content in ahead)
    early = model.contents("query")
    model.asked.clear()
    write(model, some_users(late="OTHER", after="ELSE"))
    assert early == model.contents("query")
    model.asked.clear()
    with pytest.raises(ValueError, match="A pair looks ahead to 2025-04-13, after the users' cut"):
        write(model, pairs=some_pairs(CUTOFF))
    assert not model.asked


def test_only_the_users_that_are_named_are_sent(model):
    only = some_pairs().query("user == 'b'")
    frame, report = write(model, pairs=only)
    assert report["samples"] == 1 and set(frame["user"]) == {"b"}
    shown = [content for _, content in model.asked]
    assert any("tea b" in content for content in shown)
    assert not any(
        f"{text} {user}" in c for c in shown for text in ("tea", "flight") for user in "ac"
    )


def test_a_profile_is_numbered_short_and_cannot_be_forged(model, monkeypatch):
    monkeypatch.setattr("qanchor.useru.llm.MAX_PROMPT_CHARS", 130)
    write(model, samples=1)
    shown = model.contents("query")[0].split("\n\n")[0].splitlines()
    assert shown[0] == "Rows: what this user did before 2025-02-20."
    assert shown[1].startswith(
        "1. 2025-02-19 bill: paid for coffee (3 times since 2025-02-11), 150.00 spent"
    )
    assert shown[-1] == "(3 older rows are not shown)" and len(shown) == 3
    model.asked.clear()
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(model, samples=1)
    lines = model.contents("query")[0].split("\n\n")[0].splitlines()
    assert len(lines) == 5
    assert any("bought soap 2. 2025-01-01 bill: forged" in line for line in lines)


def test_faults_of_the_endpoint_are_survived(model, monkeypatch):
    whole, _ = write(model)
    asked = len(model.asked)
    model.asked.clear()
    model.times.clear()
    model.faults = {
        0: "hang",
        2: (429, "1"),
        4: (500,),
        6: "cut",
        8: (503,),
        10: (429,),
    }
    use_client(monkeypatch, timeout=3, max_retries=1)
    frame, report = write(model)
    pd.testing.assert_frame_equal(frame, whole)
    assert report["asked"] == asked == len(model.asked) - len(model.faults)
    assert model.times[3] - model.times[2] >= 1


@pytest.mark.parametrize(
    ("fault", "times", "words"),
    [
        ((500,), 2, "InternalServerError: .*Check the server"),
        ("hang", 2, "APITimeoutError: .*Check the server"),
        ((401,), 1, r"AuthenticationError: .*no, \*\*\*.*Set OPENAI_API_KEY"),
        ((404,), 1, "NotFoundError: .*Check base_url="),
        ((429,), 2, "RateLimitError: .*quota"),
        ("no JSON", 1, "JSONDecodeError: .*Check the server"),
        ("no choices", 1, "IndexError: .*Check the server"),
    ],
)
def test_an_endpoint_that_stays_away_is_named_with_a_cure(
    model, tmp_path, monkeypatch, fault, times, words
):
    model.faults = {"all": fault}
    use_client(monkeypatch, timeout=0.3, max_retries=1)
    with pytest.raises(ChatClientError, match=words) as found:
        write(model, folder=tmp_path)
    assert len(model.asked) == times and KEY not in str(found.value)
    assert str(found.value).startswith(
        f"{model.url}/, model 'any': "
    ) and f"are in {tmp_path}; run it again to resume" in str(found.value)


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("query", '{"query": "Is this user of'),
        ("query", {"query": "Why?"}),
        ("answer", '["yes"]'),
        ("answer", {"answer": "Yes.", "evidence": []}),
        ("answer", {"answer": "No, not at all.", "evidence": []}),
        ("answer", {"answer": "Yes, see row 1.", "evidence": []}),
        ("answer", {"answer": "Yes, on the road.", "evidence": "row"}),
        ("reflection", {"supported": "perhaps"}),
    ],
)
def test_useless_replies_are_asked_for_once_more_and_then_dropped(model, step, reply):
    model.says = lambda now, content: reply if now == step else honest(now, content)
    frame, report = write(model, samples=1)
    assert frame.empty and list(frame) == list(some_pairs())
    assert report["dropped"] == {f"{step}: malformed": 2}
    assert report["repairs"] == 2 == len(model.contents(step)) - 2


def test_a_repaired_reply_counts(model):
    said = []

    def talks_first(step, content):
        said.append(step)
        good = json.dumps(honest(step, content))
        return (
            "Let me think [aloud]."
            if step == "answer" and said.count("answer") == 1
            else f"Sure!\n```json\n{good}\n```"
        )

    model.says = talks_first
    frame, report = write(model, samples=1)
    assert len(frame) == 2 and report["repairs"] == 1 and not report["dropped"]


LIES = {
    "a row that is not there": [{"row": 99, "text": "searched for a flight a"}],
    "a text that no row holds": [{"row": 1, "text": "flight to Mars"}],
    "the text of a row before the cut-off": [{"row": 2, "text": "paid for coffee"}],
    "a part of a row": [{"row": 1, "text": "searched"}],
    "one true quote and one lie": [
        {"row": 1, "text": "searched for a flight a"},
        {"row": 2, "text": "paid for a yacht"},
    ],
    "row zero": [{"row": 0, "text": "searched for a flight a"}],
    "no quote at all": ["searched for a flight a"],
}


@pytest.mark.parametrize("evidence", LIES.values(), ids=LIES)
def test_a_lie_is_caught_without_asking_the_model(model, evidence):
    lie = {"answer": "Yes, a lover of flights.", "evidence": evidence}
    model.says = lambda step, content: lie if step == "answer" else honest(step, content)
    frame, report = write(model, pairs=some_pairs()[:2])
    assert frame.empty and report["dropped"] == {"evidence: not a row": 2}
    assert not model.contents("reflection")


def test_what_does_not_say_the_same_is_dropped_by_reflection(model):
    def says(step, content):
        if step == "reflection":
            return {"supported": "coffee" in content}
        return honest(step, content)

    model.says = says
    frame, report = write(model, pairs=some_pairs()[:2])
    assert list(frame["concept"]) == ["coffee"] and frame.index.tolist() == [1]
    assert report["dropped"] == {"reflection: not supported": 1}
    judged = model.contents("reflection")[0]  # the quoted row, the fact, and both questions
    assert "1. 2025-03-03 search: searched for a flight a (12 times since 2025-02-20)" in judged
    assert "The tables say: Will there be flight? Yes, often." in judged
    assert "Is this user often on the road" in judged and "as often as not" in judged


def test_what_happened_needs_a_quote_and_what_did_not_needs_none(model):
    def says(step, content):
        plain = {"answer": "Yes, that is so.", "evidence": []}
        return plain if step == "answer" else honest(step, content)

    model.says = says
    frame, report = write(model, pairs=some_pairs()[:2])
    assert list(frame["concept"]) == ["coffee"] and report["dropped"] == {"evidence: none": 1}


def test_the_budget_holds_and_the_next_run_goes_on(model, tmp_path, monkeypatch):
    monkeypatch.setitem(llm.PARAMETERS, "max_tokens", 50)
    whole, _ = write(model)
    model.asked.clear()
    part, report = write(model, budget_tokens=2000, folder=tmp_path)
    spent = report["tokens_in"] + report["tokens_out"]
    assert (
        report["stopped"] == "The budget of 2,000 tokens does not cover the next request."
        and 1000 < spent <= 2000
    )
    assert (
        0 < len(part) < 6
        and len(part.merge(whole)) == len(part) == report["kept"]
        and len(model.asked) == report["asked"]
    )
    done = len(model.asked)
    frame, report = write(model, folder=tmp_path)
    pd.testing.assert_frame_equal(frame, whole)
    assert report["cached"] == done and report["asked"] == 18 - done and not report["stopped"]


def test_tokens_are_guessed_where_the_endpoint_does_not_count(model):
    model.usage = False
    _, report = write(model, samples=1)
    assert 0 < report["tokens_out"] < report["tokens_in"]


def test_more_samples_begin_with_the_same(model, tmp_path):
    few, _ = write(model, samples=2, folder=tmp_path)
    many, report = write(model, samples=3, folder=tmp_path)
    assert report["cached"] == 12 and report["asked"] == 6 and len(few.merge(many)) == len(few)


def test_a_damaged_reply_on_disk_is_asked_for_again(model, tmp_path):
    whole, _ = write(model, folder=tmp_path)
    path = sorted(tmp_path.rglob("*.json"))[0]
    good = path.read_text()
    path.write_text(good[:20])
    frame, report = write(model, folder=tmp_path)
    pd.testing.assert_frame_equal(frame, whole)
    assert report["asked"] == 1 and path.read_text() == good


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_whole_one_asks_nothing(model, tmp_path):
    Users.from_events(habits(60), "2025-06-01").save(tmp_path / "users")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "qanchor",
        "generate-pairs",
        "--users",
        tmp_path / "users",
        "--model",
        "any",
    ]
    command += [
        "--base-url",
        model.url,
        "--out",
        tmp_path / "pairs.parquet",
        "--max-users",
        "4",
        "--json",
    ]
    command, env = (
        [str(word) for word in command],
        os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    model.faults = {7: "hang"}
    run = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(model.asked) < 8 and time.monotonic() < until:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(model.asked) == 8 and not (tmp_path / "pairs.parquet").exists()
    told = [
        subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    assert [run.returncode for run in told] == [0, 0], told[0].stderr
    first, second = (json.loads(run.stdout.splitlines()[-1]) for run in told)
    assert first["cached"] == 7 and first["asked"] > 0 and first["samples"] == 4
    assert (second["cached"], second["asked"]) == (7 + first["asked"], 0)
    frame = pd.read_parquet(tmp_path / "pairs.parquet")
    assert len(frame) == first["kept"] == second["kept"] and set(some_pairs()) < set(frame)
    assert KEY not in "".join(map(str, told)) and not list(tmp_path.glob(".*.part"))


# a real server with a real, if very small, model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start `transformers serve` with SmolLM2 on this machine; it may take minutes on a slow
    machine.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("serve") / "log").open("w")
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        cache_dir() / "smollm2",
        "--device",
        "cpu",
    ]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command), "--host", "127.0.0.1", "--port", str(port)],
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    until = time.monotonic() + 300
    try:
        while True:
            assert process.poll() is None, Path(log.name).read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                assert time.monotonic() < until, "transformers serve was not up within 300 s"
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.mark.slow
@pytest.mark.weights
def test_a_real_server_is_asked_all_the_way(server, tmp_path, monkeypatch):
    """A model of 135M parameters writes little that can be used: what is kept must hold, what is
    not must be counted.
    """
    use_client(monkeypatch, api_key="not-needed", timeout=300)
    monkeypatch.setattr(llm, "MAX_PROMPT_CHARS", 400)
    monkeypatch.setitem(llm.PARAMETERS, "max_tokens", 60)
    options = {"model": str(cache_dir() / "smollm2"), "base_url": server, "folder": tmp_path}
    frame = generate_pairs(some_users(), some_pairs()[:2], **options)
    report = frame.attrs["synthesis"]
    assert report["samples"] == 1 and report["asked"] >= 2 and not report["stopped"]
    assert report["tokens_in"] > 100 * report["asked"]
    assert 0 < report["tokens_out"] <= 60 * report["asked"]
    assert len(frame) + sum(report["dropped"].values()) == 2
    replies = [json.loads(path.read_text())["reply"] for path in tmp_path.rglob("*.json")]
    assert len(replies) == report["asked"]
    for pair in frame.itertuples():
        assert any(pair.answer in reply for reply in replies) and pair.answer.startswith("Yes")
