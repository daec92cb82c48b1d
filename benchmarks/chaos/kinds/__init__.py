"""Every kind of fault that a campaign throws."""

from __future__ import annotations

from benchmarks.chaos.kinds import changes, clients, processes, stores
from benchmarks.chaos.kinds.kind import Kind

ALL: tuple[Kind, ...] = (*processes.KINDS, *changes.KINDS, *stores.KINDS, *clients.KINDS)
