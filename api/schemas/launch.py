"""How to start a recommendation on a serving system."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.schemas.base import Json, View
from tuner.launch.command import System

COMMAND = (
    "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 2 --max-num-seqs 64 "
    "--max-num-batched-tokens 2048 --gpu-memory-utilization 0.92 --no-enable-prefix-caching "
    "--port 8000 --dtype bfloat16"
)
EXAMPLE: Json = {
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


class ConfigFileView(View):
    """A file that the system reads."""

    name: str
    text: str
    command: str = Field(description="The command that reads it")
    is_needed: bool = Field(description="Whether `command` of the answer reads it too")


class LaunchView(View):
    """The command that starts a recommendation's settings on a serving system."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    system: System
    command: str
    script: str = Field(description="To paste: what to mind, the file it needs, the command")
    note: str | None = Field(description="What to mind")
    versions: str | None = Field(description="Releases that the command is written for")
    is_rehearsal: bool = Field(description="Whether it is served without the hardware or a model")
    config: ConfigFileView | None
