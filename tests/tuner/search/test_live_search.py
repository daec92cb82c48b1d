"""A search whose trials run on a real engine, paced by the clock as the hardware it imitates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from engine.models.create import create_model
from tuner.load.live import LiveEngine
from tuner.search.context import TuningContext, TuningEvent
from tuner.search.costs import Spent
from tuner.search.prepare import prepare
from tuner.search.recommend import recommend
from tuner.search.spec import TuningSpec
from tuner.search.trials import TrialRecord
from tuner.search.tune import search

pytestmark = pytest.mark.slow

LOAD = "poisson:rate=200,input=64,output=4,requests=8"


@pytest.fixture(scope="module")
def told() -> list[TuningEvent]:
    return []


@pytest.fixture(scope="module")
def context(
    told: list[TuningEvent], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TuningContext]:
    folder = tmp_path_factory.mktemp("models") / "shape"
    create_model(folder, preset="llama-3.1-8b")
    spec = TuningSpec(
        model_dir=str(folder),
        num_devices=2,
        workload=LOAD,
        sla="p50_ttft_ms<=5000",
        trials=3,
        seed=1,
        hardware="2xh200",
        backend="gearshift",
        probe_requests=6,
        budget="device_hours=1",
    )
    with prepare(spec, on_event=told.append) as found:
        found.max_live_ranks = 2
        # Plans change at once, not as long as ranks would take to start.
        config = replace(found.config, start_s_of=None)
        found._live = LiveEngine(config, timer_factory=found.simulator.timer)
        yield found


@pytest.fixture(scope="module")
def document(context: TuningContext) -> dict[str, Any]:
    return search(context).to_json()


def test_every_level_says_what_it_took_in_device_seconds(document: dict[str, Any]) -> None:
    rows = {row["level"]: row for row in document["costs"]}
    assert set(rows) == {"predicted", "simulated", "measured", "probed"}
    assert rows["simulated"]["device_seconds"] == rows["predicted"]["device_seconds"] == 0
    ran = [trial for trial in document["trials"] if trial["document"]]
    for trial in ran:
        live = [cost for cost in trial["costs"] if cost["device_seconds"]]
        devices = math.prod(trial["settings"]["plan"].values())
        assert live[0]["device_seconds"] >= devices * live[0]["load_s"] > 0
    whole = sum(row["device_seconds"] for row in rows.values())
    assert document["budget"]["used_device_seconds"] == pytest.approx(whole)
    assert document["budget"]["device_seconds"] == 3600
    assert document["budget"]["not_reached"] == []


def test_trial_0_is_tensor_parallelism_over_all_devices(document: dict[str, Any]) -> None:
    assert document["baseline"]["settings"]["plan"] == {"dp": 1, "pp": 1, "sp": 1, "tp": 2}
    assert document["baseline"]["state"] == "complete"


def test_what_more_devices_cannot_win_is_not_run(document: dict[str, Any]) -> None:
    found = document["recommendation"]
    assert found["num_devices"] == 1
    pruned = [t for t in document["trials"] if t["state"] == "pruned"]
    assert all("at best, trial" in trial["reason"] for trial in pruned)


def test_the_winner_and_trial_0_were_run_on_the_same_fresh_draws(document: dict[str, Any]) -> None:
    fresh = document["fresh_draws"]
    assert fresh["fidelity"] == "probed"
    runs = fresh["runs"]
    assert runs["baseline"]["settings"] == document["baseline"]["settings"]
    assert runs["winner"]["settings"] == document["recommendation"]["settings"]
    assert list(runs["winner"]["draws"]) == list(runs["baseline"]["draws"]) == ["0", "1", "2"]
    change = fresh["gain"]["goodput_rps_per_device"]
    assert change["low"] < change["share"] < change["high"]
    assert "against trial 0 (tp=2" in fresh["headline"]


def test_what_a_crash_cut_off_counts_when_the_end_is_run_again(
    context: TuningContext, document: dict[str, Any], told: list[TuningEvent]
) -> None:
    spent_s = sum(event.data["device_seconds"] for event in told if event.kind == "spent")
    of_trials = sum(c["device_seconds"] for t in document["trials"] for c in t["costs"])
    assert spent_s == pytest.approx(document["budget"]["used_device_seconds"] - of_trials)
    again = recommend(
        context, [], spent=Spent(device_seconds=4000.0), is_cancelled=lambda: False
    ).to_json()
    assert again["budget"]["used_device_seconds"] >= 4000
    assert "was not measured again: not run: the budget has 0 " in again["budget"]["not_reached"][0]
    assert again["recommendation"]["fidelity"] == "simulated"


def test_what_ran_is_recommended_where_no_time_is_left_to_run_what_was_simulated(
    context: TuningContext, document: dict[str, Any]
) -> None:
    ran = [TrialRecord.from_json(trial) for trial in document["trials"]]
    again = recommend(context, ran[:1], spent=Spent(device_seconds=4000.0)).to_json()
    assert again["recommendation"]["settings"] == document["baseline"]["settings"]
    assert again["recommendation"]["fidelity"] != "simulated"
    assert "it was only simulated" in again["demoted"][0]["reason"]
