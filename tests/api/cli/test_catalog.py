"""``gearshift list``, and commands that name a user's own descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run
from tests.tuner.catalogs import write, write_catalog

KINDS = ("models", "hardware", "backends", "links")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed_as_a_table_and_as_json(kind: str, run: Run) -> None:
    done = run("list", kind, "--json")
    assert done.exit_code == 0, done.stderr
    items = json.loads(done.stdout)[kind]
    table = run("list", kind)
    assert table.exit_code == 0
    assert all(item["name"] in table.stdout for item in items)
    assert {item["origin"] for item in items} == {"built in"}


def test_own_descriptions_are_listed_and_simulated(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_catalog(tmp_path / "own")
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(own))
    listed = json.loads(run("list", "hardware", "--json").stdout)["hardware"]
    chip = next(item for item in listed if item["name"] == "chip9")
    assert chip["origin"] == str(own / "devices" / "chip9.json")
    words = [
        "--model",
        "mini",
        "--hardware",
        "2xchip9",
        "--backend",
        "ours",
        "--plan",
        "tp=2",
        "--json",
    ]
    spec = "poisson:rate=4,input=64,output=8,requests=20"
    done = run("simulate", *words, "--workload", spec)
    assert done.exit_code == 0, done.stderr


def test_a_backends_settings_are_shown_with_where_they_are_from(run: Run) -> None:
    done = run("backends", "show", "vllm@0.12", "--hardware", "8xa100")
    assert done.exit_code == 0, done.stderr
    assert "async_scheduling" in done.stdout
    assert "release 0.12" in done.stdout
    words = ("backends", "show", "vllm@0.12", "--hardware", "8xa100", "--json")
    settings = {s["key"]: s for s in json.loads(run(*words).stdout)["settings"]}
    assert settings["async_scheduling"]["value"] is False
    assert settings["max_num_seqs"]["value"] == 256
    unknown = run("backends", "show", "vlm")
    assert unknown.exit_code == 2
    assert "did you mean 'vllm'" in unknown.stderr


def test_a_broken_file_is_listed_and_told_with_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "links", "wire", {"schema": "link/v2", "titel": "x"})
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(tmp_path))
    done = run("list", "links")
    assert done.exit_code == 2
    assert "nvlink4" in done.stdout
    assert f"{path}: unknown key 'titel' (did you mean 'title'?)" in done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--model", "lama-3.1-70b", "--hardware", "8xh200"), "llama-3.1-70b"),
        (("--model", "llama-3.1-70b", "--hardware", "8xh2000"), "h200"),
        (("--model", "llama-3.1-70b", "--hardware", "8xh200", "--backend", "vlm"), "vllm"),
        (("--model", "llama-3.1-70b", "--hardware", "8xh200", "--dtype", "fb8"), "fp8"),
        (("--model", "llama-3.1-70b", "--hardware", "8xh200", "--plan", "pt=8"), "tp"),
    ],
)
def test_a_wrong_name_suggests_the_nearest(words: tuple[str, ...], hint: str, run: Run) -> None:
    done = run("simulate", *words, "--workload", "poisson:rate=1,input=9,output=9,requests=2")
    assert done.exit_code == 2
    assert f"did you mean '{hint}'" in done.stderr
