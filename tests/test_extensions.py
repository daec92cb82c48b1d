"""What packages bring under entry points, by the examples that the how-to pages show."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from engine.engine import Engine
from engine.executors.factory import make_executor
from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import EngineError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import SamplingParams
from policies.forecast import choose
from policies.forecasters import CONSTANT, FORECASTERS
from policies.load_history import LoadHistory
from tests.extension_packages import FOLDER, PACKAGES, entry_points, forget_extensions, install
from tests.rooms import ROOT
from tuner.search.spec import TuningSpec
from tuner.spec.errors import TunerError
from tuner.spec.forecasters import list_forecasters

HOW_TO = ROOT / "docs" / "how-to"
PAGES = {
    "high_water": "add-a-forecaster.md",
    "acme_server": "bring-a-serving-system.md",
    "running_engine": "add-a-tuning-target.md",
    "logged_steps": "bring-an-executor.md",
}
Install = Callable[[str], None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield lambda package: install(package, tmp_path / package, monkeypatch)
    monkeypatch.undo()
    forget_extensions()
    for package in PACKAGES:
        sys.modules.pop(package, None)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    create_model(folder, preset="tiny", seed=1)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(create_app(), [str(word) for word in words])


def waves() -> LoadHistory:
    """An hour and a half in which every fifth minute has five times the load."""
    return LoadHistory(rates_rps=np.where(np.arange(90) % 5 == 0, 10.0, 2.0))


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_how_to_shows_what_its_package_holds(package: str) -> None:
    page = (HOW_TO / PAGES[package]).read_text()
    assert f"examples/extensions/{package}" in page
    blocks = re.findall(r"(?:^ {8}.*\n|^\n(?= {8}))+", page, re.MULTILINE)
    shown = [block for block in blocks if " gearshift " not in block]  # commands are no file's
    files = [path for path in (FOLDER / package).rglob("*") if path.suffix in (".py", ".toml")]
    held = [_unindented(path.read_text()) for path in files]
    assert shown
    assert [block for block in shown if not any(_unindented(block) in text for text in held)] == []
    assert all(group in page for group in entry_points(package))


def test_a_forecaster_that_fits_the_load_best_is_chosen(installed: Install) -> None:
    installed("high_water")
    known = list_forecasters()
    assert known[: len(FORECASTERS)] == FORECASTERS
    chosen, _ = choose(waves(), 5, forecasters=(CONSTANT, known[-1]))
    assert chosen.name == "high_water"
    assert list(chosen.predict(waves(), 5)) == [10.0] * 5


@pytest.mark.parametrize(
    "body", ["raise ValueError('no data')", "return [1.0]", "return [-1.0] * 5"]
)
def test_a_forecaster_that_fails_forecasts_as_the_constant_does(
    body: str, installed: Install, tmp_path: Path
) -> None:
    installed("high_water")
    file = tmp_path / "high_water" / "high_water.py"
    file.write_text(re.sub(r"seen = .*\n.*return .*", body, file.read_text()))
    (brought,) = list_forecasters()[len(FORECASTERS) :]
    assert list(brought.predict(waves(), 5)) == list(CONSTANT.predict(waves(), 5))


def test_a_serving_system_of_a_package_can_be_named_like_a_built_in_one(
    installed: Install, tmp_path: Path
) -> None:
    installed("acme_server")
    listed = run("list", "backends", "--json")
    assert str(tmp_path / "acme_server" / "acme_server" / "acme.json") in listed.stdout
    done = run(
        "simulate", "--model", "llama-3.1-8b", "--hardware", "1xh200", "--plan", "tp=1",
        "--backend", "acme", "--workload", "poisson:rate=2,input=64,output=8,requests=20",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "served by acme" in done.stdout
    nearest = run("backends", "show", "acmee")
    assert nearest.exit_code == 2
    assert "did you mean 'acme'" in nearest.stderr


def test_a_package_that_gives_no_file_of_its_name_is_told_in_one_line(
    installed: Install, tmp_path: Path
) -> None:
    installed("acme_server")
    folder = tmp_path / "acme_server" / "acme_server"
    (folder / "acme.json").rename(folder / "other.json")
    done = run("backends", "show", "acme")
    assert done.exit_code == 2
    assert "extension 'acme' of gearshift.backends" in done.stderr
    assert "a file acme.json" in done.stderr


def test_steps_run_on_the_executor_of_a_package(
    installed: Install, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("logged_steps")
    log = tmp_path / "steps.log"
    monkeypatch.setenv("STEP_LOG", str(log))
    config = EngineConfig(
        model_dir=model_dir, executor=ExecutorKind.EXTENSION, executor_name="logged"
    )
    with Engine(config) as engine:
        answer = engine.generate((5, 6, 7), SamplingParams(max_tokens=3))
    assert len(answer.token_ids) == 3
    assert " begins: 3 tokens of 1 sequences" in log.read_text()
    assert " ms on the rank" in log.read_text()


def test_an_executor_that_no_package_brings_is_refused_with_those_there_are(
    installed: Install, model_dir: Path
) -> None:
    installed("logged_steps")
    config = EngineConfig(
        model_dir=model_dir, executor=ExecutorKind.EXTENSION, executor_name="loged"
    )
    with pytest.raises(
        EngineError, match=r"did you mean 'logged'\?\); those installed bring logged"
    ):
        make_executor(config, ModelConfig.from_dir(model_dir), ParallelPlan())


def spec(model_dir: Path, **changes: object) -> TuningSpec:
    raw = {
        "model_dir": str(model_dir),
        "num_devices": 1,
        "workload": "poisson:rate=50,requests=20,input=8,output=4",
        "sla": "p95_ttft_ms<=5000",
        "engine": "running",
    }
    return TuningSpec.from_json(raw | changes)


def test_a_tuning_target_of_a_package_is_named_as_the_engine(
    installed: Install, model_dir: Path
) -> None:
    with pytest.raises(TunerError, match=r"known: vllm, sglang$"):
        spec(model_dir)
    installed("running_engine")
    assert spec(model_dir).is_brought
    with pytest.raises(TunerError, match=r"known: vllm, sglang, running$"):
        spec(model_dir, engine="runing")
    with pytest.raises(TunerError, match="comes from a package"):
        spec(model_dir, engine_command="serve")


@pytest.mark.slow
def test_trials_run_on_the_target_of_a_package(
    installed: Install, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.api.cli.served import ALONE, PACED, serving

    installed("running_engine")
    with serving("--model", model_dir, *PACED, *ALONE) as served:
        monkeypatch.setenv("RUNNING_ENGINE_URL", served.ready["url"])
        asked = spec(model_dir)
        done = run(
            "tune", "--engine", "running", "--model", model_dir, "--devices", 1, "--trials", 2,
            "--probe-requests", 8, "--workload", asked.workload, "--sla", asked.sla, "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        now = served.http.get("/v1/engine/policy").json()
    assert now["version"] > 1
    assert f'"url": "{served.ready["url"]}"' in done.stdout
