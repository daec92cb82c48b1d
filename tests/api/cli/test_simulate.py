from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.spec.model import ModelConfig
from tests.api.cli.conftest import OTHER_HASH_SEED, Run
from tests.tuner.profiles import made_up_profile
from tuner.step_model.fit import fit_step_model

WORKLOAD = "poisson:rate=10,input=64,output=8,requests=20"


@pytest.fixture
def cost_model(tmp_path: Path, tiny_dir: Path) -> Path:
    """A saved step model of a made-up machine."""
    path = tmp_path / "model.json"
    model = fit_step_model(made_up_profile(), ModelConfig.from_dir(tiny_dir))
    path.write_text(json.dumps(model.to_json()))
    return path


def test_simulate_prints_the_document_other_programs_rely_on(
    run: Run, tiny_dir: Path, cost_model: Path
) -> None:
    done = run(
        "simulate", "--model", tiny_dir, "--plan", "sp=2,shift=32", "--workload", WORKLOAD,
        "--sla", "p95_ttft_ms<=60000", "--cost-model", cost_model, "--seed", 1, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["fidelity"] == "simulated"
    assert document["requests"]["completed"] == 20
    assert document["metrics"]["attainment"] == 1.0
    assert set(document["metrics"]["ttft_ms"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert document["driver_lag_ms"] == 0
    ends = document["intervals"]["p95_ttft_ms"]
    assert ends["low"] < ends["value"] == document["metrics"]["ttft_ms"]["p95"] < ends["high"]
    assert document["cost_model"]["interval"] > 0


def test_ranks_that_take_all_cores_of_this_machine_are_warned_of(
    run: Run, tiny_dir: Path, cost_model: Path
) -> None:
    words = ("--model", tiny_dir, "--workload", WORKLOAD, "--cost-model", cost_model)
    whole, half = (run("simulate", *words, "--plan", plan) for plan in ("tp=2", "tp=1"))
    assert "had all 2 cores of this machine to themselves" in " ".join(whole.stderr.split())
    assert "to themselves" not in half.stderr


def test_the_same_seed_prints_the_same_numbers(run: Run, tiny_dir: Path) -> None:
    words = ("simulate", "--model", tiny_dir, "--workload", WORKLOAD, "--hardware", "8xh200",
             "--plan", "tp=2", "--seed", 5, "--json")  # fmt: skip
    assert run(*words).stdout == run(*words).stdout


def test_requests_beyond_those_admitted_are_told_apart(run: Run, tiny_dir: Path) -> None:
    words = ("simulate", "--model", tiny_dir, "--workload", WORKLOAD, "--hardware", "h100",
             "--sla", "p95_ttft_ms<=60000", "--admit-rps", 1)  # fmt: skip
    admission = json.loads(run(*words, "--json").stdout)["admission"]
    assert admission["refused"] >= 10
    assert admission["admitted_attainment"] == 1.0
    assert f"admission: {admission['refused']} of 20 turned away" in run(*words).stdout
    assert "/admission/rate_rps" in run(*words[:-1], 0).stderr


def test_described_hardware_says_that_it_is_uncalibrated(run: Run, tiny_dir: Path) -> None:
    done = run("simulate", "--model", tiny_dir, "--workload", WORKLOAD, "--hardware", "h100")
    assert done.exit_code == 0, done.output
    assert "fp32 step times are from data-sheet peaks" in done.stderr
    assert "ttft" in done.stdout


def test_without_a_cost_model_the_command_to_run_is_named(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path / "empty"))
    done = run("simulate", "--model", tiny_dir, "--workload", WORKLOAD)
    assert done.exit_code == 2
    assert "gearshift profile" in done.stderr


NODE = ("--hardware", "8xh200", "--dtype", "fp8", "--model", "llama-3.1-70b")
CLOSED = "closed:concurrency=4,input=256,output=16,requests=12"


def test_a_model_by_name_in_fp8_on_hardware_that_is_not_here(run: Run) -> None:
    words = ("--plan", "sp=8,shift=512", "--workload", CLOSED, "--backend", "arctic")
    done = run("simulate", *NODE, *words, "--max-num-seqs", 8, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["requests"]["completed"] == 12
    assert document["dtype"] == "fp8"
    assert document["backend"]["name"] == "arctic"
    assert document["step_interval"] == document["backend"]["interval"]
    assert "never measured on a GPU" in done.stderr
    assert document["settings"]["shift"]["threshold_tokens"] == 512
    assert document["settings"]["caps"]["max_num_seqs"] == 8
    # 70 billion weights of a byte each on every rank of an SP group, its ends in bfloat16, and an
    # eighth of all again for shift mode.
    assert 68e9 < document["memory"]["weight_bytes_per_rank"] < 85e9
    assert document["memory"]["kv_tokens"] // 16 == document["memory"]["num_kv_blocks"]
    ends = document["intervals"]["p95_ttft_ms"]
    assert ends["low"] < ends["value"] == document["metrics"]["ttft_ms"]["p95"] < ends["high"]


def test_hardware_that_is_not_here_is_served_by_vllm_unless_another_is_named(run: Run) -> None:
    words = ("simulate", *NODE, "--workload", CLOSED, "--no-intervals")
    words += ("--sla", "p95_ttft_ms<=9000")
    done = run(*words, "--plan", "tp=8", "--seed", 2)
    assert done.stdout.splitlines()[:3] == [
        "llama-3.1-70b in fp8 on 8xh200, served by vllm@0.14 (profile version 3)",
        f"workload {CLOSED}",
        "SLA p95_ttft_ms<=9000; seed 2",
    ]
    lacking = run(*words, "--plan", "sp=8,shift")
    assert lacking.exit_code == 2
    assert "vllm has no sequence parallelism" in lacking.stderr
    assert "a backend that can: arctic, gearshift" in lacking.stderr
    ours = run(*words, "--plan", "sp=8,shift", "--backend", "gearshift", "--json")
    assert "served by gearshift (profile version" in json.loads(ours.stdout)["title"]


def test_a_release_and_a_setting_of_the_backend_change_the_answer(run: Run) -> None:
    words = ("simulate", *NODE, "--plan", "tp=8", "--workload", CLOSED, "--no-intervals", "--json")

    def tpot_ms(*choice: str) -> float:
        done = run(*words, *choice)
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        assert document["backend"]["choice"] in document["title"]
        return float(document["metrics"]["tpot_ms"]["mean"])

    newest, older = tpot_ms(), tpot_ms("--backend", "vllm@0.12")
    assert newest < older, "the host's work is hidden from 0.14 on"
    assert tpot_ms("--backend-set", "async_scheduling=off") == older
    both = ("--backend-set", "async_scheduling=on", "--backend-set", "max_num_seqs=64")
    assert tpot_ms("--backend", "vllm@0.12", *both) == newest


def test_a_rung_runs_where_weights_are_held_once_and_is_refused_where_they_are_twice(
    run: Run,
) -> None:
    words = ("simulate", *NODE, "--plan", "sp=8,shift=512", "--workload", CLOSED, "--no-intervals")
    done = run(*words, "--mode", "4x2", "--backend", "gearshift", "--json")
    document = json.loads(done.stdout)
    assert document["settings"]["mode"] == "4x2"
    assert document["counts"]["steps"]["4x2"] > 0 == document["counts"]["steps"]["base"]
    refused = run(*words, "--mode", "4x2", "--backend", "arctic")
    assert refused.exit_code == 2
    assert "in base and shift only; add --rungs base,shift" in refused.stderr


def test_arctic_holds_the_weights_twice(run: Run) -> None:
    words = ("simulate", *NODE, "--plan", "sp=8,shift=512", "--workload", CLOSED, "--json")
    one, two = (
        json.loads(run(*words, "--no-intervals", "--backend", name).stdout)["memory"]
        for name in ("gearshift", "arctic")
    )
    assert two["weight_bytes_per_rank"] > 1.1 * one["weight_bytes_per_rank"]
    assert two["kv_tokens"] < one["kv_tokens"]


def test_devices_that_stand_idle_are_named_and_replicas_not_added(run: Run) -> None:
    done = run("simulate", *NODE, "--plan", "tp=2", "--workload", CLOSED, "--json")
    document = json.loads(done.stdout)
    assert document["settings"]["plan"]["tp"] == 2
    (warning,) = [text for text in document["warnings"] if "idle" in text]
    assert "uses 2 of 8 devices" in warning
    assert "dp=4 would use 8" in warning
    assert warning in done.stderr


def test_a_threshold_that_is_not_named_is_advised_by_the_step_times(run: Run) -> None:
    words = ("simulate", *NODE, "--workload", CLOSED, "--no-intervals", "--json")
    words += ("--backend", "gearshift")
    advised = json.loads(run(*words, "--plan", "sp=8,shift").stdout)["settings"]
    named = json.loads(run(*words, "--plan", "sp=8,shift=100").stdout)["settings"]
    assert named["shift"]["threshold_tokens"] == 100
    assert advised["shift"]["threshold_tokens"] > 256


def test_the_same_seed_gives_the_same_bytes_in_another_process(run: Run, tmp_path: Path) -> None:
    words = ("simulate", *NODE, "--plan", "dp=2,tp=4", "--seed", "3", "--json",
             "--workload", "gamma:rate=8,cv=2,input=512,output=32,requests=40",
             "--sla", "p95_ttft_ms<=900,attainment>=0.9")  # fmt: skip
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    done = run(*words, "--out", here)
    assert done.exit_code == 0, done.output
    again = subprocess.run(
        [sys.executable, "-m", "api.cli.main", *words, "--out", str(there)],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": OTHER_HASH_SEED},
        check=True,
    )
    assert again.stdout == done.stdout_bytes
    assert there.read_bytes() == here.read_bytes()
    assert json.loads(done.stdout) == json.loads(here.read_bytes())


def test_a_trace_with_shared_beginnings_finds_them_in_the_prefix_cache(
    run: Run, tmp_path: Path
) -> None:
    rows = [
        {"timestamp": 4000 * i, "input_length": 1100, "output_length": 9, "hash_ids": [1, 2, 3 + i]}
        for i in range(6)
    ]
    trace, samples = tmp_path / "trace.jsonl", tmp_path / "steps.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("simulate", "--model", "llama-3.1-8b", "--hardware", "h100", "--plan", "tp=1",
             "--workload", f"mooncake:{trace}", "--json")  # fmt: skip
    without = run(*words, "--no-intervals", "--no-prefix-cache")
    assert "warning: prompts share beginnings" in without.stderr
    assert "add --prefix-cache" in without.stderr
    done = run(*words, "--samples", samples)
    assert done.exit_code == 0, done.output
    assert "share beginnings" not in done.stderr
    document = json.loads(done.stdout)
    assert document["prefix_cache"]["hit_tokens"] == 5 * 1024
    assert document["energy"]["is_estimate"]
    assert document["energy"]["joules"] > 0
    steps = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(steps) == sum(document["counts"]["steps"].values())
    prefilled = sum(step["shape"]["num_prefill_tokens"] for step in steps)
    assert prefilled == 6 * 1100 - 5 * 1024


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hardware", "8xh200", "--dtype", "fp7"), "'fp7' is not known"),
        (("--hardware", "8xh200", "--backend", "x"), "known are"),
        (("--hardware", "8xh200", "--link", "gbps=1"), "--hardware"),
        (("--hardware", "8xh200", "--cost-model", "x"), "--cost-model: of this machine only"),
        (("--hardware", "8xh200", "--kv-cache-mib", "64"), "--kv-cache-mib: of this machine only"),
        (("--hardware", "8xh200", "--max-model-len", "200000"), "a context of 131072 tokens"),
        (
            ("--hardware", "8xh200", "--backend", "vllm", "--plan", "sp=2,tp=2"),
            "no sequence parallelism for inference (sp=2); take another plan, or a backend",
        ),
        (
            ("--hardware", "8xh200", "--backend", "arctic", "--plan", "pp=2"),
            "no pipeline parallelism",
        ),
        (("--backend", "vllm"), "add --hardware"),
        (("--backend-set", "prefix_cache=on"), "add --hardware"),
        (("--hardware", "8xh200", "--backend-set", "asink=on"), "unknown setting 'asink'"),
        (("--dtype", "fp8"), "described hardware"),
        (("--hardware", "8xh200", "--plot", "x.gif"), ".svg"),
        (("--hardware", "8xh200", "--out", "/nowhere/x.json"), "there is no folder /nowhere"),
        (("--hardware", "8xh200", "--samples", "/"), "cannot write /: it is a folder"),
    ],
)
def test_mistakes_about_described_hardware(run: Run, words: tuple[str, ...], message: str) -> None:
    done = run("simulate", "--model", "llama-3.1-8b", "--workload", CLOSED, *words)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "tp=3"), "8 query heads"),
        (("--plan", "xp=3"), "unknown word 'xp'"),
        (("--sla", "soon"), "soon"),
        (("--hardware", "8xb999"), "b999"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    run: Run, tiny_dir: Path, words: tuple[str, ...], message: str
) -> None:
    done = run("simulate", "--model", tiny_dir, "--workload", WORKLOAD, *words)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("workload", "hardware", "said"),
    [
        ("poisson:rate=1e308,input=1,output=1", "8xh200", "rate=1e308 must be at least"),
        ("poisson:rate=1e-308,input=1,output=1", "8xh200", "rate=1e-308 must be at least"),
        ("poisson:rate=4,input=1,output=1,seconds=1e12", "8xh200", "seconds=1e12 must be at least"),
        ("csv:/\ud800", "8xh200", "is not UTF-8 text"),
        ("auto:/no/such/file", "8xh200", "No such file"),
        (WORKLOAD, "0xh200", "hardware '0xh200'"),
        (WORKLOAD, f"{2**70}xh200", "at most 16384 devices"),
    ],
)
def test_a_number_beyond_its_bound_is_one_line(
    run: Run, tiny_dir: Path, workload: str, hardware: str, said: str
) -> None:
    done = run("simulate", "--model", tiny_dir, "--workload", workload, "--hardware", hardware)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("tp", "is_told"), [(1, False), (2, True)])
def test_int4_groups_that_a_plan_would_cut_are_told(run: Run, tp: int, is_told: bool) -> None:
    """The FFN of qwen2.5-72b is 231 groups of 128 wide."""
    words = ("--model", "qwen2.5-72b", "--dtype", "awq", "--hardware", "8xh200")
    spec = "poisson:rate=1,input=64,output=4,requests=3"
    done = run("simulate", *words, "--plan", f"tp={tp}", "--workload", spec)
    assert done.exit_code == 0, done.stderr
    assert ("no whole groups of 128" in done.stderr) is is_told
    assert "int4 step times are estimated from those in bf16" in done.stderr


@pytest.mark.parametrize(
    ("bound", "code", "verdict"), [("0.001", 3, "missed"), ("60000", 0, "met")]
)
def test_a_script_can_tell_a_missed_sla_by_the_exit_code(
    run: Run, bound: str, code: int, verdict: str
) -> None:
    words = ("simulate", *NODE, "--plan", "tp=8", "--workload", CLOSED, "--no-intervals")
    done = run(*words, "--sla", f"p95_ttft_ms<={bound}")
    assert done.exit_code == code, done.output
    assert f"SLA {verdict}" in done.stdout


def test_requests_that_can_never_fit_end_with_their_own_exit_code(run: Run) -> None:
    workload = "closed:concurrency=1,input=900,output=200,requests=2"
    words = ("simulate", *NODE, "--plan", "tp=8", "--workload", workload, "--max-model-len", 1000)
    done = run(*words, "--no-intervals", "--sla", "p95_ttft_ms<=60000")
    assert done.exit_code == 4, done.output
    assert "requests: 2 of 2 failed" in done.stdout
