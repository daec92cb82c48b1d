"""A campaign's injections in a file, line by line as they happen: one that is cut is not lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.campaign import Injection, Outcome
from benchmarks.chaos.traffic import End


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What one or several runs of the same campaign did.

    ``campaign`` tells which campaign it is: a run of another one cannot be added. Each run starts a
    world of its own and goes on with the injection after the last one.
    """

    path: Path
    campaign: dict[str, Any]

    def read(self) -> Outcome:
        """What earlier runs did; nothing where there is no file yet.

        Raises:
            ValueError: the file is of another campaign, or no journal.
        """
        outcome = Outcome()
        for line in self._lines():
            match line:
                case {"injection": fields}:
                    outcome.injections.append(_injection(fields))
                case {"end": fields}:
                    outcome.leftovers += fields["leftovers"]
                    outcome.num_looks_at_end += 1
                case {"campaign": campaign}:
                    outcome.num_runs += 1
                    if campaign != self.campaign:
                        raise ValueError(
                            f"{self.path} is the journal of {campaign}, not of {self.campaign}: "
                            "give another file, or the same options"
                        )
                case _:
                    raise ValueError(f"{self.path} is not a journal: {line}")
        return outcome

    def begin(self) -> None:
        """Note that a run begins."""
        self._write({"campaign": self.campaign})

    def add(self, injection: Injection) -> None:
        self._write({"injection": vars(injection)})

    def end(self, leftovers: list[str]) -> None:
        """Note that a run came to its end, and what was left behind."""
        self._write({"end": {"leftovers": leftovers}})

    def _lines(self) -> Iterator[Any]:
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):  # else it was cut in the middle of it
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{self.path} is not a journal: {error}") from error

    def _write(self, line: dict[str, Any]) -> None:
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _injection(fields: dict[str, Any]) -> Injection:
    ends = Counter({End(end): count for end, count in fields["ends"].items()})
    return Injection(**{**fields, "ends": ends, "refusals": Counter(fields["refusals"])})
