"""A tuner of its own for worker tests: trials that count, wait and can be watched from outside.

Each trial appends one line to the file named in the job's options, so that a test sees exactly
how often it ran, in whatever process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from api.jobs.backend import (
    IsCancelled,
    JobInputError,
    JobStoppedError,
    Json,
    OnEvent,
    Verdict,
)
from api.jobs.worker import run_worker
from api.web.settings import ServiceSettings
from engine.logs import configure_logs
from engine.spec.settings import Settings
from tuner.search.costs import Spent


def open_gate(log: Path, number: int) -> None:
    """Let a trial that the job's options name in ``closed`` go on."""
    _gate(log, number).touch()


def _gate(log: Path, number: int) -> Path:
    return log.with_name(f"open{number}")


class CountingJob:
    """Trial n scores n; each takes ``seconds``, those ``closed`` last until their gate opens."""

    def __init__(self, spec: Json, cost_model: Json, ran: list[int], on_event: OnEvent) -> None:
        self._options = spec["options"]
        self._sla = spec["sla"]
        self._on_event = on_event
        self.cost_model: Json | None = cost_model
        self._ran, self._num_kept = list(ran), len(ran)

    def new_groundwork(self) -> Json | None:
        is_new = len(self._ran) > self._num_kept
        self._num_kept = len(self._ran)
        return {"ran": list(self._ran)} if is_new else None

    def run_trial(self, number: int, done: Sequence[Json], is_cancelled: IsCancelled) -> Json:
        log = Path(self._options["log"])
        with log.open("a") as lines:
            lines.write(f"{number} {os.getpid()} {[d['number'] for d in done]}\n")
        self._on_event("progress", {"number": number})
        time.sleep(self._options.get("seconds", 0.0))
        is_closed = number in self._options.get("closed", ())
        while is_closed and not _gate(log, number).exists() and not is_cancelled():
            time.sleep(0.01)
        if number == self._options.get("explode_at"):
            raise JobInputError("the trace has no rows")
        self._ran.append(number)
        return {
            "number": number,
            "plan": "tp=1",
            "state": "complete",
            "fidelity": "measured",
            "metrics": {"p95_ttft_ms": {"value": float(number), "low": 0.0, "high": 9.0}},
        }

    def close(self) -> None:
        pass

    def recommend(self, trials: Sequence[Json], is_cancelled: IsCancelled, spent: Spent) -> Verdict:
        report = {
            "trials": list(trials),
            "recommendation": None,
            "spent": [spent.seconds, spent.device_seconds],
        }
        if self._options.get("infeasible"):
            return Verdict(
                report=report,
                recommendation=None,
                schedule=None,
                sla=self._sla,
                reason="TTFT binds",
            )
        best = {"settings": Settings().to_json(), "fidelity": "measured"}
        return Verdict(
            report={**report, "recommendation": best},
            recommendation=best,
            schedule=None,
            sla=self._sla,
            reason="cheapest",
        )


class CountingBackend:
    """Counts its preparations the same way."""

    def devices_needed(self, spec: Json) -> int:
        return int(spec["options"].get("devices", 0))

    def first_device(self, spec: Json) -> int:
        return int(spec["options"].get("first", 0))

    def without_devices(self, spec: Json) -> Json:
        return {**spec, "options": {**spec["options"], "devices": 0}}

    def fingerprint(self, spec: Json) -> str:
        return "test"

    def weights(self, spec: Json) -> str | None:
        found = spec["options"].get("weights")
        return None if found is None else str(found)

    def prepare(
        self,
        spec: Json,
        *,
        cost_model: Json | None,
        groundwork: Json | None,
        devices: Sequence[int],
        on_event: OnEvent,
        is_cancelled: IsCancelled,
    ) -> CountingJob:
        ran = groundwork["ran"] if groundwork else []
        kind = "again" if cost_model else "measured"
        with Path(spec["options"]["log"]).open("a") as lines:
            lines.write(f"prepare {kind}{f' after {ran}' if ran else ''}\n")
        until_s = time.monotonic() + spec["options"].get("prepare_s", 0.0)
        while time.monotonic() < until_s:
            time.sleep(0.01)
            if is_cancelled():
                raise JobStoppedError
        return CountingJob(spec, cost_model or {"fingerprint": "test", "v": 1}, ran, on_event)


if __name__ == "__main__":
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    settings = ServiceSettings()
    configure_logs(settings.log_level)
    run_worker(settings, CountingBackend(), stop)
