"""What an answer is about, in two or three lines: nobody should have to recall the command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from engine.spec.model import DType
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import OWN_BACKEND
from tuner.hardware import Precision
from tuner.profiling.profile import PLAIN
from tuner.spec.machine import Fingerprint
from tuner.workload.workload import Workload

WIDTH = 80
INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked, wherever it runs; ``sla`` None: the run is judged by none."""

    model: str
    workload: Workload
    sla: Sla | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Title:
    """The question and what answers it: ``place`` is the hardware, ``system`` what serves there."""

    asked: Asked
    dtype: str
    place: str
    system: str

    @classmethod
    def of_node(cls, node: Node, asked: Asked) -> Title:
        """On hardware that is not here, as a backend's profile says."""
        backend = node.backend
        return cls(
            asked=asked,
            dtype=node.precision.value,
            place=node.place,
            system=f"{backend.choice} (profile version {backend.version})",
        )

    @classmethod
    def of_machine(
        cls, machine: Fingerprint, dtype: DType, asked: Asked, *, weights: str | None = None
    ) -> Title:
        """On this machine, as its cost model says; the engine there is ours. ``weights``: as
        :class:`~tuner.step_model.model.StepModel` names what layers are held in."""
        held = "" if weights in (None, PLAIN) else f" with {weights} weights"
        return cls(
            asked=asked,
            dtype=f"{Precision.of(dtype).value}{held}",
            place=f"this machine ({machine})",
            system=f"{OWN_BACKEND} {version(OWN_BACKEND)}",
        )

    def __str__(self) -> str:
        """The title in one line, as documents have it."""
        return "; ".join(self.parts)

    def lines(self) -> list[str]:
        """The title as a terminal shows it: no line is wider than ``WIDTH`` columns."""
        return [line for part in self.parts for line in _wrapped(part)]

    @property
    def parts(self) -> tuple[str, str, str]:
        """What runs where, the load, and what it is judged by."""
        asked = self.asked
        sla = "no SLA" if asked.sla is None else f"SLA {asked.sla}"
        return (
            f"{asked.model} in {self.dtype} on {self.place}, served by {self.system}",
            f"workload {asked.workload.source.spec}",
            f"{sla}; seed {asked.seed}",
        )


def _wrapped(text: str) -> Iterator[str]:
    """``text`` cut behind spaces and commas, and within a word where that alone is too wide."""
    line = ""
    for piece in _pieces(text):
        if len(line) + len(piece.rstrip()) > WIDTH:
            yield line.rstrip()
            line = INDENT
        line += piece
    yield line.rstrip()


def _pieces(text: str) -> Iterable[str]:
    room = WIDTH - len(INDENT)
    for word in text.replace(",", ",\0").replace(" ", " \0").split("\0"):
        yield from (word[at : at + room] for at in range(0, len(word), room))
