"""vLLM, and Arctic Inference as its plug-in.

Sources: vLLM's engine arguments and ``vllm serve`` pages, its data parallel deployment page
(docs.vllm.ai), and the README of Arctic Inference.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from engine.spec.settings import Settings
from tuner.hardware import KvFormat, Precision
from tuner.launch.command import ConfigFile, LaunchCommand, Served, System, join_notes, share
from tuner.launch.why_not import rungs_note

QUEUE_FLAG = "--max-num-queued-tokens"
QUEUE_SINCE = "0.29"
KV_FLAG = "--kv-cache-dtype"
VERSIONS = ">=0.10,<0.31"

FLAGS = {
    "--tensor-parallel-size": "plan: tp",
    "--pipeline-parallel-size": "plan: pp",
    "--data-parallel-size": "plan: dp",
    "--max-num-seqs": "cap on sequences of a step",
    "--max-num-batched-tokens": "cap on tokens of a step",
    "--max-model-len": "context, where it is asked for or cut",
    "--gpu-memory-utilization": "share of a device's memory, as simulated",
    "--enable-prefix-caching": "prefix cache on, as simulated",
    "--no-enable-prefix-caching": "prefix cache off, as simulated",
    "--dtype": "number format of activations and KV",
    KV_FLAG: "fp8 keys and values, as simulated",
    "--quantization": "fp8 weights and products",
    "--port": "where it listens",
}
PLUGIN_FLAGS = {
    "--ulysses-sequence-parallel-size": "plan: sp",
    "--enable-shift-parallel": "plan: shift",
    "--shift-parallel-threshold": "tokens of a step above which sp is used",
}
CONFIG_NAME = "vllm.yml"

Options = dict[str, str | None]
"""Flags and their values in order; None: a switch."""


class VllmExporter:
    system = System.VLLM
    flags: Mapping[str, str] = {
        **FLAGS,
        "--async-scheduling": "the host a step ahead, as simulated, where it must be said",
        "--no-async-scheduling": "the host between steps, as simulated, where it must be said",
        QUEUE_FLAG: "prompts that may wait within the TTFT bound; told in the note",
    }

    def export(self, settings: Settings, served: Served) -> LaunchCommand:
        options = vllm_options(settings, served)
        if served.is_async is not None and served.backend == self.system:
            options[f"--{'' if served.is_async else 'no-'}async-scheduling"] = None
        plan = settings.plan
        note = None
        if plan.dp > 1 and plan.pp > 1:
            note = (
                "vLLM documents data parallelism beside tensor parallelism only: if it does not "
                f"start, run {plan.dp} servers of pp={plan.pp},tp={plan.tp} behind a router"
            )
        return LaunchCommand(
            system=self.system,
            command=shlex.join(["vllm", "serve", served.model, *words_of(options)]),
            note=join_notes(served.context_note, note, _queue_note(served)),
            versions=f"vllm {VERSIONS}",
            config=ConfigFile(
                name=CONFIG_NAME,
                text=_yaml({"--model": served.model, **options}),
                command=f"vllm serve --config {CONFIG_NAME}",
                is_needed=False,
            ),
        )


def _queue_note(served: Served) -> str | None:
    """Not in the command itself, which older releases take too."""
    if served.queued_tokens is None:
        return None
    return (
        f"from vllm {QUEUE_SINCE} on, {QUEUE_FLAG} {served.queued_tokens} (TTFT bound x prefill "
        "rate) turns away prompts that would wait too long"
    )


class ArcticExporter:
    system = System.ARCTIC
    flags: Mapping[str, str] = {**FLAGS, **PLUGIN_FLAGS}

    def export(self, settings: Settings, served: Served) -> LaunchCommand:
        plan = settings.plan
        options = vllm_options(settings, served)
        note = None
        if plan.sp > 1:
            options["--ulysses-sequence-parallel-size"] = str(plan.sp)
        if plan.shift:
            options["--enable-shift-parallel"] = None
            options["--shift-parallel-threshold"] = str(settings.threshold_tokens)
            rungs = rungs_note(self.system.value, settings)
            note = join_notes("holds the weights of both modes", rungs)
        words = shlex.join(["vllm", "serve", served.model, *words_of(options)])
        return LaunchCommand(
            system=self.system,
            command=f"ARCTIC_INFERENCE_ENABLED=1 {words}",
            note=join_notes(served.context_note, note),
            versions="the vllm that arctic-inference pins",
        )


def vllm_options(settings: Settings, served: Served) -> Options:
    """vLLM's own flags for the settings."""
    plan, caps = settings.plan, settings.caps
    options: Options = {"--tensor-parallel-size": str(plan.tp)}
    if plan.pp > 1:
        options["--pipeline-parallel-size"] = str(plan.pp)
    if plan.dp > 1:
        options["--data-parallel-size"] = str(plan.dp)
    options["--max-num-seqs"] = str(caps.max_num_seqs)
    options["--max-num-batched-tokens"] = str(caps.max_num_batched_tokens)
    if served.context is not None:
        options["--max-model-len"] = str(served.context)
    if served.room is not None:
        options["--gpu-memory-utilization"] = share(served.room.usable_share)
    no = "" if served.keeps_prefixes else "no-"
    options[f"--{no}enable-prefix-caching"] = None
    if served.kv is not KvFormat.AUTO:
        options[KV_FLAG] = served.kv.value
    options["--port"] = str(served.port)
    return {**options, **format_options(served.precision)}


def format_options(precision: Precision) -> Options:
    """fp8: layers' weights and products in fp8, the rest in bfloat16. int4, fp8-block: a checkpoint
    that was quantised so says so itself."""
    dtype: Options = {"--dtype": precision.dtype.value}
    return {**dtype, "--quantization": "fp8"} if precision is Precision.FP8 else dtype


def words_of(options: Options) -> list[str]:
    """The options as words of a command."""
    return [word for name, value in options.items() for word in (name, value) if word is not None]


def _yaml(options: Options) -> str:
    """A line per option, without dashes; words are quoted as JSON, which YAML reads."""
    lines = []
    for name, value in options.items():
        is_number = value is not None and value.replace(".", "", 1).isdigit()
        text = "true" if value is None else value if is_number else json.dumps(value)
        lines.append(f"{name.removeprefix('--')}: {text}\n")
    return "".join(lines)
