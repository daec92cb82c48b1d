"""A server whose page of metrics is whatever a test wants, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class Pages:
    """Answers every request by ``answer``, and remembers what was asked for with which key."""

    def __init__(self) -> None:
        self.answer: Answer = lambda handler: send(handler, "")
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


def send(
    handler: BaseHTTPRequestHandler, text: str, *, status: int = 200, location: str | None = None
) -> None:
    """A whole answer."""
    body = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    if location is not None:
        handler.send_header("Location", location)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving() -> Iterator[Pages]:
    """The server on a free port of loopback, until the block ends."""
    pages = Pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages.asked.append((self.path, self.headers["Authorization"]))
            try:
                pages.answer(self)
            except OSError:  # the client had enough
                return

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        pages.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield pages
        finally:
            server.shutdown()
            thread.join()


def page(*, finished: int, running: int = 0, waiting: int = 0, ttft_s: float = 0.05) -> str:
    """What vLLM counts after so many requests of 64 input and 3 output tokens."""
    within = finished if ttft_s <= 0.1 else 0
    tokens = {"prompt_tokens": 64 * finished, "generation_tokens": 3 * finished}
    lines = [f"vllm:{name}_total {value}" for name, value in tokens.items()]
    lines += [
        f'vllm:request_success_total{{finished_reason="stop"}} {finished}',
        f"vllm:num_requests_running {running}",
        f"vllm:num_requests_waiting {waiting}",
        "vllm:kv_cache_usage_perc 0.5",
        f'vllm:time_to_first_token_seconds_bucket{{le="0.1"}} {within}',
        f'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {finished}',
        f"vllm:time_to_first_token_seconds_sum {ttft_s * finished}",
        f"vllm:time_to_first_token_seconds_count {finished}",
    ]
    return "\n".join([*lines, ""])
