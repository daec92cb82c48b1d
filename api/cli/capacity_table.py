"""How a capacity table is shown."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Column, Table

from api.cli.common import settings_column
from policies.capacity_table import CapacityTable
from policies.numbers import short


def print_capacity_table(console: Console, found: dict[str, Any] | None) -> None:
    """Print the table of a document; nothing where it has none."""
    if found is None:
        return
    entries = CapacityTable.from_json(found).entries
    if not entries:
        console.print(f"no plan carries any rate of this traffic within {found['sla']}")
        return
    binding = Column("binding", overflow="fold")  # whole, on as many lines as it takes
    table = Table("devices", settings_column(), "requests/s", "90 % interval", binding, "J each")
    table.title = f"what carries which rate of this traffic within {found['sla']}"
    for entry in entries:
        high = "?" if entry.high_rps is None else short(entry.high_rps)
        joules = entry.joules_per_request
        table.add_row(
            str(entry.num_devices),
            str(entry.settings),
            f"{'at least ' if entry.high_rps is None else ''}{short(entry.rate_rps)}\n"
            f"{entry.fidelity}",
            f"{short(entry.low_rps)} .. {high}",
            "-" if entry.binding is None else str(entry.binding),
            "-" if joules is None else short(joules),
        )
    console.print(table, soft_wrap=False)
    console.print(
        "J each: estimated joules a request; plans that cost more and carry less left out"
    )
