"""`gearshift engine serve` in two processes: same answers, and what happens when one ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.api.cli.served import COMMAND, FRONT_MODULE, PACED, Served, serving
from tests.processes import is_gone, wait_gone
from tests.waiting import wait_until


def _answers(http: httpx.Client) -> list[Any]:
    """What clients get, without the parts that differ from call to call."""
    base = {"model": "tiny", "temperature": 1.0, "seed": 5, "max_tokens": 40}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    bodies = [
        {**base, "prompt": "The engine"},
        {**base, "prompt": ["one", "two"], "n": 2, "return_token_ids": True},
        {**base, "prompt": "x", "stop": ["a", "e", "o"]},
        {**base, "prompt": "x", "stop": ["a", "e", "o"], **usage, "return_token_ids": True},
        {**base, "prompt": "x", **usage, "return_token_ids": True},
    ]
    found = []
    for body in bodies:
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        found.append(_streamed(reply.text) if body.get("stream") else _whole(reply.json()))
    return found


def _whole(answer: dict[str, Any]) -> Any:
    return answer["choices"], answer["usage"]


def _streamed(text: str) -> Any:
    """The joined text and ids, the reason and the usage: pieces may be cut in other places."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return (
        "".join(choice["text"] for choice in choices),
        [token for choice in choices for token in choice["token_ids"]],
        choices[-1]["finish_reason"],
        chunks[-1]["usage"],
    )


def test_answers_are_the_same_with_and_without_a_front_process(tiny_dir: Path) -> None:
    with serving("--model", tiny_dir, "--frontends", 0) as one:
        assert not psutil.Process(one.process.pid).children()[1:]
        expected = _answers(one.http)
    with serving("--model", tiny_dir) as two:
        assert two.front.is_running()
        assert _answers(two.http) == expected
        assert two.metric("vllm:time_to_first_token_seconds_count") == 8  # one per choice
        assert two.metric("vllm:prompt_tokens_total") > 0


def _long(max_tokens: int = 30_000) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "x", "max_tokens": max_tokens, "ignore_eos": True}


@pytest.fixture(scope="module")
def long_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context so long that a request does not end by itself meanwhile, and so
    many layers that its tokens come no faster than a client reads them: a front that is killed in
    the middle of an event cannot be spoken for."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    folder.mkdir()
    for path in tiny_dir.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((tiny_dir / "config.json").read_text())
    sizes = {"max_position_embeddings": 10**6, "num_hidden_layers": 500}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    return folder


@contextmanager
def few_files() -> Iterator[None]:
    """What starts meanwhile may have few files open, unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def lasting(long_dir: Path) -> Iterator[Served]:
    """A server for all tests that leave it whole, started where few files may be open."""
    with ExitStack() as stack:
        with few_files():
            words = ("--model", long_dir, *PACED, "--max-connections", 700)
            served = stack.enter_context(serving(*words))
        yield served


def test_a_server_asks_for_a_file_for_each_client(lasting: Served) -> None:
    for process in (psutil.Process(lasting.process.pid), lasting.front):
        assert process.rlimit(resource.RLIMIT_NOFILE)[0] > 700


def test_a_client_that_leaves_frees_its_sequence(lasting: Served) -> None:
    before = lasting.metric("vllm:request_success_total")
    body = {**_long(), "stream": True}
    with lasting.http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()  # kept: one that is dropped closes the connection
        next(lines)
        assert lasting.metric("vllm:num_requests_running") == 1
    wait_until(lambda: lasting.metric("vllm:num_requests_running") == 0)
    assert lasting.metric("vllm:request_success_total") == before + 1


def _told(lines: Iterator[str]) -> dict[str, Any]:
    """The error that ends a stream; a stream that was cut fails the test."""
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    told = json.loads(events[-2])
    assert "error" in told, told
    return dict(told["error"])


def test_a_front_that_is_killed_is_replaced_and_its_clients_are_told(long_dir: Path) -> None:
    with serving("--model", long_dir, *PACED) as served, ThreadPoolExecutor(1) as elsewhere:
        body = {**_long(10), "stream": False}
        assert served.http.post("/v1/completions", json=body).status_code == 200
        first = served.front
        stream = served.http.stream("POST", "/v1/completions", json={**_long(), "stream": True})
        with stream as reply:
            lines = reply.iter_lines()
            next(lines)
            whole = elsewhere.submit(served.http.post, "/v1/completions", json=_long())
            wait_until(lambda: served.metric("vllm:num_requests_running") == 2)
            first.kill()
            assert _told(lines)["code"] == "front_end_lost"
        refused = whole.result(60)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "front_end_lost"
        after = served.http.post("/v1/completions", json=body)  # waits for the new one
        assert after.json()["usage"]["completion_tokens"] == 10
        assert served.front.pid != first.pid
        wait_until(lambda: served.metric("vllm:num_requests_running") == 0)
        # The engine's own counts stay, and those that were cut are among them.
        assert served.metric("vllm:request_success_total") == 4
        assert served.metric("vllm:generation_tokens_total") > 20
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0
        assert served.process.stderr is not None
        assert "was killed by signal 9; starting another" in served.process.stderr.read()


def test_the_engine_keeps_no_socket_of_a_client_that_was_answered(lasting: Served) -> None:
    parent = psutil.Process(lasting.process.pid)
    before = parent.num_fds()
    bodies = [_long(4), {**_long(4), "stream": True}, {"model": "other", "prompt": "x"}]
    for body in bodies * 5:
        with httpx.Client(base_url=lasting.http.base_url, timeout=60) as http:
            http.post("/v1/completions", json=body)
    body = {**_long(), "stream": True}
    with lasting.http.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_lines())  # and leaves
    wait_until(lambda: parent.num_fds() <= before)


@pytest.mark.slow
def test_a_front_that_hangs_is_replaced(long_dir: Path) -> None:
    with serving("--model", long_dir, *PACED) as served:
        first = served.front
        first.suspend()
        wait_gone([first.pid])
        body = {**_long(10), "stream": False}
        assert served.http.post("/v1/completions", json=body).status_code == 200
        assert served.front.pid != first.pid
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0
        assert served.process.stderr is not None
        assert "did not answer any more and was killed" in served.process.stderr.read()


def test_a_front_that_keeps_dying_ends_the_engine_with_a_reason(long_dir: Path) -> None:
    with serving("--model", long_dir, *PACED) as served:

        def has_ended() -> bool:
            with suppress(psutil.Error):  # it may end between being listed and looked at
                for child in psutil.Process(served.process.pid).children():
                    if FRONT_MODULE in child.cmdline():
                        child.kill()
            return served.process.poll() is not None

        wait_until(has_ended)
        assert served.process.returncode == 1
        assert served.process.stderr is not None
        assert "the HTTP front end ended 4 times" in served.process.stderr.read()


def test_nothing_is_left_when_the_engine_process_is_killed(tiny_dir: Path) -> None:
    with serving("--model", tiny_dir, "--plan", "tp=2") as served:
        children = psutil.Process(served.process.pid).children(recursive=True)
        assert len(children) >= 3  # a front and two ranks
        served.process.kill()
        wait_gone([child.pid for child in children])


def test_a_second_signal_cuts_what_would_have_been_drained(long_dir: Path) -> None:
    with serving("--model", long_dir, *PACED) as served:
        front = served.front
        stream = served.http.stream("POST", "/v1/completions", json={**_long(), "stream": True})
        with stream as reply, ThreadPoolExecutor(1) as elsewhere:
            # Read all the while: what waits in sockets when the front is cut off is lost.
            lines: list[str] = []
            reading = elsewhere.submit(lambda: lines.extend(reply.iter_lines()))
            wait_until(lambda: len(lines) > 0)
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: _is_refused(str(served.http.base_url)))
            assert not is_gone(front.pid)
            before = len(lines)
            wait_until(lambda: len(lines) > before)  # it is being drained
            served.process.send_signal(signal.SIGTERM)
            reading.result(60)
            assert _told(iter(lines))["code"] == "front_end_lost"
        assert served.process.wait(timeout=60) == 0
        assert is_gone(front.pid)


def _is_refused(url: str) -> bool:
    try:
        httpx.get(url + "/health", timeout=5)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return False


def test_the_policy_is_read_and_changed_through_the_front(lasting: Served) -> None:
    http = lasting.http
    first = http.get("/v1/engine/policy")
    match = {"If-Match": first.headers["etag"]}
    change = {"shift": {"threshold_tokens": 77}, "caps": {"max_num_seqs": 1, "max_queue": 0}}
    changed = http.patch("/v1/engine/policy", json=change, headers=match)
    assert (changed.status_code, changed.json()["effective"]["version"]) == (200, 1)
    second = http.get("/v1/engine/policy")
    assert second.json()["shift"]["threshold_tokens"] == 77
    assert second.headers["etag"] == changed.headers["etag"] != first.headers["etag"]
    assert http.patch("/v1/engine/policy", json=change).status_code == 428
    assert http.patch("/v1/engine/policy", json=change, headers=match).status_code == 412
    match = {"If-Match": second.headers["etag"]}
    beyond = http.patch("/v1/engine/policy", json={"caps": {"max_num_seqs": 10**6}}, headers=match)
    assert (beyond.status_code, beyond.json()["needs"]) == (409, "restart")
    plan = http.patch("/v1/engine/policy", json={"plan": {"tp": 2}}, headers=match)
    assert plan.status_code == 422
    with http.stream("POST", "/v1/completions", json={**_long(), "stream": True}) as reply:
        lines = reply.iter_lines()  # kept: one that is dropped closes the connection
        next(lines)
        full = http.post("/v1/completions", json=_long(4))
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json()["error"]["code"] == "queue_full"
    before = {key: first.json()[key] for key in change}
    assert http.patch("/v1/engine/policy", json=before, headers=match).status_code == 200


def test_an_engine_whose_ranks_cannot_be_replaced_answers_503(tiny_dir: Path) -> None:
    with serving("--model", tiny_dir) as served, ThreadPoolExecutor(1) as elsewhere:
        front = served.front.pid
        reply = elsewhere.submit(served.http.post, "/v1/completions", json=_long(2000))

        def is_unhealthy() -> bool:
            for child in psutil.Process(served.process.pid).children():
                if child.pid != front:
                    child.kill()
            return served.http.get("/health").status_code == 503

        wait_until(is_unhealthy)
        assert reply.result(timeout=60).status_code == 503
        refused = served.http.post("/v1/completions", json=_long(4))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unhealthy")


def test_a_tokenizer_that_cannot_be_read_is_a_mistake(tiny_dir: Path, tmp_path: Path) -> None:
    for path in tiny_dir.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer.json").write_text("{")
    done = subprocess.run(
        [*COMMAND, "--model", str(tmp_path), *PACED],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=120,
    )
    assert done.returncode == 2
    assert "tokenizer.json: cannot be read" in done.stderr
