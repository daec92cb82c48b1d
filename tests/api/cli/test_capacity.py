"""``gearshift capacity``: what a person and a script see."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from api.cli import progress
from engine.models.create import create_model
from engine.spec.plan import ParallelPlan
from tests.api.cli.conftest import Run
from tests.engine.server.conftest import serving, simulated_engine

WORDS = ("capacity", "--model", "llama-3.1-8b", "--hardware", "1xh100", "--max-model-len", "4096")
OPEN = "poisson:rate=40,input=512,output=16,requests=80"
SLA = "p95_ttft_ms<=300,p95_tpot_ms<=30"


def test_it_says_the_rate_its_interval_what_binds_and_whether_it_is_a_cliff(run: Run) -> None:
    done = run(*WORDS, "--workload", OPEN, "--sla", SLA, "--draws", 2)
    assert done.exit_code == 0, done.output
    for text in ("capacity: ", "requests/s within", "90 % interval", "asked: ", "binding: p95_"):
        assert text in done.stdout
    assert "with P of at least 0.8" in done.stdout
    assert "cliff: with steps as fast as foreseen" in done.stdout


def test_a_terminal_sees_how_far_it_is_and_what_is_left(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "progress_console", lambda: terminal)
    done = run(*WORDS, "--workload", OPEN, "--sla", SLA, "--draws", 2)
    assert done.exit_code == 0, done.output
    assert "capacity: loads in turn" in shown.getvalue()
    assert "left" in shown.getvalue()


def test_the_document_has_every_rate_and_clients_for_a_closed_loop(run: Run) -> None:
    closed = "closed:concurrency=8,input=512,output=16,requests=32"
    done = run(*WORDS, "--workload", closed, "--sla", SLA, "--draws", 2, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["schema"] == "capacity/v1"
    load = document["capacity"]["load"]
    assert load["rate_rps"] is None
    assert load["concurrency"] >= 1
    assert [r["factor"] for r in document["rates"]] == sorted(
        r["factor"] for r in document["rates"]
    )


@pytest.mark.parametrize(
    ("workload", "sla", "code", "told"),
    [
        (OPEN, "p95_tpot_ms<=0.5", 3, "no load meets p95_tpot_ms<=0.5"),
        (OPEN, "fast", 2, "fast"),
        ("poisson:rate=4,input=64,output=4,requests=1", SLA, 2, "have no rate"),
    ],
)
def test_what_has_no_capacity_ends_with_its_reason(
    run: Run, workload: str, sla: str, code: int, told: str
) -> None:
    done = run(*WORDS, "--workload", workload, "--sla", sla)
    assert done.exit_code == code, done.output
    assert told in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--model is missing"),
        (("--url", "localhost:1", "--hardware", "1xh100"), "--hardware: of a simulation"),
        (("--url", "localhost:1"), "no answer to GET /v1/models"),
    ],
)
def test_neither_a_model_nor_a_server_or_both_at_once_is_refused(
    run: Run, words: tuple[str, ...], told: str
) -> None:
    done = run("capacity", "--workload", OPEN, "--sla", SLA, *words)
    assert done.exit_code != 0
    assert told in done.output


@pytest.mark.slow
def test_a_running_server_is_driven_for_no_longer_than_told(run: Run, tmp_path: Path) -> None:
    create_model(tmp_path / "model", preset="tiny", seed=0)
    with (
        simulated_engine(tmp_path / "model", step_s=0.02, plan=ParallelPlan()) as engine,
        serving(engine, tmp_path / "model") as server,
    ):
        load = "poisson:rate=40,input=8,output=4,requests=200"
        sla = "p90_ttft_ms<=200,p90_e2e_ms<=500"
        done = run("capacity", "--url", server.url, "--workload", load, "--sla", sla,
                   "--seconds", 20, "--json")  # fmt: skip
    document = json.loads(done.stdout)
    assert document["fidelity"] == "measured"
    assert document["settings"]["plan"]["tp"] == 1
    # On a busy machine the driver is late, and that is no verdict on the server.
    assert done.exit_code == (3 if document["capacity"]["load"] is None else 0), done.output
    assert document["rates"] or document["live"]["late_probes"]
