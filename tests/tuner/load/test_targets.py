"""Targets in this process, and how stamps of tokens that came together are spread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import RequestTiming
from tests.contracts.load_target import Call, LoadTargetContract
from tests.engine.nvml.engines import gpus, monitor_of
from tests.engine.nvml.fake_nvml import FakeNvml
from tests.tuner.engines import paced_engine
from tests.waiting import wait_until
from tuner.load.driver import LoadProgress, run_load
from tuner.load.targets import EngineTarget, LoadTarget, spread_stamps
from tuner.workload.parse import parse_workload


class TestEngineTarget(LoadTargetContract):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[LoadTarget]:
        with paced_engine(tmp_path) as engine:
            yield EngineTarget(engine)
            engine.check_integrity()

    def test_stamps_are_the_engines_own(self, tmp_path: Path) -> None:
        with paced_engine(tmp_path) as engine:
            call = Call(EngineTarget(engine), 1)
            call.wait()
            timings: list[RequestTiming] = []

            def is_noted() -> bool:  # just after the last token has gone out
                timings.extend(engine.drain_timings())
                return bool(timings)

            wait_until(is_noted)
            assert [list(t.token_s) for t in timings] == [call.stamps]

    def test_two_targets_of_one_engine_do_not_share_ids(self, tmp_path: Path) -> None:
        with paced_engine(tmp_path) as engine:
            calls = [Call(EngineTarget(engine), 1, tokens=20) for _ in range(2)]
            assert [len(call.stamps) for call in calls if call.wait()] == [20, 20]


def test_the_energy_of_a_run_is_that_of_the_devices_behind_it(tmp_path: Path) -> None:
    (gpu,) = library = gpus(1)
    workload = parse_workload("poisson:rate=100,requests=10,input=8,output=4", seed=0)

    def note(progress: LoadProgress) -> None:
        gpu.energy_mj += 2_000

    with paced_engine(tmp_path, monitor=monitor_of(FakeNvml(*library))) as engine:
        measured = run_load(
            workload,
            EngineTarget(engine),
            seed=0,
            timeout_s=30.0,
            vocab_size=500,
            on_progress=note,
        )
    energy = measured.energy
    assert energy is not None
    assert energy.joules == pytest.approx(20.0)
    assert energy.num_devices == 1
    assert energy.seconds >= measured.window_s
    assert energy.per_token(measured.output_tokens) == pytest.approx(0.5)


def test_a_gap_is_divided_among_the_tokens_that_came_after_it() -> None:
    assert spread_stamps(1.0, 2.0, 4) == [1.25, 1.5, 1.75, 2.0]
    assert spread_stamps(None, 2.0, 3) == [2.0, 2.0, 2.0]
    assert spread_stamps(1.0, 2.0, 0) == []


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.floats(min_value=0, max_value=10)),
    st.floats(min_value=10, max_value=20),
    st.integers(min_value=0, max_value=50),
)
def test_spread_stamps_rise_and_end_when_the_tokens_came(
    previous_s: float | None, received_s: float, count: int
) -> None:
    stamps = spread_stamps(previous_s, received_s, count)
    assert len(stamps) == count
    assert stamps == sorted(stamps)
    if count:
        assert stamps[-1] == received_s
        assert stamps[0] >= (received_s if previous_s is None else previous_s)
