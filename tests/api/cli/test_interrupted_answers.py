"""Ctrl-C in the middle of a simulation: the command tells what it had found by then."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.cli import capacity, compare, plan
from api.cli.progress import Watched
from tests.api.cli.conftest import COMPARE, Run

NODE = ("--model", "llama-3.1-8b", "--hardware", "2xh100", "--max-model-len", "4096")
LOAD = ("--workload", "poisson:rate=40,input=512,output=16,requests=60")
SLA = ("--sla", "p95_ttft_ms<=300,p95_tpot_ms<=30")
PLAN = ("plan", *NODE, *LOAD, *SLA, "--jobs", 1)


@pytest.fixture(autouse=True)
def _hears_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, tests as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pressed(monkeypatch: pytest.MonkeyPatch, module: Any, when: Callable[..., bool]) -> None:
    """Ctrl-C is pressed when the command's progress is ``when``."""

    @contextmanager
    def progress(*_: object) -> Iterator[Callable[..., None]]:
        def show(*state: Any) -> None:
            if when(*state):
                signal.raise_signal(signal.SIGINT)

        yield show

    monkeypatch.setattr(module, "stage_bar", progress)


def test_plan_tells_the_plans_that_were_judged_and_recommends_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pressed(monkeypatch, plan, lambda stage, done, _: stage == "plans" and done == 2)
    out = tmp_path / "plan.json"
    done = run(*PLAN, "--out", out)
    assert done.exit_code == 130, done.output
    assert "whose simulated values meet" in done.stdout
    last = "interrupted after 2 of 4 plans; nothing is recommended, as no P is known"
    assert done.stdout.splitlines()[-1] == last
    assert "ways out" not in done.stderr
    document = json.loads(out.read_text())
    assert (document["is_interrupted"], document["best"], document["infeasible"]) == (
        True,
        {},
        None,
    )
    assert last in document["warnings"]
    page = run("report", out)
    assert (page.exit_code, last in page.stdout) == (0, True), page.output
    refused = run("engine", "serve", "--from", out)
    assert (refused.exit_code, "Traceback" in refused.output) == (2, False)


def test_plan_interrupted_while_it_looks_for_rates_answers_without_its_table(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed(monkeypatch, plan, lambda stage, *_: stage.startswith("capacity"))
    done = run(*PLAN, "--capacity-table", "--json")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["capacity_table"]) == (130, None)
    assert "cheapest" in document["best"]
    assert "the answer without its table" in done.stderr


def test_capacity_tells_the_highest_load_that_was_carried_so_far(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed(monkeypatch, capacity, lambda _stage, done, _: done == 4)
    words = ("capacity", *NODE, "--plan", "tp=2", *LOAD, *SLA, "--draws", 2)
    done = run(*words)
    assert done.exit_code == 130, done.output
    assert "capacity: at least " in done.stdout
    assert "interrupted after 4 runs; there is no interval yet" in done.stderr
    document = json.loads(run(*words, "--json").stdout)
    assert document["is_interrupted"]
    carried = document["capacity"]["load"]["factor"]
    chances = {rate["factor"]: rate["sla_probability"] for rate in document["rates"]}
    assert len(chances) == 4
    assert chances[carried] >= 0.8
    assert all(chance < 0.8 for factor, chance in chances.items() if factor > carried)


def test_compare_tells_of_the_draws_that_all_plans_had(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*COMPARE[:-1], "3"]
    pressed(monkeypatch, compare, lambda stage, done, whole: stage == "draws" and done == whole - 1)
    done = run(*words)
    assert done.exit_code == 130, done.output
    assert "mean of 2 draws, simulated" in done.stdout
    assert "interrupted after 2 of 3 draws" in done.stderr
    pressed(monkeypatch, compare, lambda stage, *_: stage == "draws")
    early = run(*words, "--json")
    assert (early.exit_code, early.stdout) == (130, "")
    assert "there is nothing to compare yet" in early.stderr


def test_simulate_tells_the_run_where_only_its_intervals_were_not_known(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Watched.stage

    @contextmanager
    def stage(self: Watched, title: str) -> Iterator[Callable[..., None]]:
        with whole(self, title) as show:
            if title == pressed_in:
                signal.raise_signal(signal.SIGINT)
            yield show

    monkeypatch.setattr(Watched, "stage", stage)
    words = ("simulate", *NODE, "--plan", "tp=2", *LOAD, *SLA, "--json")
    pressed_in = "interval"
    done = run(*words)
    document = json.loads(done.stdout)
    assert (done.exit_code, document["intervals"]) == (130, None)
    assert document["requests"]["completed"] == 60
    assert "interrupted before the intervals were known" in document["warnings"]
    pressed_in = "simulate"
    early = run(*words)
    assert (early.exit_code, early.stdout) == (130, "")
    assert "a part of a run is no answer" in early.stderr
