"""``gearshift up``: from a folder and an SLA to a served, tuned model, and cleanly back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from api.cli.up import Wanted
from api.clients.client import Client
from tests.api.cli.conftest import Run

LOAD = "poisson:rate=10,input=16,output=4,seconds=4"


def test_what_cannot_be_used_is_told_before_anything_starts(run: Run, tiny_dir: Path) -> None:
    sla = ("--sla", "p95_ttft_ms<=500")
    tries: dict[str, Result] = {
        "config.json": run("up", "--model", tiny_dir / "none", *sla),
        "p95_speed": run("up", "--model", tiny_dir, "--sla", "p95_speed<=1"),
        "bursty": run("up", "--model", tiny_dir, *sla, "--workload", "bursty:rate=1"),
    }
    for word, done in tries.items():
        assert done.exit_code == 2, done.output
        assert word in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_trace_named_like_its_format_is_looked_for_where_it_is(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "csv").write_text("arrival_s,input_tokens,output_tokens\n0,8,4\n1,8,4\n")
    wanted = Wanted(model=tiny_dir, sla="p95_ttft_ms<=500", workload="csv:csv,scale=2")
    assert wanted.check() == f"csv:{tmp_path}/csv,scale=2"


@pytest.mark.slow
def test_it_serves_the_tuned_model_until_it_is_interrupted(tiny_dir: Path, tmp_path: Path) -> None:
    words = ("up", "--model", str(tiny_dir), "--sla", "p50_ttft_ms<=60000", "--workload", LOAD)
    quick = ("--trials", "1", "--devices", "1", "--profile-seconds", "2")
    ports = ("--port", "0", "--engine-port", "0", "--json")
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", *words, *quick, *ports],
        env={**os.environ, "GEARSHIFT_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        try:
            ready = json.loads(line)
            body = {"model": tiny_dir.name, "prompt": "a", "max_tokens": 2}
            answer = httpx.post(f"{ready['engine']}/v1/completions", json=body, timeout=60)
            assert answer.status_code == 200
            with Client(ready["control"], ready["key"]) as client:
                engine = client.get_engine(ready["engine_id"])
                (job,) = client.list_tuning_jobs()
                warnings = client.get_tuning_report(job.id)["warnings"]
            assert engine.recommendation_id == ready["recommendation_id"]
            assert engine.applied_version == engine.desired_version
        finally:
            child.send_signal(signal.SIGINT)
            _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert told.endswith("interrupted\n")
    assert f"carries {LOAD} (--workload) within p50_ttft_ms<=60000" in told
    for warning in warnings:
        assert f"warning: {warning}" in told
    for url in (ready["engine"], ready["control"]):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
