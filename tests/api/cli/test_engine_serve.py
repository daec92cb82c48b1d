"""`gearshift engine serve` as a process: the address, the end, and paced hardware."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run
from tests.api.cli.served import ALONE, COMMAND, Served, serving
from tests.collector import collecting


def _token_ids(line: str) -> list[int]:
    found: list[int] = json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"]
    return found


def test_sigterm_lets_a_stream_finish_and_ends_with_code_0(tiny_dir: Path) -> None:
    words = ("--model", tiny_dir, "--plan", "sp=2,tp=2,shift", "--paced", "4xh200")
    with serving(*words, "--dtype", "bfloat16") as served:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 300, "stream": True}
        body["return_token_ids"] = True
        with served.http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            served.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert sum(len(_token_ids(line)) for line in [first, *rest[:-1]]) == 300
        assert served.process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def paced(tiny_dir: Path) -> Iterator[Served]:
    """Two devices of a described kind in fp8, under a name and with a threshold of its own."""
    words = ("--model", tiny_dir, "--paced", "2xh200@pcie5", "--dtype", "fp8")
    names = ("--name", "eng_7", "--served-model-name", "m")
    with serving(*words, "--plan", "sp=2,shift=64", *names) as served:
        yield served


def test_a_paced_engine_knows_the_devices_of_its_hardware(paced: Served) -> None:
    assert (paced.ready["model"], paced.ready["plan"]) == ("m", "sp=2,shift")
    found = paced.http.get("/v1/engine/capabilities").json()
    assert found["engine"] == "eng_7"
    assert {knob["name"]: knob["maximum"] for knob in found["knobs"]}["plan"] == 2
    etag = paced.http.get("/v1/engine/policy").headers["etag"]
    too_many = paced.http.patch(
        "/v1/engine/policy", json={"plan": {"tp": 2}}, headers={"If-Match": etag}
    )
    assert too_many.status_code == 422
    assert "needs 4 devices" in too_many.json()["detail"]


def test_a_paced_engine_names_its_hardware_in_every_answer(run: Run, paced: Served) -> None:
    assert paced.ready["paced"] == "2xh200@pcie5"
    assert paced.http.get("/version").json()["paced"] == "2xh200@pcie5"
    owner = paced.http.get("/v1/models").json()["data"][0]["owned_by"]
    assert owner == "gearshift, paced as 2xh200@pcie5"
    body = {"model": "m", "prompt": "x", "max_tokens": 3}
    reply = paced.http.post("/v1/completions", json=body)
    assert reply.headers["x-gearshift-paced"] == "2xh200@pcie5"
    load = "closed:concurrency=1,input=8,output=4,requests=2"
    done = run("bench", "--url", paced.ready["url"], "--workload", load)
    assert done.exit_code == 0, done.output
    assert "runs no model, its steps are paced as 2xh200@pcie5" in done.stderr


@pytest.mark.parametrize("frontends", ["0", "1"])
def test_a_paced_engine_says_what_it_is_once_ready_and_ctrl_c_ends_it_with_one_line_and_code_130(
    tiny_dir: Path, frontends: str
) -> None:
    words = ("--model", str(tiny_dir), "--paced", "8xh200", "--dtype", "bfloat16")
    with subprocess.Popen(
        [*COMMAND, *words, "--frontends", frontends],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert "paced as 8xh200: no model is run, and its answers mean nothing" in line
    assert process.returncode == 130
    assert told.splitlines()[-1] == "interrupted"


def test_a_paced_engine_takes_fp8_which_ranks_do_not(
    run: Run, paced: Served, tiny_dir: Path
) -> None:
    body = {"model": "m", "prompt": "x", "max_tokens": 3}
    reply = paced.http.post("/v1/completions", json=body)
    assert reply.json()["usage"]["completion_tokens"] == 3
    done = run("engine", "serve", "--model", tiny_dir, "--dtype", "fp8")
    assert done.exit_code == 2
    assert "ranks of this engine do not compute in fp8" in done.stderr


def test_sampling_defaults_of_a_file_are_told_and_reach_the_front(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_k": 20, "max_new_tokens": 4}')
    words = ("--model", tiny_dir, "--paced", "1xh200", "--dtype", "bfloat16")
    with serving(*words, "--generation-config", tmp_path, "--enable-log-requests") as served:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 30, "ignore_eos": True}
        reply = served.http.post("/v1/completions", json=body, headers={"X-Request-ID": "r-1"})
        assert reply.json()["usage"]["completion_tokens"] == 4
        served.process.send_signal(signal.SIGTERM)
        assert served.process.stderr is not None
        told = served.process.stderr.read()
        assert "top_k=20, max_new_tokens=4" in told
        assert '"request_id": "r-1"' in told
    refused = run("engine", "serve", *words, "--generation-config", tmp_path / "none")
    assert refused.exit_code == 2
    assert "generation_config.json: cannot be read" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("frontends", [0, 1])
def test_an_engine_that_is_told_of_a_collector_sends_its_spans_before_it_ends(
    tiny_dir: Path, frontends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--model", tiny_dir, "--paced", "1xh200", "--dtype", "bfloat16", "--name", "eng_7")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with serving(*words, "--frontends", frontends) as served:
            body = {"model": "tiny", "prompt": "x", "max_tokens": 3}
            assert served.http.post("/v1/completions", json=body).is_success
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(timeout=30) == 0
        assert collector.named("POST /v1/completions").service == "gearshift-engine"
        assert collector.latencies["gen_ai.server.time_to_first_token"][0] == 1


def test_a_port_in_use_is_a_mistake_before_any_rank_starts(run: Run, tiny_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("engine", "serve", "--model", tiny_dir, "--port", port)
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_a_plan_nobody_has_devices_for_is_a_mistake_before_any_rank_starts(
    run: Run, tiny_dir: Path
) -> None:
    for plan in ("dp=64,tp=2", "dp=1000000000"):
        result = run("engine", "serve", "--model", tiny_dir, "--port", 0, "--plan", plan)
        assert result.exit_code == 2, result.stderr
        assert "devices, this engine has" in result.stderr


def test_unknown_hardware_and_an_unreadable_link_are_mistakes(run: Run, tiny_dir: Path) -> None:
    base = ("engine", "serve", "--model", tiny_dir, "--port", 0)
    unknown = run(*base, "--paced", "8xabacus")
    assert unknown.exit_code == 2
    assert "abacus" in unknown.stderr
    alone = run(*base, "--backend", "vllm")
    assert alone.exit_code == 2
    assert "--backend vllm is for described hardware: add --paced" in alone.stderr
    lacking = run(*base, "--paced", "4xh200", "--backend", "vllm", "--plan", "sp=2,tp=2")
    assert lacking.exit_code == 2
    assert "no sequence parallelism" in lacking.stderr
    link = run(*base, "--link", "latency=3")
    assert link.exit_code == 2
    assert "unknown word 'latency'" in link.stderr


def test_an_engine_serves_whatever_its_control_plane_does(tiny_dir: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        control = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        words = ("--model", tiny_dir, "--paced", "1xh200", "--dtype", "bfloat16")
        with serving(*words, *ALONE, "--control", control, "--name", "e1") as served:
            body = {"model": "tiny", "prompt": "x", "max_tokens": 4}
            reply = served.http.post("/v1/completions", json=body)
            assert reply.json()["usage"]["completion_tokens"] == 4
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(timeout=30) == 0
            assert served.process.stdout is not None
            assert served.process.stdout.read() == ""


def test_a_shift_plan_without_a_threshold_is_measured_and_one_with_it_is_obeyed(
    paced: Served, tiny_dir: Path, tmp_path: Path
) -> None:
    words = ("--model", tiny_dir, "--paced", "4xh200", "--dtype", "bfloat16")
    words += ("--plan", "sp=2,tp=2,shift", "--mode-table", tmp_path / "tables")
    with serving(*words, *ALONE, "--no-overlap", "--no-prefix-cache") as served:
        found = served.http.get("/v1/engine/mode-table").json()
        assert found["mode"] == "table"
        stored = [json.loads(path.read_text()) for path in (tmp_path / "tables").iterdir()]
        assert found["tables"] == stored
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=30) == 0
    found = paced.http.get("/v1/engine/mode-table").json()
    assert (found["mode"], found["threshold_tokens"]) == ("auto", 64)
    assert found["tables"] == [None]
