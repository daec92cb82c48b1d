"""Which of a processor's instructions the engine's C++ uses: all, or fewer by name.

Fewer make different processors compute alike, to the bit, and let one machine test what others run.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine.spec.errors import EngineError

INSTRUCTIONS_VARIABLE = "GEARSHIFT_INSTRUCTIONS"
ALL = ("-march=native",)
# What tells one processor's instructions from another's in /proc/cpuinfo, on x86-64 and Arm.
PROCESSOR_LINES = ("flags", "Features", "vendor_id", "cpu family", "model", "CPU part")


@dataclass(frozen=True, kw_only=True)
class InstructionSet:
    """``flags`` tell the compiler of it; a processor has it if its /proc/cpuinfo names all of
    ``needs``.
    """

    machine: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_AVX2 = frozenset({"avx2", "fma", "bmi2", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = ("-march=x86-64-v4", "-mavx512vnni")


def _x86(*flags: str, needs: Set[str]) -> InstructionSet:
    return InstructionSet(machine="x86_64", flags=flags, needs=frozenset(needs))


INSTRUCTION_SETS = {
    "sse": _x86("-march=x86-64-v2", needs={"ssse3", "sse4_1", "sse4_2"}),
    "avx2": _x86("-march=x86-64-v3", needs=_AVX2),
    "avx512": _x86("-march=x86-64-v4", needs=_AVX512),
    "avx512-vnni": _x86(*_VNNI, needs=_AVX512 | {"avx512_vnni"}),
    # Products of bfloat16 in one instruction, as on AMD, or by floats, as on Intel.
    "avx512-bf16": _x86(
        *_VNNI,
        "-mavx512bf16",
        "-DGS_WIDENS=false",
        needs=_AVX512 | {"avx512_vnni", "avx512_bf16"},
    ),
    "avx512-bf16-by-floats": _x86(
        *_VNNI,
        "-mavx512bf16",
        "-DGS_WIDENS=true",
        needs=_AVX512 | {"avx512_vnni", "avx512_bf16"},
    ),
    "neon": InstructionSet(
        machine="aarch64", flags=("-march=armv8-a",), needs=frozenset({"asimd"})
    ),
}


def instruction_flags() -> tuple[str, ...]:
    """What the compiler is told: all that this processor has, or what ``GEARSHIFT_INSTRUCTIONS``
    names.

    Raises:
        EngineError: it names none that is known, or one that this processor lacks.
    """
    name = os.environ.get(INSTRUCTIONS_VARIABLE, "")
    if not name:
        return ALL
    if name not in INSTRUCTION_SETS:
        raise EngineError(
            f"{INSTRUCTIONS_VARIABLE}={name}: instructions are {', '.join(INSTRUCTION_SETS)}, or "
            "all of the processor where it is not set"
        )
    if name not in list_here():
        here = ", ".join(list_here()) or "none by name"
        raise EngineError(f"{INSTRUCTIONS_VARIABLE}={name}: this processor has {here}")
    return INSTRUCTION_SETS[name].flags


def list_here() -> list[str]:
    """The names of those that this processor has."""
    words = _words(processor_identity())
    return [
        name
        for name, found in INSTRUCTION_SETS.items()
        if found.machine == platform.machine() and found.needs <= words
    ]


@cache
def processor_identity() -> str:
    """What this machine's first processor can do. Machines of several kinds may share a folder,
    which then holds a library for each kind.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    first, _, _ = text.partition("\n\n")
    fields = (line.partition(":") for line in first.splitlines())
    return "\n".join(f"{k.strip()}:{v}" for k, _, v in fields if k.strip() in PROCESSOR_LINES)


def _words(identity: str) -> set[str]:
    return set(identity.replace(":", " ").split())
