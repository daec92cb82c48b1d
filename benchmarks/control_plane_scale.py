"""Question: how quick is the control plane while N engines report to it, and does it grow?

Starts ``gearshift serve`` on a database of its own (for PostgreSQL on a cluster of its own, too),
registers N engines from one process, and lets each send a heartbeat every few seconds while it
long-polls its policy, as a real engine's agent does. ``/healthz`` is asked beside them. Then, with
10,000 tuning jobs in the database, all pages of their list are asked for. Times are the client's,
of a heartbeat from the moment it was due to its whole answer. A run in which the client itself was
late is said to be worth nothing.

    python -m benchmarks.control_plane_scale --database sqlite
    python -m benchmarks.control_plane_scale --database postgresql --minutes 30 --out FILE.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from benchmarks import counted_service
from benchmarks.many_engines import (
    JOB_PAGE,
    LONG_POLL_S,
    Connection,
    Crowd,
    Engine,
    Times,
    ask_health,
    encode,
    first_times,
    list_jobs,
    probe,
)
from benchmarks.many_jobs import add_jobs
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from migrations.runner import upgrade
from store import Database
from tests.postgres import running_cluster

ADMIN = "gs_benchmark_admin_key_of_this_run_only"
ASKED_P99_MS = 100.0
ASKED_PAGE_P99_MS = 20.0
# A client that is later than this at its 99th percentile measures itself.
MOST_LATE_P99_MS = 20.0
JOB_ROUNDS = 2
MIB = 2**20


@dataclass
class Found:
    """What one run found; ``memory_mib`` is the service's, once a second, and ``blocks`` what
    Python holds in it, where that was counted."""

    num_engines: int
    times: Times = field(default_factory=Times)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    client_cpu_s: float = 0.0
    memory_mib: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    page_ms: list[float] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether the client was in time."""
        return float(np.percentile(self.times.late_ms, 99)) <= MOST_LATE_P99_MS


def main() -> None:
    """Measure each number of engines on a fresh service, write the report."""
    options = _options()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load = os.getloadavg()[0]
    is_postgres = options.database == "postgresql"
    rows = []
    own_cluster = running_cluster(is_durable=True) if is_postgres else nullcontext()
    with OtherPrograms() as others, own_cluster as cluster:
        for num_engines in options.engines:
            with tempfile.TemporaryDirectory() as folder:
                url = cluster.create_database() if cluster else f"sqlite:///{folder}/gearshift.db"
                prepare(url)
                rows.append(_measure(num_engines, url, options, Path(folder)))
    text = _report(rows, options, load, others.share)
    publish(text, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--engines", type=int, nargs="+", default=[1000])
    parser.add_argument("--minutes", type=float, default=1.0, help="measured, after a warm-up")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between heartbeats")
    parser.add_argument("--requests", type=int, default=5, help="timings in one heartbeat")
    parser.add_argument("--jobs", type=int, default=10_000, help="tuning jobs to list; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--count-every",
        type=float,
        metavar="SECONDS",
        help="also count what Python holds, so often; times then say nothing",
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measure(num_engines: int, url: str, options: argparse.Namespace, folder: Path) -> Found:
    crowd = Crowd(
        num_engines=num_engines,
        every_s=options.every,
        requests=options.requests,
        seed=options.seed,
    )
    counting = folder / "blocks.txt"
    started = running_service(url, folder, counting=(counting, options.count_every))
    with started as (service_url, process):
        found = asyncio.run(_crowd(service_url, process, crowd, options.minutes * 60))
        if options.jobs:
            add_jobs(url, options.jobs)
            found.page_ms = asyncio.run(list_jobs(service_url, ADMIN, JOB_ROUNDS))
    if counting.exists():
        found.blocks = [float(line.split()[1]) for line in counting.read_text().splitlines()]
    return found


def prepare(url: str) -> None:
    """Bring the schema of a fresh database to the newest."""
    database = Database(url)
    upgrade(database.engine)
    database.close()


@contextmanager
def running_service(
    database_url: str,
    folder: Path,
    *,
    tree: Path | None = None,
    counting: tuple[Path, float | None] | None = None,
) -> Iterator[tuple[str, psutil.Process]]:
    """A control plane without a worker, at its URL until the block ends.

    Its code is that of checkout ``tree``, or what is imported here. ``counting``: where and how
    often it tells what Python holds (None: never).
    """
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GEARSHIFT_")},
        "GEARSHIFT_DATA_DIR": str(folder),
        "GEARSHIFT_DATABASE_URL": database_url,
        "GEARSHIFT_ADMIN_KEY": ADMIN,
        "GEARSHIFT_PORT": "0",
        "GEARSHIFT_RUN_WORKER": "false",
        "GEARSHIFT_LOG_LEVEL": "warning",
    }
    if tree is not None:
        environment["PYTHONPATH"] = str(tree)
    program = "api.cli.main"
    if counting is not None and counting[1] is not None:
        program = "benchmarks.counted_service"
        environment |= {counted_service.FILE: str(counting[0])}
        environment |= {counted_service.EVERY_S: str(counting[1])}
    command = [sys.executable, "-m", program, "serve", "--json"]
    with subprocess.Popen(
        command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None, "it was asked for a pipe"
        try:
            yield json.loads(service.stdout.readline())["url"], psutil.Process(service.pid)
        finally:
            service.terminate()
            service.wait(60)


async def _crowd(url: str, service: psutil.Process, crowd: Crowd, seconds: float) -> Found:
    found = Found(crowd.num_engines)
    times = found.times
    await until_ready(url)
    engines = [await connect_engine(url, crowd, number) for number in range(crowd.num_engines)]
    begin_s = time.monotonic() + 1.0
    warm_s = begin_s + 2 * crowd.every_s
    end_s = warm_s + seconds
    starts = list(zip(engines, first_times(crowd, begin_s), strict=True))
    tasks = [
        asyncio.create_task(engine.beat(first_s, warm_s, end_s, times))
        for engine, (first_s, _) in starts
    ]
    # Engines come one by one: their polls do not all end in the same moment.
    polls = [asyncio.create_task(engine.follow(wait_s, times)) for engine, (_, wait_s) in starts]
    tasks.append(asyncio.create_task(ask_health(url, warm_s, end_s, times)))
    tasks.append(asyncio.create_task(probe(warm_s, end_s, times)))
    await asyncio.sleep(warm_s - time.monotonic())
    before_s, client_s = cpu_s(service), time.process_time()
    watching = asyncio.create_task(_watch_memory(service, found.memory_mib))
    await asyncio.gather(*tasks)
    watching.cancel()
    found.cpu_s = cpu_s(service) - before_s
    found.client_cpu_s = time.process_time() - client_s
    found.wall_s = time.monotonic() - warm_s
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    return found


async def connect_engine(url: str, crowd: Crowd, number: int) -> Engine:
    """A registered engine on connections of its own."""
    engine = Engine(crowd, Connection(url), Connection(url))
    await engine.register(number, ADMIN)
    return engine


async def until_ready(url: str) -> None:
    """Wait for the service, at most a minute."""
    for _ in range(600):
        try:
            connection = Connection(url)
            if (await connection.ask(encode("GET", "/readyz", {}))).status == 200:
                return
        except ConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("the service did not become ready within 60 s")


async def _watch_memory(service: psutil.Process, memory_mib: list[float]) -> None:
    while True:
        memory_mib.append(service.memory_info().rss / MIB)
        await asyncio.sleep(1.0)


def cpu_s(process: psutil.Process) -> float:
    """What a process has used so far."""
    return float(sum(process.cpu_times()[:2]))


def _report(rows: list[Found], options: argparse.Namespace, load: float, others: float) -> str:
    lines = [
        f"# The control plane under many engines: {options.database}",
        "",
        f"Engines send a heartbeat every {options.every:g} s ({options.requests} requests of 32 "
        f"tokens in each) and long-poll their policy for {LONG_POLL_S:g} s; no engine has a "
        f"schedule, so the controller has nothing to decide. Measured for {options.minutes:g} min "
        f"after {2 * options.every:g} s of warm-up, then {options.jobs:,} tuning jobs were listed "
        f"by pages of {JOB_PAGE}. Asked at 1,000 engines: p99 of a heartbeat under "
        f"{ASKED_P99_MS:g} ms, of a page under {ASKED_PAGE_P99_MS:g} ms, memory flat. A run counts "
        f"only if its client was late by less than {MOST_LATE_P99_MS:g} ms at p99.",
        "",
        "| engines | heartbeats | p50 ms | p99 ms | max ms | /healthz p50 ms | p99 ms | "
        "page of jobs p50 ms | p99 ms | service: cores | CPU ms a heartbeat | memory MiB, first "
        "tenth | last tenth | client late p99 ms | client: cores | errors | counts |",
        "|" + "---|" * 17,
        *(_row(found) for found in rows),
    ]
    for found in rows:
        for error in sorted(set(found.times.errors)):
            print(error, found.times.errors.count(error), file=sys.stderr)
    engines = " ".join(str(number) for number in options.engines)
    lines += [line for found in rows for line in _blocks(found)]
    lines += [
        "",
        "CPU of a heartbeat is all the service used, long polls and `/healthz` included, over the "
        "number of heartbeats.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, SQLAlchemy {version('sqlalchemy')}, FastAPI "
        f"{version('fastapi')}, uvicorn {version('uvicorn')}, seed {options.seed}. The client (and "
        f"PostgreSQL, where it is the database) run on the same cores; load average before the run "
        f"{load:.1f}; programs beside service and client used {others:.0%} of all cores.",
        "",
        "```",
        f"python -m benchmarks.control_plane_scale --database {options.database} --engines "
        f"{engines} --minutes {options.minutes:g} --every {options.every:g} --requests "
        f"{options.requests} --jobs {options.jobs}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(found: Found) -> str:
    times = found.times
    memory, tenth = found.memory_mib, max(1, len(found.memory_mib) // 10)
    cells = [
        f"{found.num_engines}",
        f"{len(times.heartbeat_ms)}",
        *_cells(times.heartbeat_ms, 50, 99, 100),
        *_cells(times.health_ms, 50, 99),
        *_cells(found.page_ms, 50, 99),
        f"{found.cpu_s / found.wall_s:.2f}",
        f"{found.cpu_s / len(times.heartbeat_ms) * 1e3:.2f}",
        f"{np.mean(memory[:tenth]):.1f}",
        f"{np.mean(memory[-tenth:]):.1f}",
        *_cells(times.late_ms, 99),
        f"{found.client_cpu_s / found.wall_s:.2f}",
        f"{len(times.errors)}",
        "yes" if found.is_valid else "no: the client was late",
    ]
    return "| " + " | ".join(cells) + " |"


def _blocks(found: Found) -> list[str]:
    """What Python held over the run, by tenths."""
    if not found.blocks:
        return []
    tenths = [f"{np.mean(part) / 1e3:,.0f}" for part in np.array_split(found.blocks, 10)]
    return ["", f"Thousands of blocks that Python held, by tenths: {', '.join(tenths)}."]


def _cells(values_ms: list[float], *percentiles: int) -> list[str]:
    if not values_ms:
        return ["-"] * len(percentiles)
    return [f"{np.percentile(values_ms, percentile):.1f}" for percentile in percentiles]


if __name__ == "__main__":
    main()
