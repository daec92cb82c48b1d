"""Answers that the description shows; the model in them is the one that is served."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
NAME = "model"
CREATED = 1_795_953_600
USAGE: Json = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}

COMPLETION: Json = {
    "id": "cmpl-7ae3acafe53d418181478e07621a306d",
    "object": "text_completion",
    "created": CREATED,
    "model": NAME,
    "choices": [
        {"text": " brown fox jumps", "index": 0, "logprobs": None, "finish_reason": "length"}
    ],
    "usage": USAGE,
}
CHAT: Json = {
    "id": "chatcmpl-b704d9e24b2e4812b18e38c223827851",
    "object": "chat.completion",
    "created": CREATED,
    "model": NAME,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello."},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
MODEL: Json = {
    "id": NAME,
    "object": "model",
    "created": CREATED,
    "owned_by": "gearshift",
    "root": "/models/model",
    "max_model_len": 8192,
}
MODELS: Json = {"object": "list", "data": [MODEL]}
TOKENIZED: Json = {"count": 2, "max_model_len": 8192, "tokens": [464, 2068], "token_strs": None}
DETOKENIZED: Json = {"prompt": "The quick"}
HEALTH: Json = {"status": "ok"}
VERSION: Json = {"version": "0.1.0"}

CAPS: Json = {
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "max_step_ms": None,
    "max_queue": None,
}
POLICY: Json = {
    "schema": "policy/v1",
    "engine": "0",
    "version": 3,
    "plan": {"dp": 1, "pp": 1, "sp": 4, "tp": 2},
    "shift": {
        "enabled": True,
        "threshold_tokens": 256,
        "rungs": ["base", "2x4", "shift"],
        "rung_thresholds": {"2x4": 1024},
    },
    "caps": CAPS,
    "scheduler": {"order": "fcfs"},
    "mode": "auto",
}
CHANGE: Json = {
    "requested": {"caps": {"max_num_seqs": 64}},
    "effective": POLICY,
    "changes": {"caps.max_num_seqs": "hot"},
    "class": "hot",
    "diff": [{"knob": "caps.max_num_seqs", "from": 32, "to": 64, "class": "hot"}],
    "warnings": [],
    "dry_run": False,
    "effective_step": 1042,
    "seconds": 0.002,
}
CAPABILITIES: Json = {
    "engine": "0",
    "plan": "sp=4,tp=2,shift",
    "max_model_len": 8192,
    "envelope": {**CAPS, "max_num_seqs": 256, "max_num_batched_tokens": 8192},
    "knobs": [
        {
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
    ],
}
MODE_RULE: Json = {
    "engine": "0",
    "mode": "table",
    "threshold_tokens": 256,
    "rung_thresholds": {"2x4": 1024},
    "rungs": ["base", "2x4", "shift"],
    "tables": [
        {
            "schema": "mode-table/v1",
            "fingerprint": "9f2c3a0c1f4a54cb",
            "plan": "sp=4,tp=2,shift",
            "device": "NVIDIA H200",
            "num_timed": 36,
            "threshold_tokens": 256,
            "largest_shift_tokens": 256,
            "buckets": [
                {
                    "tokens": 64,
                    "mode": "shift",
                    "is_measured": True,
                    "base_s": 0.0121,
                    "2x4_s": 0.0104,
                    "shift_s": 0.0093,
                }
            ],
        }
    ],
}
