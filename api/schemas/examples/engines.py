"""An engine on two devices: registered, reporting, asked about."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
ENGINE_ID = "eng_0199aa10a1b2c3d4e5f6a"
REGISTERED_AT = "2026-11-29T12:00:00Z"

SETTINGS: Json = {
    "plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 2},
    "shift": {"enabled": False, "threshold_tokens": 256},
    "caps": {
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "max_step_ms": None,
        "max_queue": 400,
    },
    "scheduler": {"order": "fcfs"},
    "mode": "auto",
}
ENVELOPE: Json = {**SETTINGS["caps"], "max_num_seqs": 256, "max_num_batched_tokens": 8192}
MODEL: Json = {
    "model_type": "llama",
    "num_layers": 32,
    "hidden_size": 4096,
    "ffn_size": 14336,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_positions": 131072,
    "rms_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_embeddings": False,
    "qkv_bias": False,
    "o_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
    "dtype": "bfloat16",
    "eos_token_ids": [128001, 128009],
    "bos_token_id": 128000,
}
KNOB: Json = {
    "name": "caps.max_num_seqs",
    "class": "hot",
    "current": 64,
    "minimum": 1,
    "maximum": 256,
    "choices": None,
    "hot_choices": None,
    "measured_cost_s": None,
    "ways": [],
}
NAMES: Json = {
    "name": "chat-0",
    "model_name": "llama-3.1-8b",
    "public_url": "http://node-1:8000",
    "host": "node-1",
}
REGISTER: Json = {
    **NAMES,
    "devices": [0, 1],
    "model": MODEL,
    "envelope": ENVELOPE,
    "capabilities": [KNOB],
    "policy": SETTINGS,
    "takes_credential": True,
}
ENGINE: Json = {
    "id": ENGINE_ID,
    "system": None,
    **NAMES,
    "model": MODEL,
    "envelope": ENVELOPE,
    "inventory": None,
    "effective_policy": SETTINGS,
    "desired_version": 1,
    "applied_version": 1,
    "recommendation_id": None,
    "sla": None,
    "is_alive": True,
    "registered_at": REGISTERED_AT,
    "last_heartbeat_at": REGISTERED_AT,
}
REGISTERED: Json = {**ENGINE, "credential": "ge_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"}
HEARTBEAT: Json = {
    "window_s": 1.0,
    "arrived": 2,
    "policy_version": 1,
    "policy": SETTINGS,
    "devices": [0, 1],
    "stats": {"running": 1, "waiting": 0},
    "requests": [
        {
            "age_ms": 900.0,
            "token_ms": [41.5, 53.0, 64.2],
            "input_tokens": 512,
            "outcome": "completed",
        }
    ],
    "steps": [{"mode": "base", "tokens_up_to": 64, "steps": 10, "seconds": 0.11, "tokens": 300}],
}
WANTED: Json = {"desired_version": 2}
