"""What a host and its ranks say to each other, encoded by msgspec (never pickle)."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.spec.steps import StepPlan, StepResult

# Asks a rank whether it is there and idle; it answers with the same.
PING = b""


class RankSetup(msgspec.Struct, tag="setup", kw_only=True):
    """First message to a rank: who it is and what it loads. Paths and enums as strings."""

    model_dir: str
    plan: dict[str, Any]
    rank: int
    dtype: str
    device: str
    block_size: int
    num_kv_blocks: int
    num_slots: int
    max_blocks_per_seq: int
    has_parallel_sampling: bool
    backend: str
    init_method: str
    link: dict[str, float] | None
    timeout_s: float
    num_threads: int = 1
    max_graph_tokens: int = 0
    quantisation: str | None = None


class RankReady(msgspec.Struct, tag="ready", kw_only=True):
    """A rank has loaded its shard. ``weight_bytes`` counts resident parameter storage once;
    ``computes_by`` says for people what runs its products, on how many threads.
    """

    rank: int
    weight_bytes: int
    kv_bytes: int
    computes_by: str = ""


class RankFailure(msgspec.Struct, tag="failure", kw_only=True):
    """A rank raised; ``detail`` is its traceback's text.

    ``kind`` names the class when it was one of ``engine.spec.errors``; ``detail`` is then its
    message.
    """

    rank: int
    step_id: int | None
    detail: str
    kind: str = ""


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Ranks finish what was sent before and exit."""


ToRank = RankSetup | StepPlan | Shutdown


FromRank = RankReady | StepResult | RankFailure
