"""What a job may name."""

from __future__ import annotations

from api.schemas.examples.engines import Json

NAMED: Json = {"origin": "built in", "source": "public data sheet"}
MODEL: Json = {
    **NAMED,
    "name": "llama-3.1-8b",
    "title": "8.03 B parameters",
    "family": "llama",
    "num_params": 8029995008,
    "num_layers": 32,
    "max_model_len": 131072,
    "kv_bytes_per_token": 131072,
}
HARDWARE: Json = {
    **NAMED,
    "name": "h200",
    "title": "NVIDIA H200 SXM",
    "memory_gb": 150.1,
    "memory_gb_per_s": 4800.0,
    "formats": ["fp64", "fp32", "bf16", "fp16", "fp8", "fp8-block", "int4"],
    "link": "nvlink4",
    "between_nodes": "ib-ndr",
    "devices_per_node": 8,
    "calibration": "calibrated for bf16, fp16, fp8",
    "interval": 0.2,
}
BACKEND: Json = {
    **NAMED,
    "name": "vllm",
    "title": "vLLM",
    "version": 3,
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 8192,
    "is_measured": True,
    "interval": 0.136,
}
BACKEND_SETTINGS: Json = {
    "choice": "vllm@0.14",
    "title": "vLLM",
    "source": "fitted on closed-loop runs of vLLM 0.10.2 (asynchronous scheduling) and 0.12.0",
    "is_measured": True,
    "interval": 0.136,
    "settings": [
        {
            "key": "async_scheduling",
            "value": True,
            "origin": "release 0.14",
            "about": "the host works on the next step while ranks run one (on, off)",
        }
    ],
}
LINK: Json = {
    **NAMED,
    "name": "nvlink4",
    "title": "NVLink 4 through NVSwitch",
    "gb_per_s": 450.0,
    "topology": "switch",
    "measured_on": "h100",
}
