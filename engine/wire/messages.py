"""What a host and its ranks say to each other, encoded by msgspec (never pickle)."""

from __future__ import annotations

import msgspec

from engine.spec.config import LinkEmulation
from engine.spec.share import RankShare
from engine.spec.steps import StepPlan, StepResult

# Asks a rank whether it is there and idle; it answers with the same.
PING = b""


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """Where ranks meet: ``address`` is the library of shared memory ("": plain Python), or the
    socket of torch.distributed. A rank that does not come to a collective is waited for
    ``timeout_s``.
    """

    backend: str
    address: str
    timeout_s: float


class RankSetup(msgspec.Struct, tag="setup", kw_only=True):
    """First message to a rank: its share, and where it meets the others, over which link."""

    share: RankShare
    meeting: Meeting
    link: LinkEmulation | None = None
    num_threads: int = 1


class RankReady(msgspec.Struct, tag="ready", kw_only=True):
    """A rank has loaded its shard. ``weight_bytes`` counts resident parameter storage once;
    ``computes_by`` says in words what runs its products, on how many threads.
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
