"""The conformance suite of ``tuner.load.tuning_target.TuningTarget``.

A test module subclasses :class:`TuningTargetContract` and provides ``target``, and ``refused``:
settings that it cannot run.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from engine.spec.errors import EngineError
from engine.spec.measurement import Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.settings import Caps, Settings
from tuner.load.tuning_target import TuningTarget
from tuner.workload.parse import parse_workload

SETTINGS = Settings(caps=Caps(max_num_seqs=8, max_num_batched_tokens=64))


def measure(
    target: TuningTarget,
    wanted: Settings,
    *,
    seed: int = 0,
    is_stopped: bool = False,
    on_ended: Callable[[RequestTiming], None] = lambda _: None,
) -> Measurement:
    """A dozen requests of four tokens under ``wanted``."""
    return target.measure(
        wanted,
        parse_workload("poisson:rate=200,requests=12,input=8,output=4", seed=0),
        seed=seed,
        timeout_s=30.0,
        fidelity=Fidelity.PROBED,
        on_ended=on_ended,
        should_stop=lambda: is_stopped,
    )


class TuningTargetContract:
    """Subclasses provide the fixtures ``target`` and ``refused``."""

    def test_trials_measure_and_what_cannot_run_is_an_error_after_which_others_still_can(
        self, target: TuningTarget, refused: Settings
    ) -> None:
        heard: list[RequestTiming] = []
        first = measure(target, SETTINGS, on_ended=heard.append)
        assert first.fidelity is Fidelity.PROBED
        assert first.count(Outcome.COMPLETED) == len(first.timings) == 12  # without the warm-up
        assert sorted(heard, key=lambda t: t.scheduled_s) == list(first.timings)
        assert all(timing.output_tokens == 4 for timing in first.timings)
        json.dumps(target.told())
        with pytest.raises(EngineError):
            measure(target, refused)
        target.close()
        assert measure(target, SETTINGS).count(Outcome.COMPLETED) == 12
        stopped = measure(target, SETTINGS, is_stopped=True)
        assert stopped.count(Outcome.CUT) == 12
        target.close()
        target.close()
