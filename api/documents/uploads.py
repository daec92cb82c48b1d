"""Uploaded traces as a job names them: ``wl_...[,seconds=60,...]`` in place of a SPEC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tuner.workload.spec import WorkloadSpec

_NAMED = re.compile(r"\s*(wl_\w+)\s*(,.*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class NamedUpload:
    """An uploaded trace and the options that follow its id."""

    workload_id: str
    options: str

    def at(self, form: str, path: Path) -> str:
        """The SPEC of the same trace in a file.

        Raises:
            WorkloadError: an option that traces of this format do not take.
        """
        return WorkloadSpec.parse(f"{form}:{path}{self.options}").text


def find_upload(workload: str) -> NamedUpload | None:
    """The uploaded trace that ``workload`` names; None for a SPEC."""
    named = _NAMED.fullmatch(workload)
    if named is None:
        return None
    return NamedUpload(workload_id=named[1], options=named[2] or "")
