"""How ``gearshift tune`` shows what it found: trials, verdict with its P, and what to run next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from api.cli.capacity_table import print_capacity_table
from api.cli.common import log
from api.cli.tables import harmless, print_rows
from engine.spec.settings import Order, Settings
from policies.numbers import short
from policies.objective import cost_text
from policies.report import energy_text
from policies.verdict import TOO_FEW
from tuner.search.budget import used_text

SHOWN_TRIALS = 30
MORE_REQUESTS = (
    "trials show more with more --probe-requests, or a workload that lasts longer; a lower "
    "percentile needs fewer"
)


def print_answer(document: dict[str, Any], out: Path | None) -> None:
    """The whole answer, the recommendation and its command last."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if document["trials"]:
        _print_trials(document)
        _print_verdicts(console, document)
    else:
        console.print("no trial came to its end: what follows is simulated only")
    if (more := len(document["trials"]) - SHOWN_TRIALS) > 0:
        console.print(f"and {more} more trials (--json has all)")
    if (trade := document.get("trade")) is not None:
        _print_trade(console, trade)
    _print_costs(console, document)
    for warning in document["warnings"]:
        log(f"warning: {warning}")
    if document["recommendation"] is None:
        _print_infeasible(console, document["infeasible"])
        if any(trial["reason"].startswith(TOO_FEW) for trial in document["trials"]):
            console.print(f"  {MORE_REQUESTS}")
    else:
        _print_recommendation(console, document["recommendation"])
    _print_finals(console, document)
    if out is not None:
        console.print(f"report: {out}")
    if (kept := document["recommendation_id"]) is not None:
        console.print(f"kept as {kept}")
    if document["resume"] is not None:
        console.print(f"go on from here: {document['resume']}")


def _print_trials(document: dict[str, Any]) -> None:
    is_live = any(map(_device_seconds, document["trials"]))
    headings = ["trial", "settings", "fidelity", "p95 TTFT, ms", "p95 TPOT, ms", "P(met)"]
    rows = []
    for trial in document["trials"][:SHOWN_TRIALS]:
        metrics, chance = trial["metrics"], trial["sla_probability"]
        rows.append(
            [
                str(trial["number"]),
                str(Settings.from_json(trial["settings"])),
                trial["fidelity"],
                _text(metrics, "p95_ttft_ms"),
                _text(metrics, "p95_tpot_ms"),
                "-" if chance is None else f"{chance:.2f}",
                *([short(_device_seconds(trial))] if is_live else []),
            ]
        )
    print_rows([*headings, *(["device s"] if is_live else [])], rows)


def _print_verdicts(console: Console, document: dict[str, Any]) -> None:
    """A line for each trial: in a column of the table a sentence takes ten lines of 80 columns."""
    for trial in document["trials"][:SHOWN_TRIALS]:
        # A server that died says why in its last line; stderr has those between.
        console.print(f"trial {trial['number']}: {_ends(trial['reason'])}")


def _ends(text: str) -> str:
    """The first line and the last."""
    lines = text.splitlines() or [""]
    return harmless(" ".join(dict.fromkeys([lines[0], lines[-1]])))


def _print_recommendation(console: Console, found: dict[str, Any]) -> None:
    settings = Settings.from_json(found["settings"])
    chance = f"P(SLA met) {found['sla_probability']:.2f}"
    console.print(f"recommended ({found['fidelity']}, {chance}): {settings.plan}, {found['why']}")
    console.print(found["explanation"])
    console.print(f"settings: {_in_full(settings)}")
    print_capacity_table(console, found.get("capacity_table"))
    if (cost := found["cost"]) is not None:
        console.print(f"costs {cost_text(cost)}")
    if (energy := found["measured_energy"]) is not None:
        console.print(energy_text(energy))
    _print_commands(console, found["launch"])


def _print_commands(console: Console, commands: list[dict[str, Any]]) -> None:
    for command in commands:
        notes = [text for text in (command["versions"], command["note"]) if text]
        note = f"   # {'; '.join(notes)}" if notes else ""
        if command["command"] is not None:
            line = f"next ({command['system']}): {command['command']}{note}"
        else:
            line = f"{command['system']}: cannot: {command['note']}"
        console.print(line)
        config = command["config"]
        if config is not None and config["is_needed"]:
            console.print(f"{config['name']}:\n{config['text']}", end="")


def _print_infeasible(console: Console, infeasible: dict[str, Any]) -> None:
    from tuner.search.report import infeasible_text

    console.print(infeasible_text(infeasible))
    if (closest := infeasible["closest"]) is not None:
        console.print(f"settings: {_in_full(Settings.from_json(closest['settings']))}")
    for relaxation in infeasible["relaxations"]:
        if relaxation["bound"] is not None:
            console.print(f"  {relaxation['relaxed']} would do, not {relaxation['constraint']}")


def _in_full(settings: Settings) -> str:
    """Plan, threshold and every cap, those as by default too."""
    caps = settings.caps
    words = [f"plan {str(settings.plan).removesuffix(',shift')}"]
    if settings.plan.shift:
        words.append(f"shift threshold {settings.threshold_tokens} tokens")
    words += [f"rung {mode} up to {tokens} tokens" for mode, tokens in settings.rung_thresholds]
    words += [
        f"max_num_seqs {caps.max_num_seqs}",
        f"max_num_batched_tokens {caps.max_num_batched_tokens}",
    ]
    if caps.max_step_ms is not None:
        words.append(f"max_step_ms {caps.max_step_ms:g}")
    if settings.order is not Order.FCFS:
        words.append(f"order {settings.order}")
    return ", ".join(words)


def _print_trade(console: Console, trade: dict[str, Any]) -> None:
    console.print("goodput per device against latency, best goodput first:")
    for point in trade["front"]:
        settings = Settings.from_json(point["settings"])
        goodput = short(point["goodput_rps_per_device"])
        share = short(point["latency_over_bound"])
        console.print(f"  {goodput} requests/s per device at {share} of the bounds: {settings}")


def _print_costs(console: Console, document: dict[str, Any]) -> None:
    """Each level, and the budget where there is one."""
    table = Table("level", "runs", "seconds", "device seconds")
    for row in document["costs"]:
        numbers = (short(row[name]) for name in ("seconds", "device_seconds"))
        table.add_row(row["level"], str(row["runs"]), *numbers)
    if document["costs"]:
        console.print(table, soft_wrap=False)
    if (budget := document["budget"]) is not None:
        console.print(used_text(budget))
        for line in budget["not_reached"]:
            console.print(f"not reached: {line}")


def _print_finals(console: Console, document: dict[str, Any]) -> None:
    """Who lost the first place and why, and the gain over trial 0."""
    for lost in document["demoted"]:
        console.print(f"demoted: {Settings.from_json(lost['settings'])}: {lost['reason']}")
    fresh = document["fresh_draws"]
    if fresh is not None and fresh["headline"] is not None:
        console.print(f"gain ({fresh['fidelity']}): {fresh['headline']}")


def _device_seconds(trial: dict[str, Any]) -> float:
    return float(sum(cost["device_seconds"] for cost in trial["costs"]))


def _text(metrics: dict[str, Any], key: str) -> str:
    parts = metrics.get(key)
    return "-" if parts is None or parts["value"] is None else short(parts["value"])
