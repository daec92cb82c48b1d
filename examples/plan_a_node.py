"""Which plan of an 8xH200 node serves Llama 3.1 8B within an SLA, and how vLLM is started with it.

Runs on a laptop: nothing is served, the engine's scheduler runs in virtual time.

    python examples/plan_a_node.py 2xh200
"""

from __future__ import annotations

import sys

from gearshift import plan


def main(hardware: str = "8xh200") -> None:
    """Plan for ``hardware`` and print the answer."""
    found = plan(
        "llama-3.1-8b",
        hardware=hardware,
        workload="poisson:rate=8,input=1024,output=128,seconds=20",
        sla="p95_ttft_ms<=1000,p95_tpot_ms<=50",
    )
    print(found.headline)
    print(found.summary().T.to_string())
    for choice in found.document["best"].values():
        for command in choice["launch"]:
            if command["system"] == "vllm":
                print(command["command"])


if __name__ == "__main__":  # plan() simulates on several processes
    main(*sys.argv[1:])
