"""What a campaign found, as a page."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections import Counter, defaultdict
from importlib.metadata import version

from benchmarks.chaos.campaign import Injection, Outcome
from benchmarks.chaos.traffic import End

LOST = (End.SILENT, End.WRONG, End.HUNG)


def report(outcome: Outcome, *, database: str, seed: int, wanted: int, others_share: float) -> str:
    """The page, in Markdown."""
    by_kind: dict[str, list[Injection]] = defaultdict(list)
    for injection in outcome.injections:
        by_kind[injection.kind].append(injection)
    count = len(outcome.injections)
    lines = [
        f"# A campaign of faults on {database}",
        "",
        "One database, two control planes with their workers, an engine on two real ranks "
        "(`float64`, a spare rank) and a paced one, all programs as an operator starts them. Each "
        "injection hurts one part while requests are in flight at both engines, and often a tuning "
        "job and a change of a policy as well. Whatever has ended is started again, as a "
        "supervisor does. Afterwards must hold:",
        "",
        "* Each request completed with the tokens of an undisturbed engine; where its own engine "
        "or front end was killed, it may have failed with an error that its client saw.",
        "* Each accepted job succeeded, with every trial once and every move once. Accepted under "
        "one idempotency key, over refusals and broken connections, it is one job.",
        "* Each accepted change of a policy is kept once and whole, a refused one nowhere; what "
        "the service says that an engine runs, the engine runs.",
        "* No engine holds a sequence or a KV block; no process outlived its parent; open files, "
        "sockets and memory of every process are where they were.",
        "",
        f"**{count} injections of {len(by_kind)} kinds: {len(outcome.violations)} violations.** "
        f"{sum(i.num_jobs for i in outcome.injections)} tuning jobs. "
        f"{sum(i.seconds for i in outcome.injections):.0f} s.",
        "",
        *_pieces(outcome, wanted),
        "`told`: requests that ended with an error of the server. `cut`: requests whose connection "
        "broke, which their clients see; only where their engine or front end was killed. `lost`: "
        "requests that hung, were wrong, or looked whole and were not, and violations of any other "
        "kind. "
        "`recovered`: from the end of the fault to the moment when both control planes, their "
        "workers and both engines answer. `calm`: to the moment when requests and jobs have ended "
        "and every check was made.",
        "",
        "| kind | number | requests | told | cut | lost | recovered p50 s | p90 s | max s "
        "| calm max s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(kind, found) for kind, found in sorted(by_kind.items())),
        _row("**all**", outcome.injections),
        "",
    ]
    lines += [_where_time_goes(outcome.injections), ""]
    refusals = sum((i.refusals for i in outcome.injections), Counter[str]())
    if refusals:
        said = ", ".join(f"{n} x {what}" for what, n in sorted(refusals.items()))
        lines += [f"Refused meanwhile, each by a problem document: {said}.", ""]
    if outcome.missing:
        said = "; ".join(f"{kind} ({why})" for kind, why in outcome.missing.items())
        lines += [f"Not thrown here: {said}.", ""]
    if outcome.violations:
        lines += ["## Violations", "", *(f"* {text}" for text in outcome.violations), ""]
    lines += [
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, torch {version('torch')}, DBOS {version('dbos')}; other "
        f"programs used {others_share:.0%} of all cores. Repeat:",
        "",
        f'    make chaos CHAOS="--database {database} --injections {wanted} --seed {seed}"',
    ]
    return "\n".join(lines) + "\n"


def _pieces(outcome: Outcome, wanted: int) -> list[str]:
    """Of how many runs this is put together, and what is missing; nothing for one that is whole."""
    said = []
    if len(outcome.injections) < wanted:
        said.append(f"**{wanted} were asked for: it was stopped before its end.**")
    if outcome.num_runs > 1:
        said.append(f"It was made in {outcome.num_runs} runs, each in a new world.")
    if outcome.num_looks_at_end < outcome.num_runs:
        said.append(
            f"{outcome.num_runs - outcome.num_looks_at_end} of the runs were cut, so that what "
            "follows a last injection (leases, the audit's chain, files left behind) was not "
            "looked at there."
        )
    return [" ".join(said), ""] if said else []


def _where_time_goes(injections: list[Injection]) -> str:
    """Mean seconds of an injection, by what they were spent on."""
    count = max(len(injections), 1)
    parts = {
        "requests and the fault": sum(i.fault_s for i in injections),
        "recovery": sum(i.recovered_s for i in injections),
        "the requests' end": sum(i.requests_s for i in injections),
        "the jobs' end": sum(i.jobs_s for i in injections),
    }
    whole_s = sum(i.seconds for i in injections)
    parts["checks"] = whole_s - sum(parts.values())
    said = ", ".join(f"{seconds / count:.1f} s for {what}" for what, seconds in parts.items())
    return f"An injection took {whole_s / count:.1f} s: {said}."


def _p90(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def _row(kind: str, found: list[Injection]) -> str:
    recovered_s = [injection.recovered_s for injection in found]
    requests = sum(sum(injection.ends.values()) for injection in found)
    told, cut = (sum(i.ends[end] for i in found) for end in (End.TOLD, End.CUT))
    lost = sum(injection.ends[end] for injection in found for end in LOST)
    lost += sum(len(injection.violations) for injection in found)
    return (
        f"| {kind} | {len(found)} | {requests} | {told} | {cut} | {lost} "
        f"| {statistics.median(recovered_s):.2f} | {_p90(recovered_s):.2f} "
        f"| {max(recovered_s):.2f} | {max(injection.calm_s for injection in found):.1f} |"
    )
