"""How much load each of three plans carries within an SLA, as a table and a picture.

python examples/compare_plans.py capacity.html
"""

from __future__ import annotations

import sys

import pandas as pd

from gearshift import capacity

PLANS = ("tp=2", "dp=2", "sp=2,shift=256")


def main(picture: str | None = None) -> None:
    """Print the table; draw the last plan into ``picture``."""
    rows = []
    for plan in PLANS:
        found = capacity(
            "llama-3.1-8b",
            hardware="2xh200",
            backend="gearshift",
            plan=plan,
            workload="closed:concurrency=8,input=4096,output=16,requests=40",
            sla="p95_ttft_ms<=2000",
            draws=2,
        )
        load = found.document["capacity"]["load"]
        rows.append({"plan": plan, "clients": None if load is None else load["concurrency"]})
        if picture is not None and plan == PLANS[-1]:
            found.plot(picture)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
