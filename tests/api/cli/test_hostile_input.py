"""Whatever is typed, a command answers in one line that says what is wrong, and exit code 2."""

from __future__ import annotations

import inspect
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import Result

from api.cli.commands import COMMANDS, CommandRef
from tests.api.cli.conftest import Run
from tests.api.cli.places import LOAD, Place

ROOT = Path(__file__).parents[3]
HUGE = str(10**30)
NO_TEXT = "x\udcff"  # a byte that is no UTF-8, as Python hands it on
HOSTILE = {
    int: ("x", "-1", "1.5", "", HUGE),
    float: ("x", "nan", "-inf", "inf", "-1"),
    Path: ("/proc/nope/x", "FILE/x", "n" * 300, NO_TEXT),
    str: ("%%nonsense%%", NO_TEXT),
}
# Any text will do for these.
KEYS = {"api_key", "control_key", "knob_key", "service_key"}
FREE_TEXT = {"prompt", "name", "served_model_name", *KEYS}
# Nothing of these commands' numbers can be too far off to mean something.
MEANT = {("bench", "model"), ("bench", "timeout_s"), ("tune", "timeout_s")}
# How commands end that were given nothing wrong, before they would begin to work.
UNREACHED = ("no answer", "cannot listen", "does not exist", "no such file")


@pytest.fixture(scope="module")
def place(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "file").write_text("{" * 4096)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield Place(folder=folder, model=tiny_dir, taken_port=taken.getsockname()[1])


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written by mistake lands in the test's own folder, and so does the database. A key
    in an option would be a warning. Nobody waits for services that are not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEARSHIFT_CONTROL_RETRIES", "0")
    monkeypatch.setenv("GEARSHIFT_CONTROL_KEY", "k")
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path / "data"))


def refused(done: Result, *, about: object) -> str:
    """The one line on stderr, after checking that there is nothing else."""
    assert done.exception is None or isinstance(done.exception, SystemExit), (about, done.exception)
    assert (done.exit_code, done.stdout) == (2, ""), (about, done.output)
    assert done.stderr.startswith("error: "), (about, done.stderr)
    assert done.stderr.count("\n") == 1, (about, done.stderr)
    assert "Traceback" not in done.stderr, (about, done.stderr)
    return done.stderr


def parameters(ref: CommandRef) -> Iterator[tuple[str, type, list[str], bool]]:
    """Name, type, words and whether it is an argument of all that takes a value."""
    function = getattr(import_module(f"api.cli.{ref.module}"), ref.function)
    own = inspect.signature(function).parameters.values()
    is_grouped = hasattr(function, "__signature__")
    hints: dict[str, Any] = {} if is_grouped else get_type_hints(function, include_extras=True)
    for parameter in own:
        given = get_args(hints.get(parameter.name, parameter.annotation))
        if not given:  # what typer hands in itself
            continue
        kind, info = given[:2]
        kinds = [k for k in get_args(kind) or (kind,) if k is not type(None)]
        if kinds[0] is bool:
            continue
        words = [word for word in info.param_decls or () if word.startswith("--")]
        option = words[:1] or [f"--{parameter.name.replace('_', '-')}"]
        is_argument = type(info).__name__ == "ArgumentInfo"
        yield parameter.name, kinds[0], option, is_argument


@pytest.mark.parametrize("ref", COMMANDS, ids=lambda ref: ref.path)
def test_no_option_takes_what_is_no_value_for_it(run: Run, place: Place, ref: CommandRef) -> None:
    for name, kind, option, is_argument in parameters(ref):
        for value in HOSTILE.get(kind, HOSTILE[str]):
            if value != NO_TEXT and (name in FREE_TEXT or (ref.path, name) in MEANT):
                continue
            words, hostile = place.words(ref.path), place.hostile(value)
            words = (hostile, *words[1:]) if is_argument else (*words, *option, hostile)
            about = (ref.path, name, value)
            line = refused(run(*ref.path.split(), *words), about=about)
            if kind is int or kind is float or value == NO_TEXT:
                assert not any(word in line for word in UNREACHED), (about, line)


def broken_model(place: Place, *, without: str = "", changed: str = "", to: bytes = b"") -> Path:
    """A copy of the model folder with one file gone or changed."""
    folder = place.folder / f"{without}{changed}{len(to)}"
    if not folder.exists():
        shutil.copytree(place.model, folder)
        if without:
            (folder / without).unlink()
        if changed:
            (folder / changed).write_bytes(to)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "no such folder; a model is a folder with a config.json"),
        ("file", "not a folder; a model is a folder with a config.json"),
        ("/dev/null", "not a folder"),
    ],
)
@pytest.mark.parametrize("path", ["generate", "engine serve", "profile"])
def test_a_model_that_is_no_folder_is_called_that(
    run: Run, place: Place, path: str, name: str, message: str
) -> None:
    words = (*place.words(path), "--model", place.folder / name)
    assert message in refused(run(*path.split(), *words), about=(path, name))


@pytest.mark.parametrize("to", [b"{", b"[]", b"\xff\xfe\0", b"[" * 100_000, b"null"])
@pytest.mark.parametrize("changed", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "path", ["generate", "engine serve", "profile", "simulate", "plan", "tune"]
)
def test_a_model_folder_with_unreadable_json_is_one_line(
    run: Run, place: Place, path: str, changed: str, to: bytes
) -> None:
    folder = broken_model(place, changed=changed, to=to)
    line = refused(run(*path.split(), *place.words(path), "--model", folder), about=(path, to[:9]))
    assert changed in line


@pytest.mark.parametrize(
    ("without", "changed", "to"),
    [
        ("model.safetensors", "", b""),
        ("", "model.safetensors", b""),
        ("", "model.safetensors", b"\xff" * 100),
        ("", "tokenizer.json", b"{"),
        ("", "tokenizer_config.json", b"[1"),
    ],
)
def test_a_checkpoint_with_a_file_that_is_gone_or_broken_is_one_line(
    run: Run, place: Place, without: str, changed: str, to: bytes
) -> None:
    folder = broken_model(place, without=without, changed=changed, to=to)
    line = refused(run("generate", *place.words("generate"), "--model", folder), about=changed)
    assert (without or changed) in line


@pytest.mark.parametrize("kind", ["azure", "burstgpt", "mooncake", "servegen", "csv", "auto"])
def test_a_trace_that_cannot_be_read_is_one_line(run: Run, place: Place, kind: str) -> None:
    files = {"empty": b"", "binary": bytes(range(256)), "list": b"[1, 2]", "deep": b"[" * 100_000}
    for name, content in files.items():
        (place.folder / name).write_bytes(content)
    for trace in (*(place.folder / name for name in files), place.folder, "/proc/nope", "n" * 300):
        words = (*place.words("simulate"), "--workload", f"{kind}:{trace}")
        refused(run("simulate", *words), about=(kind, trace))


@pytest.mark.parametrize(
    "load",
    [
        "poisson:rate=nan,input=1,output=1",
        "poisson:rate=1e300,input=1,output=1,seconds=1",
        "poisson:rate=2,input=1e30,output=1,seconds=3",
        "gamma:rate=1,input=1,output=1,cv=nan,seconds=3",
        f"closed:concurrency={HUGE},input=1,output=1,requests=1",
        f"{LOAD},scale=0",
        f"{LOAD},start=inf",
        f"{LOAD},max_input=x",
        "azure-like:seconds=1e30",
        "poisson:",
        "burst:",
        "=",
    ],
)
def test_a_workload_of_impossible_numbers_is_one_line(run: Run, place: Place, load: str) -> None:
    for path in ("simulate", "plan", "tune"):
        refused(run(path, *place.words(path), "--workload", load), about=(path, load))


@pytest.mark.parametrize(
    "sla", ["", "p95_ttft_ms<=nan", "p95_ttft_ms<=-1", "attainment>=2", "{", "{}", "<=", ","]
)
def test_an_sla_that_bounds_nothing_is_one_line(run: Run, place: Place, sla: str) -> None:
    for path in ("simulate", "plan", "tune", "bench"):
        refused(run(path, *place.words(path), "--sla", sla), about=(path, sla))


def test_a_bound_that_says_nothing_of_the_load_is_one_line(run: Run, place: Place) -> None:
    """Of one-token outputs nothing can be judged by TPOT: it would never be met."""
    load = "poisson:rate=2,input=8,output=1,requests=4"
    bounds = ("--sla", "p95_ttft_ms<=500,p95_tpot_ms<=50")
    for path in ("plan", "capacity", "tune", "compare"):
        words = (path, *place.words(path), "--workload", load, *bounds)
        line = refused(run(*words), about=path)
        assert f"p95_tpot_ms<=50: no output of workload '{load}' has the two tokens" in line


@pytest.mark.parametrize("option", ["--out", "--samples", "--plot"])
@pytest.mark.parametrize("file", ["/proc/nope.svg", "/proc/nope/x.svg", "FOLDER", "n" * 300])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    run: Run, place: Place, option: str, file: str
) -> None:
    file = file.replace("FOLDER", str(place.folder))
    refused(run("simulate", *place.words("simulate"), option, file), about=(option, file))


def test_a_file_that_stands_already_is_left_as_it_is_when_nothing_comes_of_the_work(
    run: Run, place: Place, tmp_path: Path
) -> None:
    kept, new = tmp_path / "kept.json", tmp_path / "new.json"
    kept.write_text("mine")
    for file in (kept, new):
        words = (*place.words("simulate"), "--out", file, "--plan", "tp=3")
        refused(run("simulate", *words), about=file)
    assert kept.read_text() == "mine"
    assert not new.exists()


def test_a_checkpoint_that_cannot_be_written_names_the_way_out(run: Run) -> None:
    line = refused(run("model", "create", "/proc/x"), about="/proc/x")
    assert line == (
        "error: /proc/x: cannot be written (No such file or directory); name another folder\n"
    )


@pytest.mark.parametrize("ids", ["", ",", "1,,2", "-1", "1.5", HUGE, "999999"])
def test_token_ids_that_are_none_are_one_line(run: Run, place: Place, ids: str) -> None:
    words = ("--model", place.model, "--prompt-ids", ids)
    refused(run("generate", *words), about=ids)


def test_more_tokens_than_the_model_has_room_for_are_refused_before_memory_is_taken(
    run: Run, place: Place
) -> None:
    line = refused(
        run("generate", *place.words("generate"), "--max-tokens", 10**9), about="max_tokens"
    )
    assert "the model has room for" in line


@pytest.mark.parametrize(
    "url", ["", "nonsense", "http://", "http://[", "ftp://x", "http://127.0.0.1:99999"]
)
def test_an_address_that_is_none_is_one_line(run: Run, place: Place, url: str) -> None:
    refused(run("bench", *place.words("bench"), "--url", url), about=url)
    words = (*place.words("engine serve"), "--control", url)
    assert "--control" in refused(run("engine", "serve", *words), about=url)


def test_an_empty_key_protects_nothing_and_is_refused(run: Run, place: Place) -> None:
    words = (*place.words("engine serve"), "--api-key", "")
    assert "--api-key is empty" in refused(run("engine", "serve", *words), about="api_key")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:////proc/x.db",
        "sqlite:///FILE",
        "mysql://h/d",
        "postgresql://127.0.0.1:9/x",
        "postgresql://127.0.0.1:x/x",
    ],
)
@pytest.mark.parametrize("path", ["db check", "db upgrade", "keys list", "keys create"])
def test_a_database_that_cannot_be_opened_is_one_line(
    run: Run, place: Place, path: str, url: str
) -> None:
    words = (*place.words(path), "--database-url", place.hostile(url))
    refused(run(*path.split(), *words), about=(path, url))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "70000"),
        ("LOG_LEVEL", "loud"),
        ("DEVICES", "-1"),
        ("LEASE_S", "nan"),
        ("RUN_WORKER", "maybe"),
        ("DATA_DIR", "/proc/x"),
        ("DATABASE_URL", "nonsense"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    run: Run, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GEARSHIFT_{name}", value)
    for path in ("db check", "db upgrade", "keys list"):
        line = refused(run(*path.split()), about=(path, name))
        assert value in line
        assert name in line or name == "DATABASE_URL"


@pytest.mark.parametrize(
    ("words", "variable", "message"),
    [
        (("serve",), "PORT=abc", "GEARSHIFT_PORT=abc: "),
        (("serve",), "DATA_DIR=/proc/x", "data folder /proc/x cannot be made"),
        (("serve",), "DATA_DIR=what?", "data folder what? has a '?'"),
        (("serve",), "HOST=" + "x" * 300, "cannot listen on xxx"),
        (("model", "create", "/proc/x"), "PORT=abc", "/proc/x: cannot be written"),
        (("generate", "--model", "./nope", "--prompt", "x"), "PORT=0", "nope: no such folder"),
    ],
)
def test_a_process_leaves_one_line_and_nothing_of_its_inside(
    words: tuple[str, ...], variable: str, message: str, tmp_path: Path
) -> None:
    name, _, value = variable.partition("=")
    environment = {
        "PATH": "/usr/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "GEARSHIFT_PORT": "0",
        "GEARSHIFT_DATA_DIR": str(tmp_path),
        f"GEARSHIFT_{name}": value,
    }
    done = subprocess.run(
        [sys.executable, "-m", "api.cli.main", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
