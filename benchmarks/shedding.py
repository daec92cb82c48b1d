"""Question: what is it worth to turn requests away where more come than an engine carries?

``gearshift engine serve --paced`` in a process of its own, driven over HTTP by an open loop of
Poisson arrivals, a third of them urgent. First what it carries is found (as much as it finishes
when it never rests), then it gets multiples of that, with and without admission. An SLA of E2E
judges every answer; a refusal counts as missed among all, and not among those let in.

    python -m benchmarks.shedding --seconds 30 --out benchmarks/reports/DATE-shedding.md
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks.reporting import publish
from engine.models.create import create_model
from tests.api.cli.served import serving

URGENT, USUAL = -1, 0
SHARE_URGENT = 1 / 3
INPUT_TOKENS, OUTPUT_TOKENS = 256, 64
# So few that neither the client nor the HTTP front is what is short.
SEQS = 2
E2E_MS = 1000.0
MULTIPLES = (0.8, 1.2, 1.5, 2.0, 3.0)
# Of what it carries when it never rests; the rest is room for bursts.
ADMITTED_SHARE = 0.9
TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one request; ``e2e_ms`` None: it was refused, after ``retry_s``."""

    priority: int
    e2e_ms: float | None
    retry_s: int | None = None

    @property
    def is_met(self) -> bool:
        return self.e2e_ms is not None and self.e2e_ms <= E2E_MS


def main() -> None:
    """Serve, find what is carried, overload, print one table."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        create_model(model, preset="tiny", seed=1)
        words = ("--model", model, "--paced", "1xh100", "--max-num-seqs", SEQS)
        with serving(*words, "--scheduling-policy", "priority", "--rate-per-s", 0) as served:
            url = served.ready["url"]
            carried = _carried_rps(url)
            lines = _head(carried, options)
            for multiple in options.multiples:
                for admitted in (None, ADMITTED_SHARE * carried):
                    _admit(url, admitted)
                    answers = asyncio.run(_drive(url, multiple * carried, options))
                    lines.append(_row(multiple, admitted, answers))
                    print(lines[-1], flush=True)
                    _wait_until_idle(served.http)
    lines += ["", f"`python -m benchmarks.shedding --seconds {options.seconds:g} "
              f"--seed {options.seed}`", ""]  # fmt: skip
    text = "\n".join(lines)
    publish(text, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run")
    parser.add_argument("--multiples", type=float, nargs="+", default=MULTIPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _head(carried: float, options: argparse.Namespace) -> list[str]:
    return [
        "# Turning requests away where more come than are carried",
        "",
        f"`gearshift engine serve --paced 1xh100` (a tiny model, {SEQS} sequences), driven over "
        f"HTTP for {options.seconds:g} s each: Poisson arrivals of {INPUT_TOKENS} tokens in and "
        f"{OUTPUT_TOKENS} out, {SHARE_URGENT:.0%} of them with priority {URGENT}, "
        f"`scheduler.order` priority. It finishes {carried:.1f} requests/s when it never rests; "
        f"admission is {ADMITTED_SHARE:g} of that. Met: E2E of at most {E2E_MS:g} ms.",
        "",
        "| load over carried | admission | met, of those let in | met, of all | met, of the urgent "
        "| p95 E2E of those let in, ms | refused: usual, urgent | `Retry-After`, s |",
        "|---|---|---|---|---|---|---|---|",
    ]


def _row(multiple: float, admitted: float | None, answers: Sequence[Answer]) -> str:
    came_in = [a for a in answers if a.e2e_ms is not None]
    urgent = [a for a in answers if a.priority == URGENT]
    refused = [a for a in answers if a.e2e_ms is None]
    p95 = np.percentile([a.e2e_ms for a in came_in if a.e2e_ms is not None], 95)
    retries = [a.retry_s for a in refused if a.retry_s is not None]
    told = f"{min(retries)} to {max(retries)}" if retries else "-"
    num_urgent = sum(a.priority == URGENT for a in refused)
    return (
        f"| {multiple:g} | {'-' if admitted is None else f'{admitted:.1f}/s'} | {_met(came_in)} "
        f"| {_met(answers)} | {_met(urgent)} | {p95:.0f} "
        f"| {len(refused) - num_urgent}, {num_urgent} of {len(answers)} | {told} |"
    )


def _met(answers: Sequence[Answer]) -> str:
    return f"{np.mean([a.is_met for a in answers]):.3f}"


def _admit(url: str, rate_rps: float | None) -> None:
    body = {"admission": None if rate_rps is None else {"rate_rps": rate_rps}}
    answer = httpx.patch(f"{url}/v1/engine/policy", json=body, headers={"if-match": "*"})
    assert answer.status_code == 200, answer.text


def _carried_rps(url: str) -> float:
    """Requests per second that it finishes with more waiting than it has places for."""
    _admit(url, None)
    return asyncio.run(_flood(url, 12 * SEQS))


async def _flood(url: str, count: int) -> float:
    async with _client(url) as client:
        begin_s = time.monotonic()
        await asyncio.gather(*(_ask(client, USUAL, nth) for nth in range(count)))
        return count / (time.monotonic() - begin_s)


async def _drive(url: str, rate_rps: float, options: argparse.Namespace) -> list[Answer]:
    """Send at the times drawn, whatever the answers."""
    rng = np.random.default_rng(options.seed)
    at_s = np.cumsum(rng.exponential(1 / rate_rps, round(rate_rps * options.seconds)))
    urgent = rng.random(len(at_s)) < SHARE_URGENT
    tasks = []
    async with _client(url) as client:
        begin_s = time.monotonic()
        for nth, due_s in enumerate(at_s.tolist()):
            await asyncio.sleep(max(0.0, begin_s + due_s - time.monotonic()))
            priority = URGENT if urgent[nth] else USUAL
            tasks.append(asyncio.create_task(_ask(client, priority, nth)))
        return list(await asyncio.gather(*tasks))


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits)


async def _ask(client: httpx.AsyncClient, priority: int, nth: int) -> Answer:
    """One completion in one piece: a stream's events would make the client the bottleneck."""
    body = {
        "model": "model",
        "prompt": [3 + (nth + i) % 200 for i in range(INPUT_TOKENS)],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "priority": priority,
    }
    begin_s = time.monotonic()
    answer = await client.post("/v1/completions", json=body)
    if answer.status_code == 429:
        code = answer.json()["error"]["code"]
        assert code == "overloaded", code
        return Answer(priority=priority, e2e_ms=None, retry_s=int(answer.headers["retry-after"]))
    assert answer.status_code == 200, answer.text
    return Answer(priority=priority, e2e_ms=(time.monotonic() - begin_s) * 1e3)


def _wait_until_idle(http: httpx.Client) -> None:
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    while True:
        lines = http.get("/metrics").text.splitlines()
        if not any(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names)):
            return
        time.sleep(0.2)


if __name__ == "__main__":
    main()
