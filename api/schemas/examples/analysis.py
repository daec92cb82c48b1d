"""What is made of a tuning job's trials."""

from __future__ import annotations

from api.schemas.examples.engines import SETTINGS, Json
from api.schemas.examples.tuning import JOB_ID, METRICS, SLA

PARETO: Json = {
    "job_id": JOB_ID,
    "sla": SLA,
    "aims": [
        {"key": "num_devices", "direction": "less"},
        {"key": "p95_ttft_ms", "direction": "less"},
        {"key": "p95_tpot_ms", "direction": "less"},
    ],
    "num_points": 20,
    "front": [
        {
            "trial": 7,
            "settings": SETTINGS,
            "num_devices": 2,
            "fidelity": "simulated",
            "metrics": METRICS,
            "is_feasible": True,
            "sla_probability": 0.97,
        }
    ],
}
LEVEL: Json = {"value": 8, "num_points": 6, "latency_over_bound": 0.41}
KNOB: Json = {"knob": "tp", "share": 0.71, "levels": [LEVEL]}
IMPORTANCE: Json = {"job_id": JOB_ID, "sla": SLA, "num_points": 20, "knobs": [KNOB]}
