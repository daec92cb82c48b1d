"""A server that takes vLLM's command line and speaks its API, of the standard library alone.

A step of its imaginary device takes ``STEP_S`` and serves at most ``--max-num-seqs`` requests; each
rank more makes it a little faster. It starts a process of its own, as vLLM does, writes its pid
to ``$STAND_IN_PIDS``, and dies at its start above ``$STAND_IN_MOST_SEQS`` sequences, as one that is
out of memory.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STEP_S = 0.004
COUNTS: Counter[str] = Counter()
LOCK = threading.Lock()


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
        if self.path == "/metrics":
            with LOCK:
                lines = [f"# TYPE {name} counter\n{name}_total {n}\n" for name, n in COUNTS.items()]
            cache = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="99"} 1.0\n'
            gauge = f"# TYPE vllm:cache_config_info gauge\n{cache}"
            self._answer("".join([*lines, gauge]).encode(), "text/plain")
        elif self.path == "/v1/models":
            self._answer(json.dumps({"data": [{"id": self.model}]}).encode(), "application/json")
        else:
            self._answer(b"", "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if os.environ.get("STAND_IN_DIES"):
            os._exit(9)
        try:
            with self.slots:
                self._stream(body)
        except OSError:  # the client has gone
            return

    def _stream(self, body: dict[str, object]) -> None:
        count = int(str(body["max_tokens"]))
        for number in range(count):
            time.sleep(self.step_s)
            reason = "length" if number == count - 1 else None
            choice = {"text": "a", "token_ids": [7], "finish_reason": reason}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        with LOCK:
            COUNTS["vllm:prompt_tokens"] += len(list(body["prompt"]))  # type: ignore[call-overload]
            COUNTS["vllm:generation_tokens"] += count
            COUNTS["vllm:request_success"] += 1

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    main()
