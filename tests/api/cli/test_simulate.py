from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config import ModelConfig
from tests.api.cli.conftest import Run
from tests.tuner.profiles import made_up_profile
from tuner.cost_model_fit import fit_step_model

WORKLOAD = "poisson:rate=10,input=64,output=8,requests=20"


@pytest.fixture
def cost_model(tmp_path: Path, tiny_dir: Path) -> Path:
    """A saved step model of a made-up machine."""
    path = tmp_path / "model.json"
    model = fit_step_model(made_up_profile(), ModelConfig.from_dir(tiny_dir))
    path.write_text(json.dumps(model.to_json()))
    return path


def test_simulate_prints_the_document_other_programs_rely_on(
    run: Run, tiny_dir: Path, cost_model: Path
) -> None:
    done = run(
        "simulate", "--model", tiny_dir, "--plan", "sp=2,shift=32", "--workload", WORKLOAD,
        "--sla", "p95_ttft_ms<=60000", "--cost-model", cost_model, "--seed", 1, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["fidelity"] == "simulated"
    assert document["requests"]["completed"] == 20
    assert document["metrics"]["attainment"] == 1.0
    assert set(document["metrics"]["ttft_ms"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert document["driver_lag_ms"] == 0


def test_the_same_seed_prints_the_same_numbers(run: Run, tiny_dir: Path) -> None:
    words = ("simulate", "--model", tiny_dir, "--workload", WORKLOAD, "--hardware", "8xh200",
             "--plan", "tp=2", "--seed", 5, "--json")  # fmt: skip
    assert run(*words).stdout == run(*words).stdout


def test_described_hardware_says_that_it_is_uncalibrated(run: Run, tiny_dir: Path) -> None:
    done = run("simulate", "--model", tiny_dir, "--workload", WORKLOAD, "--hardware", "h100")
    assert done.exit_code == 0, done.output
    assert "uncalibrated" in done.stderr
    assert "ttft" in done.stdout


def test_without_a_cost_model_the_command_to_run_is_named(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path / "empty"))
    done = run("simulate", "--model", tiny_dir, "--workload", WORKLOAD)
    assert done.exit_code == 2
    assert "gearshift profile" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "tp=3"), "8 query heads"),
        (("--plan", "xp=3"), "unknown word 'xp'"),
        (("--sla", "soon"), "soon"),
        (("--hardware", "8xb999"), "b999"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    run: Run, tiny_dir: Path, words: tuple[str, ...], message: str
) -> None:
    done = run("simulate", "--model", tiny_dir, "--workload", WORKLOAD, *words)
    assert done.exit_code == 2
    assert message in done.stderr
