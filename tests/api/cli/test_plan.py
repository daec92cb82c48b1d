from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from policies.capacity_table import CapacityTable, cheapest
from tests.api.cli.conftest import OTHER_HASH_SEED, Run

WORDS = ("plan", "--model", "llama-3.1-8b", "--hardware", "2xh200", "--dtype", "fp8")
WORKLOAD = "gamma:rate=10,cv=2,input=600,output=16,requests=40"
SLA = "p95_ttft_ms<=800,p95_tpot_ms<=60"


def test_plan_prints_the_best_three_what_else_is_feasible_and_how_to_start_them(run: Run) -> None:
    done = run(*WORDS, "--workload", WORKLOAD, "--sla", SLA, "--jobs", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[:3] == [
        "llama-3.1-8b in fp8 on 2xh200, served by vllm@0.14 (profile version 3)",
        f"workload {WORKLOAD}",
        f"SLA {SLA}; seed 0",
    ]
    for text in (
        "cheapest",
        "fastest",
        "balanced",
        "vllm serve meta-llama/Llama-3.1-",
        "P(SLA met)",
    ):
        assert text in done.stdout
    assert "left out, which vllm cannot run" in done.stdout
    assert "has no sequence parallelism" not in done.stdout
    assert "90 % interval" in done.stderr
    _, heading, rehearsal = done.stdout.partition("to rehearse without the hardware")
    assert heading
    assert "--paced" in rehearsal.splitlines()[1]
    answer = done.stdout[done.stdout.rindex("\ncheapest") :]
    assert "fastest:" not in answer, "the answer comes last"
    assert answer.index("vllm serve") < answer.index("--paced")


def test_plan_looks_for_what_it_is_asked_to_and_tells_what_that_costs(run: Run) -> None:
    words = (*WORDS, "--workload", WORKLOAD, "--sla", SLA, "--jobs", 1)
    done = run(*words, "--objective", "headroom", "--price-per-device-hour", 2, "--use-all")
    assert done.exit_code == 0, done.output
    answer = done.stdout[done.stdout.rindex("\nmost headroom") :]
    devices = int(answer.splitlines()[2].split()[0])
    assert f"costs {2 * devices} per hour" in answer
    assert "per million output tokens" in answer
    assert all(f" {n} devices" not in done.stdout for n in range(1, devices))
    wrong = run(*words, "--objective", "hedroom")
    assert wrong.exit_code == 2
    assert "did you mean 'headroom'?" in wrong.stderr


def test_the_document_is_the_same_bytes_in_another_process(run: Run, tmp_path: Path) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    words = (*WORDS, "--workload", WORKLOAD, "--sla", SLA, "--json")
    done = run(*words, "--jobs", 1, "--out", here)
    assert done.exit_code == 0, done.output
    again = subprocess.run(
        [sys.executable, "-m", "api.cli.main", *words, "--jobs", "2", "--out", str(there)],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": OTHER_HASH_SEED},
        check=True,
    )
    assert again.stdout == done.stdout_bytes
    assert there.read_bytes() == here.read_bytes()
    document = json.loads(done.stdout)
    assert document["schema"] == "plan/v2"
    assert document["dtype"] == "fp8"
    assert document["title"].startswith(
        "llama-3.1-8b in fp8 on 2xh200, served by vllm@0.14 (profile"
    )
    assert set(document["best"]) == {"cheapest", "fastest", "balanced"}
    cheapest = document["best"]["cheapest"]
    assert cheapest["memory"]["kv_tokens"] > 0
    assert {entry["system"] for entry in cheapest["launch"]} >= {"gearshift", "vllm", "arctic"}
    launch = {entry["system"]: entry for entry in cheapest["launch"]}
    assert launch["vllm"]["config"]["command"] == "vllm serve --config vllm.yml"
    assert "kv_cache_config:" in launch["trtllm"]["config"]["text"]
    assert "meta-llama/Llama-3.1-8B-Instruct stands for llama-3.1-8b" in launch["vllm"]["note"]
    assert document["hardware"]["version"] >= 1
    assert document["backend"]["name"] == "vllm"


def test_nothing_feasible_is_an_answer_not_a_mistake(run: Run) -> None:
    few = WORKLOAD.replace("requests=40", "requests=12")
    words = ("--devices", 1, "--workload", few, "--sla", "p95_tpot_ms<=0.01", "--jobs", 1)
    done = run(*WORDS, *words)
    assert done.exit_code == 3, done.output
    assert "nothing meets the SLA with P of at least 0.8" in done.stdout
    assert "binding is p95_tpot_ms<=0.01" in done.stdout
    assert "nearest is " in done.stdout
    assert "P(SLA met) 0.00" in done.stdout or "P unknown" in done.stdout
    assert "however low" in done.stdout
    assert "p95_tpot_ms<=" in done.stdout.partition("would do, not p95_tpot_ms<=0.01")[0][-20:]
    assert "looking for what would help" in done.stderr


@pytest.mark.slow
def test_the_capacity_table_tells_what_each_number_of_devices_carries(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    load = "poisson:rate=60,input=1024,output=2,requests=30"
    done = run("plan", "--model", "llama-3.1-8b", "--hardware", "2xh100", "--max-model-len", 2048,
               "--workload", load, "--sla", "p95_ttft_ms<=100", "--jobs", 1, "--capacity-table",
               "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "what carries which rate of this traffic within p95_ttft_ms<=100" in done.stdout
    assert "J each: estimated joules a request" in done.stdout
    table = CapacityTable.from_json(json.loads(out.read_text())["capacity_table"])
    one, two = table.entries
    assert (one.num_devices, two.num_devices) == (1, 2)
    assert table.mix == (1024, 2)
    assert one.low_rps <= one.rate_rps < two.rate_rps
    assert one.binding == table.sla.constraints[0]
    assert one.joules_per_request
    chosen = cheapest(table, 1.01 * one.rate_rps)
    assert chosen == two


def test_a_closed_loop_has_no_capacity_table(run: Run) -> None:
    closed = "closed:concurrency=4,input=64,output=4,requests=8"
    done = run(*WORDS, "--sla", SLA, "--workload", closed, "--capacity-table")
    assert done.exit_code == 2
    assert "a capacity table is of rates" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sla", "soon"), "soon"),
        (("--sla", SLA, "--devices", 4), "2xh200 has 2"),
        (("--sla", SLA, "--backend", "x"), "known are"),
    ],
)
def test_mistakes_are_one_line(run: Run, words: tuple[object, ...], message: str) -> None:
    done = run(*WORDS, "--workload", WORKLOAD, *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_model_that_fits_nowhere_says_what_it_needs(run: Run) -> None:
    done = run("plan", "--model", "llama-3.1-405b", "--hardware", "2xh200", "--sla", SLA,
               "--workload", WORKLOAD)  # fmt: skip
    assert done.exit_code == 2
    assert "GB of weights per rank" in done.stderr
