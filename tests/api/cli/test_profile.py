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
    assert json.loads(out.read_text())["schema"] == "profile/v1"
    simulated = run(
        "simulate", "--model", tiny_dir, "--json",
        "--workload", "poisson:rate=10,input=64,output=8,requests=20",
    )  # fmt: skip
    assert simulated.exit_code == 0, simulated.output
    assert document["cost_model"] in simulated.stderr
