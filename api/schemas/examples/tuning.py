"""A tuning job and what came of it."""

from __future__ import annotations

from api.schemas.examples.engines import ENGINE_ID, SETTINGS, Json

SLA = "p95_ttft_ms<=500,p95_tpot_ms<=50"
JOB_ID = "job_0199aa10c0e7f3a91c2d4"
RECOMMENDATION_ID = "rec_0199aa11b2c3d4e5f6a7b"
FINISHED_AT = "2026-11-29T12:01:30Z"
METRICS: Json = {
    "p95_ttft_ms": {"value": 310.0, "low": 290.0, "high": 331.0},
    "p95_tpot_ms": {"value": 21.0, "low": 18.5, "high": 23.8},
}
JOB_BODY: Json = {
    "model": "llama-3.1-70b",
    "num_devices": 8,
    "workload": "poisson:rate=4,input=512,output=64,seconds=60",
    "sla": SLA,
    "trials": 20,
    "seed": 0,
    "hardware": "8xh200",
    "dtype": "fp8",
    "backend": "vllm",
}
JOB: Json = {
    "id": JOB_ID,
    "state": "succeeded",
    "reason": "tp=2 seqs=64 tokens=2048 (simulated, P(SLA met) 0.97): tp=2 uses 2 of 8 devices",
    "spec": {
        "model_dir": "llama-3.1-70b",
        **{name: value for name, value in JOB_BODY.items() if name != "model"},
        "cost_model_id": None,
        "on_busy": "simulate",
        "options": {},
    },
    "num_trials": 20,
    "trials_done": 20,
    "recommendation_id": RECOMMENDATION_ID,
    "cost_model_id": None,
    "workload_id": None,
    "created_by": "key_0199aa0fb1d2c3e4f5a6b",
    "created_at": "2026-11-29T12:00:00Z",
    "started_at": "2026-11-29T12:00:01Z",
    "finished_at": FINISHED_AT,
}
TRIAL: Json = {
    "id": "trial_0199aa10d2e3f4a5b6c7d",
    "job_id": JOB_ID,
    "number": 7,
    "state": "complete",
    "record": {
        "number": 7,
        "settings": SETTINGS,
        "fidelity": "simulated",
        "state": "complete",
        "is_feasible": True,
        "reason": "meets the SLA with headroom 0.38; simulated on 8xh200",
        "metrics": METRICS,
        "sla_probability": 0.97,
        "costs": [
            {"level": "predicted", "seconds": 0.2, "device_seconds": 0.0, "load_s": 0.0},
            {"level": "simulated", "seconds": 0.9, "device_seconds": 0.0, "load_s": 0.0},
        ],
    },
    "created_at": FINISHED_AT,
}
RECOMMENDED: Json = {
    "settings": SETTINGS,
    "num_devices": 2,
    "fidelity": "simulated",
    "measured": None,
    "interval": {"simulated": METRICS},
    "sla_probability": 0.97,
    "reason": "fastest_of_the_cheapest",
    "explanation": "tp=2 uses 2 of 8 devices",
}
SCHEDULE: Json = {
    "schema": "schedule/v2",
    "bands": [
        {
            "rate_rps_low": 0.0,
            "rate_rps_high": None,
            "mean_input_tokens": 512.0,
            "mean_output_tokens": 64.0,
            "settings": SETTINGS,
            "headroom": 0.38,
        }
    ],
}
RECOMMENDATION: Json = {
    "id": RECOMMENDATION_ID,
    "job_id": JOB_ID,
    "cost_model_id": None,
    "sla": SLA,
    "recommendation": RECOMMENDED,
    "schedule": SCHEDULE,
    "warnings": [],
    "created_at": FINISHED_AT,
}
REPORT: Json = {
    "schema": "tuning-report/v2",
    "title": "llama-3.1-70b in fp8 on 8xh200, served by vllm",
    "recommendation": RECOMMENDED,
    "schedule": SCHEDULE,
    "alternatives": {},
    "infeasible": None,
    "trials": [TRIAL["record"]],
    "costs": [
        {"level": "predicted", "runs": 1, "seconds": 0.2, "device_seconds": 0.0},
        {"level": "simulated", "runs": 2, "seconds": 3.1, "device_seconds": 0.0},
    ],
    "budget": None,
    "sla": SLA,
    "seed": 0,
    "warnings": [],
}
APPLY: Json = {"engine_id": ENGINE_ID, "reason": "tuned for the evening"}
