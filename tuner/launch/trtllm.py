"""TensorRT-LLM. Sources: its trtllm-serve page and LLM API reference
(nvidia.github.io/TensorRT-LLM)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from engine.spec.settings import Settings
from tuner.hardware import KvFormat
from tuner.launch.command import ConfigFile, LaunchCommand, Served, System, join_notes, share
from tuner.launch.vllm import Options, words_of

CONFIG_NAME = "trtllm.yml"
VERSIONS = ">=1.0,<1.3"


class TrtllmExporter:
    system = System.TRTLLM
    flags: Mapping[str, str] = {
        "--tp_size": "plan: tp",
        "--pp_size": "plan: pp",
        "--max_batch_size": "cap on sequences of a step",
        "--max_num_tokens": "cap on tokens of a step",
        "--max_seq_len": "context, where it is asked for or cut",
        "--port": "where it listens",
        "--extra_llm_api_options": "the YAML file",
        "dtype": "number format of activations and KV",
        "enable_chunked_prefill": "prompts in chunks, as simulated",
        "kv_cache_config": "those below; its dtype where keys and values are in fp8",
        "enable_block_reuse": "prefix cache, as simulated",
        "free_gpu_memory_fraction": "KV's share of what the weights leave, as simulated",
    }

    def export(self, settings: Settings, served: Served) -> LaunchCommand:
        plan, caps = settings.plan, settings.caps
        options: Options = {"--tp_size": str(plan.tp)}
        if plan.pp > 1:
            options["--pp_size"] = str(plan.pp)
        options["--max_batch_size"] = str(caps.max_num_seqs)
        options["--max_num_tokens"] = str(caps.max_num_batched_tokens)
        if served.context is not None:
            options["--max_seq_len"] = str(served.context)
        options["--port"] = str(served.port)
        options["--extra_llm_api_options"] = CONFIG_NAME
        command = shlex.join(["trtllm-serve", served.model, *words_of(options)])
        return LaunchCommand(
            system=self.system,
            command=command,
            note=join_notes(served.context_note, *_notes(plan.dp, served)),
            versions=f"tensorrt_llm {VERSIONS}",
            config=ConfigFile(
                name=CONFIG_NAME, text=_yaml(served), command=command, is_needed=True
            ),
        )


def _notes(replicas: int, served: Served) -> list[str]:
    notes = []
    if replicas > 1:
        notes.append(
            f"starts one of dp={replicas} replicas: run each on its own devices and port, behind "
            "a router"
        )
    if served.precision.is_fp8:
        notes.append(f"{served.model} must be, or be replaced by, an FP8 checkpoint")
    return notes


def _yaml(served: Served) -> str:
    reuse = "true" if served.keeps_prefixes else "false"
    lines = [
        f"dtype: {served.precision.dtype.value}",
        "enable_chunked_prefill: true",
        "kv_cache_config:",
        f"  enable_block_reuse: {reuse}",
    ]
    if served.kv is KvFormat.FP8:
        lines.append("  dtype: fp8")
    if served.room is not None:
        lines.append(f"  free_gpu_memory_fraction: {share(served.room.free_share)}")
    return "".join(f"{line}\n" for line in lines)
