"""Options that several commands have together: one value per noun, read and checked here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail
from api.cli.engine_options import (
    MOST_LEN,
    MOST_SEED,
    JsonOption,
    LinkOption,
    read_mode_option,
    read_rungs,
)
from engine.spec.modes import AUTO, TABLE, ModePin
from tuner.answers.asked import ServedAs, ServedBy, ThisMachine

if TYPE_CHECKING:
    from engine.spec.plan import PlanSpec
    from engine.spec.settings import Caps, Settings
    from policies.objective import Goal
    from policies.sla import Sla
    from tuner.workload.workload import Workload

MODE = "MODE"


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """A plan, and how its steps run."""

    plan: Annotated[
        str,
        typer.Option(
            metavar="PLAN",
            help="As in 'sp=2,tp=2,shift=256': dp, pp, sp, tp and shift; 'sp=4,shift=256,2x2=1024' "
            "gives the rung between a threshold, too.",
        ),
    ] = "tp=1"
    mode: Annotated[
        ModePin | None,
        typer.Option(
            parser=read_mode_option,
            metavar=MODE,
            help="How steps of a Shift plan run: by measured times (table), by the thresholds "
            "(auto), or all in one mode: base, shift or a rung between; by default table for a "
            "plan that names no threshold, else auto.",
        ),
    ] = None
    rungs: Annotated[
        str | None,
        typer.Option(
            metavar="RUNGS",
            help="The modes that steps may run in, as in 'base,4x2,shift'; by default all.",
        ),
    ] = None

    @property
    def spec(self) -> PlanSpec:
        """Raises PlanError where the plan cannot be read."""
        from engine.spec.plan import parse_plan

        return parse_plan(self.plan)

    def settings(self, caps: Caps) -> Settings:
        """Settings of a new engine. Without a mode: an operator who names a threshold wants it
        obeyed, and a Shift plan without one goes by measured times."""
        from engine.spec.planned import planned_settings

        spec, mode = self.spec, self.mode
        if mode is None:
            is_measured = spec.plan.shift and spec.threshold_tokens is None
            mode = TABLE if is_measured else AUTO
        return planned_settings(spec, caps, pin=mode, rungs=read_rungs(self.rungs))


@dataclass(frozen=True, kw_only=True)
class PinnedPlan(PlanOptions):
    """A plan that nothing is measured for: without a mode it goes by the threshold."""

    mode: Annotated[
        ModePin,
        typer.Option(
            parser=read_mode_option,
            metavar=MODE,
            help="How steps of a Shift plan run: by the thresholds (auto), each in the mode that "
            "its step times say is fastest (table), or all in one mode: base, shift or a rung "
            "between.",
        ),
    ] = AUTO


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """Requests over time, and the seed of what is random in them."""

    workload: Annotated[
        str,
        typer.Option(
            help="Workload SPEC, as in poisson:rate=4,input=512,output=64, or with prompts and "
            "answers of a trace, poisson:rate=4,lengths=auto:PATH."
        ),
    ]
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of a synthetic workload.")
    ] = 0

    def read_workload(self) -> Workload:
        """Raises TunerError where the workload cannot be read."""
        from tuner.workload.parse import parse_workload

        return parse_workload(self.workload, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class JudgedWorkload(WorkloadOptions):
    """A workload, and the SLA by which the run is judged, if any."""

    sla: Annotated[
        str | None, typer.Option(help="SLA, as in p95_ttft_ms<=500,attainment>=0.99.")
    ] = None

    def read_sla(self) -> Sla | None:
        """Raises PolicyInputError where the SLA cannot be read."""
        from policies.sla import Sla

        return None if self.sla is None else Sla.parse(self.sla)


@dataclass(frozen=True, kw_only=True)
class PlannedWorkload(WorkloadOptions):
    """A workload, and the SLA that plans must meet under it."""

    workload: Annotated[str, typer.Option(help="Workload SPEC, as in azure:PATH,seconds=900.")]
    sla: Annotated[str, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")]


@dataclass(frozen=True, kw_only=True)
class Served(ServedBy):
    """How a model is served: its number format, and the serving system on described hardware."""

    dtype: Annotated[
        str,
        typer.Option(
            help="bf16, fp16, fp32, fp64 (or spelled out); on described hardware also fp8, "
            "fp8-block (a scale per block of 128x128 weights, as Qwen3-FP8) and int4 (awq, gptq); "
            "or auto: as the model says."
        ),
    ] = "auto"
    backend: Annotated[
        str | None,
        typer.Option(
            help="Serving system whose host times and defaults apply to described hardware: "
            "vllm, vllm@0.12 (that release's defaults), gearshift, arctic, ...; by default vllm."
        ),
    ] = None
    backend_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A setting of the serving system, as in async_scheduling=off; may be repeated. "
            "gearshift backends show NAME lists them.",
        ),
    ] = None

    def refuse_backend(self, option: str) -> None:
        """End where a back end is named although ``option`` names no described hardware."""
        named = {"--backend": self.backend, "--backend-set": ",".join(self.backend_set or ())}
        for name, value in named.items():
            if value:
                fail(f"{name} {value} is for described hardware: add {option}, as in 8xh200")


@dataclass(frozen=True, kw_only=True)
class Described(Served, ServedAs):
    """What a described node is made of, beside its hardware and its model."""

    block_size: Annotated[int, typer.Option(min=1, max=MOST_LEN, help="Tokens per KV block.")] = 16
    max_model_len: Annotated[
        int | None, typer.Option(min=1, max=MOST_LEN, help="Context in tokens.")
    ] = None


JobsOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|ray[:HOST:PORT]",
        help="Processes to simulate on, by default one per core; ray: the Ray cluster of this "
        "machine or of that address, whose nodes have the same version of gearshift.",
    ),
]
PrefixCacheOption = Annotated[
    bool | None,
    typer.Option(
        "--prefix-cache/--no-prefix-cache",
        show_default=False,
        help="Blocks of equal beginnings are shared (traces with hash_ids or prefix_id); by "
        "default as the backend does, on this machine not.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class LocalMachine(ThisMachine):
    """What is said of this machine, and of no described one."""

    cost_model: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Cost model; by default this machine's newest."),
    ] = None
    link: LinkOption = None
    kv_cache_mib: Annotated[
        int | None,
        typer.Option(min=1, max=2**30, help="KV cache per rank of this machine; by default 256."),
    ] = None

    def refuse(self) -> None:
        """End where one of these is named beside described hardware, which ignores them."""
        options = {
            "--cost-model": self.cost_model,
            "--link": self.link,
            "--kv-cache-mib": self.kv_cache_mib,
        }
        if named := [option for option, value in options.items() if value is not None]:
            fail(f"{', '.join(named)}: of this machine only; leave out --hardware, or that")


@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """What an answer is to be best in."""

    objective: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="What is best: devices (fewest), latency, throughput, cost (device time per "
            "token), headroom, or pareto (goodput per device against latency: the whole trade).",
        ),
    ] = "devices"
    use_all: Annotated[
        bool, typer.Option("--use-all", help="Only plans that use all the devices.")
    ] = False
    price_per_device_hour: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e9,
            help="In your currency; answers then tell what they cost.",
        ),
    ] = None

    @property
    def goal(self) -> Goal:
        """Raises PolicyInputError for an objective that is none."""
        from policies.objective import Goal, Objective

        return Goal(
            objective=Objective.parse(self.objective),
            price_per_device_hour=self.price_per_device_hour,
            uses_all_devices=self.use_all,
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the JSON document goes."""

    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the JSON document here.")
    ] = None
    as_json: JsonOption = False

    def check(self) -> None:
        """End before any work where the file could not be written after it."""
        if self.out is not None:
            check_writable(self.out)

    def write(self, document: dict[str, Any]) -> None:
        """Write the file asked for, if any; end where it cannot be written."""
        if self.out is not None:
            with writing():
                self.out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def check_writable(file: Path) -> None:
    """End with one line where ``file`` cannot be written; what it holds is left as it is."""
    if file.is_dir():
        fail(f"cannot write {file}: it is a folder")
    if not file.parent.is_dir():
        fail(f"cannot write {file}: there is no folder {file.parent}")
    is_new = not os.path.lexists(file)
    if is_new or file.is_file():  # opening a pipe would wait for its reader
        with writing():  # trying tells more than permissions do
            file.open("ab").close()
    if is_new:
        file.unlink()


@contextmanager
def writing() -> Iterator[None]:
    """End with one line where a file cannot be written."""
    try:
        yield
    except OSError as error:
        fail(f"cannot write {error.filename or 'all of it'}: {error.strerror}")
