"""A vLLM server that is observed and advised."""

from __future__ import annotations

from typing import Any

from api.schemas.examples.engines import ENGINE_ID, REGISTERED_AT

Json = dict[str, Any]
OBSERVE: Json = {
    "name": "chat",
    "system": "vllm",
    "url": "http://10.0.0.5:8000",
    "plan": "tp=2",
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "sla": "p95_ttft_ms<=500,p95_tpot_ms<=50",
}
ENTRY: Json = {
    "settings": {
        "plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 4},
        "shift": {"enabled": False, "threshold_tokens": 256},
        "caps": {
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "max_step_ms": None,
            "max_queue": None,
        },
        "scheduler": {"order": "fcfs"},
        "mode": "auto",
    },
    "num_devices": 4,
    "num_replicas": 1,
    "rate_rps": 21.0,
    "low_rps": 19.5,
    "high_rps": 22.1,
    "fidelity": "simulated",
    "binding": "p95_tpot_ms<=50",
    "joules_per_request": None,
}
BIND: Json = {
    "capacity_table": {
        "schema": "capacity-table/v1",
        "sla": "p95_ttft_ms<=500,p95_tpot_ms<=50",
        "mean_input_tokens": 512.0,
        "mean_output_tokens": 128.0,
        "entries": [ENTRY],
    }
}
OBSERVATION: Json = {
    "engine_id": ENGINE_ID,
    "system": "vllm",
    "url": "http://10.0.0.5:8000",
    "sight": "seen",
    "since": REGISTERED_AT,
    "detail": "",
    "restarted_at": None,
    "missing": ["prefix_hit_rate"],
    "window_s": 15.0,
    "arrived_rps": 11.2,
    "finished_rps": 11.0,
    "running": 31,
    "waiting": 0,
    "kv_usage": 0.41,
    "prompt_tokens_per_s": 5734.0,
    "generation_tokens_per_s": 1408.0,
    "prefix_hit_rate": 0.12,
    "mean_input_tokens": 512.0,
    "mean_output_tokens": 128.0,
    "attainment": {"low": 0.957, "value": 0.968, "high": 0.981},
    "is_sla_met": True,
    "judges_tpot_by_itl": False,
    "metrics": {"p95_ttft_ms": 212.0, "p95_tpot_ms": 38.4, "attainment": 0.968},
    "load_band": None,
    "restarts": None,
}
COMMAND = (
    "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 4 --max-num-seqs 256 "
    "--max-num-batched-tokens 8192 --enable-prefix-caching --port 8000 --dtype bfloat16"
)
ADVICE: Json = {
    "engine_id": ENGINE_ID,
    "system": "vllm",
    "reason": "load_up",
    "observed_rps": 11.2,
    "peak_rps": 14.0,
    "needed_rps": 14.0,
    "current": None,
    "entry": ENTRY,
    "is_there": False,
    "num_devices": 4,
    "left_out": [],
    "launch": {
        "command": COMMAND,
        "note": None,
        "kubernetes": "apiVersion: apps/v1\nkind: Deployment\n",
        "compose": "services:\n  chat:\n    image: vllm/vllm-openai:latest\n",
    },
    "applied_by": "hand",
}
