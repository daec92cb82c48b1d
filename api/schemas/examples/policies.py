"""A policy of that engine: changed, acknowledged, rolled back, decided on."""

from __future__ import annotations

from api.schemas.examples.engines import ENGINE_ID, SETTINGS, Json

CHANGED_AT = "2026-11-29T12:05:00Z"
WANTED: Json = {**SETTINGS, "caps": {**SETTINGS["caps"], "max_num_seqs": 96}}
DOCUMENT: Json = {
    "schema": "policy/v1",
    "engine": ENGINE_ID,
    **WANTED,
    "sla": "p95_ttft_ms<=500,p95_tpot_ms<=50",
    "guards": {
        "max_gpus": 8,
        "min_interval_s": 60,
        "max_reshapes_per_h": 4,
        "drain_s": 30,
        "retunes_per_day": 1,
        "allow_shedding": True,
        "apply_retuned": False,
        "on_drift": "pause",
    },
    "provenance": {"recommendation": "rec_0199aa11b2c3d4e5f6a7b", "cost_model": None},
}
POLICY: Json = {
    "engine_id": ENGINE_ID,
    "version": 2,
    "requested": DOCUMENT,
    "effective": SETTINGS,
    "applied_version": 1,
    "ack_state": "pending",
    "ack_message": None,
}
CHANGE: Json = {
    "is_dry_run": False,
    "changes": [{"knob": "caps.max_num_seqs", "class": "hot", "from": 64, "to": 96}],
    "predicted": None,
    "effect": None,
    "effect_missing": None,
    "transition": None,
    "warnings": [],
    "policy": POLICY,
}
ACKNOWLEDGE: Json = {
    "result": "applied",
    "changes": {"caps.max_num_seqs": "hot"},
    "seconds": 0.002,
    "policy": WANTED,
}
VERSION: Json = {
    "engine_id": ENGINE_ID,
    "version": 2,
    "document": DOCUMENT,
    "origin": "operator",
    "reason": "room for the evening",
    "created_by": "key_0199aa0fb1d2c3e4f5a6b",
    "created_at": CHANGED_AT,
    "ack_state": "applied",
    "ack_message": None,
    "ack_changes": {"caps.max_num_seqs": "hot"},
    "ack_seconds": 0.002,
    "ack_transition": None,
    "acknowledged_at": CHANGED_AT,
}
ROLLBACK: Json = {"version": 1, "reason": "TPOT rose"}
DECISION: Json = {
    "id": 3,
    "engine_id": ENGINE_ID,
    "action": "raise_condition",
    "reason": "sla_missed_at_top",
    "band_index": 0,
    "settings": WANTED,
    "rejected": [],
    "observed": {
        "rate_rps": 41.3,
        "mean_input_tokens": 2000.0,
        "mean_output_tokens": 64.0,
        "num_requests": 309,
        "is_sla_met": False,
        "metrics": {"p95_ttft_ms": 7874.1, "p95_tpot_ms": 24.5, "attainment": 0.0},
    },
    "policy_version": None,
    "created_at": CHANGED_AT,
}
FORECAST: Json = {
    "engine_id": ENGINE_ID,
    "forecaster": "seasonal_naive",
    "slot_s": 60.0,
    "rates_rps": [3.1, 3.2, 3.4, 3.4, 3.6],
    "expected_peak_rps": 3.6,
    "held_peak_rps": 3.8,
    "peak_rps": 4.1,
    "chance": 0.9,
    "mean_input_tokens": 1024.0,
    "mean_output_tokens": 128.0,
    "history_slots": 2880,
    "backtests": 12,
    "peak_error": 0.06,
}
