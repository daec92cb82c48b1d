"""Requests to engines that are in flight while a fault happens, and how each of them ended."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

GIVE_UP_S = 60.0
PROMPTS = tuple(tuple(3 + (7 * n + k) % 250 for k in range(12 + 5 * n)) for n in range(6))
TOKENS = (30, 60, 90)


class End(StrEnum):
    """How a request ended, as its client saw it."""

    DONE = "done"
    TOLD = "told"  # an HTTP error, or an error event
    CUT = "cut"  # the connection broke, which every client notices
    SILENT = "silent"  # it looked whole and was not
    WRONG = "wrong"
    HUNG = "hung"


@dataclass
class Tally:
    """Ends per engine, with what was said about those that did not complete."""

    ends: dict[str, Counter[End]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Traffic:
    """Asks engines for completions whose right answer it has learnt from a calm engine."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=0)
        self._http = httpx.Client(timeout=GIVE_UP_S, limits=limits, trust_env=False)
        self._right: dict[tuple[str, int], str] = {}

    def close(self) -> None:
        self._http.close()

    def learn(self, name: str, url: str) -> None:
        """Ask every prompt once, undisturbed."""
        for number in range(len(PROMPTS)):
            end, text = self.ask(url, number, max(TOKENS), is_stream=False)
            if end is not End.DONE:
                raise RuntimeError(f"{name}: a calm engine answers {end}: {text}")
            self._right[name, number] = text

    def ask(self, url: str, prompt: int, tokens: int, *, is_stream: bool) -> tuple[End, str]:
        """Send one request; its end, and its text or what was said instead."""
        body = {
            "prompt": list(PROMPTS[prompt]),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": is_stream,
        }
        read = self._read_stream if is_stream else self._read_document
        try:
            return read(f"{url}/v1/completions", {"model": "tiny", **body}, tokens)
        except httpx.TimeoutException as error:
            return End.HUNG, repr(error)
        except httpx.TransportError as error:
            return End.CUT, repr(error)

    def is_right(self, name: str, prompt: int, text: str) -> bool:
        """Whether ``text`` (ids) begins what the calm engine said, where that was learnt."""
        right = self._right.get((name, prompt))
        return right is None or right.startswith(text)

    def _read_document(self, url: str, body: dict[str, Any], tokens: int) -> tuple[End, str]:
        answer = self._http.post(url, json=body)
        if answer.is_error:
            return _refusal(answer)
        ids = answer.json()["choices"][0]["token_ids"]
        return (End.DONE if len(ids) == tokens else End.SILENT), _text(ids)

    def _read_stream(self, url: str, body: dict[str, Any], tokens: int) -> tuple[End, str]:
        ids: list[int] = []
        with self._http.stream("POST", url, json=body) as answer:
            if answer.is_error:
                answer.read()
                return _refusal(answer)
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    return (End.DONE if len(ids) == tokens else End.SILENT), _text(ids)
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return End.TOLD, str(event["error"])
                ids += event["choices"][0]["token_ids"] if event["choices"] else []
        return End.SILENT, f"ended without [DONE] after {len(ids)} of {tokens} tokens"


class Burst:
    """A few requests to each engine, all begun at once."""

    def __init__(
        self, traffic: Traffic, urls: dict[str, str], rng: random.Random, *, each: int
    ) -> None:
        self.tally = Tally({name: Counter() for name in urls})
        self._traffic = traffic
        self._lock = threading.Lock()
        self._threads = []
        for name, url in urls.items():
            for number in range(each):
                wish = (rng.randrange(len(PROMPTS)), rng.choice(TOKENS), number % 3 != 0)
                self._threads.append(
                    threading.Thread(target=self._run, args=(name, url, *wish), daemon=True)
                )
        for thread in self._threads:
            thread.start()

    def wait(self) -> Tally:
        """How all of them ended; those that have not by then hang."""
        end_s = time.monotonic() + GIVE_UP_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        num_hung = sum(thread.is_alive() for thread in self._threads)
        with self._lock:
            if num_hung:
                self.tally.ends.setdefault("any", Counter())[End.HUNG] += num_hung
            return self.tally

    def _run(self, name: str, url: str, prompt: int, tokens: int, is_stream: bool) -> None:
        try:
            end, text = self._traffic.ask(url, prompt, tokens, is_stream=is_stream)
            if end is End.DONE and not self._traffic.is_right(name, prompt, text):
                end = End.WRONG
        except Exception as error:  # an answer that cannot be read is an end, too
            end, text = End.WRONG, repr(error)
        with self._lock:
            self.tally.ends[name][end] += 1
            if end is not End.DONE:
                self.tally.notes.append(f"{name}: {end} {text[:200]}")


def _refusal(answer: httpx.Response) -> tuple[End, str]:
    """An error that says so in JSON is told; any other is not."""
    is_told = "error" in answer.json()
    return (End.TOLD if is_told else End.WRONG), f"{answer.status_code} {answer.text[:200]}"


def _text(ids: list[int]) -> str:
    return "".join(f"{i} " for i in ids)
