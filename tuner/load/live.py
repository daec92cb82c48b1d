"""A live engine for trials: started once, reshaped between trials, driven by the load driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.engine import Engine
from engine.fleet import TimerFactory
from engine.policy.document import EnginePolicy
from engine.spec.config import EngineConfig
from engine.spec.measurement import Fidelity, Measurement, RequestTiming
from engine.spec.settings import Settings
from engine.spec.steps import StepSample
from tuner.load.driver import EngineTarget, run_load
from tuner.load.stoppable import until_stopped
from tuner.workload.workload import Arrival, ClosedLoop, Workload

WARM_REQUESTS = 4


class LiveEngine:
    """An engine in this process that tries one setting after the other.

    Ranks restart only when the plan changes. Not thread safe; close it, or use ``with``.
    ``timer_factory`` paces a simulated executor instead of running ranks.
    """

    def __init__(self, config: EngineConfig, *, timer_factory: TimerFactory | None = None) -> None:
        self._config = config
        self._timer_factory = timer_factory
        self._engine: Engine | None = None

    def __enter__(self) -> LiveEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and its ranks. Safe to call twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def drain_samples(self) -> list[StepSample]:
        """Step samples since the last call."""
        return self._engine.drain_samples() if self._engine else []

    def measure(
        self,
        settings: Settings,
        workload: Workload,
        *,
        seed: int,
        timeout_s: float,
        fidelity: Fidelity,
        on_ended: Callable[[RequestTiming], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Measurement:
        """See :class:`tuner.load.tuning_target.TuningTarget`.

        Raises:
            EngineError: the plan cannot run here, a rank failed, or it should stop before the load
                began.
        """
        engine = self._engine_with(settings, should_stop)
        target = EngineTarget(engine)
        vocab_size = engine.model.vocab_size
        run_load(
            warm_up(workload),
            target,
            seed=seed + 1,
            timeout_s=timeout_s,
            vocab_size=vocab_size,
            should_stop=should_stop,
        )
        engine.drain_samples()
        return run_load(
            workload,
            EngineTarget(engine),
            seed=seed,
            timeout_s=timeout_s,
            vocab_size=vocab_size,
            fidelity=fidelity,
            on_ended=on_ended,
            should_stop=should_stop,
        )

    def told(self) -> dict[str, Any] | None:
        """See :class:`tuner.load.tuning_target.TuningTarget`: its measurements tell all."""
        return None

    def _engine_with(self, settings: Settings, should_stop: Callable[[], bool]) -> Engine:
        if self._engine is None:
            config = replace(
                self._config,
                # Trials repeat prompts, so with a prefix cache they would find their own blocks.
                prefix_cache=False,
                settings=settings,
            )
            engine = Engine(config, timer_factory=self._timer_factory)
            until_stopped(engine, engine.start, should_stop)
            self._engine = engine
        else:
            engine = self._engine
            policy = EnginePolicy(settings=settings, version=engine.policy.version + 1)
            until_stopped(engine, lambda: engine.apply(policy), should_stop)
        return engine


def warm_up(workload: Workload) -> Workload:
    """A few requests of the workload at once: caches and branches are warm afterwards."""
    first = workload.arrivals[:WARM_REQUESTS]
    arrivals = tuple(
        Arrival(arrival_s=0.0, input_tokens=a.input_tokens, output_tokens=min(a.output_tokens, 8))
        for a in first
    )
    return replace(workload, arrivals=arrivals, closed=ClosedLoop(concurrency=len(arrivals)))
