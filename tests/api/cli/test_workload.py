"""``gearshift workload``: a trace for whoever has none, and what a workload is."""

from __future__ import annotations

import json
import locale
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run


def test_a_sample_is_written_and_used_as_it_says(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "azure.csv"
    made = run("workload", "sample", "azure-like", "--out", out)
    assert made.exit_code == 0, made.stderr
    assert f"azure:{out}" in made.stderr
    assert out.read_text().startswith("TIMESTAMP,ContextTokens,GeneratedTokens")
    shown = run("workload", "show", f"azure:{out},seconds=300,max_input=1000", "--json")
    told = json.loads(shown.stdout)
    assert told["span_s"] <= 300
    assert told["input_tokens"]["max"] <= 1000
    assert [cut["kind"] for cut in told["cuts"]] == ["seconds", "max_input"]


def test_a_sample_is_the_same_every_time(run: Run, tmp_path: Path) -> None:
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for file in files:
        run("workload", "sample", "poisson:rate=2,input=9,output=3", "--out", file)
    first, second = (file.read_text() for file in files)
    assert first == second
    assert first.startswith("arrival_s,input_tokens,output_tokens")


def test_a_sample_holds_the_letters_of_its_trace_whatever_the_terminal_has(
    run: Run, tmp_path: Path
) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text(
        "arrival_s,input_tokens,output_tokens,prefix_id\n0.0,9,3,größe\n", encoding="utf-8"
    )
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        done = run("workload", "sample", f"csv:{trace}", "--out", out)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (done.exit_code, out.read_bytes()) == (0, trace.read_bytes()), done.output


def test_a_workload_is_told_in_words(run: Run) -> None:
    text = run("workload", "show", "closed:concurrency=2,input=5,output=9,requests=4").stdout
    assert text.startswith("4 requests, by 2 clients")
    assert "output tokens: mean 9" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sample", "closed:concurrency=2,input=5,output=5,requests=4", "--out", "x"), "closed"),
        (("sample", "azure-like", "--out", "/nowhere/x.csv"), "/nowhere"),
        (("sample", "azure-likes", "--out", "x.csv"), "azure-like"),
        (("show", "poisson:rate=0"), "rate"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line(
    run: Run, words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("workload", *words)
    assert found.exit_code == 2
    assert told in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
