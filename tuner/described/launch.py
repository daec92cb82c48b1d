"""What an operator pastes to start the settings elsewhere: one command per serving system.

Flags are those of each system's public documentation. A plan that a system cannot run gets the
reason instead of a command that would do something else.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, assert_never

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.backends import list_backends
from tuner.hardware import Precision

MODEL = "MODEL"
"""Stands for the operator's own checkpoint."""


NO_SEQUENCE_PARALLELISM = ("vllm", "sglang", "trtllm")
NO_PIPELINES = ("arctic",)
# These refuse to start with more sequences than tokens per step.
TOKENS_FOR_ALL = ("vllm", "arctic")


class System(StrEnum):
    """Serving systems that a command can be written for."""

    GEARSHIFT = "gearshift"
    VLLM = "vllm"
    ARCTIC = "arctic"
    SGLANG = "sglang"


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """``command`` for ``system``, or None and why there is none; ``note`` is what to mind.

    A rehearsal serves the settings without the hardware: no model is run.
    """

    system: System
    command: str | None = None
    note: str | None = None
    is_rehearsal: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "system": self.system.value,
            "command": self.command,
            "note": self.note,
            "is_rehearsal": self.is_rehearsal,
        }


def launch_commands(
    settings: Settings,
    precision: Precision,
    *,
    backend: str = System.GEARSHIFT.value,
    hardware: str | None = None,
    max_model_len: int | None = None,
) -> tuple[LaunchCommand, ...]:
    """A command or a reason for every system, in the order of :class:`System`, rehearsals last.

    ``backend``: what the settings were simulated as; commands of other systems say so.
    ``hardware``: what an engine of this project is paced as where its ranks cannot compute in
    ``precision``.
    """
    paced = None if hardware is None else _Paced(hardware=hardware, backend=backend)
    found = [
        _with_origin(_with_checkpoint(command, precision), backend)
        for system in System
        for command in (_command(system, settings, precision, paced, max_model_len),)
    ]
    return tuple(sorted(found, key=lambda command: command.is_rehearsal))


@dataclass(frozen=True, kw_only=True)
class _Paced:
    """What an engine without ranks takes its steps' times from."""

    hardware: str
    backend: str

    @property
    def words(self) -> list[str]:
        words = ["--paced", self.hardware]
        is_own = self.backend == System.GEARSHIFT
        return words if is_own else [*words, "--backend", self.backend]


def _with_checkpoint(found: LaunchCommand, precision: Precision) -> LaunchCommand:
    """Weights that no system quantises at its start must have been quantised before."""
    is_ours = found.system is System.GEARSHIFT
    if found.command is None or precision is not Precision.INT4 or is_ours:
        return found
    notes = [f"{MODEL} is an AWQ or GPTQ checkpoint", *([found.note] if found.note else [])]
    return replace(found, note="; ".join(notes))


def _with_origin(found: LaunchCommand, backend: str) -> LaunchCommand:
    """Under numbers of another system a command says whose they are."""
    system = found.system.value
    if found.command is None or system == backend:
        return found
    own = (
        f"simulate with --backend {system} to see its own"
        if system in list_backends()
        else f"{system} is not simulated"
    )
    notes = [] if found.note is None else [found.note]
    return replace(found, note="; ".join([*notes, f"numbers above are of {backend}", own]))


def why_not(system: str, plan: ParallelPlan) -> str | None:
    """Why ``system`` (also a backend's name) cannot run ``plan``; None when it can."""
    if plan.sp > 1 and system in NO_SEQUENCE_PARALLELISM:
        return f"{system} has no sequence parallelism for inference (sp={plan.sp})"
    if plan.pp > 1 and system in NO_PIPELINES:
        return (
            f"{system} has no pipeline parallelism beside its sequence parallelism (pp={plan.pp})"
        )
    return None


def _why_not_caps(system: System, caps: Caps) -> str | None:
    if system in TOKENS_FOR_ALL and caps.max_num_batched_tokens < caps.max_num_seqs:
        return (
            f"{system} does not start with max_num_batched_tokens={caps.max_num_batched_tokens} "
            f"below max_num_seqs={caps.max_num_seqs}"
        )
    return None


def _command(
    system: System,
    settings: Settings,
    precision: Precision,
    paced: _Paced | None,
    max_model_len: int | None,
) -> LaunchCommand:
    reason = why_not(system, settings.plan) or _why_not_caps(system, settings.caps)
    if reason is not None:
        return LaunchCommand(system=system, note=reason)
    match system:
        case System.GEARSHIFT:
            return _gearshift(settings, precision, paced, max_model_len)
        case System.VLLM:
            words = ["vllm", "serve", MODEL, *_vllm(settings, precision, max_model_len)]
            return LaunchCommand(system=system, command=shlex.join(words))
        case System.ARCTIC:
            return _arctic(settings, precision, max_model_len)
        case System.SGLANG:
            return _sglang(settings, precision, max_model_len)
        case _:
            assert_never(system)


def _gearshift(
    settings: Settings, precision: Precision, paced: _Paced | None, max_model_len: int | None
) -> LaunchCommand:
    if (note := _why_not_flags(settings.caps)) is not None:
        return LaunchCommand(system=System.GEARSHIFT, note=note)
    words = [*_engine_serve(MODEL, settings), *_context(max_model_len)]
    if not precision.is_quantised:
        words += ["--dtype", precision.dtype.value, "--device", "cuda"]
        return LaunchCommand(system=System.GEARSHIFT, command=shlex.join(words))
    if paced is None:
        note = f"its ranks do not compute in {precision}"
        return LaunchCommand(system=System.GEARSHIFT, note=note)
    return LaunchCommand(
        system=System.GEARSHIFT,
        command=shlex.join([*words, "--dtype", precision.value, *paced.words]),
        note=f"paced in real time, without ranks: they do not compute in {precision}",
        is_rehearsal=True,
    )


@dataclass(frozen=True, kw_only=True)
class ServedHere:
    """An engine of this project on this machine's own ranks, as a tuning job runs its trials."""

    model: str
    dtype: str
    device: str
    kv_cache_mib: int
    block_size: int
    link: str | None = None


def launch_here(
    settings: Settings, here: ServedHere, *, max_model_len: int | None = None
) -> LaunchCommand:
    """The command that serves with ``settings`` on this machine."""
    if (note := _why_not_flags(settings.caps)) is not None:
        return LaunchCommand(system=System.GEARSHIFT, note=note)
    words = [*_engine_serve(here.model, settings), *_context(max_model_len)]
    words += ["--dtype", here.dtype, "--device", here.device]
    words += ["--kv-cache-mib", str(here.kv_cache_mib), "--block-size", str(here.block_size)]
    if here.link is not None:
        words += ["--link", here.link]
    return LaunchCommand(system=System.GEARSHIFT, command=shlex.join(words))


def _engine_serve(model: str, settings: Settings) -> list[str]:
    """Model, plan with its threshold, and caps."""
    plan, caps = settings.plan, settings.caps
    text = str(plan).removesuffix(",shift")
    plan_text = f"{text},shift={settings.threshold_tokens}" if plan.shift else text
    words = ["gearshift", "engine", "serve", "--model", model, "--plan", plan_text]
    return [*words, *_caps(caps.max_num_seqs, caps.max_num_batched_tokens)]


def _why_not_flags(caps: Caps) -> str | None:
    if caps.max_step_ms is None:
        return None
    return f"max_step_ms={caps.max_step_ms:g} is set through PATCH /v1/engine/policy"


def _arctic(settings: Settings, precision: Precision, max_model_len: int | None) -> LaunchCommand:
    plan = settings.plan
    words = ["vllm", "serve", MODEL, *_vllm(settings, precision, max_model_len)]
    note = None
    if plan.sp > 1:
        words += ["--ulysses-sequence-parallel-size", str(plan.sp)]
    if plan.shift:
        threshold = settings.threshold_tokens
        words += ["--enable-shift-parallel", "--shift-parallel-threshold", str(threshold)]
        note = "holds the weights of both modes"
    command = f"ARCTIC_INFERENCE_ENABLED=1 {shlex.join(words)}"
    return LaunchCommand(system=System.ARCTIC, command=command, note=note)


def _vllm(settings: Settings, precision: Precision, max_model_len: int | None) -> list[str]:
    plan, caps = settings.plan, settings.caps
    words = ["--tensor-parallel-size", str(plan.tp)]
    if plan.pp > 1:
        words += ["--pipeline-parallel-size", str(plan.pp)]
    if plan.dp > 1:
        words += ["--data-parallel-size", str(plan.dp)]
    words += _caps(caps.max_num_seqs, caps.max_num_batched_tokens)
    return [*words, *_context(max_model_len), *_format(precision)]


def _sglang(settings: Settings, precision: Precision, max_model_len: int | None) -> LaunchCommand:
    plan, caps = settings.plan, settings.caps
    words = ["python", "-m", "sglang.launch_server", "--model-path", MODEL]
    words += ["--tp-size", str(plan.tp)]
    if plan.pp > 1:
        words += ["--pp-size", str(plan.pp)]
    if plan.dp > 1:
        words += ["--dp-size", str(plan.dp)]
    words += ["--max-running-requests", str(caps.max_num_seqs)]
    words += ["--chunked-prefill-size", str(caps.max_num_batched_tokens)]
    if max_model_len is not None:
        words += ["--context-length", str(max_model_len)]
    return LaunchCommand(system=System.SGLANG, command=shlex.join([*words, *_format(precision)]))


def _caps(max_num_seqs: int, max_num_batched_tokens: int) -> list[str]:
    return [
        "--max-num-seqs",
        str(max_num_seqs),
        "--max-num-batched-tokens",
        str(max_num_batched_tokens),
    ]


def _context(max_model_len: int | None) -> list[str]:
    return [] if max_model_len is None else ["--max-model-len", str(max_model_len)]


def _format(precision: Precision) -> list[str]:
    """fp8: layers' weights and products in fp8, the rest in bfloat16. int4: a checkpoint that was
    quantised (AWQ, GPTQ) says so itself."""
    dtype = ["--dtype", precision.dtype.value]
    return [*dtype, "--quantization", "fp8"] if precision is Precision.FP8 else dtype
