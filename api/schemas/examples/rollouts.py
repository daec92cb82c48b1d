"""A rollout on that engine."""

from __future__ import annotations

from api.schemas.examples.engines import ENGINE_ID, Json
from api.schemas.examples.policies import CHANGED_AT, DOCUMENT

ROLLOUT_ID = "ro_0199aa33b4c5d6e7f8a9b"
LIMITS: Json = {
    "slice_s": 30.0,
    "settle_s": 5.0,
    "wait_s": 30.0,
    "tolerance": 0.02,
    "alpha": 0.05,
    "max_exposed_s": 1800.0,
    "max_exposed_requests": None,
    "few_requests": 3000,
    "max_duration_s": 7200.0,
    "min_requests": 5,
}
BODY: Json = {
    "engine_id": ENGINE_ID,
    "patch": {"caps": {"max_num_seqs": 96}, "sla": "p95_ttft_ms<=500,p95_tpot_ms<=50"},
    "reason": "room for the evening",
    "replay": {"hardware": "8xh200"},
    "limits": {"max_exposed_s": 900.0},
}
VERDICT: Json = {
    "requests": 5120,
    "control_attainment": 0.981,
    "candidate_attainment": 0.984,
    "effect": {"mean": 0.003, "low": -0.001, "high": 0.007},
    "fidelity": "simulated",
}
ROLLOUT: Json = {
    "id": ROLLOUT_ID,
    "engine_id": ENGINE_ID,
    "state": "canary",
    "code": "replay_passed",
    "reason": "simulated on 5120 requests: attainment 0.984, now 0.981",
    "is_undecided": False,
    "candidate": DOCUMENT,
    "control_version": 2,
    "version": 5,
    "limits": LIMITS,
    "replay": {"hardware": "8xh200"},
    "verdict": VERDICT,
    "canary": {
        "pairs": 4,
        "set_aside": 0,
        "control_attainment": 0.979,
        "candidate_attainment": 0.985,
        "effect": {"mean": 0.006, "low": -0.07, "high": 0.09},
        "arm": "candidate",
        "exposed_s": 131.0,
        "exposed_requests": 524,
    },
    "created_by": "key_0199aa0fb1d2c3e4f5a6b",
    "created_at": CHANGED_AT,
    "finished_at": None,
}
DETAIL: Json = {
    **ROLLOUT,
    "transitions": [
        {
            "at": CHANGED_AT,
            "state": "replaying",
            "code": "created",
            "reason": "room for the evening",
            "version": 2,
        }
    ],
}
