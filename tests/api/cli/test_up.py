"""``gearshift up``: from a folder and an SLA to a served, tuned model, and cleanly back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import Result

from api.cli.first_tune import FirstTune, Wanted
from api.clients.client import Client
from engine.spec.settings import Settings
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


def test_its_search_has_time_for_a_profile_three_trials_and_one_more_run(tiny_dir: Path) -> None:
    usual = Wanted(model=tiny_dir, sla="p95_ttft_ms<=500").workload
    seconds = float(FirstTune().check(usual).removeprefix("seconds="))
    assert seconds <= 180
    longer = usual.replace("seconds=20", "seconds=30")
    assert float(FirstTune().check(longer).removeprefix("seconds=")) > seconds + 30
    assert FirstTune(budget="minutes=10").check(usual) == "minutes=10"


@pytest.mark.slow
def test_it_serves_the_tuned_model_until_it_is_interrupted(tiny_dir: Path, tmp_path: Path) -> None:
    with started(tiny_dir, tmp_path, sla="p50_ttft_ms<=60000") as up:
        body = {"model": tiny_dir.name, "prompt": "a", "max_tokens": 2}
        answer = httpx.post(f"{up.ready['engine']}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        with Client(up.ready["control"], up.ready["key"]) as client:
            engine = client.get_engine(up.ready["engine_id"])
            (job,) = client.list_tuning_jobs()
            warnings = client.get_tuning_report(job.id)["warnings"]
        assert engine.recommendation_id == up.ready["recommendation_id"]
        assert engine.applied_version == engine.desired_version
    assert up.told.endswith("interrupted\n")
    assert f"serves {LOAD} (--workload) within p50_ttft_ms<=60000" in up.told
    for warning in warnings:
        assert f"warning: {warning}" in up.told
    assert "up: confirmed in one run on requests that it was not chosen by; P(SLA met) 1" in up.told
    assert f"gearshift bench --url {up.ready['engine']} --workload {LOAD}" in up.told
    for url in (up.ready["engine"], up.ready["control"]):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


@pytest.mark.slow
def test_where_nothing_meets_the_sla_what_came_nearest_is_served(
    tiny_dir: Path, tmp_path: Path
) -> None:
    with started(tiny_dir, tmp_path, sla="p50_ttft_ms<=0.001") as up:
        with Client(up.ready["control"], up.ready["key"]) as client:
            engine = client.get_engine(up.ready["engine_id"])
            (job,) = client.list_tuning_jobs()
            closest = client.get_tuning_report(job.id)["infeasible"]["closest"]["settings"]
        assert (up.ready["recommendation_id"], engine.recommendation_id) == (None, None)
        assert engine.effective_policy["caps"] == closest["caps"]
        nearest = Settings.from_json(closest)
    assert f"so {nearest}, which came nearest, is served" in up.told


@dataclass(kw_only=True)
class Up:
    """What `gearshift up` printed when it was ready, and, when it has ended, on stderr."""

    ready: dict[str, Any]
    told: str = ""


@contextmanager
def started(model: Path, folder: Path, *, sla: str) -> Iterator[Up]:
    """It runs until the block ends, by Ctrl-C."""
    words = ("up", "--model", str(model), "--sla", sla, "--workload", LOAD)
    quick = ("--trials", "1", "--devices", "1", "--profile-seconds", "2")
    ports = ("--port", "0", "--engine-port", "0", "--json")
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", *words, *quick, *ports],
        env={**os.environ, "GEARSHIFT_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        up = None
        try:
            up = Up(ready=json.loads(line))
            yield up
        finally:
            child.send_signal(signal.SIGINT)
            _, told = child.communicate(timeout=60)
            if up is not None:
                up.told = told
    assert child.returncode == 130, told
