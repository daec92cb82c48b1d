"""Examples run as they stand, and say what their readers are told they say."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.models.create import create_model
from tests.rooms import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, *words: str) -> str:
    """What an example prints, run as its reader runs it."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_told_of() -> None:
    told = (EXAMPLES / "README.md").read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(names) >= 4
    assert [name for name in names if f"`{name}`" not in told] == []


@pytest.mark.slow
def test_an_engine_in_a_program_answers_the_same_under_two_plans(tmp_path: Path) -> None:
    create_model(tmp_path / "model", preset="tiny", seed=1)
    first, second = run("embed_an_engine.py", str(tmp_path / "model")).splitlines()
    assert first.partition(": ")[2] == second.partition(": ")[2]


@pytest.mark.slow
def test_a_node_is_planned_and_the_command_printed() -> None:
    told = run("plan_a_node.py", "2xh200")
    assert "cheapest: tp=1" in told
    assert "vllm serve" in told


@pytest.mark.slow
def test_plans_are_compared(tmp_path: Path) -> None:
    told = run("compare_plans.py", str(tmp_path / "capacity.html"))
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["tp=2", "dp=2", "sp=2,shift=256"]
    assert (tmp_path / "capacity.html").stat().st_size > 0


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_every_last_value_can_be_shown() -> None:
    cells = json.loads((EXAMPLES / "read_an_answer.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "kept without outputs"
        body = ast.parse("".join(cell["source"])).body
        last = body.pop()
        assert isinstance(last, ast.Expr), "a cell ends in what it shows"
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    assert all(each._repr_html_() for each in shown)
