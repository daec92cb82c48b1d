"""``gearshift bench``: replay a workload against a server and judge it by an SLA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import (
    end,
    end_interrupted,
    fail,
    log,
    print_json,
    progress_bar,
    progress_console,
)
from api.cli.engine_options import MOST_SEED
from api.cli.exit_codes import ExitCode
from api.cli.grouped import grouped
from api.cli.groups import JudgedWorkload
from api.cli.interrupts import stoppable
from api.cli.key_options import ServerKey
from api.cli.pictured import DrawnOutput
from policies.numbers import short

if TYPE_CHECKING:
    from engine.spec.measurement import Measurement
    from policies.sla import Sla
    from tuner.load.driver import LoadProgress
    from tuner.load.served_model import ServedModel
    from tuner.pictures.picture import Picture
    from tuner.workload.workload import Workload

LAG_WARNING_MS = 20.0
SCHEMA = "bench/v1"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server to load, the model to ask it for, and its key."""

    url: Annotated[str, typer.Option(help="Server to load, as in localhost:8000.")]
    model: Annotated[
        str | None, typer.Option(help="Model name; by default the first the server lists.")
    ] = None
    access: ServerKey


@dataclass(frozen=True, kw_only=True)
class Replayed(JudgedWorkload):
    """A workload whose prompts are drawn too, and sent to a server."""

    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_SEED, help="Seed of arrivals and lengths; prompts are new in each run."
        ),
    ] = 0
    timeout_s: Annotated[
        float, typer.Option(help="A request without its last token by then is timed out.")
    ] = 600.0
    vocab_size: Annotated[
        int, typer.Option(min=1, max=2**31 - 1, help="Prompt token ids are drawn below this.")
    ] = 256
    fail_on_miss: Annotated[
        bool,
        typer.Option(
            "--fail-on-miss",
            help="Refuse to run without --sla; an SLA that is missed is exit code 3 anyway.",
        ),
    ] = False

    def read_bounds(self) -> Sla | None:
        """The SLA, which must be there if it may not be missed. Ends on a mistake."""
        sla = self.read_sla()
        if self.fail_on_miss and sla is None:
            fail("--fail-on-miss: there is nothing to miss; add --sla, as in p95_ttft_ms<=500")
        return sla


@grouped(
    help_order="url workload sla seed model timeout_s vocab_size api_key api_key_file "
    "fail_on_miss out plot"
)
def bench(server: Target, replayed: Replayed, output: DrawnOutput) -> None:
    """Replay a workload against an OpenAI-compatible server and judge it by an SLA.

    A workload is a trace or a process with options, among them seconds=, scale=, max_input= and
    max_output=; what they cut is printed on stderr. Requests that got fewer tokens than they asked
    for are told, and judged by the SLA as they came. Ctrl-C tells what was measured so far.
    """
    from tuner.load.served_model import get_served_model

    sla = replayed.read_bounds()
    output.check()
    load = replayed.read_workload()
    for warning in load.warnings:
        log(warning)
    served = get_served_model(server.url, api_key=server.access.key)
    if served.paced_as is not None:
        log(f"warning: the server runs no model, its steps are paced as {served.paced_as}")
    _warn_about_lengths(load, served.max_model_len)
    run = _drive(server, replayed, load, served)
    measurement = run.measurement
    if run.is_interrupted:
        log(f"interrupted: {_ended_text(measurement)}")
        if not measurement.completed:
            end_interrupted()
    _warn_about_lag(measurement)
    short = _short_outputs(load, measurement)
    _warn_about_answers(short, run.num_wrong_usages)
    name = _told(server, served)
    document = _document(run, load, sla, name=name, seed=replayed.seed, short=short)
    output.write(document)
    output.draw(lambda: _picture(measurement, sla, name, load, replayed.seed))
    if output.as_json:
        print_json(document)
    else:
        _print_tables(document, measurement, sla)
    end(ExitCode.INTERRUPTED if run.is_interrupted else ExitCode.of(measurement, sla))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What was measured; ``num_wrong_usages``: answers whose own count of tokens is 0."""

    measurement: Measurement
    num_wrong_usages: int
    is_interrupted: bool


def _drive(server: Target, replayed: Replayed, load: Workload, served: ServedModel) -> _Run:
    """Send the load; Ctrl-C cuts it."""
    from tuner.load.driver import run_load
    from tuner.load.http_target import HttpTarget
    from tuner.workload.prompts import unseen_seed

    with (
        HttpTarget(server.url, server.model or served.name, api_key=server.access.key) as target,
        _Progress(len(load)) as show,
        stoppable("the answer from the requests so far follows") as is_stopped,
    ):
        measurement = run_load(
            load,
            target,
            seed=unseen_seed(),
            timeout_s=replayed.timeout_s,
            vocab_size=replayed.vocab_size,
            on_progress=show,
            should_stop=is_stopped,
        )
        num_wrong_usages = target.num_wrong_usages
    return _Run(
        measurement=measurement, num_wrong_usages=num_wrong_usages, is_interrupted=is_stopped()
    )


def _document(
    run: _Run, load: Workload, sla: Sla | None, *, name: str, seed: int, short: dict[str, float]
) -> dict[str, Any]:
    from policies.attainment import judge
    from policies.report import measurement_json, sla_json

    bounds = "no SLA" if sla is None else f"SLA {sla}"
    return {
        "schema": SCHEMA,
        "title": f"{name}; workload {load.source.spec}; {bounds}; seed {seed}",
        **measurement_json(run.measurement, sla),
        "sla": sla_json(sla, judge(sla, run.measurement)) if sla else None,
        "short_outputs": short,
        "workload": load.describe(),
        "seed": seed,
        "is_interrupted": run.is_interrupted,
    }


def _ended_text(measurement: Measurement) -> str:
    return f"{len(measurement.completed)} of {len(measurement.timings)} requests had ended"


def _picture(
    measurement: Measurement, sla: Sla | None, name: str, load: Workload, seed: int
) -> Picture:
    from tuner.pictures.runs import measured_picture

    spec = load.source.spec
    return measured_picture(measurement, sla, server=name, workload=spec, seed=seed)


def _told(server: Target, served: ServedModel) -> str:
    """What is known of who answered: model, address, settings, and whether it only imitates."""
    from tuner.load.served_model import find_settings

    parts = [f"{server.model or served.name} at {server.url}"]
    if (settings := find_settings(server.url, api_key=server.access.key)) is not None:
        parts.append(str(settings))
    if served.paced_as is not None:
        parts.append(f"paced as {served.paced_as}")
    return ", ".join(parts)


class _Progress:
    """A progress bar on stderr; keeps the latest error to show it once at the end."""

    def __init__(self, total: int) -> None:
        self._bar = progress_bar(progress_console(), is_kept=True)
        self._task = self._bar.add_task("bench", total=total)
        self._error: str | None = None

    def __enter__(self) -> Callable[[LoadProgress], None]:
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._error is not None:
            log(f"latest failure: {self._error}")

    def _show(self, progress: LoadProgress) -> None:
        done = progress.completed + progress.errored + progress.timed_out
        text = f"bench: {progress.in_flight} in flight, {progress.errored} errored"
        self._bar.update(self._task, completed=done, description=text)
        self._error = progress.error


def _warn_about_lengths(load: Workload, max_model_len: int | None) -> None:
    if max_model_len is None:
        return
    too_long = int(((load.input_tokens + load.output_tokens) > max_model_len).sum())
    if too_long:
        log(
            f"warning: {too_long} of {len(load)} requests are longer than the server's context of "
            f"{max_model_len} tokens and will be errors; cut them with max_input= and max_output="
        )


def _warn_about_lag(measurement: Measurement) -> None:
    lag = measurement.driver_lag_ms
    if lag.p99 is not None and lag.p99 > LAG_WARNING_MS:
        log(
            f"warning: this driver itself sent late (p99 {lag.p99:.1f} ms, mean {lag.mean:.1f} ms);"
            " the load was not quite the one asked for"
        )


def _short_outputs(load: Workload, measurement: Measurement) -> dict[str, float]:
    """How many completed requests got fewer tokens than they asked for, and their share."""
    from engine.spec.measurement import Outcome

    pairs = zip(load.arrivals, measurement.timings, strict=False)  # a closed loop may end early
    done = [(a, t) for a, t in pairs if t.outcome is Outcome.COMPLETED]
    count = sum(timing.output_tokens < arrival.output_tokens for arrival, timing in done)
    return {"requests": count, "share": count / len(done) if done else 0.0}


def _warn_about_answers(short: dict[str, float], num_wrong_usages: int) -> None:
    if short["requests"]:
        log(
            f"warning: {short['requests']} completed requests ({short['share']:.1%}) got fewer "
            "tokens than they asked for: does the server know ignore_eos, and has it a limit of "
            "its own? Their latencies are judged as they came"
        )
    if num_wrong_usages:
        log(
            f"warning: {num_wrong_usages} answers say that they used 0 tokens while some came; "
            "those that came are counted, one per chunk"
        )


def _print_tables(document: dict[str, Any], measurement: Measurement, sla: Sla | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from policies.attainment import judge
    from policies.report import LATENCIES, energy_text, judged_lines

    console = Console()
    table = Table("metric", "mean", "p50", "p90", "p95", "p99", title="milliseconds")
    for name in LATENCIES:
        row = document["metrics"][name].values()
        table.add_row(name.removesuffix("_ms"), *(_text(value) for value in row))
    console.print(table)
    for name in ("throughput_tokens_per_s", "throughput_total_tokens_per_s"):
        console.print(f"{name}: {_text(document['metrics'][name])}")
    console.print(", ".join(f"{name} {count}" for name, count in document["requests"].items()))
    if document["energy"] is not None:
        console.print(energy_text(document["energy"]))
    console.print(f"driver lag p99: {_text(document['driver_lag_ms'])} ms")
    if sla is not None:
        for line in judged_lines(sla, judge(sla, measurement)):
            console.print(line)


def _text(value: float | None) -> str:
    return "-" if value is None else short(value)
