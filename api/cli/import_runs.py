"""``gearshift import``: runs of other load tools as measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import end_not_met, log, print_json, print_lines
from api.cli.grouped import grouped
from api.cli.groups import Output
from api.cli.tables import harmless

if TYPE_CHECKING:
    from engine.spec.measurement import Measurement
    from policies.sla import Sla

SHOWN = ("ttft_ms", "tpot_ms", "tpot_by_tokens_ms", "tpot_with_first_ms", "itl_ms", "e2e_ms")


@grouped(help_order="files sla out")
def import_runs(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Result files; which tool wrote them is found out."),
    ],
    output: Output,
    sla: Annotated[
        str | None,
        typer.Option(help="Judge runs whose files have every request, as in p95_ttft_ms<=500."),
    ] = None,
) -> None:
    """Read result files of vllm bench serve, GuideLLM and AIPerf as measurements.

    Every number stands under the id of its definition: these tools count from when a request was
    sent, and GuideLLM's time per output token has the first token in it. What a file has requests
    for is computed anew by the definitions here; what is left out is told with the reason. Ends
    with 3 where --sla is missed.
    """
    from policies.sla import Sla
    from tuner.imports.read import read_runs

    bounds = None if sla is None else Sla.parse(sla)
    output.check()
    found = [(file, run) for file in files for run in read_runs(file)]
    runs = [{"file": str(file), **run.to_json(bounds)} for file, run in found]
    output.write({"runs": runs})
    if output.as_json:
        print_json({"runs": runs})
    else:
        for document, (_, run) in zip(runs, found, strict=True):
            _print_run(document)
            _print_verdict(run.measurement, bounds)
            for reason in run.left_out:
                log(f"left out: {reason}")
    if any(run["sla"] is not None and not run["sla"]["is_met"] for run in runs):
        end_not_met()


def _print_run(run: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from policies.numbers import short

    def text(value: float | None) -> str:
        return "-" if value is None else short(value)

    console = Console(markup=False)
    title = harmless(f"{run['tool']}: {run['name']} ({run['file']}), ms")
    table = Table("metric", "id", "mean", "p50", "p90", "p95", "p99", title=title)
    metrics, ids = run["metrics"], run["metric_ids"]
    for name in SHOWN:
        if (values := metrics.get(name)) is not None:
            row = (text(values.get(key)) for key in ("mean", "p50", "p90", "p95", "p99"))
            table.add_row(name.removesuffix("_ms"), ids[name], *row)
    console.print(table)
    for name in ("throughput_tokens_per_s", "throughput_total_tokens_per_s"):
        if metrics.get(name) is not None:
            console.print(f"{name}: {text(metrics[name])}")
    console.print(", ".join(f"{name} {count}" for name, count in run["requests"].items()))


def _print_verdict(measurement: Measurement | None, sla: Sla | None) -> None:
    """How the run stands against its SLA, where there is one."""
    if measurement is None or sla is None:
        return
    from policies.attainment import judge
    from policies.report import judged_lines

    print_lines(judged_lines(sla, judge(sla, measurement)))
