"""Question: do 1,000 streams at once see the engine's first tokens when its own model says so?

A paced engine (real scheduler, server and front end; steps take the time of hardware that is not
here) is asked by as many streams as ``--streams`` at once, each followed by another when it ends.
The simulator runs the same workload from the same start: what the server's Python costs beside is
the difference. The resident memory of every process of the engine is taken each second.

    python -m benchmarks.streams --minutes 2 --out FILE.md
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.models.create import create_model

CLI = (sys.executable, "-c", "from api.cli.main import main; main()")
MIB = 2**20
END_S = 60
MODEL = "llama-3.1-70b"
METRICS = ("ttft_ms", "tpot_ms", "e2e_ms")
# What the engine itself says of the same: from the arrival of a request to the end of a step.
OWN_METRICS = {
    "ttft_ms": "vllm:time_to_first_token_seconds",
    "e2e_ms": "vllm:e2e_request_latency_seconds",
}
# Memory is judged once every stream has run: from a quarter of the run on.
WARM_SHARE = 0.25
FLAT_MIB_PER_MIN = 8.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the engine's processes: seconds into the run, resident MiB, CPU seconds."""

    at_s: float
    mib: float
    cpu_s: float


class Watch:
    """Looks at a process and its children each second while the block runs."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[Sample] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        start_s = time.monotonic()
        while not self._end.wait(1.0):
            processes = [self._root, *self._root.children(recursive=True)]
            times = [process.cpu_times() for process in processes]
            self.samples.append(
                Sample(
                    at_s=time.monotonic() - start_s,
                    mib=sum(process.memory_info().rss for process in processes) / MIB,
                    cpu_s=sum(spent.user + spent.system for spent in times),
                )
            )


def growth_mib_per_min(samples: Sequence[Sample]) -> float:
    """Slope of the straight line through the resident memory of the warm part of a run."""
    warm = [s for s in samples if s.at_s >= WARM_SHARE * samples[-1].at_s]
    if len(warm) < 2:
        return 0.0
    return 60 * statistics.linear_regression([s.at_s for s in warm], [s.mib for s in warm]).slope


def main() -> int:
    """Run it; 1 if a request failed or memory grew."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="gearshift-bench-") as folder, OtherPrograms() as other:
        model_dir = Path(folder) / "model"
        create_model(model_dir, preset=MODEL, seed=options.seed)
        predicted = _simulated(model_dir, _workload(options), options)
        # As many as the model says fit into the time, and never fewer than all at once twice.
        seconds = predicted["metrics"]["e2e_ms"]["mean"] / 1e3
        rounds = max(2, round(options.minutes * 60 / seconds))
        workload = _workload(options, rounds)
        predicted = _simulated(model_dir, workload, options)
        with _serving(model_dir, options) as (url, pid), Watch(pid) as watch:
            measured = _json("bench", "--url", url, "--workload", workload, *_seed(options))
            own_ms = {name: _mean_ms(url, own) for name, own in OWN_METRICS.items()}
    text = report(predicted, measured, own_ms, watch.samples, workload, options, other.share)
    publish(text, options.out)
    is_whole = measured["requests"]["completed"] == options.streams * rounds
    return 0 if is_whole and growth_mib_per_min(watch.samples) < FLAT_MIB_PER_MIN else 1


def _workload(options: argparse.Namespace, rounds: int = 2) -> str:
    count = options.streams * rounds
    sizes = f"input={options.input},output={options.output}"
    return f"closed:concurrency={options.streams},{sizes},requests={count}"


def _seed(options: argparse.Namespace) -> tuple[str, str]:
    return "--seed", str(options.seed)


def _plan(options: argparse.Namespace) -> tuple[str, ...]:
    caps = ("--max-num-seqs", str(options.seqs))
    return ("--plan", options.plan, "--dtype", "bf16", "--backend", options.backend, *caps)


def _simulated(model_dir: Path, workload: str, options: argparse.Namespace) -> dict[str, Any]:
    where = ("--model", str(model_dir), "--hardware", options.hardware)
    return _json("simulate", *where, *_plan(options), "--workload", workload, *_seed(options))


def _json(*words: str) -> dict[str, Any]:
    done = subprocess.run([*CLI, *words, "--json"], capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        raise SystemExit(f"{words[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
    for line in done.stderr.splitlines():
        if "failure" in line:
            print(line, file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _mean_ms(url: str, name: str) -> float:
    """The mean of one of the engine's histograms since its start."""
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    total, count = (
        next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + end))
        for end in ("_sum", "_count")
    )
    return 1e3 * total / count


@contextmanager
def _serving(model_dir: Path, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """The address and the process of a paced engine until the block ends."""
    where = ("--model", str(model_dir), "--paced", options.hardware, "--port", "0", "--json")
    command = [*CLI, "engine", "serve", *where, *_plan(options), "--rate-per-s", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None, "it was opened as a pipe"
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            yield json.loads(line)["url"], server.pid
        finally:
            server.terminate()
            try:
                server.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                server.kill()


def report(
    predicted: dict[str, Any],
    measured: dict[str, Any],
    own_ms: dict[str, float],
    samples: Sequence[Sample],
    workload: str,
    options: argparse.Namespace,
    others_share: float,
) -> str:
    """The report as Markdown."""
    counts = measured["requests"]
    tokens = counts["completed"] * options.output
    cpu_s = samples[-1].cpu_s - samples[0].cpu_s
    half = len(samples) // 2
    lines = [
        f"# {options.streams:,} streams at once on a paced engine",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {psutil.cpu_count()} cores, Python "
        f"{platform.python_version()}; other programs used {others_share:.0%} of the machine.",
        "",
        f"`{workload}`, seed {options.seed}; {MODEL} paced as {options.hardware}, plan "
        f"{options.plan}, max_num_seqs {options.seqs}, backend {options.backend}. "
        "Client, server and engine share the cores.",
        "",
        "| | predicted p50 | measured p50 | predicted p95 | measured p95 | predicted p99 | "
        "measured p99 |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(
                f"{side['metrics'][name][level]:,.0f}"
                for level in ("p50", "p95", "p99")
                for side in (predicted, measured)
            )
            + " |"
            for name in METRICS
        ),
        "",
        "* Mean, as the model says, as the engine's own metrics say (from the arrival of a request "
        "to the end of the step), and as the client saw it: "
        + "; ".join(
            f"{name} {predicted['metrics'][name]['mean']:,.0f}, {own:,.0f}, "
            f"{measured['metrics'][name]['mean']:,.0f}"
            for name, own in own_ms.items()
        )
        + ".",
        f"* Completed {counts['completed']:,}, errored {counts['errored']}, timed out "
        f"{counts['timed_out']}; the client sent at most "
        f"{measured['driver_lag_ms'] or 0.0:.1f} ms late (p99).",
        f"* Resident memory of the engine's processes: {_range(samples[half // 2 : half])} MiB in "
        f"the second quarter, {_range(samples[-half // 2 :])} MiB in the last; "
        f"{growth_mib_per_min(samples):+.1f} MiB a minute over {samples[-1].at_s:.0f} s.",
        f"* CPU of the engine's processes: {1e6 * cpu_s / tokens:.0f} us a token of a stream, "
        f"{tokens / samples[-1].at_s:,.0f} tokens/s in all.",
        "",
        f"    python -m benchmarks.streams --streams {options.streams} --minutes "
        f"{options.minutes:g} --hardware {options.hardware} --plan {options.plan} --backend "
        f"{options.backend} --seqs {options.seqs} --input {options.input} --output "
        f"{options.output} --seed {options.seed}",
        "",
    ]
    return "\n".join(lines)


def _range(samples: Sequence[Sample]) -> str:
    if not samples:
        return "-"
    return f"{min(s.mib for s in samples):.0f} to {max(s.mib for s in samples):.0f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--hardware", default="8xa100")
    parser.add_argument("--plan", default="tp=8")
    parser.add_argument("--backend", default="vllm")
    parser.add_argument("--seqs", type=int, default=1024)
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
