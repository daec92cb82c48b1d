"""``gearshift import``: runs of other load tools as measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.common import log, print_json
from api.cli.grouped import grouped
from api.cli.groups import Output

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
    for is computed anew by the definitions here; what is left out is told with the reason.
    """
    from policies.sla import Sla
    from tuner.imports.read import read_runs

    bounds = None if sla is None else Sla.parse(sla)
    output.check()
    runs = [{"file": str(file), **run.to_json(bounds)} for file in files for run in read_runs(file)]
    output.write({"runs": runs})
    if output.as_json:
        print_json({"runs": runs})
        return
    for run in runs:
        _print_run(run)


def _print_run(run: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from policies.numbers import short

    def text(value: float | None) -> str:
        return "-" if value is None else short(value)

    console = Console()
    title = f"{run['tool']}: {run['name']} ({run['file']})"
    table = Table("milliseconds", "id", "mean", "p50", "p90", "p95", "p99", title=title)
    metrics, ids = run["metrics"], run["metric_ids"]
    for name in SHOWN:
        if (values := metrics.get(name)) is not None:
            row = (text(values.get(key)) for key in ("mean", "p50", "p90", "p95", "p99"))
            table.add_row(name.removesuffix("_ms"), ids[name], *row)
    console.print(table)
    for name in ("throughput_tokens_per_s", "throughput_total_tokens_per_s", "attainment"):
        if metrics.get(name) is not None:
            console.print(f"{name}: {text(metrics[name])}")
    console.print(", ".join(f"{name} {count}" for name, count in run["requests"].items()))
    for reason in run["left_out"]:
        log(f"left out: {reason}")
