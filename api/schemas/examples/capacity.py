"""The highest load within an SLA, asked and answered."""

from __future__ import annotations

from api.schemas.examples.engines import SETTINGS, Json

ASKED: Json = {
    "model": "llama-3.1-8b",
    "hardware": "1xh100",
    "max_model_len": 4096,
    "settings": {"plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 1}},
    "workload": "poisson:rate=40,input=512,output=16,requests=60",
    "sla": "p95_ttft_ms<=300,p95_tpot_ms<=30",
    "draws": 2,
}
FOUND: Json = {
    "schema": "capacity/v1",
    "title": "llama-3.1-8b in bf16 on 1xh100, served by vllm",
    "gearshift": "0.1.0",
    "fidelity": "simulated",
    "sla": "p95_ttft_ms<=300,p95_tpot_ms<=30",
    "min_probability": 0.8,
    "asked": {"factor": 1.0, "rate_rps": 44.81, "concurrency": None},
    "capacity": {
        "load": {"factor": 1.13, "rate_rps": 50.63, "concurrency": None},
        "low": {"factor": 1.056, "rate_rps": 47.31, "concurrency": None},
        "high": {"factor": 1.248, "rate_rps": 55.92, "concurrency": None},
        "is_at_least": False,
        "carries_asked": True,
        "binding": "p95_tpot_ms<=30",
        "cliff": {
            "is_cliff": False,
            "within": 1.1,
            "attainment": 0.9926,
            "attainment_above": 0.9133,
        },
    },
    "rates": [
        {
            "factor": 0.9935,
            "rate_rps": 44.52,
            "concurrency": None,
            "draws": 2,
            "requests": 240,
            "sla_probability": 0.9634,
            "attainment": 1.0,
            "metrics": {"p95_ttft_ms": 88.05, "p95_tpot_ms": 20.86},
        }
    ],
    "settings": {
        **SETTINGS,
        "plan": ASKED["settings"]["plan"],
        "caps": {
            "max_num_seqs": 1024,
            "max_num_batched_tokens": 8192,
            "max_step_ms": None,
            "max_queue": None,
        },
    },
    "workload": {
        "spec": "poisson:rate=40,input=512,output=16,requests=60",
        "seed": 0,
        "rows": 60,
        "span_s": 1.339,
        "rate_rps": 44.81,
    },
    "warnings": ["workload: requests=60 left out 58 of 118 rows"],
}
