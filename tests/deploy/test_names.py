"""What ``deploy/`` asks for is what an engine and a control plane really expose."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.web.settings import ServiceSettings
from engine.models.create import create_model
from migrations.runner import upgrade
from store import Database
from tests.deploy.queries import metrics_in, queries, rules
from tests.engine.nvml.engines import gpus, monitor_of
from tests.engine.nvml.fake_nvml import FakeNvml
from tests.engine.server.conftest import (
    serving,
    simulated_engine,
)
from tests.servers import serve
from tests.waiting import wait_until

TYPE = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)
# Made by Prometheus itself at every scrape.
PROMETHEUS_OWN = {"up"}


def _series(text: str) -> set[str]:
    """Names of the series of an exposition, also of those without a sample yet."""
    found: set[str] = set()
    for name, kind in TYPE.findall(text):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What one engine and one control plane answer to a scrape."""
    folder: Path = tmp_path_factory.mktemp("deploy")
    create_model(folder / "model", preset="tiny", seed=1)
    with (
        simulated_engine(
            folder / "model", step_s=0.001, monitor=monitor_of(FakeNvml(*gpus(4)))
        ) as engine,
        serving(engine, folder / "model") as server,
    ):
        wait_until(lambda: bool(engine.stats().devices))
        of_engine = server.http.get("/metrics").text
    settings = ServiceSettings(data_dir=folder, run_worker=False)
    database = Database(settings.effective_database_url)
    upgrade(database.engine)
    with serve(create_app(settings)) as url:
        of_service = httpx.get(f"{url}/metrics").text
    database.close()
    return _series(of_engine) | _series(of_service)


def test_every_metric_that_is_asked_for_exists(exposed: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for query in queries() for name in metrics_in(query)}
    assert asked - recorded - PROMETHEUS_OWN - exposed == set()
    assert len(asked & exposed) > 30, "the queries were not read"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ('sum by (a) (rate(vllm:x_total{b="c d"}[5m])) / on (a) gearshift_y', None),
        ("max(gearshift_jobs) > max(gearshift_jobs offset 15m)", {"gearshift_jobs"}),
        ("up == 0 and on () wrong_name", {"up", "wrong_name"}),
    ],
)
def test_names_are_found_in_queries(query: str, names: set[str] | None) -> None:
    assert metrics_in(query) == (names or {"vllm:x_total", "gearshift_y"})


def test_alerts_say_how_bad_they_are_and_what_is_wrong() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule
            assert rule["annotations"]["summary"].endswith("."), rule
