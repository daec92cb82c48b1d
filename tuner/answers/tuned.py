"""``tune``: plan, threshold and caps searched together, by simulation and on the live engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.spec.settings import Settings
from policies.sla import Sla
from tuner.answers.answer import Answer
from tuner.described.title import Title
from tuner.search.context import OnEvent
from tuner.search.costs import device_seconds
from tuner.search.report import TuningReport
from tuner.search.spec import DEFAULT_KV_CACHE_MIB, LOCAL, TuningSpec, read_weight_format
from tuner.search.trials import TrialRecord
from tuner.search.tune import tune as run_tuning

if TYPE_CHECKING:
    import pandas as pd

    from tuner.pictures.picture import Picture


@dataclass(frozen=True, kw_only=True, repr=False)
class Tuned(Answer):
    """What tuning found."""

    report: TuningReport

    @property
    def settings(self) -> Settings | None:
        """The recommended settings; None if nothing meets the SLA with enough certainty."""
        found = self.report.recommendation
        return None if found is None else found.settings

    @property
    def title(self) -> Title:
        return self.report.title

    @property
    def headline(self) -> str:
        return self.report.headline

    @cached_property
    def document(self) -> dict[str, Any]:
        return self.report.to_json()

    def summary(self) -> pd.DataFrame:
        """Trials that ran to their end."""
        rows = self.to_frame()
        return rows[rows["state"] == "complete"]

    def to_frame(self) -> pd.DataFrame:
        """One row per trial: settings, fidelity, state, P(SLA met), what each bounded metric came
        to, and why it ended so."""
        import pandas as pd

        sla = self.report.spec.parsed_sla
        return pd.DataFrame([_row(trial, sla) for trial in self.report.trials]).set_index("trial")

    def picture(self) -> Picture:
        from tuner.pictures.trials import tuning_picture

        return tuning_picture(self.report)


def _row(trial: TrialRecord, sla: Sla) -> dict[str, Any]:
    metrics = {c.key: trial.metrics.get(c.key, {}).get("value") for c in sla.per_run}
    return {
        "trial": trial.number,
        "settings": str(trial.settings),
        "devices": trial.settings.plan.world_size,
        "fidelity": trial.fidelity.value,
        "state": trial.state.value,
        "is_feasible": trial.is_feasible,
        "sla_probability": trial.sla_probability,
        **metrics,
        "seconds": trial.seconds,
        "device_seconds": device_seconds(trial.costs),
        "reason": trial.reason,
    }


def tune(
    model: str,
    *,
    workload: str,
    sla: str,
    hardware: str = LOCAL,
    devices: int = 2,
    trials: int = 12,
    seed: int = 0,
    dtype: str | None = None,
    quantization: str | None = None,
    backend: str | None = None,
    device: str = "cpu",
    link: str | None = None,
    live: bool = True,
    probe_requests: int = 64,
    timeout_s: float = 60.0,
    budget: str | None = None,
    kv_cache_mib: int = DEFAULT_KV_CACHE_MIB,
    profile_seconds: float = 30.0,
    objective: str = "devices",
    use_all: bool = False,
    price_per_device_hour: float | None = None,
    cost_model: dict[str, Any] | None = None,
    on_event: OnEvent = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Search plan, shift threshold and caps together, as ``gearshift tune`` does.

    Nothing is kept in the local database; the command keeps trials. ``cost_model`` is the document
    of one, None: this machine is profiled first. ``budget``: time that it may use, as in
    ``device_minutes=30`` or, by the clock, ``minutes=5``. ``is_cancelled`` is asked between trials:
    once it says yes, the answer is made of what was found so far.

    Raises:
        TunerError, PolicyInputError, EngineError: whatever in the question is at fault.
    """
    spec = TuningSpec(
        model_dir=model,
        num_devices=devices,
        workload=workload,
        sla=sla,
        trials=trials,
        seed=seed,
        hardware=hardware,
        dtype=dtype,
        quantization=read_weight_format(quantization),
        backend=backend,
        device=device,
        link=link,
        is_live=live,
        probe_requests=probe_requests,
        timeout_s=timeout_s,
        budget=budget,
        kv_cache_mib=kv_cache_mib,
        profile_seconds=profile_seconds,
        objective=objective,
        price_per_device_hour=price_per_device_hour,
        uses_all_devices=use_all,
    )
    report = run_tuning(spec, cost_model=cost_model, on_event=on_event, is_cancelled=is_cancelled)
    return Tuned(report=report)
