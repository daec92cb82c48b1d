from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.cli.conftest import Run


def test_profile_writes_a_profile_and_a_cost_model_that_simulate_finds(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    out = tmp_path / "profile.json"
    done = run(
        "profile", "--model", tiny_dir, "--devices", 1, "--seconds", 1, "--out", out, "--json"
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert Path(document["file"]).exists()
    assert document["error"]["num_pieces"] > 0
    quality, took = document["quality"], document["took"]
    assert quality["verdict"].startswith("the cost model is ")
    assert (quality["advice"] is None) == quality["is_good"]
    assert took["asked_s"] == 1
    assert 0 < took["fixed_s"] <= took["total_s"]
    assert json.loads(out.read_text())["schema"] == "profile/v1"
    simulated = run(
        "simulate", "--model", tiny_dir, "--json",
        "--workload", "poisson:rate=10,input=64,output=8,requests=20",
    )  # fmt: skip
    assert simulated.exit_code == 0, simulated.output
    assert document["cost_model"] in simulated.stderr


def test_a_file_that_cannot_be_written_is_refused_before_measuring(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    done = run("profile", "--model", tiny_dir, "--seconds", 60, "--out", tmp_path / "no" / "p.json")
    assert done.exit_code == 2
    assert f"there is no folder {tmp_path / 'no'}" in done.stderr
    assert "profile:" not in done.stderr


def test_a_data_folder_that_cannot_be_written_is_refused_before_measuring(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path / "file" / "data"))
    words = ("--model", tiny_dir, "--seconds", 60, "--out", tmp_path / "p.json")
    done = run("profile", *words)
    assert done.exit_code == 2
    assert "cannot keep cost models in" in done.stderr
    assert "profile:" not in done.stderr
