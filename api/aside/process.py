"""Runs one piece of work in a child process that cannot take more than it is given.

The service stays quick and small whatever a request brings: the child has a memory limit, a limit
of processor time and one of wall time, and nothing of the service's secrets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.wire.child import inherited_environment

Json = dict[str, Any]
MIB = 2**20
# The exit code of a child without memory; if a signal ended it, that was a limit, too.
OUT_OF_MEMORY = 3
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class AsideError(Exception):
    """What was asked cannot be done; the message is for whoever asked."""


@dataclass(frozen=True, kw_only=True)
class AsideLimits:
    """What a piece of work may take."""

    seconds: float
    memory_mib: int


def run_aside(task: str, question: Mapping[str, Any], limits: AsideLimits) -> Json:
    """The answer of ``task`` (:mod:`api.aside.tasks`) to ``question``, both JSON.

    Raises:
        AsideError: the input is at fault, or the work took more than its limits.
    """
    asked = {"task": task, "question": dict(question), "memory_bytes": limits.memory_mib * MIB}
    asked["processor_s"] = max(1, round(limits.seconds))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "api.aside"],
            input=json.dumps(asked).encode(),
            stdout=subprocess.PIPE,
            env={**ONE_THREAD, **inherited_environment()},
            timeout=limits.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AsideError(f"it takes longer than {limits.seconds:g} s") from error
    if done.returncode == OUT_OF_MEMORY or done.returncode < 0:
        raise AsideError(
            f"it takes more than {limits.seconds:g} s or {limits.memory_mib} MiB of memory"
        )
    done.check_returncode()
    answer: Json = json.loads(done.stdout)
    if "error" in answer:
        raise AsideError(answer["error"])
    return answer
