"""``gearshift capacity``: what a person and a script see."""

from __future__ import annotations

import json

import pytest

from tests.api.cli.conftest import Run

WORDS = ("capacity", "--model", "llama-3.1-8b", "--hardware", "1xh100", "--max-model-len", "4096")
OPEN = "poisson:rate=40,input=512,output=16,requests=80"
SLA = "p95_ttft_ms<=300,p95_tpot_ms<=30"


def test_it_says_the_rate_its_interval_what_binds_and_whether_it_is_a_cliff(run: Run) -> None:
    done = run(*WORDS, "--workload", OPEN, "--sla", SLA, "--draws", 2)
    assert done.exit_code == 0, done.output
    for text in ("capacity: ", "requests/s within", "90 % interval", "asked: ", "binding: p95_"):
        assert text in done.stdout
    assert "cliff: with 10 % more load" in done.stdout


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
