"""docs/metrics.md tells every metric id and every exported name, and no other."""

from __future__ import annotations

import re

import pytest

from api.web.metrics import ServiceMetrics
from engine.nvml.reading import DeviceReading
from engine.replica.telemetry import EngineStats, summarise
from engine.server.metrics import ServerMetrics
from engine.spec.energy import ENERGY_IDS
from engine.spec.measurement import METRIC_IDS, Fidelity
from migrations.runner import upgrade
from store import Database
from tests.rooms import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()
ENGINE, SERVICE = PAGE.split("## What the control plane exports")
NAME = re.compile(r"^\| `((?:vllm:|gearshift_)\w+)` \| (\w+) \|", re.MULTILINE)
TYPE = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)


class IdleEngine:
    """All that metrics ask of an engine; its device tells everything."""

    def stats(self) -> EngineStats:
        device = DeviceReading(
            index=0,
            uuid="GPU-0",
            at_s=0.0,
            power_w=70.0,
            energy_j=0.0,
            busy_ratio=0.0,
            memory_busy_ratio=0.0,
            sm_clock_hz=1e9,
            memory_clock_hz=1e9,
            temperature_c=30.0,
            memory_used_bytes=0,
            clock_limits=(),
        )
        return summarise(
            (),
            running=0,
            waiting=0,
            kv_usage=0.0,
            is_healthy=True,
            policy_version=1,
            devices=(device,),
        )


def _exported(text: bytes) -> dict[str, str]:
    """Types by name; the stamps of when counters were made are no metric."""
    found = dict(TYPE.findall(text.decode()))
    return {name: kind for name, kind in found.items() if not name.endswith("_created")}


def test_every_metric_id_is_defined() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+\.v\d)` \| `?(\w*)`? \| .{20}", PAGE, re.MULTILINE))
    ids = METRIC_IDS | ENERGY_IDS
    assert {rows.get(id_): field for field, id_ in ids.items()} == {f: f for f in ids}


@pytest.mark.parametrize("fidelity", Fidelity)
def test_every_fidelity_is_named(fidelity: Fidelity) -> None:
    assert f"`{fidelity}`" in PAGE


def test_the_engines_metrics_are_those_of_the_page_with_their_types() -> None:
    metrics = ServerMetrics(IdleEngine(), model_name="m", engine_name="0")
    assert dict(NAME.findall(ENGINE)) == _exported(metrics.text())


def test_the_services_metrics_are_those_of_the_page_with_their_types(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    upgrade(database.engine)
    text = ServiceMetrics(fresh_s=20.0).render(database)
    database.close()
    assert dict(NAME.findall(SERVICE)) == _exported(text)
