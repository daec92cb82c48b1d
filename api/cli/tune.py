"""``gearshift tune``: search the plan, threshold and caps that meet an SLA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import end_not_met, log, print_json, progress_console
from api.cli.engine_options import (
    MOST_DEVICES,
    MOST_SEED,
    DeviceOption,
    ModelNameOption,
    check_device,
)
from api.cli.grouped import grouped
from api.cli.groups import LocalMachine, Output, Served
from engine.spec.settings import Settings

if TYPE_CHECKING:
    from tuner.search.context import TuningEvent
    from tuner.search.spec import TuningSpec

SHOWN_TRIALS = 30


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for, and how far."""

    workload: Annotated[
        str, typer.Option(help="Workload SPEC, as in azure:PATH,seconds=120,max_input=2048.")
    ]
    sla: Annotated[str, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")]
    devices: Annotated[
        int, typer.Option(min=1, max=MOST_DEVICES, help="Most devices (ranks) a plan may use.")
    ] = 2
    trials: Annotated[
        int, typer.Option(min=1, max=100_000, help="Trials, the baseline included.")
    ] = 12
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")] = 0


@dataclass(frozen=True, kw_only=True)
class LiveTrials:
    """Which trials run on the real engine, and how."""

    live: Annotated[bool, typer.Option(help="Run trials on the live engine.")] = True
    probe_requests: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Requests of a live trial.")
    ] = 64
    probe_paced: Annotated[
        bool, typer.Option(help="Run the winner on the real engine, paced as described hardware.")
    ] = False
    timeout_s: Annotated[float, typer.Option(help="A request is timed out after this.")] = 60.0


@dataclass(frozen=True, kw_only=True)
class TunedMachine(LocalMachine):
    """This machine as a job finds it: profiled, where no cost model is named."""

    cost_model: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Cost model; without one this machine is profiled."),
    ] = None
    device: DeviceOption = "cpu"
    kv_cache_mib: Annotated[
        int | None, typer.Option(min=1, max=2**30, help="KV cache per rank (CPU); by default 256.")
    ] = None
    profile_seconds: Annotated[
        float,
        typer.Option(min=1, max=86_400, help="About how long to profile without a cost model."),
    ] = 20.0


@grouped(
    help_order="model workload sla devices trials seed out hardware cost_model live "
    "probe_requests probe_paced dtype backend device link timeout_s kv_cache_mib profile_seconds"
)
def tune(
    model: ModelNameOption,
    search: Search,
    trials: LiveTrials,
    machine: TunedMachine,
    served: Served,
    report: Output,
    hardware: Annotated[
        str, typer.Option(help="'local', or described hardware to simulate, as in 8xh200.")
    ] = "local",
) -> None:
    """Search plan, shift threshold and caps together, and recommend the cheapest that will do.

    Every feasible plan is simulated; promising ones run on the live engine; the winner is
    measured again with a fresh seed.
    """
    from tuner.search.spec import LOCAL
    from tuner.search.tune import tune

    report.check()
    if hardware != LOCAL:
        machine.refuse()
    else:
        served.refuse_backend("--hardware")
    spec = _spec(model, hardware, search, trials, machine, served)
    with _Progress(search.trials) as show:
        found = tune(spec, cost_model=_cost_model(spec, machine.cost_model), on_event=show)
    document = found.to_json()
    report.write(document)
    if report.as_json:
        print_json(document)
    else:
        _print(document, report.out)
    if document["recommendation"] is None:
        end_not_met()


def _spec(
    model: str,
    hardware: str,
    search: Search,
    trials: LiveTrials,
    machine: TunedMachine,
    served: Served,
) -> TuningSpec:
    from tuner.search.spec import DEFAULT_KV_CACHE_MIB, TuningSpec

    kv_cache_mib = machine.kv_cache_mib
    return TuningSpec(
        model_dir=model,
        num_devices=search.devices,
        workload=search.workload,
        sla=search.sla,
        trials=search.trials,
        seed=search.seed,
        hardware=hardware,
        dtype=None if served.dtype == "auto" else served.dtype,
        backend=served.backend_name,
        device=check_device(machine.device),
        link=machine.link,
        is_live=trials.live,
        probe_requests=trials.probe_requests,
        probe_paced=trials.probe_paced,
        timeout_s=trials.timeout_s,
        kv_cache_mib=DEFAULT_KV_CACHE_MIB if kv_cache_mib is None else kv_cache_mib,
        profile_seconds=machine.profile_seconds,
    )


def _cost_model(spec: TuningSpec, source: str | None) -> dict[str, Any] | None:
    if source is None or not spec.is_local:
        return None
    from engine.spec.model import ModelConfig
    from tuner.step_model.files import load_cost_model

    return load_cost_model(source, ModelConfig.from_dir(spec.model_path)).to_json()


class _Progress:
    """A bar over the trials on stderr, and a line for everything else."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=progress_console(), transient=True)
        self._task = self._bar.add_task("tune", total=total)

    def __enter__(self) -> _Progress:
        if self._bar.console.is_terminal:  # elsewhere it would leave an empty line
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()

    def __call__(self, event: TuningEvent) -> None:
        if event.kind == "trial":
            self._bar.update(self._task, advance=1)
        self._bar.console.print(f"{event.kind}: {event.message}", highlight=False)


def _print(document: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("trial", "settings", "fidelity", "p95 TTFT", "p95 TPOT", "verdict")
    table.title = f"SLA {document['sla']}"
    for trial in document["trials"][:SHOWN_TRIALS]:
        metrics = trial["metrics"]
        table.add_row(
            str(trial["number"]),
            str(Settings.from_json(trial["settings"])),
            trial["fidelity"],
            _text(metrics, "p95_ttft_ms"),
            _text(metrics, "p95_tpot_ms"),
            trial["reason"],
        )
    console.print(table)
    found = document["recommendation"]
    if found is None:
        infeasible = document["infeasible"]
        console.print(f"nothing meets the SLA ({infeasible['reason']}): {infeasible['binding']}")
        for relaxation in infeasible["relaxations"]:
            if relaxation["bound"] is not None:
                console.print(
                    f"  {relaxation['constraint']} would have to be {relaxation['bound']:.4g}"
                )
    else:
        settings = Settings.from_json(found["settings"])
        console.print(f"recommended ({found['fidelity']}, {found['reason']}): {settings}")
        console.print(found["explanation"])
    for warning in document["warnings"]:
        log(f"warning: {warning}")
    if out is not None:
        console.print(f"report: {out}")


def _text(metrics: dict[str, Any], key: str) -> str:
    parts = metrics.get(key)
    return "-" if parts is None or parts["value"] is None else f"{parts['value']:.4g}"
