"""A recommendation as a command of vLLM."""

from __future__ import annotations

from api.schemas.examples.engines import Json

COMMAND = (
    "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 2 --max-num-seqs 64 "
    "--max-num-batched-tokens 2048 --gpu-memory-utilization 0.92 --no-enable-prefix-caching "
    "--port 8000 --dtype bfloat16"
)
VLLM: Json = {
    "system": "vllm",
    "command": COMMAND,
    "script": f"# vllm >=0.10,<0.31\n{COMMAND}\n",
    "note": None,
    "versions": "vllm >=0.10,<0.31",
    "is_rehearsal": False,
    "config": {
        "name": "vllm.yml",
        "text": "model: meta-llama/Llama-3.1-8B-Instruct\ntensor-parallel-size: 2\n",
        "command": "vllm serve --config vllm.yml",
        "is_needed": False,
    },
}
