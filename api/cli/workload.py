"""``gearshift workload``: look at workloads, and write them as traces."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from api.cli.common import log, print_json, print_line, print_lines
from api.cli.control_plane import ControlPlane
from api.cli.engine_options import MOST_SEED, JsonOption
from api.cli.grouped import grouped
from api.cli.groups import check_writable, writing

Json = dict[str, Any]
UPLOADED = re.compile(r"wl_[0-9a-f]+")
SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="As for --workload; a kind alone is enough for azure-like."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of what is drawn.")]


def sample(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    seed: SeedOption = 0,
    form: Annotated[
        Literal["azure", "csv"] | None,
        typer.Option(help="Columns; by default azure for azure-like, else csv (our own)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a workload as a trace, for whoever has none: the same spec and seed, the same file."""
    from tuner.workload.parse import parse_workload
    from tuner.workload.write import TraceForm, trace_text

    check_writable(out)
    spec = _whole_spec(spec)
    wanted = TraceForm.of_spec(spec) if form is None else TraceForm(form)
    workload = parse_workload(spec, seed=seed)
    text = trace_text(workload, wanted)
    with writing():
        out.write_text(text, encoding="utf-8")  # as it is read, whatever the terminal has
    told = workload.describe()
    if as_json:
        print_json({"out": str(out), "form": wanted.value, **told})
        return
    print_line(f"{out}: {_sentence(told)}")
    log(f"use it as --workload {shlex.quote(f'{wanted.value}:{out}')}")


@grouped(help_order="spec seed")
def show(spec: SpecArgument, plane: ControlPlane, seed: SeedOption = 0) -> None:
    """Say what a workload is: requests, rates, lengths, and what its options cut.

    An uploaded trace is named by its id, wl_..., and asked of the control plane.
    """
    if UPLOADED.fullmatch(spec):
        with plane.client() as client:
            plane.tell(client.get_workload(spec), lambda found: list(_lines(found.to_json())))
        return
    from tuner.workload.parse import parse_workload

    workload = parse_workload(_whole_spec(spec), seed=seed)
    told = workload.describe()
    if plane.as_json:
        print_json(told)
        return
    print_lines(list(_lines(told)))
    for cut in workload.source.cuts:
        print_line(f"cut: {cut}")
    if workload.is_lockstep:
        print_line(workload.warnings[-1].removeprefix("workload: "))


def _lines(told: Json) -> Iterator[str]:
    yield _sentence(told)
    for name in ("input_tokens", "output_tokens"):
        facts = ", ".join(f"{word} {value:g}" for word, value in told[name].items())
        yield f"{name.replace('_', ' ')}: {facts}"


def _whole_spec(spec: str) -> str:
    return spec if ":" in spec else f"{spec}:"


def _sentence(told: Json) -> str:
    parts = [f"{told['rows']} requests"]
    if told.get("concurrency") is not None:
        parts.append(f"by {told['concurrency']} clients, each sending when the last has returned")
    elif told["rate_rps"] is not None:
        parts.append(f"in {told['span_s']:.1f} s, {told['rate_rps']:.3g} a second")
    if told["peak_to_mean_per_minute"] is not None:
        parts.append(f"busiest minute {told['peak_to_mean_per_minute']:.3g} times the mean")
    return ", ".join(parts)
