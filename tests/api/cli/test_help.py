"""What every command's help and messages tell: an example that works, the word that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.cli.commands import COMMANDS, OTHER_NAMES, SECTIONS
from api.cli.examples import EXAMPLES
from tests.api.cli.conftest import Run
from tests.docs.typed import take

PATHS = [ref.path for ref in COMMANDS]


def test_every_command_has_an_example() -> None:
    assert sorted(EXAMPLES) == sorted(PATHS)


def test_the_help_of_the_program_lists_every_command_once_by_what_one_wants(run: Run) -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted({path.split()[0] for path in PATHS})
    shown = run("--help").stdout
    places = [shown.index(f"{title}:\n") for title in SECTIONS]
    assert places == sorted(places)
    for name in OTHER_NAMES.values():
        assert name in PATHS


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_is_shown_as_it_is_typed_and_its_command_takes_it(path: str, run: Run) -> None:
    shown = run(*path.split(), "--help").stdout.partition("Example:\n")[2]
    lines = [line[2:].rstrip("\\").rstrip() for line in shown.split("\n\n")[0].splitlines()]
    line = " ".join(word.strip() for word in lines)
    assert line == f"gearshift {path} {EXAMPLES[path]}"
    take(line)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("tun",), "tune"),
        (("what-if",), "simulate"),
        (("rollback",), "policies rollback"),
        (("engine", "serv"), "serve"),
        (("tune", "--modle", "x"), "--model"),
        (("bench", "--work-load", "x"), "--workload"),
        (("engine", "serve", "--max-num-seq", "8"), "--max-num-seqs"),
        (("list", "hardwar"), "hardware"),
        (("generate", "--model", "m", "--prompt", "x", "--mode", "shfit"), "shift"),
        (("model", "create", "x", "--preset", "smal"), "small"),
    ],
)
def test_a_typo_is_answered_by_the_nearest_right_word(
    words: tuple[str, ...], meant: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code == 2
    assert f"id you mean '{meant}'?" in done.stderr


@pytest.mark.parametrize(("variable", "is_coloured"), [("", True), ("1", False)])
def test_logs_and_tables_have_no_colours_where_nobody_wants_them(
    variable: str, is_coloured: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("NO_COLOR", variable)
    from engine.logs import _for_a_person

    line = _for_a_person()(None, "warning", {"event": "slow", "level": "warning"})
    assert ("\033[" in line) is is_coloured
    assert "\033[3" not in run("list", "links").stdout


def test_an_answer_that_is_piped_has_no_colours_and_fits_80_columns(run: Run) -> None:
    for words in (("list", "models"), ("list", "hardware"), ("backends", "show", "vllm")):
        shown = run(*words).stdout
        assert "\033" not in shown
        assert max(map(len, shown.splitlines())) <= 80, words
