"""``--plot``: what pictures of answers show, and what keeps them from being drawn."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api.cli.conftest import Run
from tests.tuner.pictures.pages import names, read_page
from tuner.pictures.page import figure_of
from tuner.pictures.trials import picture_of_document

SLA = "p95_ttft_ms<=800,p95_tpot_ms<=60"
LOAD = "gamma:rate=10,cv=2,input=600,output=16,requests=40"
NODE = ("--model", "llama-3.1-8b", "--hardware", "2xh200", "--dtype", "fp8", "--workload", LOAD)


def drawn(run: Run, file: Path, *words: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    done = run(*words, "--plot", file)
    assert done.exit_code == 0, done.output
    return read_page(file)


def test_a_simulated_run_is_drawn_with_bounds_intervals_attainment_modes_and_its_origin(
    run: Run, tmp_path: Path
) -> None:
    words = (
        "simulate",
        *NODE,
        "--backend",
        "gearshift",
        "--plan",
        "sp=2,shift=64",
        "--sla",
        f"{SLA},attainment>=0.9",
    )
    data, layout = drawn(run, tmp_path / "run.html", *words, "--seed", 3)
    legends = names(data)
    for text in (
        "SLA p95_ttft_ms&lt;=800",
        "SLA p95_tpot_ms&lt;=60",
        "SLA attainment&gt;=0.9",
        "p95 TTFT of the run, 90 % interval",
        "met by arrival",
        "shift mode,",
        "KV cache in use",
        "waiting for a first token",
    ):
        assert text in legends, text
    title = layout["title"]["text"]
    for text in ("llama-3.1-8b in fp8 on 2xh200", "gearshift (profile", "sp=2,shift=64", "seqs=",
                 LOAD, "attainment&gt;=0.9; seed 3"):  # fmt: skip
        assert text in title.replace("<br>", " "), text
    units = [layout[key]["title"]["text"] for key in layout if key.startswith("yaxis")]
    assert [unit for unit in units if unit.startswith(("TTFT, ms", "TPOT, ms", "ITL, ms"))]
    assert all(layout[key]["title"]["text"] for key in layout if key.startswith("xaxis"))


def test_a_plan_is_drawn_with_every_candidate_and_the_chosen_ones(run: Run, tmp_path: Path) -> None:
    words = ("plan", *NODE, "--sla", SLA, "--jobs", 1)
    data, layout = drawn(run, tmp_path / "plan.html", *words)
    legends = names(data)
    assert "meets the SLA, P at least 0.8" in legends
    # Only what could win is simulated with slower and faster steps, too.
    assert "meets the SLA in its run, P unknown" in legends
    assert "cheapest" in legends
    assert "fastest" in legends
    stars = [trace for trace in data if trace["name"].startswith("cheapest")]
    assert len(stars) == 2
    assert "P(SLA met)" in stars[0]["text"][0]
    assert "device, 1 replica" in stars[0]["text"][0]
    assert any(trace.get("error_y", {}).get("visible") for trace in data)
    assert "cheapest is tp=1" in layout["title"]["text"]
    assert "p95 TTFT, ms" in layout["yaxis"]["title"]["text"]
    assert "p95 TPOT, ms" in layout["yaxis2"]["title"]["text"]


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--jobs", 1, "--no-ways-out"),
        # A whole search for a word in its title; the search that is drawn is the next test's.
        pytest.param(("tune", "--trials", 2), marks=pytest.mark.slow),
    ],
)
def test_where_nothing_meets_the_sla_the_near_miss_is_marked(
    run: Run, tmp_path: Path, words: tuple[object, ...]
) -> None:
    file = tmp_path / "x.html"
    done = run(*words, *NODE, "--sla", "p95_ttft_ms<=800,p95_tpot_ms<=3", "--plot", file)
    assert done.exit_code == 3, done.output
    data, layout = read_page(file)
    assert "nearest: " in names(data)
    assert re.search("(nothing|no plan) meets the SLA", layout["title"]["text"])


def test_a_search_is_drawn_with_its_trials_bounds_and_progress(run: Run, tmp_path: Path) -> None:
    words = ("tune", *NODE, "--sla", SLA, "--trials", 3, "--seed", 5)
    out = tmp_path / "tune.json"
    data, layout = drawn(run, tmp_path / "tune.html", *words, "--out", out)
    again = figure_of(picture_of_document(json.loads(out.read_text())))
    assert names(again["data"]) == names(data)
    assert again["layout"] == layout
    report = run("report", out).stdout
    for heading in ("Answer", "Trials", "Pareto front", "Which knobs mattered", "Settings by load",
                    "Where a step's time goes", "How far tensor parallelism pays"):  # fmt: skip
        assert f"\n## {heading}\n" in report
    legends = names(data)
    for text in ("recommended: tp=1", "SLA p95_ttft_ms&lt;=800", "SLA p95_tpot_ms&lt;=60",
                 "best so far", "least P to be recommended 0.8"):  # fmt: skip
        assert text in legends, text
    hovers = [text for trace in data for text in trace.get("text", ())]
    assert any(text.startswith("trial 2<br>") for text in hovers)
    title = layout["title"]["text"]
    assert "llama-3.1-8b in fp8 on 2xh200, served by vllm" in title
    assert "seed 5" in title


@pytest.mark.parametrize(
    "words", [("simulate", *NODE), ("plan", *NODE, "--sla", SLA), ("tune", *NODE, "--sla", SLA)]
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    run: Run, words: tuple[object, ...]
) -> None:
    done = run(*words, "--plot", "/nowhere/x.html")
    assert done.exit_code == 2
    assert done.stderr == "error: cannot write /nowhere/x.html: there is no folder /nowhere\n"


@pytest.mark.parametrize(("library", "suffix"), [("matplotlib", "svg"), ("plotly", "html")])
def test_drawing_without_its_library_names_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, suffix: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = run("simulate", *NODE, "--plot", tmp_path / f"run.{suffix}")
    assert done.exit_code == 2
    assert f".{suffix} files need {library}: pip install 'gearshift[plots]'" in done.stderr
