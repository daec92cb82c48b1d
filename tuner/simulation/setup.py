"""What one simulated replica runs with."""

from __future__ import annotations

from dataclasses import dataclass

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.settings import Caps, Order


@dataclass(frozen=True, kw_only=True)
class ReplicaSetup:
    """What a replica runs with; ``num_kv_blocks`` is per rank, ``depth`` the pipeline's stages.

    ``stops_at_ends``: somebody outside looks at the replica when a request ends (a client who
    then sends the next one, a router, an admission limit), so no stretch goes past that.
    ``schedules_ahead``: a step is scheduled when the one before starts, so that a request which
    is seen during a step misses the next one too. ``queues_ahead``: as this project's engine does
    with overlap, shortly before the one before ends (see ``tuner.simulation.queued_replica``).
    """

    caps: Caps
    envelope: Caps
    chooser: ModeChooser
    timer: StepTimer
    num_kv_blocks: int
    block_size: int
    max_model_len: int
    depth: int
    order: Order
    keeps_prefixes: bool
    stops_at_ends: bool
    schedules_ahead: bool = False
    queues_ahead: bool = False
