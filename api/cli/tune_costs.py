"""What a tuning job took, and what fresh draws said at its end, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from engine.spec.settings import Settings
from policies.numbers import short


def print_costs(console: Console, document: dict[str, Any]) -> None:
    """Each level, and the budget where there is one."""
    table = Table("level", "runs", "seconds", "device seconds")
    for row in document["costs"]:
        numbers = (short(row[name]) for name in ("seconds", "device_seconds"))
        table.add_row(row["level"], str(row["runs"]), *numbers)
    if document["costs"]:
        console.print(table, soft_wrap=False)
    if (budget := document["budget"]) is not None:
        used, whole = short(budget["used_device_seconds"]), short(budget["device_seconds"])
        console.print(f"budget {budget['asked']}: {used} of {whole} device seconds used")
        for line in budget["not_reached"]:
            console.print(f"not reached: {line}")


def print_finals(console: Console, document: dict[str, Any]) -> None:
    """Who lost the first place and why, and the gain over trial 0."""
    for lost in document["demoted"]:
        console.print(f"demoted: {Settings.from_json(lost['settings'])}: {lost['reason']}")
    fresh = document["fresh_draws"]
    if fresh is not None and fresh["headline"] is not None:
        console.print(f"gain ({fresh['fidelity']}): {fresh['headline']}")
