"""A step model that was fitted elsewhere, and what it says."""

from __future__ import annotations

from api.schemas.examples.engines import SETTINGS, Json
from api.schemas.examples.tuning import METRICS, SLA

COST_MODEL_ID = "cm_0199aa12c3d4e5f6a7b8c"
FINGERPRINT = "cpu:x86_64:8:torch-2.13"
BODY: Json = {"document": {"fingerprint": FINGERPRINT, "schema": "step-model/v1"}}
SUMMARY: Json = {
    "id": COST_MODEL_ID,
    "fingerprint": FINGERPRINT,
    "created_by": "key_0199aa0fb1d2c3e4f5a6b",
    "created_at": "2026-11-29T12:00:00Z",
}
WHOLE: Json = {**SUMMARY, **BODY}
QUESTION: Json = {
    "model": "llama-3.1-8b",
    "settings": {
        "plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 2},
        "caps": {"max_num_seqs": 64, "max_num_batched_tokens": 2048},
    },
    "workload": "poisson:rate=4,input=512,output=64,seconds=60",
    "sla": SLA,
}
PREDICTION: Json = {
    "cost_model_id": COST_MODEL_ID,
    "fidelity": "simulated",
    "metrics": {"ttft_ms": {"p95": 310.0}, "tpot_ms": {"p95": 21.0}, "attainment": 1.0},
    "intervals": METRICS,
    "requests": {"completed": 240},
    "sla": {"text": SLA, "is_met": True},
    "settings": SETTINGS,
    "workload": {"text": QUESTION["workload"], "rows": 240},
    "warnings": [],
}
CALIBRATION: Json = {
    "cost_model_id": COST_MODEL_ID,
    "held_out": {
        "is_good": True,
        "verdict": "steps it was not fitted on: off by 6 % on the mean",
        "advice": None,
        "worst_plan": "tp=2",
        "worst_step_error": 0.08,
        "plan_error": 0.06,
    },
    "num_trials": 12,
    "metrics": [
        {
            "metric": "p95_ttft_ms",
            "num_trials": 12,
            "median_ratio": 1.04,
            "p90_off": 1.21,
            "inside_interval": 0.92,
        }
    ],
}
