"""The command line as a whole: quick help, clear mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from api.cli.commands import COMMANDS, GROUPS
from api.cli.common import domain_errors, print_json
from api.cli.exit_codes import EPILOG, ExitCode
from api.cli.main import create_app
from engine.logs import configure_logs
from engine.spec.errors import PlanError, RankError
from tests.api.cli.conftest import Run

ROOT = Path(__file__).parents[3]


def test_help_lists_every_command_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from api.cli.main import main\n"
        "sys.argv = ['gearshift', '--help']\n"
        "try:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules and 'fastapi' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for ref in COMMANDS:
        assert ref.path.split()[0] in done.stdout


def test_the_help_of_a_command_loads_neither_torch_nor_logging() -> None:
    paths = [ref.path for ref in COMMANDS if ref.path.split()[0] not in ("serve", "db")]
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from api.cli.main import create_app\n"
        f"for path in {paths}:\n"
        "    done = CliRunner().invoke(create_app(), [*path.split(), '--help'])\n"
        "    assert done.exit_code == 0 and '--json' in done.stdout, path\n"
        "    assert not {'torch', 'numpy', 'structlog'} & sys.modules.keys(), path\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_is_a_mistake_with_exit_code_2() -> None:
    result = CliRunner().invoke(create_app(), ["fly"])
    assert result.exit_code == 2
    assert "fly" in result.stderr


def test_every_help_says_how_commands_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    groups = {ref.path.split()[0] for ref in COMMANDS if " " in ref.path}
    for words in ("", *groups, *(ref.path for ref in COMMANDS)):
        shown = run(*words.split(), "--help").stdout
        assert EPILOG in " ".join(shown.split()), words


def test_the_page_of_the_command_line_has_the_table_of_exit_codes_and_every_command() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for code in ExitCode:
        assert f"| {code.value} | {code.meaning}" in page
    assert [ref.path for ref in COMMANDS if f"`{ref.path}`" not in page] == []


def test_every_rest_operation_has_a_command_or_a_reason_for_having_none() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    lines = (ROOT / "tests" / "api" / "web" / "operations.txt").read_text().splitlines()
    assert sorted(rows) == sorted(line.split()[-1] for line in lines)
    known = {ref.path for ref in COMMANDS}
    for operation, told in rows.items():
        named = re.match(r"`([^`]+)`", told)
        assert (named and named[1] in known) or told.startswith("none: "), operation


def test_a_part_that_died_is_no_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, domain_errors():
        raise RankError("rank 1 was killed by signal 9")
    assert leaving.value.code == ExitCode.FAULT
    assert capsys.readouterr().err == "error: rank 1 was killed by signal 9\n"


def test_a_domain_error_becomes_one_line_on_stderr_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as leaving, domain_errors():
        raise PlanError("sp=3:\n  does not divide")
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert captured.err == "error: sp=3: does not divide\n"
    assert captured.out == ""


def test_an_error_of_ours_is_not_dressed_up_as_a_mistake_of_the_user() -> None:
    with pytest.raises(ZeroDivisionError), domain_errors():
        _ = 1 / 0


def test_json_answers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "a\nb"})
    assert capsys.readouterr().out == '{"text": "a\\nb"}\n'


def test_json_answers_are_json_in_the_letters_of_any_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Python writes for a letter that a terminal has not is no JSON: ``\\xe9``."""
    value = {"text": "caf\u00e9 \U0001f600 \u4e2d"}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
        monkeypatch.setattr("sys.stdout", stream)
        print_json(value)
        stream.flush()
        assert json.loads(raw.getvalue()) == value, encoding


def test_structured_logs_go_to_stderr_even_after_a_redirection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = structlog.get_config()
    try:
        configure_logs("info")
        with contextlib.redirect_stderr(io.StringIO()) as redirected:
            logger = structlog.get_logger("test").bind(a=1)
            logger.info("inside")
        redirected.close()
        logger.info("outside")
    finally:
        structlog.configure(**before)
    captured = capsys.readouterr()
    assert "outside" in captured.err
    assert "inside" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gearshift pl", ["plan"]),
        ("gearshift plan --obj", ["--objective"]),
        ("gearshift engine ser", ["serve"]),
        ("gearshift engine serve --max-num-s", ["--max-num-seqs"]),
    ],
)
def test_the_shell_completes_commands_and_their_options(typed: str, offered: list[str]) -> None:
    script = "import sys; sys.argv[0] = 'gearshift'; from api.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "_GEARSHIFT_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        },
    )
    assert done.stdout.split() == offered, done.stderr


@pytest.mark.parametrize("path", ["", *GROUPS, *(ref.path for ref in COMMANDS)])
def test_no_help_is_wider_than_a_terminal_or_cut(path: str) -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(create_app(), [*path.split(), "--help"])
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in done.stdout
    if path in ("", *GROUPS):  # typer ends a line so that it cuts
        assert [line for line in lines if line.endswith("...") and "Usage" not in line] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("jobs", "crate"), "no command 'crate' (did you mean 'create'?); see "),
        (("polices", "list"), "no command 'polices' (did you mean 'policies'?); see "),
        (("jobs", "list", "--service", "localhost:9"), "'gearshift serve'"),
    ],
)
def test_a_slip_is_told_in_one_line_with_the_way_out(
    run: Run, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_CONTROL_KEY", "x")
    done = run(*words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
