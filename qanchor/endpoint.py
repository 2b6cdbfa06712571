"""One OpenAI-compatible endpoint: each reply is kept on disk, faults are tried again, rate and budget hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import numpy as np

from .files import write_whole

PARAMETERS = {"temperature": 0, "max_tokens": 600}
REPAIR = "That cannot be used: {why}. Reply once more, with nothing but the JSON that was asked for."
MAX_WAIT = 600  # seconds: an endpoint that asks for more is told of, not waited for
CURES = {
    400: "check model= and parameters=",
    401: "set OPENAI_API_KEY, or give api_key=",
    403: "this key may not use the model: take another key or model",
    404: "check base_url= (most end with /v1) and model=",
    429: "give requests_per_minute=, or look at the key's quota",
}


class EndpointError(OSError):
    """An endpoint that does not answer: where, what it said, how often it was asked, and the cure."""


class BudgetSpent(Exception):
    """Stop: the next request may cost more than is left."""


class Endpoint:
    """Send one request at a time: each reply is kept on disk, faults are tried again, the budget holds."""

    def __init__(self, client, model, parameters, folder, budget_tokens, requests_per_minute, retries, seed):
        self.client, self.model, self.retries = client, model, max(0, retries)
        self.parameters = {k: v for k, v in (PARAMETERS | (parameters or {})).items() if v is not None}
        self.folder = None if folder is None else Path(folder)
        self.budget, self.pause = budget_tokens, 60 / requests_per_minute if requests_per_minute else 0.0
        self.rng, self.next_turn, self.dropped = np.random.default_rng(seed), 0.0, Counter()
        counted = ("samples", "asked", "cached", "retries", "repairs", "tokens_in", "tokens_out", "tokens_guessed")
        self.report = {"model": model, **dict.fromkeys(counted, 0), "stopped": ""}

    def read(self, messages: list[dict], read):
        """Ask for JSON and give what `read` makes of it; after a reply of no use ask once more, then raise its ValueError."""
        reply = self.reply(messages)
        try:
            return read(_json(reply))
        except ValueError as error:
            self.report["repairs"] += 1
            said = [{"role": "assistant", "content": reply}, {"role": "user", "content": REPAIR.format(why=error)}]
        return read(_json(self.reply(messages + said)))

    def reply(self, messages: list[dict]) -> str:
        """Give the model's reply to `messages`, from disk when it was given before."""
        asked = json.dumps([self.model, messages, self.parameters], sort_keys=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        path = self.folder / key[:2] / f"{key}.json" if self.folder else None
        if path and path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))["reply"]
                self.report["cached"] += 1
                return kept
            except (ValueError, KeyError, TypeError):
                pass  # a damaged file is asked for anew
        most = self.parameters.get("max_completion_tokens") or self.parameters.get("max_tokens") or 0
        spent = self.report["tokens_in"] + self.report["tokens_out"]
        if self.budget is not None and spent + len(asked) // 2 + most > self.budget:  # a token is seldom below two characters
            raise BudgetSpent(f"the budget of {self.budget:,} tokens does not hold the next request")
        text, tokens = self._send(messages)
        for name, count in tokens.items():
            self.report[name] += count
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            told = {"model": self.model, "parameters": self.parameters, "reply": text} | tokens
            write_whole(path, lambda aside: aside.write_text(json.dumps(told)))
        return text

    def _send(self, messages: list[dict]) -> tuple[str, dict]:
        from openai import APIError

        for attempt in range(self.retries + 1):
            time.sleep(max(0.0, self.next_turn - time.monotonic()))
            self.next_turn = time.monotonic() + self.pause
            self.report["asked"] += 1
            try:
                found = self.client.chat.completions.create(model=self.model, messages=messages, **self.parameters)
                return _read_completion(found, messages)
            except (APIError, ValueError) as error:  # ValueError: a body that is no completion
                status, wait = getattr(error, "status_code", None), self._wait(error, attempt)
                hopeless = status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429)
                if hopeless or attempt == self.retries or wait > MAX_WAIT:
                    raise EndpointError(self._words(error, status, attempt + 1, wait)) from error
                self.report["retries"] += 1
                time.sleep(wait)

    def _wait(self, error: Exception, attempt: int) -> float:
        """Give the seconds to wait: what the endpoint asks for, else twice as long each time, with jitter."""
        told = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
        try:
            if re.fullmatch(r"[0-9.]+", told):
                return float(told)
            return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return min(60.0, 0.5 * 2**attempt) * self.rng.uniform(0.5, 1.5)

    def _words(self, error: Exception, status: int | None, times: int, wait: float) -> str:
        said = " ".join(str(error).replace(str(self.client.api_key), "***").split())[:300]
        cure = CURES.get(status, "look at the server and its log, or raise timeout= or retries=")
        cure = f"it asks for {wait:,.0f} seconds: come back later" if wait > MAX_WAIT else cure
        kept = (
            f"what it answered is kept in {self.folder}: a rerun goes on" if self.folder else "folder= would keep its answers"
        )
        return (
            f"{self.client.base_url}, model {self.model!r}: {type(error).__name__} {said}: asked {times} times: {cure} ({kept})"
        )


def _read_completion(found, messages: list[dict]) -> tuple[str, dict]:
    try:
        text = found.choices[0].message.content or ""
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"the reply is no chat completion: {str(found)[:100]!r}") from error
    text = text.encode(errors="replace").decode()  # half a surrogate pair could neither be kept nor sent back
    told = [getattr(found.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    if None not in told:
        return text, dict(zip(("tokens_in", "tokens_out"), told, strict=True))
    guess = {"tokens_in": sum(len(message["content"]) for message in messages) // 4, "tokens_out": len(text) // 4}
    return text, guess | {"tokens_guessed": sum(guess.values())}


def open_client(client, base_url: str | None, api_key: str | None, timeout: float):
    """Give an `openai.OpenAI` that leaves trying again to `Endpoint`."""
    if client is not None:
        return client.with_options(max_retries=0)
    if not base_url:
        raise ValueError("base_url is None and there is no client: name the endpoint, like http://127.0.0.1:8000/v1")
    try:
        from openai import OpenAI
    except ImportError as error:
        raise EndpointError(f"{base_url}: the package openai is missing: pip install 'qanchor[llm]'") from error
    key = api_key or os.environ.get("OPENAI_API_KEY") or "not-needed"  # a server of one's own wants no key
    return OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)


def _json(reply: str):
    """Find the first JSON list or object in a reply, whatever fence or talk stands around it."""
    for start in re.finditer(r"[\[{]", reply):
        try:
            return json.JSONDecoder().raw_decode(reply, start.start())[0]
        except (ValueError, RecursionError):
            continue
    raise ValueError("it holds no JSON")
