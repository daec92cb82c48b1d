"""The highest load within an SLA, asked and answered."""

from __future__ import annotations

from api.schemas.examples.engines import SETTINGS, Json

ASKED: Json = {
    "model": "llama-3.1-8b",
    "hardware": "2xh100",
    "settings": {"plan": SETTINGS["plan"]},
    "workload": "poisson:rate=20,input=1024,output=128,requests=300",
    "sla": "p95_ttft_ms<=500,p95_tpot_ms<=20",
}
FOUND: Json = {
    "schema": "capacity/v1",
    "title": "llama-3.1-8b in bf16 on 2xh100, served by vllm",
    "gearshift": "0.1.0",
    "fidelity": "simulated",
    "sla": "p95_ttft_ms<=500,p95_tpot_ms<=20",
    "min_probability": 0.8,
    "asked": {"factor": 1.0, "rate_rps": 22.0, "concurrency": None},
    "capacity": {
        "load": {"factor": 1.114, "rate_rps": 24.51, "concurrency": None},
        "low": {"factor": 1.103, "rate_rps": 24.27, "concurrency": None},
        "high": {"factor": 1.124, "rate_rps": 24.74, "concurrency": None},
        "is_at_least": False,
        "carries_asked": True,
        "binding": "p95_tpot_ms<=20",
        "cliff": {"is_cliff": False, "within": 1.1, "attainment": 1.0, "attainment_above": 0.9989},
    },
    "rates": [
        {
            "factor": 1.0,
            "rate_rps": 22.0,
            "concurrency": None,
            "draws": 5,
            "requests": 1500,
            "sla_probability": 0.9626,
            "attainment": 1.0,
            "metrics": {"p95_ttft_ms": 83.19, "p95_tpot_ms": 13.37},
        }
    ],
    "settings": SETTINGS,
    "workload": {
        "spec": "poisson:rate=20,input=1024,output=128,requests=300",
        "seed": 0,
        "rows": 300,
        "span_s": 13.64,
        "rate_rps": 22.0,
    },
    "warnings": ["workload: requests=300 left out 142 of 442 rows"],
}
