"""The model that writes pairs: a local endpoint that misbehaves, a model that lies, a run that is
killed, and a real server.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from openai import OpenAI

from qanchor.data.reading import load_users
from qanchor.data.users import Users
from qanchor.errors import ChatClientError
from qanchor.useru.llm import generate_pairs
from qanchor.useru.pairs import COLUMNS, make_pairs
from qanchor.useru.topics import TOPICS, by_name
from qanchor.utils.io import cache_dir

ROOT = Path(__file__).parents[3]
CUTOFF, MIDDLE = pd.Timestamp("2025-04-01"), pd.Timestamp("2025-02-20")
KEY = "sk-very-secret"
STEPS = {
    "topics": "Which of these topics",
    "query": '"query":',
    "answer": '"degree" runs',
    "reflection": "support every claim",
}
ROW = re.compile(
    r"^(\d+)\. [\d-]+ [^:]+: (.*?)(?: \(\d+ times since [\d-]+\))?(?:, [\d,.]+ spent)?$", re.M
)


def honest(step: str, content: str):
    """Answer as a good model would: two topics that are there, one that is not, and the first row
    as evidence.
    """
    if step == "topics":
        return ["travel", " COFFEE", "nonsense", 3]
    if step == "query":
        return {
            "query": f"Is this user often on the road ({zlib.crc32(content.encode())})?"
        }  # each user its own
    if step == "reflection":
        return {"supported": True}
    number, text = ROW.search(content).groups()
    return {
        "answer": "Clearly so, as often as not.",
        "degree": 3,
        "evidence": [{"row": int(number), "text": text}],
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


def write(model: Model, users: Users | None = None, **options) -> tuple[pd.DataFrame, dict]:
    options = {
        "base_url": model.url,
        "model": "any",
        "cutoffs": [MIDDLE],
        "future_share": 0.5,
    } | options
    frame = generate_pairs(some_users() if users is None else users, **options)
    return frame, frame.attrs["synthesis"]


def test_it_gives_the_frame_of_make_pairs(model, tmp_path):
    seen = []
    frame, report = write(
        model, folder=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    twin = make_pairs(some_users(), cutoffs=[MIDDLE])
    assert (
        list(frame) == COLUMNS
        and frame.dtypes.equals(twin.dtypes)
        and pd.concat([twin, frame]).notna().all(axis=None)
    )
    assert (
        len(frame) == 6
        and set(frame["user"]) == set("abc")
        and (frame["cutoff"] == MIDDLE).all()
        and (frame["grade"] == -1).all()
    )
    assert set(frame["topic"]) == {"travel", "coffee"} and set(frame["kind"]) == {
        "profile",
        "future",
    }
    assert frame.groupby("user")["kind"].nunique().eq(2).all() and seen == [(1, 3), (2, 3), (3, 3)]
    asked = 3 * (1 + 2 * 3)
    counts = {
        name: report[name]
        for name in (
            "samples",
            "asked",
            "cached",
            "repairs",
            "kept",
            "stopped",
            "dropped",
        )
    }
    assert counts == dict(
        samples=3, asked=asked, cached=0, repairs=0, kept=6, stopped="", dropped={}
    )
    assert (report["tokens_in"], report["tokens_out"], report["tokens_guessed"]) == (
        100 * asked,
        20 * asked,
        0,
    )
    again, report = write(model, folder=tmp_path)
    assert len(model.asked) == asked and (
        report["asked"],
        report["cached"],
        report["tokens_in"],
    ) == (0, asked, 0)
    pd.testing.assert_frame_equal(again, frame)
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert (
        len(kept) == asked
        and not any(KEY in text for text in kept)
        and not list(tmp_path.rglob("*.part"))
    )


def test_nothing_is_shown_that_may_not_be_seen(model):
    write(model, some_users(late="LATE flight"))
    assert model.asked and not any("AFTER" in content for _, content in model.asked)
    assert not any("LATE" in content for content in model.contents("topics", "query"))
    ahead = [content for content in model.contents("answer", "reflection") if "LATE" in content]
    assert len(ahead) == 2 * 3 and not any(
        "Rome" in content or "soap" in content for content in ahead
    )
    early = [content for step, content in model.asked if "LATE" not in content]
    model.asked.clear()
    write(model, some_users(late="OTHER", after="ELSE"))
    assert early == [content for step, content in model.asked if "OTHER" not in content]
    model.asked.clear()
    frame, _ = write(model, cutoffs=[CUTOFF])
    assert set(frame["kind"]) == {"profile"} and not any(
        "AFTER" in content for _, content in model.asked
    )
    with pytest.raises(
        ValueError,
        match=r"cut-off 2025-04-02 is after the users' own, 2025-04-01. Choose earlier ones",
    ):
        write(model, cutoffs=["2025-04-02"])


def test_a_profile_is_numbered_short_and_cannot_be_forged(model):
    write(model, samples=1, prompt_chars=130)
    shown = model.contents("topics")[0].split("\n\n")[0].splitlines()
    assert shown[0] == "Rows: what this user did before 2025-02-20."
    assert shown[1].startswith(
        "1. 2025-02-19 bill: paid for coffee (3 times since 2025-02-11), 150.00 spent"
    )
    assert shown[-1] == "(3 older rows are not shown)" and len(shown) == 3
    model.asked.clear()
    write(model, samples=1)
    lines = model.contents("topics")[0].split("\n\n")[0].splitlines()
    assert len(lines) == 5 and any(
        "bought soap 2. 2025-01-01 bill: forged" in line for line in lines
    )


def test_faults_of_the_endpoint_are_survived(model):
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
    client = OpenAI(base_url=model.url, timeout=3, max_retries=1)
    frame, report = write(model, client=client)
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
def test_an_endpoint_that_stays_away_is_named_with_a_cure(model, tmp_path, fault, times, words):
    model.faults = {"all": fault}
    with pytest.raises(ChatClientError, match=words) as found:
        client = OpenAI(base_url=model.url, timeout=0.3, max_retries=1)
        write(model, client=client, folder=tmp_path)
    assert len(model.asked) == times and KEY not in str(found.value)
    assert str(found.value).startswith(
        f"{model.url}/, model 'any': "
    ) and f"are in {tmp_path}; run it again to resume" in str(found.value)


def test_an_endpoint_must_be_named(model):
    with pytest.raises(ValueError, match="Neither base_url nor client is given"):
        write(model, base_url=None)


@pytest.mark.parametrize(
    ("step", "reply", "reason"),
    [
        ("topics", "I like them all.", "topics: malformed"),
        ("topics", ["weather", 7], "topics: none known"),
        ("query", '{"query": "Is this user of', "query: malformed"),
        ("answer", '["yes"]', "answer: malformed"),
        ("answer", {"answer": "Yes.", "degree": 4, "evidence": []}, "answer: malformed"),
        (
            "answer",
            {"answer": "Clearly so, see row 1.", "degree": 4, "evidence": []},
            "answer: malformed",
        ),
        (
            "answer",
            {"answer": "Clearly on the road.", "degree": True, "evidence": []},
            "answer: malformed",
        ),
        ("reflection", {"supported": "perhaps"}, "reflection: malformed"),
    ],
)
def test_useless_replies_are_asked_for_once_more_and_then_dropped(model, step, reply, reason):
    model.says = lambda now, content: reply if now == step else honest(now, content)
    frame, report = write(model, samples=1)
    lost = 1 if step == "topics" else 2
    assert frame.empty and list(frame) == COLUMNS and report["dropped"] == {reason: lost}
    assert (
        report["repairs"] == (0 if "known" in reason else lost) == len(model.contents(step)) - lost
    )


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
    "a row that is not there": [{"row": 99, "text": "flight to Rome"}],
    "a text that no row holds": [{"row": 1, "text": "flight to Mars"}],
    "the text of another row": [{"row": 2, "text": "paid for coffee"}],
    "a part of a row": [{"row": 1, "text": "paid"}],
    "one true quote and one lie": [
        {"row": 1, "text": "paid for coffee"},
        {"row": 2, "text": "paid for a yacht"},
    ],
    "row zero": [{"row": 0, "text": "tea"}],
    "no quote at all": ["paid for coffee"],
}


@pytest.mark.parametrize("evidence", LIES.values(), ids=LIES)
def test_a_lie_is_caught_without_asking_the_model(model, evidence):
    lie = {"answer": "Clearly a lover of coffee.", "degree": 4, "evidence": evidence}
    model.says = lambda step, content: lie if step == "answer" else honest(step, content)
    frame, report = write(model, samples=1, future_share=0.0)
    assert (
        frame.empty
        and report["dropped"] == {"evidence: not a row": 2}
        and not model.contents("reflection")
    )


@pytest.mark.parametrize(
    "text", ["paid for coffee", "bill: paid for coffee (3 times since 2025-02-11)"]
)
def test_a_true_quote_that_proves_nothing_is_dropped_by_reflection(model, text):
    true = {
        "answer": "Clearly a lover of coffee.",
        "degree": 4,
        "evidence": [{"row": "1", "text": text}],
    }
    model.says = lambda step, content: (
        true
        if step == "answer"
        else {"supported": "Rome" in content}
        if step == "reflection"
        else honest(step, content)
    )
    frame, report = write(model, samples=1, future_share=0.0)
    assert frame.empty and report["dropped"] == {"reflection: not supported": 2}
    judged = model.contents("reflection")[0]  # only the quoted row, not the whole profile
    assert (
        "1. 2025-02-19 bill: paid for coffee" in judged
        and "tea" not in judged
        and true["answer"] in judged
    )


def test_a_plain_no_needs_that_no_event_speaks_of_the_topic(model):
    def says(step, content):
        no = {"answer": "Not at all, nothing of it so far.", "degree": 0, "evidence": []}
        return no if step == "answer" else honest(step, content)

    model.says = says
    topics = tuple(map(by_name, ("travel", "gambling", "weekend")))
    frame, report = write(
        model, samples=1, topics=topics, future_share=0.0, prompt_chars=60
    )  # Rome is not shown, yet found
    assert list(frame["topic"]) == ["gambling"] and report["dropped"] == {"evidence: none": 2}
    assert not model.contents("topics")  # three topics, up to ten asked for: nothing to choose
    assert "none speaks of gambling" in model.contents("reflection")[0]


def test_the_budget_holds_and_the_next_run_goes_on(model, tmp_path):
    whole, _ = write(model)
    model.asked.clear()
    options = {"folder": tmp_path, "parameters": {"max_tokens": 50}}
    part, report = write(model, budget_tokens=3000, **options)
    spent = report["tokens_in"] + report["tokens_out"]
    assert (
        report["stopped"] == "The budget of 3,000 tokens does not cover the next request."
        and 1500 < spent <= 3000
    )
    assert (
        0 < len(part) < 6
        and len(part.merge(whole)) == len(part) == report["kept"]
        and len(model.asked) == report["asked"]
    )
    done = len(model.asked)
    frame, report = write(model, **options)
    pd.testing.assert_frame_equal(frame, whole)
    assert report["cached"] == done and report["asked"] == 21 - done and not report["stopped"]


def test_tokens_are_guessed_where_the_endpoint_does_not_count(model):
    model.usage = False
    _, report = write(model, samples=1)
    assert (
        0 < report["tokens_out"] < report["tokens_in"]
        and report["tokens_guessed"] == report["tokens_in"] + report["tokens_out"]
    )


def test_more_samples_begin_with_the_same(model, tmp_path):
    few, _ = write(model, samples=2, folder=tmp_path)
    many, report = write(model, samples=3, folder=tmp_path)
    assert report["cached"] == 14 and report["asked"] == 7 and len(few.merge(many)) == len(few)


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
    some_users().save(tmp_path / "users")
    days = pd.DataFrame(
        {
            "user": "d",
            "time": pd.date_range("2024-12-01", CUTOFF, freq="3D"),
            "modality": "bill",
            "text": "tea",
        }
    )
    users = load_users(tmp_path / "users")
    events = pd.concat([users.events.astype({"user": str, "modality": str, "text": str}), days])
    Users.from_events(events, CUTOFF).save(tmp_path / "users")
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
        "2",
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
    assert (first["cached"], first["asked"]) == (7, 7) and (second["cached"], second["asked"]) == (
        14,
        0,
    )
    frame = pd.read_parquet(tmp_path / "pairs.parquet")
    assert list(frame) == COLUMNS and len(frame) == 4 == first["kept"] == second["kept"]
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
def test_a_real_server_is_asked_all_the_way(server, tmp_path):
    """A model of 135M parameters writes little that can be used: what is kept must hold, what is
    not must be counted.
    """
    users = load_users(ROOT / "data/sample")
    users = users.select(users.ids[:2])
    options = {
        "model": str(cache_dir() / "smollm2"),
        "folder": tmp_path,
        "prompt_chars": 400,
    }
    options |= {"parameters": {"max_tokens": 60}, "samples": 1}
    client = OpenAI(base_url=server, api_key="not-needed", timeout=300)
    options["client"] = client
    chosen = generate_pairs(users, **options, topics=TOPICS[:3], per_sample=2).attrs["synthesis"]
    frame = generate_pairs(users, **options, topics=(by_name("games"), by_name("coupons")))
    report = frame.attrs["synthesis"]
    for told in (chosen, report):
        assert told["samples"] == 1 and told["asked"] >= 2 and not told["stopped"]
        assert (
            told["tokens_in"] > 100 * told["asked"]
            and 0 < told["tokens_out"] <= 60 * told["asked"]
            and not told["tokens_guessed"]
        )
    assert len(frame) + sum(report["dropped"].values()) == 2
    replies = [json.loads(path.read_text())["reply"] for path in tmp_path.rglob("*.json")]
    assert len(replies) == chosen["asked"] + report["asked"]
    texts = {
        user: set(mine["text"].astype(str))
        for user, mine in users.history().groupby("user", observed=True)
    }
    for pair in frame.itertuples():
        said = next(
            json.loads(reply[reply.index("{") :]) for reply in replies if pair.answer in reply
        )
        assert all(
            any(text in quote["text"] for text in texts[pair.user]) for quote in said["evidence"]
        )
