"""Every setting of a profile that may be chosen by a word, as in ``async_scheduling=on``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar, get_type_hints

import msgspec

from engine.spec.errors import EngineError
from engine.spec.names import did_you_mean
from tuner.spec.errors import TunerError

Profile = TypeVar("Profile")
SWITCHES = {"on": True, "true": True, "off": False, "false": False}
Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: ``path`` is the field of :class:`~tuner.backends.backend.Backend` that it sets,
    with a dot where the field is one of a part's. ``about`` is what it does, with its unit."""

    key: str
    path: str
    about: str


def _same(path: str, about: str) -> Setting:
    return Setting(key=path, path=path, about=about)


_ALL = (
    Setting(
        key="async_scheduling",
        path="host.is_overlapped",
        about="the host works on the next step while ranks run one (on, off)",
    ),
    _same("schedules_ahead", "a request that comes during a step joins the step after next"),
    Setting(
        key="batch_wait_timeout_iters",
        path="prompt_wait.steps",
        about="steps that prompts wait for others to join them, at most (TensorRT-LLM's)",
    ),
    Setting(
        key="batch_wait_max_tokens_ratio",
        path="prompt_wait.share",
        about="share of a step's tokens from which on prompts do not wait (TensorRT-LLM's)",
    ),
    _same(
        "step_order",
        "mixed: decodes, then chunks of prompts in the same step; prefill_first: prompts alone, "
        "decodes when none is left",
    ),
    _same("prefix_cache", "KV blocks of equal beginnings are shared"),
    _same("kv_cache_dtype", "what keys and values are kept in: auto (as activations) or fp8"),
    Setting(
        key="max_num_seqs",
        path="default_caps.max_num_seqs",
        about="sequences of a step, where no option says",
    ),
    Setting(
        key="max_num_batched_tokens",
        path="default_caps.max_num_batched_tokens",
        about="tokens of a step, where no option says",
    ),
    _same("samples_in_parallel", "each rank samples its share of the rows"),
    _same("has_second_weights", "Shift plans hold the shift mode's weights too"),
    _same("launch", "how kernels start: graph or eager"),
    _same("shift_launch", "the same in shift mode"),
    _same("host.step_s", "host work of a step, s"),
    _same("host.seq_s", "host work of a sequence in a step, s"),
    _same("host.request_s", "host work of a prompt in a step, s"),
    _same("host.prompt_token_s", "host work of a prompt's token, s"),
    _same("host.prompt_layer_s", "host work of a layer in a step with prompts, s"),
    _same("host.exposed_s", "host work of a step that nothing hides, s"),
    _same("host.exposed_seq_s", "the same of a sequence, where the rest is hidden, s"),
    _same("host.pipeline_step_s", "host work that a step over several stages adds, s"),
    _same("host.pipeline_seq_s", "the same of a sequence in it, s"),
    _same("front_end.request_s", "a request's way in, s"),
    _same("front_end.prompt_token_s", "a prompt's token on its way in, s"),
    _same("front_end.answer_s", "a token's way out, s"),
    _same("front_end.token_s", "time of the one process that sends tokens, a token, s"),
    Setting(
        key="stream_interval",
        path="front_end.stream_interval",
        about="tokens of an answer that are sent together",
    ),
    _same("kernels.gemm", "time of products over the device's curves"),
    _same("kernels.fp8_gemm", "the same in fp8"),
    _same("kernels.fp8_block_gemm", "the same in fp8-block, over the block kernel's"),
    _same("kernels.rounds_apart", "activations are rounded to fp8 by a pass of its own (on, off)"),
    _same("kernels.block_kernel", "who multiplies in fp8-block: cutlass or deep_gemm"),
    _same("kernels.attention", "the same of attention"),
    _same("kernels.communication", "the same of collectives"),
    _same("interval", "90 % half width of log(true / simulated) TPOT"),
)
SETTINGS: Mapping[str, Setting] = {setting.key: setting for setting in _ALL}


def setting_value(backend: object, key: str) -> Value:
    """What a backend has for ``key``, as JSON has it."""
    *parts, name = SETTINGS[key].path.split(".")
    holder: Any = backend
    for part in parts:
        holder = getattr(holder, part)
    value: Value = getattr(holder, name)
    return value.value if isinstance(value, Enum) else value


def with_settings(backend: Profile, values: Mapping[str, Value], *, where: str) -> Profile:
    """``backend`` with each key of ``values`` set; a value may be the text of one.

    Raises:
        TunerError: an unknown key or a value that it cannot have, with ``where``.
    """
    for key, value in values.items():
        if key not in SETTINGS:
            raise TunerError(
                f"{where}: unknown setting {key!r}{did_you_mean(key, SETTINGS)}; gearshift "
                "backends show lists them"
            )
        try:
            backend = _with(backend, SETTINGS[key].path.split("."), value)
        except (EngineError, TunerError, msgspec.ValidationError) as error:
            raise TunerError(f"{where}: {key}={value}: {error}") from error
    return backend


def _with(holder: Any, path: list[str], value: Value) -> Any:
    name, *rest = path
    if rest:
        return replace(holder, **{name: _with(getattr(holder, name), rest, value)})
    hint = get_type_hints(type(holder))[name]
    if hint is bool:
        value = SWITCHES.get(str(value).lower(), value)
    read = msgspec.convert(value, hint, strict=False)
    if isinstance(read, float) and not math.isfinite(read):
        raise TunerError("must be finite")
    return replace(holder, **{name: read})
