"""The tuner as a backend of jobs. Only the worker imports this: the tuner brings torch."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from api.documents.places import Places
from api.documents.tuning_spec import tuning_spec
from api.jobs.backend import (
    IsCancelled,
    JobInputError,
    JobStoppedError,
    Json,
    OnEvent,
    Verdict,
)
from api.jobs.kept_traces import KeptTraces
from engine.spec.errors import EngineError
from engine.spec.model import ModelConfig
from policies.errors import PolicyInputError
from tuner.profiling.profile import weights_of
from tuner.search.context import TuningContext, TuningEvent
from tuner.search.costs import Spent
from tuner.search.groundwork import new_groundwork
from tuner.search.prepare import prepare
from tuner.search.recommend import recommend
from tuner.search.report import TuningReport
from tuner.search.spec import TuningSpec
from tuner.search.trial_run import run_trial
from tuner.search.trials import TrialRecord
from tuner.spec.errors import CancelledError, TunerError
from tuner.spec.machine import this_machine

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_VISIBLE = threading.Lock()
# Not passed on: the runner reports finished trials itself, in the transaction that keeps them.
OWN_EVENTS = ("trial",)
# About 10,000 settings; a larger groundwork is worked out again after a restart.
MOST_GROUNDWORK_BYTES = 4 * 2**20


class TunerBackend:
    """Binds :mod:`tuner.search`; models and traces lie in ``places`` and ``traces``."""

    def __init__(self, places: Places, traces: KeptTraces) -> None:
        self._places = places
        self._traces = traces

    def devices_needed(self, spec: Json) -> int:
        wanted = tuning_spec(spec)
        return wanted.num_devices if wanted.is_local and wanted.is_live else 0

    def first_device(self, spec: Json) -> int:
        kind, _, first = tuning_spec(spec).device.partition(":")
        return int(first) if kind == "cuda" and first.isdecimal() else 0

    def without_devices(self, spec: Json) -> Json:
        options = {**spec["options"], "is_live": False}
        if (retune := spec.get("retune")) is not None:
            # Steps drifted from the model that is at hand, and are not measured anew.
            options["step_scale"] = retune.get("step_scale", 1.0)
        return {**spec, "options": options}

    def fingerprint(self, spec: Json) -> str:
        return this_machine(tuning_spec(spec).device).id

    def weights(self, spec: Json) -> str | None:
        with _input_errors():
            wanted = self._places.confine_model(tuning_spec(spec))
            model = ModelConfig.from_dir(wanted.model_path)
            return weights_of(model, wanted.quantization, wanted.device)

    def prepare(
        self,
        spec: Json,
        *,
        cost_model: Json | None,
        groundwork: Json | None,
        devices: Sequence[int],
        on_event: OnEvent,
        is_cancelled: IsCancelled,
    ) -> TunerJob:
        """Raises JobInputError for an input that cannot be read, named, and JobStoppedError."""

        def relay(event: TuningEvent) -> None:
            if event.kind not in OWN_EVENTS:
                on_event(event.kind, plain({"message": event.message, **event.data}))

        with _input_errors():
            wanted = self._confined(tuning_spec(spec))
            own = devices if wanted.device.startswith("cuda") else ()
            if own:  # its ranks see no others, and count these from 0
                wanted = replace(wanted, device="cuda")
            with only_visible(own):
                context = prepare(
                    wanted,
                    cost_model=cost_model,
                    groundwork=groundwork,
                    on_event=relay,
                    is_cancelled=is_cancelled,
                )
        return TunerJob(context, own)

    def _confined(self, spec: TuningSpec) -> TuningSpec:
        brought = self._traces.bring(spec)
        if brought is None:
            return self._places.confine(spec)
        return self._places.confine_model(brought)


class TunerJob:
    """A prepared tuning context, and the CUDA devices that it may use."""

    def __init__(self, context: TuningContext, devices: Sequence[int] = ()) -> None:
        self._context = context
        self._devices = devices

    @property
    def cost_model(self) -> Json | None:
        model = self._context.cost_model
        return None if model is None else plain(model.to_json())

    def new_groundwork(self) -> Json | None:
        return groundwork_of(self._context)

    def run_trial(self, number: int, done: Sequence[Json], is_cancelled: IsCancelled) -> Json:
        with _input_errors(), only_visible(self._devices):
            records = [TrialRecord.from_json(record) for record in done]
            trial = run_trial(self._context, number, records, is_cancelled=is_cancelled)
        return plain(trial.to_json())

    def recommend(self, trials: Sequence[Json], is_cancelled: IsCancelled, spent: Spent) -> Verdict:
        with _input_errors(), only_visible(self._devices):
            records = [TrialRecord.from_json(record) for record in trials]
            report = recommend(self._context, records, is_cancelled=is_cancelled, spent=spent)
        return verdict_of(report)

    def close(self) -> None:
        self._context.close()


def groundwork_of(context: TuningContext) -> Json | None:
    """What came to the groundwork since the last call, as a job keeps it; None where nothing did,
    or where it is too large."""
    found = new_groundwork(context)
    if found is None or len(text := json.dumps(found)) > MOST_GROUNDWORK_BYTES:
        return None
    read: Json = json.loads(text)
    return read


def verdict_of(report: TuningReport) -> Verdict:
    """The tuner's report as a job keeps it."""
    document = plain(report.to_json())
    return Verdict(
        report=document,
        recommendation=document["recommendation"],
        schedule=document["schedule"],
        sla=document["sla"],
        reason=report.headline,
        warnings=list(document["warnings"]),
    )


def plain(document: Json) -> Json:
    """The document as it reads back from JSON: no enums, no tuples."""
    read: Json = json.loads(json.dumps(document))
    return read


@contextmanager
def only_visible(devices: Sequence[int]) -> Iterator[None]:
    """Ranks that are started meanwhile see ``devices`` only, which they count from 0.

    The numbers are those of this process: where it sees a part of the machine's devices itself, of
    that part. They inherit it by the environment, which all jobs of this process share, so jobs
    with devices take turns; without ``devices`` nothing changes and nobody waits.
    """
    if not devices:
        yield
        return
    with _VISIBLE:
        before = os.environ.get(VISIBLE_DEVICES)
        every = [] if before is None else before.split(",")
        named = [every[d].strip() if d < len(every) else str(d) for d in devices]
        os.environ[VISIBLE_DEVICES] = ",".join(named)
        try:
            yield
        finally:
            if before is None:
                del os.environ[VISIBLE_DEVICES]
            else:
                os.environ[VISIBLE_DEVICES] = before


@contextmanager
def _input_errors() -> Iterator[None]:
    try:
        yield
    except CancelledError as error:
        raise JobStoppedError from error
    except (EngineError, PolicyInputError, TunerError) as error:
        raise JobInputError(str(error)) from error
