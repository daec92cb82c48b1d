"""``gearshift profile --engine`` and ``--url``: a server seen from outside, then asked about."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run
from tests.processes import is_gone
from tests.tuner.servers import stand_in
from tests.tuner.servers.test_target import REAL_MODEL, REAL_PYTHON
from tuner.servers.process import ServerProcess, free_port

PREFIX = shlex.join([sys.executable, stand_in.__file__])
LOAD = ("--workload", "poisson:rate=20,requests=40,input=8,output=4")
SLA = ("--sla", "p95_ttft_ms<=5000")
KEY = "sk-5e8Rv3"


@contextmanager
def standing_in(model_dir: Path) -> Iterator[str]:
    """A stand-in that runs until the block ends, as the environment says; its address."""
    port = free_port()
    words = [sys.executable, stand_in.__file__, "--model", str(model_dir), "--port", str(port)]
    with ServerProcess(words) as process:
        url = f"http://127.0.0.1:{port}"
        process.wait_healthy(f"{url}/health", timeout_s=30, should_stop=lambda: False)
        yield url


@pytest.fixture
def served(
    request: pytest.FixtureRequest, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a stand-in that runs already; a parameter is what it says that it is."""
    monkeypatch.setenv("STAND_IN_OWNER", getattr(request, "param", "vllm"))
    with standing_in(tiny_dir) as url:
        yield url


def test_a_started_server_is_profiled_under_each_plan_and_then_simulated(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    out = tmp_path / "server.json"
    done = run(
        "profile", "--engine", "vllm", "--engine-command", PREFIX, "--model", tiny_dir,
        "--plan", "tp=1", "--plan", "tp=2", "--max-num-seqs", 8, "--seconds", 1, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert all(is_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert "each is taken to be as quick as one alone" in done.stdout
    document = json.loads(out.read_text())
    assert document["schema"] == "server-profile/v1"
    assert [known["plan"] for known in document["plans"]] == ["tp=1", "tp=2"]
    assert [known["kv_blocks"] for known in document["plans"]] == [99, 99]
    assert all(len(known["checked"]) == 3 for known in document["plans"])
    place = ("--model", tiny_dir, "--hardware", out)

    simulated = run("simulate", *place, "--plan", "tp=2", *LOAD, "--json")
    assert simulated.exit_code == 0, simulated.output
    answer = json.loads(simulated.stdout)
    assert answer["energy"] is None
    assert answer["settings"]["caps"]["max_num_seqs"] == 8
    assert any("seen of a running server from outside" in text for text in answer["warnings"])
    assert answer["intervals"]["p95_tpot_ms"]["low"] < answer["intervals"]["p95_tpot_ms"]["high"]

    refused = run("simulate", *place, "--plan", "pp=2", *LOAD)
    assert refused.exit_code == 2
    assert "plan pp=2 of this server was not profiled, only tp=1, tp=2" in refused.stderr

    carried = run("capacity", *place, "--plan", "tp=1", *LOAD, *SLA, "--draws", 2)
    assert carried.exit_code == 0, carried.output
    planned = run("plan", *place, *LOAD, *SLA, "--jobs", 1, "--json")
    assert planned.exit_code == 0, planned.output
    words = [
        launch["command"] for launch in json.loads(planned.stdout)["best"]["cheapest"]["launch"]
    ]
    assert len(words) == 1
    assert words[0].startswith("vllm serve")
    assert "memory" not in words[0], "nothing is known of the memory"
    assert {p["plan"]["tp"] for p in map(settings_of, json.loads(planned.stdout)["feasible"])} == {
        1,
        2,
    }


def settings_of(point: dict[str, object]) -> dict[str, dict[str, int]]:
    found = point["settings"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("served", "words", "system"),
    [
        ("vllm", (), "vllm"),
        ("gearshift, paced as 8xh200", (), "gearshift"),
        ("vllm", ("--engine", "sglang"), "sglang"),
    ],
    indirect=["served"],
)
def test_a_server_that_runs_is_profiled_by_its_address_as_what_it_says_it_is(
    run: Run, served: str, words: tuple[str, ...], system: str, tiny_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "server.json"
    done = run(
        "profile", "--url", served, "--model", tiny_dir, "--max-num-seqs", 4, "--seconds", 1,
        "--out", out, "--json", *words,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["system"] == system
    assert told["release"] is None
    assert told["plans"][0]["plan"] == "tp=1"
    assert told["interval"] > 0


@pytest.mark.parametrize(
    ("served", "says"), [("llamacpp", "says 'llamacpp'"), ("", "does not say")], indirect=["served"]
)
def test_a_server_of_no_known_kind_is_asked_for_by_name(
    run: Run, served: str, says: str, tiny_dir: Path, tmp_path: Path
) -> None:
    done = run("profile", "--url", served, "--model", tiny_dir, "--out", tmp_path / "p.json")
    assert done.exit_code == 2, done.output
    assert f"that server {says}; name what serves: --engine vllm, sglang" in done.stderr


@pytest.fixture(scope="module")
def guarded(tiny_dir: Path) -> Iterator[str]:
    """The address of a stand-in whose API and metrics are for whoever has the key."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STAND_IN_KEY", "STAND_IN_TOKEN"):
            patch.setenv(name, KEY)
        with standing_in(tiny_dir) as url:
            yield url


@pytest.mark.parametrize("way", ["variable", "file", "option"])
def test_a_server_with_a_key_is_profiled_and_only_an_option_shows_it(
    run: Run,
    guarded: str,
    tiny_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    given: tuple[object, ...] = ()
    match way:
        case "variable":
            monkeypatch.setenv("GEARSHIFT_ENGINE_KEY", KEY)
        case "file":
            given = ("--api-key-file", tmp_path / "key")
        case _:
            given = ("--api-key", KEY)
    out = tmp_path / "server.json"
    done = run(
        "profile", "--url", guarded, "--model", tiny_dir, "--max-num-seqs", 4, "--seconds", 1,
        "--out", out, *given,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["plans"][0]["kv_blocks"] == 99, "of its guarded metrics"
    assert KEY not in done.output + out.read_text()
    warning = "warning: --api-key shows in the list of processes; give the key by GEARSHIFT_ENGINE"
    assert (warning in done.stderr) is (way == "option")


@pytest.mark.parametrize("key", [None, "another"])
@pytest.mark.parametrize("command", ["profile", "bench", "capacity"])
def test_whoever_lacks_the_key_is_told_how_to_give_it(
    run: Run, guarded: str, tiny_dir: Path, tmp_path: Path, command: str, key: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if key is not None:
        monkeypatch.setenv("GEARSHIFT_ENGINE_KEY", key)
    words = {
        "profile": ("--model", tiny_dir, "--out", tmp_path / "p.json"),
        "bench": LOAD,
        "capacity": (*LOAD, *SLA),
    }[command]
    done = run(command, "--url", guarded, *words)
    assert done.exit_code == 2, done.output
    assert ("it asks for a key" if key is None else "the key that was given is not") in done.stderr
    assert "GEARSHIFT_ENGINE_KEY or --api-key-file FILE" in done.stderr


@pytest.mark.parametrize(("text", "fault"), [("", "is empty"), ("zwei Wörter", "no key, which is")])
def test_a_file_without_a_key_is_told_before_any_work(
    run: Run, tmp_path: Path, text: str, fault: str
) -> None:
    (tmp_path / "key").write_text(text)
    done = run("bench", "--url", "x:9", *LOAD, "--api-key-file", tmp_path / "key")
    assert done.exit_code == 2
    assert f"--api-key-file {tmp_path / 'key'}" in done.stderr
    assert fault in done.stderr
    assert "Wörter" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--url", "http://127.0.0.1:9"), "no answer to GET /v1/models"),
        (("--url", "x:9", "--engine", "vllm", "--plan", "pp=2"), "seen from outside, stages"),
        (("--url", "http://127.0.0.1:9", "--plan", "tp=1", "--plan", "tp=2"), "has one plan"),
        (("--url", "http://127.0.0.1:9", "--engine-command", "x"), "leave one out"),
        (("--url", "http://127.0.0.1:9", "--devices", 3), "--devices: of this machine"),
        (("--plan", "tp=1"), "--plan: of a server; name its kind"),
        (("--engine", "gearshift"), "profiled from inside"),
        (("--engine", "tgi"), "tgi"),
        (("--engine", "vllm", "--engine-command", "no-such-program"), "no such program"),
        (("--engine", "vllm", "--engine-command", "false"), "ended with exit code 1"),
    ],
)
def test_a_server_that_cannot_be_profiled_is_refused_in_one_line(
    run: Run, tiny_dir: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    done = run("profile", "--model", tiny_dir, "--out", tmp_path / "p.json", *words)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not (tmp_path / "p.json").exists()


def test_a_profile_says_what_serves_so_no_other_backend_is_named(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    words = ("simulate", "--model", tiny_dir, "--hardware", tmp_path / "p.json", *LOAD)
    assert "leave out --backend" in run(*words, "--backend", "sglang").stderr
    (tmp_path / "p.json").write_text('{"schema": "profile/v1"}')
    assert "is not 'server-profile/v1'" in run(*words).stderr


@pytest.mark.slow
def test_a_real_vllm_server_is_profiled_and_simulated(run: Run, tmp_path: Path) -> None:
    python, model = os.environ.get(REAL_PYTHON), os.environ.get(REAL_MODEL)
    if not (python and model):
        pytest.skip(f"no vLLM here: name its Python in {REAL_PYTHON}, a checkpoint in {REAL_MODEL}")
    out = tmp_path / "server.json"
    done = run(
        "profile", "--engine", "vllm", "--model", model, "--max-num-seqs", 8, "--seconds", 20,
        "--max-num-batched-tokens", 512, "--out", out,
        "--engine-command",
        f"{python} -m vllm.entrypoints.openai.api_server --max-model-len 1024",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert document["release"]
    assert document["plans"][0]["kv_blocks"] > 0
    simulated = run("simulate", "--model", model, "--hardware", out, *LOAD)
    assert simulated.exit_code == 0, simulated.output
