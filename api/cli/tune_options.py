"""Options of ``gearshift tune``, and the job that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail
from api.cli.engine_options import (
    MODEL_NAME,
    MOST_DEVICES,
    MOST_SEED,
    DeviceOption,
    QuantizationOption,
    check_device,
)
from api.cli.groups import GoalOptions, LocalMachine, Served

if TYPE_CHECKING:
    from tuner.search.spec import TuningSpec


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for, and how far."""

    model: Annotated[str | None, MODEL_NAME] = None
    workload: Annotated[
        str | None,
        typer.Option(help="Workload SPEC, as in azure:PATH,seconds=120,max_input=2048."),
    ] = None
    sla: Annotated[
        str | None, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")
    ] = None
    devices: Annotated[
        int, typer.Option(min=1, max=MOST_DEVICES, help="Most devices (ranks) a plan may use.")
    ] = 2
    trials: Annotated[
        int, typer.Option(min=1, max=100_000, help="Trials, the baseline included.")
    ] = 12
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")] = 0
    capacity_table: Annotated[
        bool,
        typer.Option(
            "--capacity-table",
            help="Also find what rate each plan carries within the SLA: simulated, and driven "
            "where trials run live.",
        ),
    ] = False
    capacity_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            max=86_400,
            help="For --capacity-table: where trials run live, drive each plan of the table for so "
            "many seconds; 0: only simulate.",
        ),
    ] = 60.0
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time that the search may use, of devices (device_minutes=30) or by the clock "
            "(minutes=5): what does not fit is not started, and the best known is told.",
        ),
    ] = None

    def require(self, way_out: str) -> tuple[str, str, str]:
        """Model, workload and SLA; ends where one is missing."""
        asked = {"--model": self.model, "--workload": self.workload, "--sla": self.sla}
        given = [value for value in asked.values() if value is not None]
        if len(given) < len(asked):
            missing = ", ".join(option for option, value in asked.items() if value is None)
            fail(f"{missing}: {way_out}")
        model, workload, sla = given
        return model, workload, sla


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
    engine: Annotated[
        str,
        typer.Option(help="What trials run on: gearshift, or a server they start: vllm, sglang."),
    ] = "gearshift"
    engine_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="What starts the server, as in 'python -m vllm.entrypoints.openai.api_server "
            "--enforce-eager'; model, port, plan and caps are added. By default vllm serve.",
        ),
    ] = None
    start_timeout_s: Annotated[
        float, typer.Option(help="A server that does not answer by then has failed its trial.")
    ] = 900.0


@dataclass(frozen=True, kw_only=True)
class TunedMachine(LocalMachine):
    """This machine as a job finds it: profiled, where no cost model is named."""

    cost_model: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Cost model; without one this machine is profiled."),
    ] = None
    device: DeviceOption = "cpu"
    quantization: QuantizationOption = None
    kv_cache_mib: Annotated[
        int | None, typer.Option(min=1, max=2**30, help="KV cache per rank (CPU); by default 256.")
    ] = None
    profile_seconds: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            help="About how long to profile without a cost model, starts included.",
        ),
    ] = 30.0


def tuning_spec(
    search: Search,
    hardware: str,
    trials: LiveTrials,
    machine: TunedMachine,
    served: Served,
    wanted: GoalOptions,
) -> TuningSpec:
    """The job that the options describe; ends where one is missing or cannot be used."""
    from tuner.search.spec import DEFAULT_KV_CACHE_MIB, TuningSpec

    model, workload, sla = search.require(
        "needed for a new job; --resume last goes on with an old one"
    )
    kv_cache_mib = machine.kv_cache_mib
    return TuningSpec(
        model_dir=model,
        num_devices=search.devices,
        workload=workload,
        sla=sla,
        trials=search.trials,
        seed=search.seed,
        hardware=hardware,
        dtype=None if served.dtype == "auto" else served.dtype,
        quantization=machine.quantization,
        backend=served.chosen_backend,
        device=check_device(machine.device),
        link=machine.link,
        is_live=trials.live,
        probe_requests=trials.probe_requests,
        probe_paced=trials.probe_paced,
        timeout_s=trials.timeout_s,
        capacity_seconds=search.capacity_seconds,
        budget=search.budget,
        engine=trials.engine,
        engine_command=trials.engine_command,
        start_timeout_s=trials.start_timeout_s,
        kv_cache_mib=DEFAULT_KV_CACHE_MIB if kv_cache_mib is None else kv_cache_mib,
        profile_seconds=machine.profile_seconds,
        objective=wanted.goal.objective.value,
        price_per_device_hour=wanted.price_per_device_hour,
        uses_all_devices=wanted.use_all,
        capacity_table=search.capacity_table,
    )
