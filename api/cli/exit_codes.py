"""How commands end: one table for all of them, in their help and in docs/command-line.md."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.spec.measurement import Measurement
    from policies.sla import Sla


class ExitCode(IntEnum):
    """The exit code of a command; a script can tell by it what to do next."""

    DONE = 0
    FAULT = 1
    MISTAKE = 2
    NOT_MET = 3
    REQUESTS_FAILED = 4
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """What it says, in a few words."""
        return MEANINGS[self]

    @classmethod
    def of(cls, measurement: Measurement, sla: Sla | None) -> ExitCode:
        """How a command ends that ran requests, live or simulated, and judged them by ``sla``."""
        from engine.spec.measurement import Outcome
        from policies.attainment import judge

        if measurement.count(Outcome.ERRORED) or measurement.count(Outcome.TIMED_OUT):
            return cls.REQUESTS_FAILED
        if sla is not None and not judge(sla, measurement).is_met:
            return cls.NOT_MET
        return cls.DONE


MEANINGS = {
    ExitCode.DONE: "met, or done",
    ExitCode.FAULT: "our fault, or a part that died",
    ExitCode.MISTAKE: "wrong input",
    ExitCode.NOT_MET: "SLA missed, or infeasible",
    ExitCode.REQUESTS_FAILED: "requests failed, whatever the SLA says",
    ExitCode.INTERRUPTED: "interrupted",
}
EPILOG = f"Exit codes: {'; '.join(f'{code.value} {code.meaning}' for code in ExitCode)}."
"""For the end of every help: one line."""
