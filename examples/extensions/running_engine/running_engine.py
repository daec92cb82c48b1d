"""A tuning target that starts nothing: an engine that runs already takes each trial's settings."""

import os
from collections.abc import Callable
from typing import Any

import httpx

from engine.spec.errors import EngineError
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.settings import Settings
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget
from tuner.load.served_model import get_served_model
from tuner.load.tuning_target import TargetAsked
from tuner.workload.workload import Workload

VARIABLE = "RUNNING_ENGINE_URL"


class RunningEngine:
    def __init__(self, asked: TargetAsked) -> None:
        if VARIABLE not in os.environ:
            raise EngineError(f"{VARIABLE} must hold the engine's address, http://127.0.0.1:8000")
        self._url = os.environ[VARIABLE]
        self._vocab_size = asked.vocab_size

    def measure(
        self,
        settings: Settings,
        workload: Workload,
        *,
        seed: int,
        timeout_s: float,
        fidelity: Fidelity,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Measurement:
        self._patch(settings)
        with HttpTarget(self._url, get_served_model(self._url).name) as target:
            return run_load(
                workload,
                target,
                seed=seed,
                timeout_s=timeout_s,
                vocab_size=self._vocab_size,
                fidelity=fidelity,
                should_stop=should_stop,
            )

    def told(self) -> dict[str, Any] | None:
        return {"url": self._url}

    def close(self) -> None:
        pass  # nothing was started

    def _patch(self, settings: Settings) -> None:
        policy = f"{self._url}/v1/engine/policy"
        tag = httpx.get(policy).headers["etag"]
        answer = httpx.patch(
            policy, json=settings.to_json(), headers={"if-match": tag}, timeout=120.0
        )
        if answer.is_error:
            raise EngineError(f"{self._url} refuses {settings}: {answer.text}")
