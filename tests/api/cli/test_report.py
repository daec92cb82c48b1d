"""``gearshift report``: the same answer as Markdown, as a page and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run
from tests.tuner.pictures.pages import read_report_page

NODE = ("--model", "llama-3.1-8b", "--hardware", "2xh100",
        "--workload", "poisson:rate=20,input=512,output=16,requests=24",
        "--sla", "p95_ttft_ms<=300,p95_tpot_ms<=30")  # fmt: skip
SHIFT = ("--backend", "gearshift", "--plan", "sp=2,shift=256")
ANSWERS: dict[str, tuple[object, ...]] = {
    "simulate": (*SHIFT, "--no-intervals"),
    "capacity": (*SHIFT, "--draws", 2),
    "plan": ("--jobs", 1),
    "tune": ("--trials", 2),
}
STEPS = {"Where a step's time goes", "How far tensor parallelism pays"}
HEADINGS = {
    "simulate": {"Over time", "Step time of each mode"},
    "capacity": {"Latency against the load", "Step time of each mode"},
    "plan": {"Pareto front", "Which knobs mattered", "Plans that fail, and why"},
    "compare": {"Every plan on the same draws", "Step time of each mode"},
    "tune": {"Trials", "Pareto front", "Which knobs mattered"},
}


def _answer(run: Run, command: str, compared: tuple[Path, str], folder: Path) -> Path:
    if command == "compare":
        return compared[0]
    out = folder / f"{command}.json"
    done = run(command, *NODE, *ANSWERS[command], "--out", out)
    assert done.exit_code in (0, 3), done.output
    return out


@pytest.mark.parametrize(
    "command",
    [
        "simulate",
        "compare",
        # Whole searches; test_plot writes a tuning's report in its own.
        *(pytest.param(word, marks=pytest.mark.slow) for word in ("capacity", "plan", "tune")),
    ],
)
def test_every_answer_has_its_sections_in_markdown_and_json_with_the_same_numbers(
    run: Run, compared: tuple[Path, str], tmp_path: Path, command: str
) -> None:
    source = _answer(run, command, compared, tmp_path)
    text, told = run("report", source), run("report", source, "--json")
    assert (text.exit_code, told.exit_code) == (0, 0), text.output + told.output
    document = json.loads(told.stdout)
    headings = {section["heading"] for section in document["sections"]}
    assert {"Answer"} | STEPS | HEADINGS[command] <= headings
    scaling = next(s for s in document["sections"] if s["name"] == "scaling")
    asked = json.loads(source.read_text())["steps"]["scaling"]
    assert scaling["lines"][0] == asked["text"]
    steps_ms = [row[1] for row in scaling["tables"][0]["rows"]]
    assert steps_ms == [degree["step_ms"] for degree in asked["degrees"]]
    for section in document["sections"]:
        assert f"\n## {section['heading']}\n" in text.stdout
        for line in section["lines"]:
            assert line in text.stdout


def test_a_page_holds_its_pictures_loads_nothing_and_has_the_sections_of_the_json(
    run: Run, compared: tuple[Path, str], tmp_path: Path
) -> None:
    source, page = compared[0], tmp_path / "report.html"
    assert run("report", source, "--out", page).exit_code == 0
    told = json.loads(run("report", source, "--json").stdout)
    headings, figures = read_report_page(page)
    assert headings == [section["heading"] for section in told["sections"]]
    assert len(figures) == sum(section["num_pictures"] for section in told["sections"])
    assert all(figure["data"] for figure in figures)


def test_without_plotly_a_page_is_refused_with_the_way_out_and_markdown_still_comes(
    run: Run, compared: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    source = compared[0]
    done = run("report", source, "--format", "html")
    assert done.exit_code == 2
    assert "pip install 'gearshift[plots]', or take --format markdown or json" in done.stderr
    assert done.stderr.count("\n") == 1
    assert run("report", source).exit_code == 0


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("{}", (), "no answer to report: its schema is None; take what one of plan, tune"),
        ('{"schema": "plan/v2"}', (), "not as plan writes it"),
        ("nothing", (), "no JSON; name a file that --out wrote, or a job's id"),
        ("{}", ("--format", "pdf"), "--format pdf: known are json, markdown, html"),
        ("{}", ("--format", "html", "--json"), "--json beside --format html: leave one out"),
    ],
)
def test_what_is_no_answer_is_refused_in_one_line(
    run: Run, tmp_path: Path, text: str, words: tuple[str, ...], told: str
) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    done = run("report", file, *words)
    assert done.exit_code == 2
    assert told in done.stderr
