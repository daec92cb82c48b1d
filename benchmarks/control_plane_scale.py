"""Question: how quick is the control plane while N engines report to it?

Starts ``gearshift serve`` on a database of its own, registers N engines from one asyncio process,
and lets each send a heartbeat every few seconds while it long-polls its policy, as a real engine's
agent does. ``/healthz`` is asked beside them. The times are the client's: from the moment a
request was due to its whole answer, so a client that falls behind is counted against the service.

    python -m benchmarks.control_plane_scale --engines 100 1000 --out FILE.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.quiet import OtherPrograms

ADMIN = "gs_benchmark_admin_key_of_this_run_only"
LONG_POLL_S = 20.0
HEALTH_EVERY_S = 0.1
ASKED_P99_MS = 100.0
MODEL = {
    "model_type": "llama",
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_size": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_positions": 4096,
}
POLICY = {"plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 1}}


@dataclass
class Times:
    """Milliseconds of every request after the warm-up, and what went wrong."""

    heartbeat_ms: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def main() -> None:
    """Measure each number of engines on a fresh service, write the report."""
    options = _options()
    rows = []
    with OtherPrograms() as others:
        for num_engines in options.engines:
            with tempfile.TemporaryDirectory() as folder:
                rows.append((num_engines, *_measure(num_engines, options, Path(folder))))
    text = _report(rows, options, others.share)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seconds", type=float, default=30.0, help="measured, after a warm-up")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between heartbeats")
    parser.add_argument("--requests", type=int, default=5, help="timings in one heartbeat")
    parser.add_argument("--database-url", help="else a new SQLite file; its schema is the newest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measure(num_engines: int, options: argparse.Namespace, folder: Path) -> tuple[Times, float]:
    """One service, one crowd: its times, and the share of a core that the service used."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GEARSHIFT_")},
        "GEARSHIFT_DATA_DIR": str(folder),
        "GEARSHIFT_ADMIN_KEY": ADMIN,
        "GEARSHIFT_PORT": "0",
        "GEARSHIFT_RUN_WORKER": "false",
        "GEARSHIFT_LOG_LEVEL": "warning",
    }
    if options.database_url:
        environment["GEARSHIFT_DATABASE_URL"] = options.database_url
    command = [sys.executable, "-m", "api.cli.main", "serve", "--json"]
    service = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None, "it was asked for a pipe"
        url = json.loads(service.stdout.readline())["url"]
        return asyncio.run(_crowd(url, service.pid, num_engines, options))
    finally:
        service.terminate()
        service.wait(60)
        assert service.stdout is not None, "it was asked for a pipe"
        service.stdout.close()


async def _crowd(
    url: str, pid: int, num_engines: int, options: argparse.Namespace
) -> tuple[Times, float]:
    times = Times()
    async with AsyncExitStack() as stack:
        # A client each, as engines have: one pool of 2,000 connections is slow by itself.
        clients = [await stack.enter_async_context(_client(url)) for _ in range(num_engines)]
        await _until_ready(clients[0])
        engine_ids = [await _register(client, n) for n, client in enumerate(clients)]
        begin_s = time.monotonic() + 1.0
        warm_s = begin_s + 2 * options.every
        end_s = warm_s + options.seconds
        rng = random.Random(options.seed)
        tasks = []
        for client, engine_id in zip(clients, engine_ids, strict=True):
            first_s = begin_s + rng.random() * options.every
            beats = _beat(client, engine_id, first_s, warm_s, end_s, options, times)
            tasks.append(asyncio.create_task(beats))
        # Engines come one by one: their polls do not all end in the same moment.
        polls = [
            asyncio.create_task(_follow(client, e, rng.random() * LONG_POLL_S, times))
            for client, e in zip(clients, engine_ids, strict=True)
        ]
        tasks.append(asyncio.create_task(_health(url, warm_s, end_s, times)))
        await asyncio.sleep(warm_s - time.monotonic())
        before_s = _cpu_s(pid)
        await asyncio.gather(*tasks)
        share = (_cpu_s(pid) - before_s) / (time.monotonic() - warm_s)
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
    return times, share


def _client(url: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    return httpx.AsyncClient(
        base_url=url, headers=headers, timeout=LONG_POLL_S + 40, verify=False, trust_env=False
    )


async def _until_ready(client: httpx.AsyncClient) -> None:
    for _ in range(600):
        try:
            if (await client.get("/readyz")).is_success:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("the service did not become ready within 60 s")


async def _register(client: httpx.AsyncClient, number: int) -> str:
    body = {
        "name": f"engine-{number}",
        "model_name": "tiny",
        "host": f"node-{number}",
        "model": MODEL,
        "envelope": {"max_num_seqs": 256, "max_num_batched_tokens": 8192},
        "capabilities": [],
        "policy": POLICY,
    }
    answer = await client.post("/v1/engines", json=body)
    answer.raise_for_status()
    return str(answer.json()["id"])


async def _beat(
    client: httpx.AsyncClient,
    engine_id: str,
    due_s: float,
    warm_s: float,
    end_s: float,
    options: argparse.Namespace,
    times: Times,
) -> None:
    """One engine's heartbeats at their due times; a late one is late from when it was due."""
    body = _heartbeat(options)
    while due_s < end_s:
        await asyncio.sleep(due_s - time.monotonic())
        answer = await client.post(f"/v1/engines/{engine_id}/heartbeats", json=body)
        if not answer.is_success:
            times.errors.append(f"heartbeat: {answer.status_code}")
        if due_s >= warm_s:
            times.heartbeat_ms.append((time.monotonic() - due_s) * 1e3)
        due_s += options.every


async def _follow(client: httpx.AsyncClient, engine_id: str, wait_s: float, times: Times) -> None:
    """One engine's long polls, one after the other; the first waits ``wait_s``."""
    while True:
        answer = await client.get(
            f"/v1/engines/{engine_id}/policy", params={"wait_s": wait_s, "after_version": 1}
        )
        wait_s = LONG_POLL_S
        if answer.status_code != httpx.codes.NO_CONTENT:
            times.errors.append(f"long poll: {answer.status_code}")
            await asyncio.sleep(1.0)


async def _health(url: str, due_s: float, end_s: float, times: Times) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        while due_s < end_s:
            await asyncio.sleep(due_s - time.monotonic())
            begin_s = time.monotonic()
            await client.get("/healthz")
            times.health_ms.append((time.monotonic() - begin_s) * 1e3)
            due_s += HEALTH_EVERY_S


def _heartbeat(options: argparse.Namespace) -> dict[str, Any]:
    request = {
        "age_ms": 900.0,
        "token_ms": [40.0 + 20.0 * n for n in range(32)],
        "input_tokens": 64,
        "outcome": "completed",
    }
    step = {"mode": "shift", "tokens_up_to": 64, "steps": 10, "seconds": 0.1, "tokens": 300}
    return {
        "window_s": options.every,
        "arrived": options.requests,
        "policy_version": 1,
        "policy": POLICY,
        "stats": {"running": 1},
        "requests": [request] * options.requests,
        "steps": [step],
    }


def _cpu_s(pid: int) -> float:
    import psutil

    return float(sum(psutil.Process(pid).cpu_times()[:2]))


def _report(
    rows: list[tuple[int, Times, float]], options: argparse.Namespace, others: float
) -> str:
    lines = [
        "# The control plane under many engines",
        "",
        f"Engines send a heartbeat every {options.every:g} s ({options.requests} requests of 32 "
        f"tokens in each) and long-poll their policy for {LONG_POLL_S:g} s; no engine has a "
        f"schedule, so the controller has nothing to decide. Measured for {options.seconds:g} s "
        f"after {2 * options.every:g} s of warm-up. Asked: p99 of a heartbeat under "
        f"{ASKED_P99_MS:g} ms at 1,000 engines.",
        "",
        "| engines | heartbeats | p50 ms | p99 ms | max ms | /healthz p50 ms | p99 ms | "
        "service, cores | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for num_engines, times, share in rows:
        beats, health = np.array(times.heartbeat_ms), np.array(times.health_ms)
        lines.append(
            f"| {num_engines} | {len(beats)} | {np.percentile(beats, 50):.1f} | "
            f"{np.percentile(beats, 99):.1f} | {beats.max():.1f} | "
            f"{np.percentile(health, 50):.1f} | {np.percentile(health, 99):.1f} | {share:.2f} | "
            f"{len(times.errors)} |"
        )
        for error in sorted(set(times.errors)):
            print(error, times.errors.count(error), file=sys.stderr)
    words = " ".join(str(number) for number in options.engines)
    kind = "PostgreSQL" if options.database_url else "SQLite"
    lines += [
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, {kind}, SQLAlchemy {version('sqlalchemy')}, FastAPI "
        f"{version('fastapi')}, uvicorn {version('uvicorn')}, seed {options.seed}. The clients run "
        f"on the same cores; other programs used {others:.0%} of all cores.",
        "",
        "```",
        f"python -m benchmarks.control_plane_scale --engines {words} --seconds "
        f"{options.seconds:g} --every {options.every:g} --requests {options.requests}",
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
