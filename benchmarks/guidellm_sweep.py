"""Question: does an unchanged GuideLLM run a whole sweep against our server without one error?

A random checkpoint of the tiny preset with its trained tokenizer is served by
``gearshift engine serve``; GuideLLM, a program of its own in an environment of its own, sweeps
completions and chat from one request at a time to as many as it can. No model hub is asked.

    python -m venv GL && GL/bin/pip install guidellm
    python -m benchmarks.guidellm_sweep --guidellm GL/bin/guidellm --out FILE.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.models.create import create_model

MODEL_NAME = "tiny"
ENDPOINTS = ("/v1/completions", "/v1/chat/completions")
END_S = 60


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What GuideLLM measured at one load."""

    endpoint: str
    name: str
    completed: int
    errored: int
    incomplete: int
    requests_per_s: float
    output_tokens_per_s: float
    ttft_ms: tuple[float, float]
    itl_ms: tuple[float, float]

    @classmethod
    def read(cls, endpoint: str, found: dict[str, Any]) -> Strategy:
        """From one entry of ``benchmarks`` in GuideLLM's JSON."""
        metrics = found["metrics"]
        totals = metrics["request_totals"]
        strategy = found["config"]["strategy"]
        rate = strategy.get("rate")
        return cls(
            endpoint=endpoint,
            name=strategy["type_"] + (f" at {rate:.1f}/s" if rate else ""),
            completed=totals["successful"],
            errored=totals["errored"],
            incomplete=totals["incomplete"],
            requests_per_s=metrics["requests_per_second"]["successful"]["mean"],
            output_tokens_per_s=metrics["output_tokens_per_second"]["successful"]["mean"],
            ttft_ms=_middle_and_tail(metrics["time_to_first_token_ms"]),
            itl_ms=_middle_and_tail(metrics["inter_token_latency_ms"]),
        )


def main() -> int:
    """Run the sweeps; 1 if GuideLLM counted an error or completed nothing somewhere."""
    options = _options()
    guidellm = shutil.which(options.guidellm)
    if guidellm is None:
        print(f"skipped: no {options.guidellm} here; pip install guidellm, then --guidellm PATH")
        return 0
    with tempfile.TemporaryDirectory(prefix="gearshift-bench-") as folder, OtherPrograms() as other:
        scratch = Path(folder)
        create_model(scratch / MODEL_NAME, preset="tiny", seed=options.seed)
        with _serving(scratch / MODEL_NAME, options.plan) as url:
            reports = {
                endpoint: _sweep(guidellm, url, endpoint, scratch, options)
                for endpoint in ENDPOINTS
            }
    strategies = [
        Strategy.read(endpoint, found)
        for endpoint, report in reports.items()
        for found in report["benchmarks"]
    ]
    text = _report(strategies, reports[ENDPOINTS[0]]["metadata"], options, other.share)
    publish(text, options.out)
    return 0 if all(s.completed and not s.errored for s in strategies) else 1


@contextmanager
def _serving(model_dir: Path, plan: str) -> Iterator[str]:
    """The address of a server over ``model_dir`` until the block ends."""
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "engine", "serve"]
    command += ["--model", str(model_dir), "--plan", plan, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None, "it was opened as a pipe"
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            yield json.loads(line)["url"]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                server.kill()


def _sweep(
    guidellm: str, url: str, endpoint: str, scratch: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """GuideLLM's own report of one sweep."""
    out = scratch / "report.json"
    command = [guidellm, "run", "--disable-progress"]
    command += ["--backend", f"kind=openai_http,target={url},model=tiny,request_format={endpoint}"]
    command += ["--profile", _profile(options)]
    command += ["--constraint", f"kind=max_duration,seconds={options.seconds}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={scratch / MODEL_NAME}"]
    command += [
        "--data",
        f"kind=synthetic_text,prompt_tokens={options.input},output_tokens={options.output}",
    ]
    command += ["--seed", f"kind=static,value={options.seed}", "--output", f"kind=json,path={out}"]
    quiet = {"HF_HOME": str(scratch / "hub"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    done = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"guidellm failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _profile(options: argparse.Namespace) -> str:
    return f"kind=sweep,sweep_size={options.loads},max_concurrency={options.concurrency}"


def _middle_and_tail(metric: dict[str, Any]) -> tuple[float, float]:
    percentiles = metric["successful"]["percentiles"]
    return percentiles["p50"], percentiles["p95"]


def _report(
    strategies: list[Strategy],
    metadata: dict[str, Any],
    options: argparse.Namespace,
    others: float,
) -> str:
    errored = sum(s.errored for s in strategies)
    lines = [
        "# A GuideLLM sweep against `gearshift engine serve`",
        "",
        f"{time.strftime('%Y-%m-%d')}. Errored requests: **{errored}** of "
        f"{sum(s.completed + s.errored for s in strategies)}. GuideLLM "
        f"{metadata['guidellm_version']}, Python {platform.python_version()}, "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores shared by the load "
        "generator, the server and its ranks.",
        "",
        f"Tiny random checkpoint with its own tokenizer, plan `{options.plan}`, prompts of "
        f"{options.input} and outputs of {options.output} tokens, {options.seconds} s per load, "
        f"at most {options.concurrency} requests at a time, seed {options.seed}. Other programs "
        f"took {others:.0%} of the cores meanwhile: the times show that the clients work together, "
        "not what an engine can do.",
        "",
        "`cut`: requests in flight when a load's time was over, which GuideLLM drops.",
        "",
        "| endpoint | load | completed | errored | cut | requests/s | tokens/s "
        "| TTFT p50 ms | p95 | ITL p50 ms | p95 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(s) for s in strategies),
        "",
        "```",
        "python -m benchmarks.guidellm_sweep --guidellm guidellm "
        f"--plan {options.plan} --loads {options.loads} --seconds {options.seconds} "
        f"--concurrency {options.concurrency} --input {options.input} "
        f"--output {options.output} --seed {options.seed}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(s: Strategy) -> str:
    numbers = (s.requests_per_s, s.output_tokens_per_s, *s.ttft_ms, *s.itl_ms)
    counts = (s.completed, s.errored, s.incomplete)
    cells = [f"`{s.endpoint}`", s.name, *map(str, counts), *(f"{n:.1f}" for n in numbers)]
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--guidellm", default="guidellm", help="The program, by name or path.")
    parser.add_argument("--plan", default="sp=2,shift=64")
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
