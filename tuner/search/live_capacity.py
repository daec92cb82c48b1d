"""What settings carry when they are really served: driven over HTTP, within the job's budget.

An engine of ours is served for it as a process of its own, front end and all, and clients are on
this machine: what they take of its cores is in the rates, as it will be for whoever serves there.
Simulated step times know nothing of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field

from engine.spec.errors import EngineError
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.settings import Settings
from policies.capacity_table import CarriedRate
from policies.numbers import short
from tuner.capacity.live import LateProbe, LiveCapacity, LiveSearch, least_requests
from tuner.capacity.probe import Probe
from tuner.capacity.search import Capacity
from tuner.capacity.table import check_has_table
from tuner.launch.gearshift import ServedHere
from tuner.load.tuning_target import TuningTarget
from tuner.search.context import TuningContext
from tuner.search.costs import Level, Meter
from tuner.search.evidence import measured_estimates
from tuner.search.remaining_budget import FIRST_SERVER_START_S, RemainingBudget
from tuner.servers.own import OwnCommand
from tuner.spec.errors import TunerError
from tuner.workload.workload import Workload

# The most plans that are driven; the other entries of the table are corrected by what they showed.
MOST_DRIVEN = 6
MOST_PROBES = 12
# The factor between one rate and the next, up or down from what simulation says.
STRIDE = 1.25
# Probes must be possible down to this share of the expected rate, if need be by lasting this many
# times as long.
LEAST_SHARE = 0.6
MOST_LONGER = 2.0
# Draws have seeds of their own, far from those of the warm-ups between them.
SEED_STRIDE = 1000


@dataclass(frozen=True, kw_only=True)
class Driven:
    """The result of driving one entry's settings. ``entry`` None: not even ``least_rps``, the
    lowest rate that was probed, was carried."""

    entry: CarriedRate | None
    least_rps: float


@dataclass(kw_only=True)
class Driver:
    """Drives entries of one job's table. ``notes`` say what was not driven, and why."""

    context: TuningContext
    budget: RemainingBudget
    is_cancelled: Callable[[], bool]
    notes: list[str] = field(default_factory=list)
    _num_driven: int = 0

    def drive(self, expected: CarriedRate) -> Driven | None:
        """Drive the settings of an entry that is expected to carry about its rate; None if that
        cannot be done here, or is not worth it."""
        context, settings = self.context, expected.settings
        if not self._seconds or not context.can_run(settings.plan) or self.is_cancelled():
            return None
        seconds = self._seconds_for(expected)
        if (why_not := self._why_not(settings, seconds)) is not None:
            self._note(settings, why_not)
            return None
        self._num_driven += 1
        meter, found = Meter(), None
        with meter.timing(Level.MEASURED, num_devices=settings.plan.world_size):
            try:
                found = self._search(expected, seconds)
            except (EngineError, TunerError) as error:
                self._note(settings, str(error))
        for cost in meter.taken():
            self.budget.pay(cost, settings)
        if found is None or self.is_cancelled():
            return None
        if not found.found.probes:
            self._note(settings, f"no probe came to its end within {seconds:.0f} s")
            return as_cut(found)
        return as_driven(found.found, settings, self._rate_rps)

    def _why_not(self, settings: Settings, seconds: float) -> str | None:
        if self._num_driven == MOST_DRIVEN:
            return f"{MOST_DRIVEN} plans were driven already"
        held_s = seconds + FIRST_SERVER_START_S
        return self.budget.why_not(self.budget.taken_s(settings, held_s))

    @property
    def _seconds(self) -> float:
        return self.context.spec.capacity_seconds

    @property
    def _rate_rps(self) -> float:
        return check_has_table(self.context.workload)

    def _seconds_for(self, expected: CarriedRate) -> float:
        """Longer if too few requests would otherwise come to look below what is expected."""
        needed_s = 4 * least_requests(self.context.sla) / (LEAST_SHARE * expected.rate_rps)
        return min(max(self._seconds, needed_s), MOST_LONGER * self._seconds)

    def _search(self, expected: CarriedRate, seconds: float) -> LiveCapacity:
        from tuner.load.live import warm_up

        context, settings = self.context, expected.settings
        with self._target() as target:
            search = LiveSearch(
                workload=context.workload,
                sla=context.sla,
                drive=lambda load, draw, stop: self._run(target, settings, load, draw, stop),
                estimates=lambda run, draw: measured_estimates(run, context.sla, seed=draw),
                seconds=seconds,
                most_probes=MOST_PROBES,
                settings=settings,
                on_probe=lambda probe: self._tell(settings, probe),
                start=expected.rate_rps / self._rate_rps,
                stride=STRIDE,
                lag_ms=math.inf,
            )
            # Starting takes none of its time.
            self._run(target, settings, warm_up(context.workload), -1, lambda: False)
            return search.run()

    def _run(
        self,
        target: TuningTarget,
        settings: Settings,
        load: Workload,
        draw: int,
        should_stop: Callable[[], bool],
    ) -> Measurement:
        return target.measure(
            settings,
            load,
            seed=self.context.spec.seed + SEED_STRIDE * (draw + 2),
            timeout_s=self.context.spec.timeout_s,
            fidelity=Fidelity.MEASURED,
            should_stop=lambda: should_stop() or self.is_cancelled(),
        )

    def _target(self) -> AbstractContextManager[TuningTarget]:
        """The job's own server if its trials run on one, else a served engine of ours."""
        context = self.context
        if context.spec.is_served:
            return nullcontext(context.live)
        from tuner.servers.target import ServerTarget

        context.close()  # no ranks of a trial beside those that are driven
        return closing(
            ServerTarget(
                OwnCommand(here=served_here(context), max_model_len=context.spec.max_model_len),
                vocab_size=context.model.vocab_size,
                start_timeout_s=context.spec.start_timeout_s,
            )
        )

    def _tell(self, settings: Settings, probe: Probe | LateProbe) -> None:
        rate = short(probe.factor * self._rate_rps)
        chance = f"P(SLA met) {probe.chance:.2f}" if isinstance(probe, Probe) else "sent late"
        self.context.emit("measuring", f"{settings} at {rate} requests/s: {chance}")

    def _note(self, settings: Settings, why: str) -> None:
        self.notes.append(f"what {settings.plan} carries was not measured: {why}")


def served_here(context: TuningContext) -> ServedHere:
    """How the engine of a local job is served."""
    spec = context.spec
    return ServedHere(
        model=spec.model_dir,
        dtype=context.config.dtype.value,
        device=spec.device,
        kv_cache_mib=spec.kv_cache_mib,
        block_size=spec.block_size,
        quantization=spec.quantization,
        link=spec.link,
    )


def as_cut(live: LiveCapacity) -> Driven | None:
    """What a search shows if its first probe took all its time; None if no probe was cut.

    A probe is a part of that time by its arrivals, so most of it was a queue being worked off. No
    more is carried than ended per second, or than one request in that time if none ended.
    """
    if live.cut_rps is None:
        return None
    return Driven(entry=None, least_rps=live.cut_rps or 1.0 / live.seconds)


def as_driven(found: Capacity, settings: Settings, rate_rps: float) -> Driven:
    """What a search shows of ``settings``; a factor of 1 is ``rate_rps``.

    Few probes drawn anew are too much alike for their interval: the low end is no higher than what
    a probe carried, the high end no lower than what one missed.
    """
    least_rps = rate_rps * min(probe.factor for probe in found.probes)
    if found.factor is None or found.low is None:
        return Driven(entry=None, least_rps=least_rps)
    carried = [p.factor for p in found.probes if p.is_dependable and p.factor <= found.factor]
    missed = [p.factor for p in found.probes if not p.is_dependable and p.factor >= found.factor]
    low = min(found.low, max(carried, default=found.low))
    high = None if found.high is None else max(found.high, min(missed, default=found.high))
    return Driven(
        entry=CarriedRate(
            settings=settings,
            rate_rps=rate_rps * found.factor,
            low_rps=rate_rps * low,
            high_rps=None if high is None else rate_rps * high,
            fidelity=Fidelity.MEASURED,
            binding=found.binding,
        ),
        least_rps=least_rps,
    )
