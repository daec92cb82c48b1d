"""What an exporter is told, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from engine.spec.settings import Settings, StepOrder
from tuner.hardware import KvFormat, MemoryEstimate, Precision

MODEL = "MODEL"
"""Stands for the operator's own checkpoint, where none is known."""
PORT = 8000
# The share of the estimated KV room to use: a real system that has a little less must still start.
CONTEXT_SHARE = 0.9


class System(StrEnum):
    """Serving systems that a command can be written for."""

    GEARSHIFT = "gearshift"
    VLLM = "vllm"
    ARCTIC = "arctic"
    SGLANG = "sglang"
    TRTLLM = "trtllm"


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """``text`` of the YAML file ``name``, and the command that reads it.

    ``is_needed``: the entry's own command reads it too; else it is another way to say the same.
    """

    name: str
    text: str
    command: str
    is_needed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "text": self.text,
            "command": self.command,
            "is_needed": self.is_needed,
        }


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """``command`` for ``system``, or None and why there is none; ``note`` is what to mind.

    A rehearsal serves the settings without the hardware: no model is run. ``versions`` are the
    releases it is written for; ``arguments/`` says which published list was read.
    """

    system: System
    command: str | None = None
    note: str | None = None
    is_rehearsal: bool = False
    versions: str | None = None
    config: ConfigFile | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "system": self.system.value,
            "command": self.command,
            "note": self.note,
            "is_rehearsal": self.is_rehearsal,
            "versions": self.versions,
            "config": None if self.config is None else self.config.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Room:
    """How the simulation divided the bytes of one device; ``kv_tokens`` is what a replica holds."""

    device_bytes: float
    usable_bytes: float
    weight_bytes: float
    kv_bytes: float
    kv_tokens: int

    @classmethod
    def of(cls, memory: MemoryEstimate, device_bytes: float) -> Room:
        return cls(
            device_bytes=device_bytes,
            usable_bytes=memory.usable_bytes,
            weight_bytes=memory.weight_bytes,
            kv_bytes=memory.kv_bytes,
            kv_tokens=memory.kv_tokens,
        )

    @property
    def usable_share(self) -> float:
        """The share of the device for weights, steps and KV."""
        return self.usable_bytes / self.device_bytes

    @property
    def static_share(self) -> float:
        """The share of the device for weights and KV."""
        return (self.weight_bytes + self.kv_bytes) / self.device_bytes

    @property
    def free_share(self) -> float:
        """KV's, of what weights and steps leave of the device."""
        reserved = self.device_bytes - self.usable_bytes
        return self.kv_bytes / (self.kv_bytes + reserved)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is served, beside the settings.

    ``backend``: what the settings were simulated as, ``backend_choice`` with its release and what
    was changed. ``is_async``: asynchronous scheduling where it must be said. ``hardware``: what an
    engine of this project is paced as where its ranks cannot compute in ``precision``.
    ``checkpoint``: what other systems load, ``folder``: what an engine of this project loads.
    ``max_model_len``: the context asked for, None: the model's own, ``positions``.
    ``longest_tokens``: the longest request simulated. ``kv``: what keys and values are kept in.
    ``queued_tokens``: prompt tokens that may wait within the TTFT bound.
    """

    precision: Precision
    backend: str = System.GEARSHIFT.value
    backend_choice: str | None = None
    is_async: bool | None = None
    step_order: StepOrder = StepOrder.MIXED
    hardware: str | None = None
    checkpoint: str | None = None
    folder: str | None = None
    max_model_len: int | None = None
    positions: int | None = None
    longest_tokens: int = 1
    room: Room | None = None
    keeps_prefixes: bool = False
    kv: KvFormat = KvFormat.AUTO
    queued_tokens: int | None = None
    port: int = PORT

    @property
    def model(self) -> str:
        return self.checkpoint or MODEL

    @property
    def _longest(self) -> int | None:
        return self.max_model_len or self.positions

    @property
    def is_cut(self) -> bool:
        """Whether one request of the whole context would not fit the KV cache."""
        room, longest = self.room, self._longest
        return room is not None and longest is not None and longest > room.kv_tokens

    @property
    def context(self) -> int | None:
        """Tokens of the context to serve; None: the model's own."""
        if not self.is_cut or self.room is None:
            return self.max_model_len
        held = self.room.kv_tokens
        return min(held, max(int(held * CONTEXT_SHARE), self.longest_tokens))

    @property
    def context_note(self) -> str | None:
        if not self.is_cut or self.room is None:
            return None
        return (
            f"context cut to {self.context} of {self._longest} tokens: the KV cache has room for "
            f"about {self.room.kv_tokens}"
        )


class Exporter(Protocol):
    """Writes one system's command."""

    @property
    def system(self) -> System: ...

    @property
    def flags(self) -> Mapping[str, str]:
        """Every published argument it uses, and what for."""
        ...

    def export(self, settings: Settings, served: Served) -> LaunchCommand:
        """The command, or the reason why the system cannot run the settings."""
        ...


def share(value: float) -> str:
    """A share of memory, rounded down to thousandths: never more than was simulated."""
    return f"{int(value * 1000) / 1000:g}"


def join_notes(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None
