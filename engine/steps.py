"""Steps: what the scheduler sends to ranks, what comes back, and the sample each step leaves.

Every message between processes is a struct of this file, encoded by msgspec (never pickle).
Arrays travel as raw little-endian bytes beside their dtype's fixed name.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from engine.plan import Mode

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
UInt64Array = npt.NDArray[np.uint64]


class StepShape(msgspec.Struct, frozen=True, kw_only=True):
    """The size of one step: everything its time depends on.

    ``decode_context_tokens`` sums the KV length each decode token attends to;
    ``prefill_attention_pairs`` sums query-key pairs of prefill chunks,
    ``q*context + q*(q+1)/2`` per chunk; ``prefill_context_tokens`` sums the KV length read.
    """

    mode: Mode = Mode.BASE
    num_seqs: int = 0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    decode_context_tokens: int = 0
    prefill_context_tokens: int = 0
    prefill_attention_pairs: int = 0
    num_sampled: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the step, n of the shift rule."""
        return self.num_decode_tokens + self.num_prefill_tokens


class StepPlan(msgspec.Struct, tag="step", kw_only=True):
    """One step for every rank of a replica. Ranks hold no request state and decide nothing.

    S sequences, N tokens, R sampled rows, W blocks in the widest table. Arrays as bytes:
    ``query_lens`` i4[S], ``context_lens`` i4[S] (tokens already in the cache),
    ``block_tables`` i4[S, W] (row-major, unused entries -1), ``token_ids`` i4[N] (flattened),
    ``sample_seqs`` i4[R] (which of the S sequences sample, from their last token), and per
    sampled row ``temperatures`` f4, ``top_ks`` i4, ``top_ps`` f4, ``seeds`` u8 and
    ``positions`` i4 (output position, the counter of the randomness).
    """

    step_id: int
    shape: StepShape
    query_lens: bytes = b""
    context_lens: bytes = b""
    block_tables: bytes = b""
    token_ids: bytes = b""
    sample_seqs: bytes = b""
    temperatures: bytes = b""
    top_ks: bytes = b""
    top_ps: bytes = b""
    seeds: bytes = b""
    positions: bytes = b""
    return_logits: bool = False

    @property
    def mode(self) -> Mode:
        return self.shape.mode


class StepResult(msgspec.Struct, tag="result", kw_only=True):
    """What the last stage's first rank answers: ``token_ids`` i4[R] in ``sample_seqs`` order.

    ``logits`` (f8[R, vocab_size], only when asked for) are before temperature. Times are
    seconds on that rank: ``input_s`` reading and copying the plan, ``forward_s`` the pass
    without the collectives' waiting, ``communication_s`` inside collectives, ``sample_s`` the
    sampler.
    """

    step_id: int
    token_ids: bytes = b""
    logits: bytes | None = None
    input_s: float = 0.0
    forward_s: float = 0.0
    communication_s: float = 0.0
    sample_s: float = 0.0


class StepSample(msgspec.Struct, frozen=True, kw_only=True):
    """Telemetry of one step, always on; feeds metrics and the cost model.

    ``start_s`` is on the engine's clock; ``step_s`` spans submit to result.
    """

    step_id: int
    plan: str
    replica: int
    shape: StepShape
    padded_tokens: int
    start_s: float
    step_s: float
    schedule_s: float
    input_s: float
    forward_s: float
    communication_s: float
    sample_s: float
    output_s: float
    kv_usage: float


class RankSetup(msgspec.Struct, tag="setup", kw_only=True):
    """First message to a rank: who it is and what it loads. Paths and enums as strings."""

    model_dir: str
    plan: dict[str, Any]
    rank: int
    dtype: str
    device: str
    block_size: int
    num_kv_blocks: int
    max_batched_tokens: int
    backend: str
    init_method: str
    link: dict[str, float] | None
    timeout_s: float


class RankReady(msgspec.Struct, tag="ready", kw_only=True):
    """A rank has loaded its shard. ``weight_bytes`` counts resident parameter storage once."""

    rank: int
    weight_bytes: int
    kv_bytes: int


class RankFailure(msgspec.Struct, tag="failure", kw_only=True):
    """A rank raised; ``detail`` is its traceback's text.

    ``kind`` names the class when it was one of ``engine.errors``; ``detail`` is then its message.
    """

    rank: int
    step_id: int | None
    detail: str
    kind: str = ""


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Ranks finish what was sent before and exit."""


ToRank = RankSetup | StepPlan | Shutdown
FromRank = RankReady | StepResult | RankFailure


def int32(raw: bytes) -> Int32Array:
    """View bytes of the wire as i4."""
    return np.frombuffer(raw, dtype=np.int32)


def float32(raw: bytes) -> Float32Array:
    """View bytes of the wire as f4."""
    return np.frombuffer(raw, dtype=np.float32)


def uint64(raw: bytes) -> UInt64Array:
    """View bytes of the wire as u8."""
    return np.frombuffer(raw, dtype=np.uint64)
