"""``gearshift bench`` against a real server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from api.cli.main import create_app
from engine.engine import Engine
from engine.models.create import create_model
from engine.server.app import create_server
from engine.server.defaults import SamplingDefaults
from engine.spec.config import EngineConfig
from engine.spec.plan import ParallelPlan
from engine.text.tokenizer import Tokenizer
from tests.engine.nvml.engines import monitor_of
from tests.engine.nvml.fake_nvml import FakeGpu, FakeNvml
from tests.engine.server.conftest import (
    serving,
    simulated_engine,
)
from tests.servers import serve
from tests.tuner.pictures.pages import names, read_page
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over one real rank."""
    folder: Path = tmp_path_factory.mktemp("bench") / "model"
    create_model(folder, preset="tiny", seed=0)
    tokenizer = Tokenizer.from_dir(folder)
    with (
        Engine(EngineConfig(model_dir=folder, num_kv_blocks=256), tokenizer=tokenizer) as engine,
        serve(create_server(engine, tokenizer, model_name="tiny")) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def watched_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over one rank that only takes time, on a device whose driver tells of it."""
    folder: Path = tmp_path_factory.mktemp("watched") / "model"
    create_model(folder, preset="tiny", seed=0)
    gpu = FakeGpu(uuid="GPU-0", bus_id="0")

    def use_energy(name: str) -> None:
        gpu.energy_mj += 100

    monitor = monitor_of(FakeNvml(gpu, on_call=use_energy))
    plan = ParallelPlan()
    with (
        simulated_engine(folder, step_s=0.005, plan=plan, monitor=monitor) as engine,
        serving(engine, folder) as server,
    ):
        wait_until(lambda: bool(engine.stats().devices))
        yield server.url


@pytest.fixture(scope="module")
def limited_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that gives no request more than 4 tokens."""
    folder: Path = tmp_path_factory.mktemp("limited") / "model"
    create_model(folder, preset="tiny", seed=0)
    tokenizer = Tokenizer.from_dir(folder)
    defaults = SamplingDefaults(max_new_tokens=4)
    with (
        Engine(EngineConfig(model_dir=folder, num_kv_blocks=256), tokenizer=tokenizer) as engine,
        serve(create_server(engine, tokenizer, model_name="tiny", defaults=defaults)) as address,
    ):
        yield address


def bench(*arguments: str):
    return CliRunner().invoke(create_app(), ["bench", *arguments])


def test_bench_prints_the_document_other_programs_rely_on(url: str) -> None:
    spec = "poisson:rate=30,input=40,output=6,seconds=1,max_input=16"
    done = bench("--url", url, "--workload", spec, "--sla", "p95_ttft_ms<=60000", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["fidelity"] == "measured"
    assert document["metrics"]["attainment"] == 1.0
    assert document["requests"]["errored"] == 0
    assert document["requests"]["completed"] > 10
    assert document["driver_lag_ms"] >= 0
    assert "max_input=16 shortened" in done.stderr


def test_bench_prints_a_table_and_the_verdict_without_json(url: str) -> None:
    spec = "closed:concurrency=2,input=8,output=4,requests=6"
    done = bench("--url", url, "--workload", spec, "--sla", "p95_e2e_ms<=0.001")
    assert done.exit_code == 3, done.output
    assert "completed 6" in done.stdout
    assert "missed: p95_e2e_ms<=0.001" in done.stdout


def test_bench_tells_the_energy_of_an_engine_whose_devices_tell_theirs(
    url: str, watched_url: str
) -> None:
    words = ("--workload", "closed:concurrency=2,input=8,output=40,requests=6")
    done = bench("--url", watched_url, *words, "--json")
    assert done.exit_code == 0, done.output
    energy = json.loads(done.stdout)["energy"]
    assert energy["num_devices"] == 1
    assert energy["joules"] > 0
    assert energy["joules_per_output_token"] == pytest.approx(energy["joules"] / (6 * 40))
    assert energy["joules_per_total_token"] == pytest.approx(energy["joules"] / (6 * 48))
    assert energy["mean_w"] == pytest.approx(energy["joules"] / energy["seconds"])
    told = bench("--url", watched_url, *words)
    assert "J per output token" in told.stdout
    without = bench("--url", url, *words)
    assert "energy" not in without.stdout


@pytest.mark.parametrize("more", [[], ["--fail-on-miss"]])
@pytest.mark.parametrize(("bound", "code"), [("0.001", 3), ("60000", 0)])
def test_a_script_can_tell_a_missed_sla_by_the_exit_code(
    url: str, bound: str, code: int, more: list[str]
) -> None:
    words = ["--url", url, "--workload", "closed:concurrency=2,input=8,output=4,requests=4"]
    done = bench(*words, "--sla", f"p95_e2e_ms<={bound}", *more, "--json")
    assert done.exit_code == code
    assert json.loads(done.stdout)["metrics"]["attainment"] == (0.0 if code else 1.0)


def test_requests_that_got_fewer_tokens_than_they_asked_for_are_told(limited_url: str) -> None:
    words = ["--url", limited_url, "--workload"]
    done = bench(*words, "closed:concurrency=2,input=8,output=9,requests=4", "--json")
    assert json.loads(done.stdout)["short_outputs"] == {"requests": 4, "share": 1.0}
    assert "4 completed requests (100.0%) got fewer tokens" in done.stderr
    whole = bench(*words, "closed:concurrency=2,input=8,output=3,requests=4", "--json")
    assert json.loads(whole.stdout)["short_outputs"] == {"requests": 0, "share": 0.0}
    assert "fewer" not in whole.stderr


def test_requests_beyond_the_context_are_foretold_and_counted_as_errors(url: str) -> None:
    spec = "closed:concurrency=2,input=90000,output=4,requests=2"
    done = bench("--url", url, "--workload", spec, "--sla", "p95_e2e_ms<=60000", "--json")
    assert done.exit_code == 4  # which says more than that the SLA is missed, too
    assert json.loads(done.stdout)["requests"]["errored"] == 2
    assert "2 of 2 requests are longer" in done.stderr
    assert "latest failure: HTTP 400" in done.stderr


def test_requests_that_time_out_end_with_their_own_exit_code(url: str) -> None:
    spec = "closed:concurrency=2,input=8,output=400,requests=2"
    done = bench("--url", url, "--workload", spec, "--timeout-s", "0.0001", "--json")
    assert json.loads(done.stdout)["requests"]["timed_out"] == 2
    assert done.exit_code == 4


def test_ctrl_c_tells_what_was_measured_so_far(url: str) -> None:
    def interrupt() -> None:
        wait_until(lambda: _num_ended(url) > before)
        os.kill(os.getpid(), signal.SIGINT)

    before = _num_ended(url)
    spec = "poisson:rate=20,input=8,output=2,seconds=600"
    with ThreadPoolExecutor(1) as threads:
        interrupted = threads.submit(interrupt)
        done = bench("--url", url, "--workload", spec, "--sla", "p95_e2e_ms<=60000", "--json")
    interrupted.result()
    document = json.loads(done.stdout)
    assert (done.exit_code, document["is_interrupted"]) == (130, True)
    assert 0 < document["requests"]["completed"] < document["requests"]["cut"]
    assert document["metrics"]["attainment"] == 1.0  # of those that ended
    assert "stopping: " in done.stderr


def _num_ended(url: str) -> float:
    """Requests that the server has completed."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:request_success_total"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workload", "nonsense"], "unknown kind"),
        (["--workload", "poisson:rate=1,input=1,output=1", "--fail-on-miss"], "add --sla"),
        (["--workload", "poisson:rate=1,input=1,output=1", "--sla", "fast"], "'fast'"),
        (
            ["--workload", "poisson:rate=1,input=1,output=1", "--url", "http://127.0.0.1:9"],
            "no answer",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(url: str, arguments: list[str], words: str) -> None:
    done = bench("--url", url, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bench_is_drawn_over_time_and_as_distribution(url: str, tmp_path: Path) -> None:
    file, sla = tmp_path / "bench.html", "p95_ttft_ms<=60000"
    spec = "poisson:rate=30,input=8,output=6,seconds=1"
    done = bench("--url", url, "--workload", spec, "--sla", sla, "--seed", "4", "--plot", str(file))
    assert done.exit_code == 0, done.output
    data, layout = read_page(file)
    legends, title = names(data), layout["title"]["text"]
    assert "p95 ITL" in legends
    assert "met by arrival" in legends
    assert legends.count("SLA p95_ttft_ms&lt;=60000") == 2
    for text in (f"tiny at {url}, tp=1 seqs=", "measured", spec, "seed 4"):
        assert text in title
    shares = next(trace for trace in data if trace["name"] == "TTFT")["y"]
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_a_run_that_is_repeated_finds_nothing_of_the_first_in_the_prefix_cache(
    tmp_path: Path,
) -> None:
    """Else the second would tell of a server that computes no prompts."""
    folder = tmp_path / "model"
    create_model(folder, preset="tiny", seed=0)
    tokenizer = Tokenizer.from_dir(folder)
    load = "closed:concurrency=2,input=64,output=2,requests=4"
    with (
        Engine(EngineConfig(model_dir=folder, num_kv_blocks=256), tokenizer=tokenizer) as engine,
        serve(create_server(engine, tokenizer, model_name="tiny")) as address,
    ):
        for _ in range(2):
            done = bench("--url", address, "--workload", load, "--json")
            assert done.exit_code == 0, done.output
        stats = engine.stats()
    assert stats.prefix_queries > 0
    assert stats.prefix_hits == 0
