"""Every kind of fault that a campaign throws."""

from __future__ import annotations

from benchmarks.chaos.kinds import changes, clients, processes, stores
from benchmarks.chaos.kinds.kind import Kind
from benchmarks.chaos.kinds.pairs import pair_of

SINGLE = (*processes.KINDS, *changes.KINDS, *stores.KINDS, *clients.KINDS)
ALL: tuple[Kind, ...] = (*SINGLE, pair_of(SINGLE))
