from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.cli.tune_answer import print_answer
from engine.spec.energy import EnergyUse
from tests.api.cli.conftest import Run


def test_tune_writes_its_report_and_prints_a_table(
    run: Run, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    done = run(
        "tune", "--model", tiny_dir, "--devices", 2, "--hardware", "2xh200",
        "--workload", "poisson:rate=50,input=64,output=8,requests=20",
        "--sla", "p95_ttft_ms<=1000", "--trials", 2, "--seed", 1, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert document["recommendation"]["settings"]["plan"]["tp"] == 1
    assert len(document["trials"]) == 2
    assert document["spec"]["backend"] == "vllm"
    head = f"{tiny_dir} in fp32 on 2xh200, served by vllm@0.14 (profile version 3); workload "
    assert document["title"].startswith(head)
    assert document["title"].endswith("SLA p95_ttft_ms<=1000; seed 1")
    assert "workload poisson:rate=50,input=64,output=8,requests=20\n" in done.stdout
    assert "recommended (simulated" in done.stdout
    assert "trial 1" in done.stderr
    assert document["recommendation"]["measured_energy"] is None
    assert "energy" not in done.stdout
    energy = EnergyUse(joules=600.0, seconds=2.0, num_devices=1)
    measured = energy.to_json(output_tokens=160, total_tokens=1440)
    document["recommendation"]["measured_energy"] = measured
    print_answer({**document, "recommendation_id": None, "resume": None}, None)
    assert "mean 300 W of 1 device, 3.75 J per output token" in capsys.readouterr().out


def test_nothing_feasible_is_an_answer_with_exit_code_3(run: Run) -> None:
    done = run(
        "tune", "--model", "llama-3.1-8b", "--hardware", "2xh200", "--trials", 2,
        "--workload", "poisson:rate=50,input=64,output=8,requests=20",
        "--sla", "p95_ttft_ms<=0.01", "--json",
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert json.loads(done.stdout)["recommendation"] is None


def test_a_job_that_cannot_be_is_one_line_and_exit_code_2(run: Run, tiny_dir: Path) -> None:
    done = run(
        "tune", "--model", tiny_dir, "--devices", 9, "--hardware", "8xh200",
        "--workload", "poisson:rate=50,input=64,output=8,requests=20", "--sla", "p95_ttft_ms<=1000",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "9 devices asked for" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hardware", "2xh200", "--cost-model", "x"), "--cost-model: of this machine only"),
        (("--hardware", "2xh200", "--link", "gbps=1"), "--link: of this machine only"),
        (("--hardware", "2xh200", "--kv-cache-mib", 9), "--kv-cache-mib: of this machine only"),
        (("--backend", "vllm"), "add --hardware, as in 8xh200"),
        (("--out", "/nowhere/x.json"), "cannot write /nowhere/x.json: there is no folder"),
        # A folder in which nobody may make files, root neither.
        (("--out", "/proc/x.json"), "cannot write /proc/x.json: "),
    ],
)
def test_an_option_that_would_be_in_vain_is_refused(
    run: Run, tiny_dir: Path, words: tuple[object, ...], message: str
) -> None:
    load = ("--workload", "poisson:rate=50,input=64,output=8,requests=20")
    done = run("tune", "--model", tiny_dir, *load, "--sla", "p95_ttft_ms<=1000", *words)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_live_answer_is_likely_or_none_and_ends_with_the_command_that_serves_it(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    out = tmp_path / "report.json"
    done = run(
        "tune", "--model", tiny_dir, "--devices", 1, "--trials", 2, "--probe-requests", 30,
        "--profile-seconds", 1, "--workload", "poisson:rate=20,input=64,output=8,requests=40",
        "--sla", "p95_ttft_ms<=2000,attainment>=0.5", "--out", out,
    )  # fmt: skip
    document = json.loads(out.read_text())
    found = document["recommendation"]
    assert all(0 <= trial["sla_probability"] <= 1 for trial in document["trials"])
    assert "P(met)" in done.stdout
    if found is None:  # a machine busy beyond all measure
        assert done.exit_code == 3
        assert document["infeasible"]["closest"]["sla_probability"] < 0.8
        return
    assert done.exit_code == 0
    assert found["fidelity"] == "measured"
    assert document["spec"]["backend"] == "gearshift"
    assert "in fp32 on this machine (" in document["title"]
    assert ", served by gearshift 0." in document["title"]
    assert found["sla_probability"] >= 0.8
    assert f"P(SLA met) {found['sla_probability']:.2f}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: gearshift engine serve --from {out}"
    (launch,) = found["launch"]
    assert launch["command"] in done.stdout
    caps = found["settings"]["caps"]
    for words in (
        f"gearshift engine serve --model {tiny_dir} --plan tp=1",
        f"--max-num-seqs {caps['max_num_seqs']}",
        f"--max-num-batched-tokens {caps['max_num_batched_tokens']}",
        "--device cpu --kv-cache-mib 256",
    ):
        assert words in launch["command"]
