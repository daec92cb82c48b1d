"""``gearshift tune --engine vllm``: trials on a server that speaks vLLM's command line and API."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run
from tests.processes import wait_gone
from tests.tuner.servers import stand_in
from tests.waiting import wait_until

PREFIX = shlex.join([sys.executable, stand_in.__file__])
LOAD = ("--workload", "poisson:rate=100,requests=40,input=8,output=4", "--sla", "p95_ttft_ms<=5000")


def test_a_server_is_tuned_from_what_one_would_start_to_a_launch_command(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MOST_SEQS", "128")  # tp=2 has 256 by default: no memory
    out = tmp_path / "report.json"
    done = run(
        "tune", "--engine", "vllm", "--engine-command", PREFIX, "--model", tiny_dir,
        "--devices", 2, "--trials", 2, "--probe-requests", 8, *LOAD, "--out", out,
        "--budget", "device_hours=1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    costs = {row["level"]: row["device_seconds"] for row in document["costs"]}
    assert set(costs) == {"predicted", "probed", "measured"}
    assert document["budget"]["used_device_seconds"] == pytest.approx(sum(costs.values()))
    assert document["trials"][0]["costs"][-1]["device_seconds"] > 0, "a failed start holds devices"
    assert "of 3600 device seconds used" in done.stdout
    assert "device s" in done.stdout
    first, second = document["trials"]
    assert first["settings"]["plan"] == {"dp": 1, "pp": 1, "sp": 1, "tp": 2}
    assert first["settings"]["caps"]["max_num_seqs"] == 256
    assert first["state"] == "failed"
    assert "no memory for 256 sequences" in first["reason"]
    assert second["state"] == "complete"
    assert second["fidelity"] == "probed"
    assert second["document"]["server"]["counted"]["requests"] == 8
    found = document["recommendation"]
    assert found["fidelity"] == "measured"
    assert found["settings"]["plan"]["tp"] == 1
    (launch,) = found["launch"]
    assert launch["system"] == "vllm"
    assert launch["command"].startswith(f"{PREFIX} --model {tiny_dir} --tensor-parallel-size 1 ")
    assert document["cost_model"]["kind"] == "none"
    assert f"next (vllm): {PREFIX}" in done.stdout
    assert all(
        "sp=2" not in plan["plan"] or "no sequence" in plan["reasons"][0]
        for plan in document["pruned"]
    )


def test_no_server_is_started_that_the_budget_has_no_time_for(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    """A start is taken to need 30 seconds a device before there was one."""
    done = run(
        "tune", "--engine", "vllm", "--engine-command", "false", "--model", tiny_dir,
        "--devices", 2, "--trials", 2, "--probe-requests", 8, *LOAD,
        "--budget", "device_seconds=40", "--json",
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    document = json.loads(done.stdout)
    assert [trial["state"] for trial in document["trials"]] == ["pruned", "pruned"]
    reason = document["trials"][0]["reason"]
    assert reason.startswith("not run: the budget has 26.7 device seconds left and it needs 60.")
    assert document["budget"]["used_device_seconds"] == 0
    (line,) = document["budget"]["not_reached"]
    assert line.startswith("2 of 2 trials were not run (0, 1); for the last the budget has 26.7 ")


@pytest.mark.slow
def test_winner_and_trial_0_share_fresh_draws_of_a_server(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    done = run(
        "tune", "--engine", "vllm", "--engine-command", PREFIX, "--model", tiny_dir,
        "--devices", 2, "--trials", 3, "--probe-requests", 8, *LOAD[:2], "--out", out,
        "--sla", "p50_ttft_ms<=5000",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    fresh = json.loads(out.read_text())["fresh_draws"]
    assert fresh["fidelity"] == "probed"
    assert [len(drawn["draws"]) for drawn in fresh["runs"].values()] == [3] * len(fresh["runs"])
    assert fresh["runs"]["baseline"]["settings"]["plan"]["tp"] == 2
    assert "gain (probed): p50_ttft_ms " in done.stdout
    page = tmp_path / "report.html"
    assert run("report", out, "--out", page).exit_code == 0
    assert "Measured again on fresh draws" in page.read_text()
    assert "What it took" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "30"), "not of the form device_minutes=30"),
        (("--budget", "device_seconds=60"), "profiling 2 devices for 30 s takes 60; name a cost"),
        (("--engine", "tgi"), "known: vllm, sglang"),
        (("--engine-command", "vllm serve"), "name its kind"),
        (("--engine", "vllm", "--engine-command", "vllm serve -tp 2"), "-tp, which trials choose"),
        (("--engine", "vllm", "--no-live"), "its trials are live"),
        (("--engine", "vllm", "--start-timeout-s", 0), "start_timeout_s must be above 0"),
    ],
)
def test_a_server_that_cannot_be_tuned_is_refused_in_one_line(
    run: Run, tiny_dir: Path, words: tuple[object, ...], message: str
) -> None:
    done = run("tune", "--model", tiny_dir, *LOAD, *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_result_of_another_tool_is_imported(run: Run, tmp_path: Path) -> None:
    from tests.tuner.imports.test_read import DETAILED

    (tmp_path / "a.json").write_text(json.dumps(DETAILED))
    out = tmp_path / "runs.json"
    done = run("import", tmp_path / "a.json", "--sla", "p95_ttft_ms<=500", "--out", out)
    assert done.exit_code == 3, "a request failed, so its p95 is infinite"
    assert "ttft.sent.v1" in done.stdout
    assert "SLA p95_ttft_ms<=500: missed: p95_ttft_ms<=500" in done.stdout
    assert "attainment 0.6667, goodput" in done.stdout
    (found,) = json.loads(out.read_text())["runs"]
    assert found["metrics"]["attainment"] == pytest.approx(2 / 3)
    assert found["sla"]["is_met"] is False
    met = run("import", tmp_path / "a.json", "--sla", "p50_ttft_ms<=500")
    assert (met.exit_code, "SLA p50_ttft_ms<=500: met" in met.stdout) == (0, True)
    assert run("import", tmp_path / "a.json").exit_code == 0, "nothing was promised"
    assert run("import", tmp_path / "none.json").exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_server_is_left_when_the_command_is_ended(
    tiny_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    load = ("--workload", "poisson:rate=1,requests=40,input=8,output=4", "--sla", "p95_ttft_ms<=99")
    words = (
        "tune",
        "--engine",
        "vllm",
        "--engine-command",
        PREFIX,
        "--model",
        str(tiny_dir),
        *load,
    )
    pids = tmp_path / "pids"
    own = {"STAND_IN_PIDS": str(pids), "GEARSHIFT_DATA_DIR": str(tmp_path)}
    command = subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", *words], env={**os.environ, **own}
    )
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) >= 2)
    command.send_signal(number)
    assert command.wait(120) in (130, -number)
    wait_gone([int(pid) for pid in pids.read_text().split()])


def test_a_server_whose_program_is_not_here_is_refused_before_any_trial(
    run: Run, tiny_dir: Path
) -> None:
    words = ("tune", "--engine", "vllm", "--engine-command", "/opt/none/vllm serve")
    done = run(*words, "--model", tiny_dir, *LOAD)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "/opt/none/vllm: no such program here" in done.stderr
