"""A server that takes vLLM's command line and speaks its API, of the standard library alone.

A step of its imaginary device takes ``STEP_S`` and serves at most ``--max-num-seqs`` requests; each
rank more makes it a little faster. It starts a process of its own, as vLLM does, writes its pid
to ``$STAND_IN_PIDS``, and dies at its start above ``$STAND_IN_MOST_SEQS`` sequences, as one that is
out of memory. With ``$STAND_IN_TOKEN`` its metrics are for whoever shows that, with
``$STAND_IN_KEY`` its API, as under vLLM's ``--api-key``. It says that it is vLLM, or what
``$STAND_IN_OWNER`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

STEP_S = 0.004
COUNTS: Counter[str] = Counter(
    {
        "vllm:prompt_tokens": 0,
        "vllm:generation_tokens": 0,
        "vllm:request_success": 0,
        "vllm:prefix_cache_hits": 0,
    }
)
PROMPTS: set[tuple[int, ...]] = set()
GAUGES: Counter[str] = Counter({"vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0})
EDGES_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
EDGES_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LOCK = threading.Lock()


class Histogram:
    """Values by the edges that they are within, as Prometheus has them."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = (*edges, float("inf"))
        self.up_to = [0] * len(self.edges)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.total += value
        for index, edge in enumerate(self.edges):
            self.up_to[index] += value <= edge

    def text(self, name: str) -> str:
        buckets = [
            f'{name}_bucket{{{LABELS},le="{"+Inf" if edge == float("inf") else edge}"}} {count}'
            for edge, count in zip(self.edges, self.up_to, strict=True)
        ]
        ends = [
            f"{name}_sum{{{LABELS}}} {self.total}",
            f"{name}_count{{{LABELS}}} {self.up_to[-1]}",
        ]
        return "\n".join([f"# TYPE {name} histogram", *buckets, *ends, ""])


LABELS = 'engine="0",model_name="m"'
ENDED, REASON = "vllm:request_success", f'{LABELS},finished_reason="length"'
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": Histogram(EDGES_S),
    "vllm:request_time_per_output_token_seconds": Histogram(EDGES_S),
    "vllm:inter_token_latency_seconds": Histogram(EDGES_S),
    "vllm:e2e_request_latency_seconds": Histogram(EDGES_S),
    "vllm:request_prompt_tokens": Histogram(EDGES_TOKENS),
    "vllm:request_generation_tokens": Histogram(EDGES_TOKENS),
}


def main() -> None:
    options = _options()
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if pids := os.environ.get("STAND_IN_PIDS"):
        with Path(pids).open("a") as file:
            file.write(f"{os.getpid()}\n{core.pid}\n")
    most = int(os.environ.get("STAND_IN_MOST_SEQS", "100000"))
    if options.max_num_seqs > most:
        print("INFO allocating", flush=True)
        print(f"ValueError: no memory for {options.max_num_seqs} sequences", file=sys.stderr)
        sys.exit(1)
    Handler.slots = threading.Semaphore(options.max_num_seqs)
    ranks = options.tensor_parallel_size * options.pipeline_parallel_size
    Handler.step_s = STEP_S / (1 + 0.1 * (ranks - 1))
    Handler.model = options.model
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


@contextmanager
def _counted(gauge: str) -> Iterator[None]:
    """One more in ``gauge`` while the block runs."""
    with LOCK:
        GAUGES[gauge] += 1
    try:
        yield
    finally:
        with LOCK:
            GAUGES[gauge] -= 1


def _count(prompt: tuple[int, ...], stamps_s: list[float]) -> None:
    """One request that ended, with the times of its tokens."""
    prompt_tokens = len(prompt)
    gaps_s = [after - before for before, after in pairwise(stamps_s)]
    mean_gap_s = [sum(gaps_s) / len(gaps_s)] if gaps_s else []
    with LOCK:
        COUNTS["vllm:prompt_tokens"] += prompt_tokens
        COUNTS["vllm:prefix_cache_hits"] += prompt_tokens if prompt in PROMPTS else 0
        PROMPTS.add(prompt)
        COUNTS["vllm:generation_tokens"] += len(stamps_s)
        COUNTS["vllm:request_success"] += 1
        values = {
            "vllm:time_to_first_token_seconds": stamps_s[:1],
            "vllm:request_time_per_output_token_seconds": mean_gap_s,
            "vllm:inter_token_latency_seconds": gaps_s,
            "vllm:e2e_request_latency_seconds": stamps_s[-1:],
            "vllm:request_prompt_tokens": [prompt_tokens],
            "vllm:request_generation_tokens": [len(stamps_s)],
        }
        for name, found in values.items():
            for value in found:
                HISTOGRAMS[name].add(value)


def _metrics() -> list[str]:
    counters = [
        f"# TYPE {n} counter\n{n}_total{{{REASON if n == ENDED else LABELS}}} {v}\n"
        for n, v in COUNTS.items()
    ]
    gauges = [f"# TYPE {n} gauge\n{n}{{{LABELS}}} {v}\n" for n, v in GAUGES.items()]
    return [*counters, *gauges, *(histogram.text(n) for n, histogram in HISTOGRAMS.items())]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("--data-parallel-size", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--enable-prefix-caching", action="store_true")
    return parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    """vLLM's pages that a load needs."""

    protocol_version = "HTTP/1.1"
    slots: threading.Semaphore
    step_s: float
    model: str

    def do_GET(self) -> None:
        if not self._is_let_in():
            self._answer(b"", "text/plain", status=401)
        elif self.path == "/metrics":
            with LOCK:
                lines = _metrics()
            cache = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="99"} 1.0\n'
            gauge = f"# TYPE vllm:cache_config_info gauge\n{cache}"
            self._answer("".join([*lines, gauge]).encode(), "text/plain")
        elif self.path == "/v1/models":
            card = {"id": self.model, "owned_by": os.environ.get("STAND_IN_OWNER", "vllm")}
            self._answer(json.dumps({"data": [card]}).encode(), "application/json")
        else:
            self._answer(b"", "text/plain")

    def _is_let_in(self) -> bool:
        name = "STAND_IN_TOKEN" if self.path == "/metrics" else "STAND_IN_KEY"
        secret = os.environ.get(name)
        is_asked = self.path == "/metrics" or self.path.startswith("/v1/")
        return not (secret and is_asked) or self.headers["Authorization"] == f"Bearer {secret}"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in():
            self._answer(b"", "text/plain", status=401)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if os.environ.get("STAND_IN_DIES"):
            os._exit(9)
        came_s = time.monotonic()
        try:
            with _counted("vllm:num_requests_waiting"):
                self.slots.acquire()
            with _counted("vllm:num_requests_running"):
                self._stream(body, came_s)
        except OSError:  # the client has gone
            return
        finally:
            self.slots.release()

    def _stream(self, body: dict[str, Any], came_s: float) -> None:
        count = int(body["max_tokens"])
        stamps_s = []
        for number in range(count):
            time.sleep(self.step_s)
            stamps_s.append(time.monotonic() - came_s)
            reason = "length" if number == count - 1 else None
            choice = {"text": "a", "token_ids": [7], "finish_reason": reason}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        _count(tuple(body["prompt"]), stamps_s)

    def _answer(self, body: bytes, kind: str, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    main()
