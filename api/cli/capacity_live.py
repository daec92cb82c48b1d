"""``gearshift capacity --url``: the highest load that a running server carries within an SLA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.clock_bar import clock_bar
from api.cli.common import fail
from api.cli.interrupts import stoppable
from api.cli.key_options import ServerKey

if TYPE_CHECKING:
    from engine.spec.measurement import Measurement
    from engine.spec.settings import Settings
    from policies.sla import Sla
    from tuner.capacity.live import Drive, LateProbe
    from tuner.capacity.probe import Probe
    from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class LiveServer:
    """A server to drive instead of simulating one, and for how long."""

    url: Annotated[
        str | None,
        typer.Option(
            help="Drive the OpenAI-compatible server there instead of simulating, as in "
            "localhost:8000. It gets load until it misses the SLA."
        ),
    ] = None
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="With --url: most time for all of it.")
    ] = 120.0
    timeout_s: Annotated[
        float,
        typer.Option(
            min=0.1, max=86_400, help="With --url: a request without its last token by then failed."
        ),
    ] = 60.0
    vocab_size: Annotated[
        int,
        typer.Option(min=1, max=2**31 - 1, help="With --url: prompt ids are drawn below this."),
    ] = 256
    access: ServerKey

    def document(
        self, model: str | None, workload: Workload, sla: Sla, *, seed: int
    ) -> dict[str, Any]:
        """Drive the server and tell what it carries.

        Raises:
            LoadError: nothing answers at the URL.
            TunerError: a workload without a rate, or too little time.
        """
        from engine.spec.measurement import Fidelity
        from tuner.capacity.document import capacity_json, live_json
        from tuner.capacity.live import LiveSearch
        from tuner.load.served_model import find_settings, get_served_model
        from tuner.search.evidence import measured_estimates
        from tuner.workload.prompts import unseen_seed

        assert self.url is not None, "only with --url"
        served = get_served_model(self.url, api_key=self.access.key)
        settings = find_settings(self.url, api_key=self.access.key)
        name = model or served.name
        what_is_kept = "the answer from the probes so far follows"
        with clock_bar("capacity", self.seconds) as say, stoppable(what_is_kept) as is_stopped:
            search = LiveSearch(
                workload=workload,
                sla=sla,
                drive=self._drive(name, unseen_seed()),
                estimates=lambda run, draw: measured_estimates(run, sla, seed=draw),
                seconds=self.seconds,
                on_probe=lambda probe: say(_told(probe, workload)),
                should_stop=is_stopped,
            )
            live = search.run()
            is_interrupted = is_stopped()
        return {
            **capacity_json(
                live.found,
                workload=workload,
                sla=sla,
                settings=settings,
                seed=seed,
                title=_title(name, self.url, settings, served.paced_as),
                origin={"model": {"name": name}, "server": self.url},
                fidelity=Fidelity.MEASURED,
                warnings=workload.warnings,
                is_interrupted=is_interrupted,
            ),
            "live": live_json(live, workload),
        }

    def _drive(self, model: str, seed: int) -> Drive:
        from tuner.load.driver import run_load
        from tuner.load.http_target import HttpTarget

        assert self.url is not None, "only with --url"
        url = self.url

        def drive(load: Workload, draw: int, should_stop: Callable[[], bool]) -> Measurement:
            with HttpTarget(url, model, api_key=self.access.key) as target:
                return run_load(
                    load,
                    target,
                    seed=seed + draw,
                    timeout_s=self.timeout_s,
                    vocab_size=self.vocab_size,
                    should_stop=should_stop,
                )

        return drive


def refuse_simulated(named: dict[str, Any]) -> None:
    """End where an option of a simulation is named beside --url, which would ignore it."""
    if given := [option for option, value in named.items() if value]:
        fail(f"{', '.join(given)}: of a simulation; leave out --url, or that")


def _title(model: str, url: str, settings: Settings | None, paced_as: str | None) -> str:
    parts = [f"{model} at {url}"]
    if settings is not None:
        parts.append(str(settings))
    if paced_as is not None:
        parts.append(f"paced as {paced_as}")
    return "; ".join(parts)


def _told(probe: Probe | LateProbe, workload: Workload) -> str:
    from tuner.capacity.document import load_json, load_text
    from tuner.capacity.probe import Probe

    load = load_text(load_json(workload, probe.factor))
    if isinstance(probe, Probe):
        return f"capacity: {load}, {probe.num_requests} requests: P(SLA met) {probe.chance:.2f}"
    return f"capacity: {load}: the driver was {probe.lag_ms:.0f} ms late; it does not count"
