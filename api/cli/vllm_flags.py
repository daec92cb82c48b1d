"""Flags that vLLM's server knows and this engine has no use for: which do no harm, which would.

Flags that mean something here are options of ``gearshift engine serve`` under vLLM's name.
"""

from __future__ import annotations

from collections.abc import Iterator

from api.cli.common import fail, log

# Flags that change nothing here: what they ask for is always so.
NEEDLESS = {
    "--disable-log-requests": "requests are logged with --enable-log-requests only",
    "--disable-log-stats": "no statistics are logged; GET /metrics has them",
    "--disable-uvicorn-access-log": "accesses are not logged",
    "--enable-chunked-prefill": "prompts are always computed in chunks",
    "--enforce-eager": "no CUDA graphs are captured",
    "--trust-remote-code": "no code of a checkpoint is run",
}
# Flags that are taken only with these values, which ask for what is always so; and why.
ONLY = {
    "--distributed-executor-backend": (("mp",), "ranks are processes of this machine"),
    "--kv-cache-dtype": (("auto",), "the KV cache is in the number format of the model"),
    "--load-format": (("auto", "safetensors"), "checkpoints are read as safetensors"),
    "--tokenizer-mode": (("auto",), "the folder's tokenizer.json is used"),
}
_NO_TOOLS = "answers are not searched for calls or reasoning; leave it out"
_NO_LORA = "adapters are not served; merge them into the checkpoint first"
_NO_IDS = "models are folders of this machine: download the revision, and name its folder"
_NO_TLS = "TLS is not spoken here; put a reverse proxy in front"
_HOST_MEMORY = "weights and KV cache stay on the device; take more devices or a smaller model"
REFUSED = {
    "--chat-template": "the template of the model folder is used; put it there",
    "--compilation-config": "steps are not compiled; leave it out",
    "--cpu-offload-gb": _HOST_MEMORY,
    "--download-dir": _NO_IDS,
    "--enable-auto-tool-choice": _NO_TOOLS,
    "--enable-expert-parallel": "dense models only; leave it out",
    "--enable-lora": _NO_LORA,
    "--hf-overrides": "edit the config.json of the model folder",
    "--kv-cache-memory-bytes": "name --kv-cache-mib (CPU) or --gpu-memory-utilization (CUDA)",
    "--limit-mm-per-prompt": "text only; leave it out",
    "--lora-modules": _NO_LORA,
    "--no-enable-chunked-prefill": "prompts are always computed in chunks; leave it out",
    "--otlp-traces-endpoint": "name the collector by the variable OTEL_EXPORTER_OTLP_ENDPOINT",
    "--reasoning-parser": _NO_TOOLS,
    "--revision": _NO_IDS,
    "--seed": "a request without a seed gets one of its own; send seed in the requests",
    "--speculative-config": "every token is computed by the model itself; leave it out",
    "--ssl-certfile": _NO_TLS,
    "--ssl-keyfile": _NO_TLS,
    "--swap-space": _HOST_MEMORY,
    "--tokenizer": "the model folder's tokenizer.json is used; put it there",
    "--tool-call-parser": _NO_TOOLS,
}


def known_words(words: list[str]) -> list[str]:
    """The words without vLLM's flags that are needless, with dashes where vLLM takes underscores.

    Ends on a flag that would mean something else here, with the way out.
    """
    return list(_known(iter(words)))


def _known(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            yield word
            break
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("_", "-")
        if name in ONLY:
            check_flag(name, value if equals else next(words, ""))
        elif is_foreign(name):
            check_flag(name, value if equals else None)
        else:
            yield f"{name}{equals}{value}" if name.startswith("-") else word
    yield from words


def is_foreign(name: str) -> bool:
    """Whether this is a flag of vLLM's that is no option here."""
    return name in NEEDLESS or name in ONLY or name in REFUSED


def check_flag(name: str, value: str | None) -> None:
    """Say why a needless flag was left out; end on one that would mean something."""
    if name in REFUSED:
        fail(f"{name}: {REFUSED[name]}")
    if name in NEEDLESS:
        log(f"{name}: nothing to do: {NEEDLESS[name]}")
        return
    values, reason = ONLY[name]
    if value not in values:
        fail(f"{name} {value}: {reason}; known here: {', '.join(values)}")
