"""``gearshift simulate``: what a plan would do under a workload, without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import end, end_interrupted, log, print_json, print_lines
from api.cli.engine_options import ModelNameOption
from api.cli.exit_codes import ExitCode
from api.cli.grouped import grouped
from api.cli.groups import (
    JudgedWorkload,
    LocalMachine,
    PinnedPlan,
    PrefixCacheOption,
    check_writable,
    writing,
)
from api.cli.pictured import DrawnOutput
from api.cli.place import NamedCaps, Place
from policies.numbers import short, short_beside

if TYPE_CHECKING:
    from rich.table import Table

    from engine.spec.measurement import Measurement
    from engine.spec.settings import Settings
    from policies.sla import Sla
    from tuner.answers.cases import Case, Question
    from tuner.answers.simulated import Simulated
    from tuner.simulation.simulate import SimulationResult


@dataclass(frozen=True, kw_only=True)
class Documents(DrawnOutput):
    """Where the document goes, and what else is made of the run."""

    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Write one line per step, as a live engine does."),
    ] = None

    def check(self) -> None:
        """End before any work where a file could not be written after it.

        Raises:
            TunerError: the plot could not be drawn.
        """
        super().check()
        if self.samples is not None:
            check_writable(self.samples)

    def write_all(self, answer: Simulated) -> None:
        """Write the files asked for; end where one cannot be written."""
        self.write(answer.document)
        self.draw(answer.picture)
        if self.samples is not None:
            with writing():
                _write_samples(self.samples, answer.result)


@grouped(
    help_order="model workload plan sla seed cost_model hardware backend backend_set mode "
    "max_num_seqs max_num_batched_tokens max_step_ms admit_rps max_model_len dtype kv_cache_mib "
    "block_size link prefix_cache intervals out plot samples"
)
def simulate(
    model: ModelNameOption,
    judged: JudgedWorkload,
    plan: PinnedPlan,
    caps: NamedCaps,
    place: Place,
    machine: LocalMachine,
    documents: Documents,
    prefix_cache: PrefixCacheOption = None,
    admit_rps: Annotated[
        float | None,
        typer.Option(help="Requests a second that are let in, as by the policy's admission."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option(help="Also run with steps slower and faster by what they may be off.")
    ] = True,
) -> None:
    """Simulate a plan under a workload with the engine's own scheduler and a cost model."""
    question = place.question(
        model,
        plan,
        judged,
        caps,
        sla=judged.read_sla(),
        prefix_cache=prefix_cache,
        admit_rps=admit_rps,
    )
    documents.check()
    _answer(question, place.case(question, machine, has_intervals=intervals), documents)


def _answer(question: Question, case: Case, documents: Documents) -> None:
    """Run the case and hand out what came of it."""
    answer = _run(question, case)
    documents.write_all(answer)
    measurement = answer.result.measurement
    if documents.as_json:
        print_json(answer.document)
    else:
        print_lines(case.title.lines())
        _print(
            case.settings,
            answer.document,
            question.sla,
            measurement,
            has_shared=question.workload.shares_beginnings,
        )
    if answer.is_interrupted:
        end_interrupted()
    end(ExitCode.of(measurement, question.sla))


def _run(question: Question, case: Case) -> Simulated:
    """The run; after Ctrl-C without its intervals, if they were all that was left to find."""
    from api.cli.progress import Watched
    from tuner.answers.simulated import SimulationStopped, run_case

    watched = Watched()
    try:
        return run_case(question, case, on_stage=watched.stage)
    except SimulationStopped as stopped:
        log("simulate: interrupted before the intervals were known")
        return stopped.answer
    except KeyboardInterrupt:
        log(f"simulate: interrupted {watched.text}; a part of a run is no answer")
        raise


def _write_samples(path: Path, result: SimulationResult) -> None:
    import msgspec

    from tuner.simulation.step_samples import step_samples

    lines = (msgspec.json.encode(s) for s in step_samples(result.segments, result.spells))
    path.write_bytes(b"\n".join(lines) + b"\n")


def _print(
    settings: Settings,
    document: dict[str, Any],
    sla: Sla | None,
    measurement: Measurement,
    *,
    has_shared: bool,
) -> None:
    from rich.console import Console

    from policies.attainment import judge

    console = Console()
    console.print(_latencies(settings, document))
    for line in _lines(document, has_shared=has_shared):
        console.print(line)
    if sla is not None:
        console.print(f"SLA {judge(sla, measurement).verdict}")


def _latencies(settings: Settings, document: dict[str, Any]) -> Table:
    from rich.table import Table

    from policies.report import LATENCIES

    metrics, intervals = document["metrics"], document["intervals"] or {}
    table = Table("metric", "mean", "p50", "p90", "p95", "p99", "p95 interval")
    table.title = f"{settings}, simulated (ms)"
    for name in LATENCIES:
        row = metrics[name]
        cells = ["-" if value is None else short(value) for value in row.values()]
        ends = intervals.get(f"p95_{name}")
        cells.append("-" if ends is None else f"{_end(ends['low'])} .. {_end(ends['high'])}")
        table.add_row(name.removesuffix("_ms"), *cells)
    return table


def _lines(document: dict[str, Any], *, has_shared: bool) -> Iterator[str]:
    """What the document says beside latencies; ``has_shared``: prompts share beginnings."""
    metrics = document["metrics"]
    for name in ("throughput_tokens_per_s", "goodput_rps", "attainment"):
        value = metrics[name]
        # Of 0.9996 three digits would make a 1.
        text = short if name != "attainment" else partial(short_beside, bound=1.0)
        yield f"{name}: {'-' if value is None else text(value)}"
    admission, total = document["admission"], sum(document["requests"].values())
    refused = admission["refused"] if admission else 0
    if admission:
        share = admission["admitted_attainment"]
        told = "" if share is None else f"; attainment of the others: {short_beside(share, 1.0)}"
        yield f"admission: {refused} of {total} turned away{told}"
    if failed := document["requests"]["errored"] - refused:
        yield f"requests: {failed} of {total} failed, as they can never fit"
    counts, memory = document["counts"], document["memory"]
    steps = ", ".join(f"{count} in {mode}" for mode, count in counts["steps"].items())
    yield (
        f"steps: {steps}; {counts['mode_switches']} mode switches, "
        f"{counts['preemptions']} preemptions"
    )
    yield (
        f"memory: {memory['weight_bytes_per_rank'] / 1e9:.3g} GB of weights per rank, KV for "
        f"{memory['kv_tokens']} tokens per replica"
    )
    if (cache := document["prefix_cache"])["enabled"] and has_shared:
        share = cache["hit_tokens"] / max(1, cache["query_tokens"])
        yield f"prefix cache: {share:.0%} of {cache['query_tokens']} prompt tokens found"
    if (energy := document["energy"]) is not None:
        spent = f"{energy['joules'] / 3.6e6:.3g} kWh, mean {energy['mean_w']:.0f} W"
        yield f"energy (estimate): {spent}"


def _end(value: float | None) -> str:
    """An end of an interval; requests that were refused have no latency, however long one waits."""
    return "inf" if value is None else short(value)
