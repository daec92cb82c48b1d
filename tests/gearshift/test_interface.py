"""``import gearshift`` asks as the commands of the same names do, and answers can be looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import gearshift
from api.cli.main import create_app
from gearshift import Answer
from tests.rooms import ROOT

MODEL = "llama-3.1-8b"
ASKED: dict[str, Any] = {
    "hardware": "1xh200",
    "workload": "poisson:rate=4,input=64,output=4,seconds=3",
    "sla": "p95_ttft_ms<=500,p95_tpot_ms<=50",
    "seed": 1,
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    overload = {**ASKED, "workload": "poisson:rate=50,input=4096,output=2,seconds=1"}
    return {
        "simulate": gearshift.simulate(MODEL, **ASKED),
        "plan": gearshift.plan(MODEL, jobs=1, **ASKED),
        "capacity": gearshift.capacity(MODEL, draws=2, **overload),
        "tune": gearshift.tune(MODEL, trials=1, devices=1, **ASKED),
    }


def test_every_name_is_there_and_none_is_loaded_before_it_is_used() -> None:
    for name in gearshift.__all__:
        assert getattr(gearshift, name).__module__.split(".")[0] in (
            "engine",
            "policies",
            "tuner",
            "api",
        )
    code = (
        "import sys, gearshift; gearshift.simulate; gearshift.plan; "
        "sys.exit(', '.join(m for m in ('torch', 'pandas', 'httpx') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="gearshift has no 'Engin'"):
        _ = gearshift.Engin


def test_simulate_answers_as_the_command_does(answers: dict[str, Answer]) -> None:
    words = ["--model", MODEL, "--seed", "1", "--json"]
    for name in ("hardware", "workload", "sla"):
        words += [f"--{name}", str(ASKED[name])]
    done = CliRunner().invoke(create_app(), ["simulate", *words])
    assert json.loads(done.stdout) == json.loads(json.dumps(answers["simulate"].document))


@pytest.mark.parametrize("name", ["simulate", "plan", "capacity", "tune"])
def test_an_answer_is_tabulated_and_shown_in_a_notebook(
    answers: dict[str, Answer], name: str
) -> None:
    answer = answers[name]
    frame = answer.to_frame()
    assert len(frame) > 0
    assert frame.to_csv()
    assert not frame.map(lambda cell: isinstance(cell, (dict, list))).any(axis=None)
    page = answer._repr_html_()
    assert "<table" in page
    assert MODEL in page
    assert answer.headline in repr(answer)


def test_an_answer_is_drawn_for_a_notebook_and_into_a_file(
    answers: dict[str, Answer], tmp_path: Path
) -> None:
    figure = answers["capacity"].plot(tmp_path / "capacity.html")
    assert figure.layout.xaxis.title.text == "requests/s"
    assert "P(SLA met)" in {trace.name for trace in figure.data}
    assert (tmp_path / "capacity.html").stat().st_size > 0
