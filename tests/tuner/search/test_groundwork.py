"""What another process takes over of a job's preparation, and when it must not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.catalogs import write_catalog
from tests.tuner.search.test_tune import without_seconds
from tuner.backends import list_backends, load_backend
from tuner.hardware import list_devices
from tuner.hardware.device import load_device
from tuner.search.context import TuningContext, TuningEvent
from tuner.search.groundwork import new_groundwork
from tuner.search.prepare import prepare
from tuner.search.recommend import recommend
from tuner.search.spec import TuningSpec
from tuner.search.trial_run import run_trial
from tuner.search.trials import TrialRecord
from tuner.spec.digest import digest
from tuner.spec.errors import CancelledError

Json = dict[str, Any]
# The fourth trial has ranked every combination by arithmetic.
NUM_TRIALS = 6
NUM_BEFORE = 4
SPEC = TuningSpec(
    model_dir="llama-3.1-8b",
    num_devices=2,
    workload="gamma:rate=6,cv=2,input=1024,output=64,requests=24",
    sla="p95_ttft_ms<=4000,p95_tpot_ms<=120",
    trials=NUM_TRIALS,
    hardware="2xh200",
)


def _trials(
    context: TuningContext, until: int, done: tuple[TrialRecord, ...] = ()
) -> tuple[TrialRecord, ...]:
    for number in range(len(done), until):
        done = (*done, run_trial(context, number, done))
    return done


def _through_json(document: Json | None) -> Json:
    assert document is not None
    read: Json = json.loads(json.dumps(document, allow_nan=False))
    return read


@pytest.fixture(scope="module")
def begun() -> tuple[tuple[TrialRecord, ...], Json]:
    """Trials of a process that then ended, and what it left."""
    with prepare(SPEC) as context:
        done = _trials(context, NUM_BEFORE)
        return done, _through_json(new_groundwork(context))


def _prepared(spec: TuningSpec, kept: Json | None) -> tuple[TuningContext, str]:
    """The context, and what its preparation told."""
    told: list[TuningEvent] = []
    context = prepare(spec, groundwork=kept, on_event=told.append)
    (event,) = (event for event in told if event.kind == "prepared")
    return context, event.message


def test_another_process_goes_on_with_what_was_kept_as_if_it_had_not_been_disturbed(
    begun: tuple[tuple[TrialRecord, ...], Json],
) -> None:
    done, kept = begun
    context, told = _prepared(SPEC, kept)
    fresh, told_fresh = _prepared(SPEC, None)
    assert told == f"{told_fresh} before"
    assert context.design == fresh.design
    assert context.examples == fresh.examples
    assert sum(cost.seconds for cost in context.design_costs) == kept["seconds"]
    documents = []
    for each in (context, fresh):
        trials = _trials(each, NUM_TRIALS, done)
        documents.append(without_seconds(recommend(each, trials).to_json()))
    assert documents[0] == documents[1]


def test_what_was_ranked_before_is_not_solved_again(
    begun: tuple[tuple[TrialRecord, ...], Json],
) -> None:
    done, kept = begun
    context, _ = _prepared(SPEC, kept)
    known = context.corrected.num_known
    assert known >= len(context.grid)
    _trials(context, NUM_TRIALS, done)
    assert context.corrected.num_known == known
    assert new_groundwork(context) is None


def test_it_is_given_again_only_where_something_came_to_it() -> None:
    with prepare(SPEC) as context:
        first = new_groundwork(context)
        assert first is not None
        assert new_groundwork(context) is None
        _trials(context, NUM_BEFORE)
        later = new_groundwork(context)
    assert later is not None
    assert later["key"] == first["key"]
    assert len(later["estimates"]["rows"]) > len(first["estimates"]["rows"])


def test_what_was_kept_of_another_question_or_software_is_not_used(
    begun: tuple[tuple[TrialRecord, ...], Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kept = begun
    others = [
        replace(SPEC, seed=1),
        replace(SPEC, sla="p95_ttft_ms<=3000,p95_tpot_ms<=120"),
        replace(SPEC, workload=SPEC.workload.replace("rate=6", "rate=7")),
        replace(SPEC, hardware="2xh100"),
        replace(SPEC, backend="sglang"),
        replace(SPEC, model_dir="llama-3.1-70b"),
        replace(SPEC, step_scale=1.5),
    ]
    for spec in others:
        assert not _prepared(spec, kept)[1].endswith("before"), spec
    monkeypatch.setattr("tuner.search.groundwork.software_digest", lambda: "another version")
    assert not _prepared(SPEC, kept)[1].endswith("before")


def _trace(folder: Path) -> tuple[TuningSpec, Callable[[], object]]:
    path = folder / "rows.csv"
    lines = ["arrival_s,input_tokens,output_tokens", *(f"{n},64,8" for n in range(30))]
    path.write_text("\n".join(lines))
    return (
        replace(SPEC, workload=f"csv:{path}"),
        lambda: path.write_text("\n".join([*lines[:-1], "29,640,8"])),
    )


def _catalog(folder: Path) -> tuple[TuningSpec, Callable[[], object]]:
    (chip,) = write_catalog(folder).rglob("chip9.json")
    spec = replace(SPEC, model_dir="mini", hardware="2xchip9", num_devices=2, backend="ours")
    faster = {**json.loads(chip.read_text()), "memory_bytes_per_s": 9e12}
    return spec, lambda: chip.write_text(json.dumps(faster))


@pytest.mark.parametrize("named", [_trace, _catalog])
def test_what_was_kept_before_a_file_that_the_job_names_changed_is_not_used(
    named: Callable[[Path], tuple[TuningSpec, Callable[[], object]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(tmp_path))
    spec, change = named(tmp_path)
    with prepare(spec) as context:
        kept = _through_json(new_groundwork(context))
    assert _prepared(spec, kept)[1].endswith("before")
    change()
    assert not _prepared(spec, kept)[1].endswith("before")


def test_every_description_that_is_built_in_can_be_told() -> None:
    descriptions = [*map(load_device, list_devices()), *map(load_backend, list_backends())]
    assert len({digest(each) for each in descriptions}) == len(descriptions)


def test_a_preparation_that_is_cancelled_ends() -> None:
    looks = iter([False, True])
    with pytest.raises(CancelledError):
        prepare(SPEC, is_cancelled=lambda: next(looks))
