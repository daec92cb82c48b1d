"""SGLang. Source: its server arguments page (docs.sglang.ai)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from engine.spec.settings import Settings, StepOrder
from tuner.hardware import KvFormat
from tuner.launch.command import LaunchCommand, Served, System, join_notes, share
from tuner.launch.vllm import Options, format_options, words_of

VERSIONS = ">=0.5,<0.6"


class SglangExporter:
    system = System.SGLANG
    flags: Mapping[str, str] = {
        "--model-path": "model",
        "--tp-size": "plan: tp",
        "--pp-size": "plan: pp",
        "--dp-size": "plan: dp",
        "--max-running-requests": "cap on sequences of a step",
        "--chunked-prefill-size": "cap on tokens of a step",
        "--enable-mixed-chunk": "prompts and decodes share steps, as simulated",
        "--context-length": "context, where it is asked for or cut",
        "--mem-fraction-static": "share of a device's memory for weights and KV, as simulated",
        "--disable-radix-cache": "prefix cache off, as simulated",
        "--dtype": "number format of activations and KV",
        "--kv-cache-dtype": "fp8 keys and values, as simulated",
        "--quantization": "fp8 weights and products",
        "--port": "where it listens",
    }

    def export(self, settings: Settings, served: Served) -> LaunchCommand:
        options = sglang_options(settings, served)
        is_mixed = served.step_order is StepOrder.MIXED
        note = None
        if is_mixed and settings.plan.pp > 1:
            note = "sglang does not mix prompts and decodes in a step of a pipeline"
        words = ["python", "-m", "sglang.launch_server", *words_of(options)]
        return LaunchCommand(
            system=self.system,
            command=shlex.join(words),
            note=join_notes(served.context_note, note),
            versions=f"sglang {VERSIONS}",
        )


def sglang_options(settings: Settings, served: Served) -> Options:
    """SGLang's own flags for the settings, the model first."""
    plan, caps = settings.plan, settings.caps
    options: Options = {"--model-path": served.model, "--tp-size": str(plan.tp)}
    if plan.pp > 1:
        options["--pp-size"] = str(plan.pp)
    if plan.dp > 1:
        options["--dp-size"] = str(plan.dp)
    options["--max-running-requests"] = str(caps.max_num_seqs)
    options["--chunked-prefill-size"] = str(caps.max_num_batched_tokens)
    if served.step_order is StepOrder.MIXED and plan.pp == 1:
        options["--enable-mixed-chunk"] = None
    if served.context is not None:
        options["--context-length"] = str(served.context)
    if served.room is not None:
        options["--mem-fraction-static"] = share(served.room.static_share)
    if not served.keeps_prefixes:
        options["--disable-radix-cache"] = None
    if served.kv is KvFormat.FP8:
        options["--kv-cache-dtype"] = "fp8_e4m3"
    options["--port"] = str(served.port)
    return {**options, **format_options(served.precision)}
