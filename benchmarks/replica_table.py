"""Capacity tables for simulated questions: a few numbers of replicas are searched, the others lie
between them; a table that was found before is read again where its inputs are the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.sla import Sla
from tuner.capacity.probe import CapacityQuestion
from tuner.capacity.search import GRID
from tuner.capacity.table import NUM_DRAWS, Standing, entry_of, table_of
from tuner.described.node import Node
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

# The rate per replica rises with their number, ever slower: beyond the last it counts as there.
SEARCHED = (1, 4)


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """``of_one`` on 1 to ``most`` replicas of ``node``, for the load of ``sample`` at ``seed``.

    ``name`` tells the node in the key of the kept table.
    """

    name: str
    node: Node
    of_one: Settings
    most: int
    sla: Sla
    sample: str
    seed: int = 1

    @property
    def workload(self) -> Workload:
        return parse_workload(self.sample, seed=self.seed)

    def settings(self, replicas: int) -> Settings:
        return replace(self.of_one, plan=replace(self.of_one.plan, dp=replicas))

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything that the table depends on, but the code."""
        return {
            "node": self.name,
            "settings": self.of_one.to_json(),
            "most": self.most,
            "sla": str(self.sla),
            "sample": [self.sample, self.seed],
            "searched": [n for n in SEARCHED if n <= self.most],
            "search": [list(GRID), NUM_DRAWS],
        }


def table_from(asked: Replicas, kept: Path | None) -> CapacityTable:
    """The table, read from ``kept`` where it has these inputs, else found and written there."""
    tables = json.loads(kept.read_text()) if kept is not None and kept.exists() else []
    for known in tables:
        if known["inputs"] == asked.inputs:
            return CapacityTable.from_json(known["table"])
    table = find_table(asked)
    if kept is not None:
        tables.append({"inputs": asked.inputs, "table": table.to_json()})
        kept.write_text(json.dumps(tables, indent=1))
    return table


def find_table(asked: Replicas) -> CapacityTable:
    """Search some numbers of replicas, each from so many times the rate of those before."""
    found: dict[int, CarriedRate] = {}
    of_one = 1.0
    for replicas in (n for n in SEARCHED if n <= asked.most):
        entry = _entry(asked, replicas, of_one * replicas)
        if entry is None:
            continue
        found[replicas] = entry
        rate_rps = asked.workload.rate_rps
        assert rate_rps is not None, "a sample arrives over time"
        of_one = entry.rate_rps / rate_rps / replicas
        print(f"{replicas} replicas: {entry.low_rps:.2f}/s", file=sys.stderr, flush=True)
    entries = [found.get(n) or _between(asked, n, found) for n in range(min(found), asked.most + 1)]
    return table_of(asked.workload, asked.sla, entries)


def _entry(asked: Replicas, replicas: int, start: float) -> CarriedRate | None:
    settings = asked.settings(replicas)
    question = CapacityQuestion(
        settings=settings,
        run_on=lambda workload, scale, progress: asked.node.simulate(
            settings, workload, step_scale=scale, on_progress=progress
        ),
        workload=asked.workload,
        sla=asked.sla,
        interval=asked.node.hardware.device.interval,
    )
    return entry_of(question, Standing(settings=settings, factor=start), lambda _: None)


def _between(asked: Replicas, replicas: int, found: dict[int, CarriedRate]) -> CarriedRate:
    """Rates per replica lie on a line over the logarithm of their number."""
    counts = sorted(found)

    def rate(values: Sequence[float]) -> float:
        per_replica = [value / n for value, n in zip(values, counts, strict=True)]
        return replicas * float(np.interp(np.log(replicas), np.log(counts), per_replica))

    entries = [found[n] for n in counts]
    return CarriedRate(
        settings=asked.settings(replicas),
        rate_rps=rate([e.rate_rps for e in entries]),
        low_rps=rate([e.low_rps for e in entries]),
        high_rps=rate([e.high_rps or e.rate_rps for e in entries]),
        binding=entries[-1].binding,
    )
